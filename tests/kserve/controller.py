"""What KServe's controller makes of an InferenceService in Standard mode: Deployments, Services, scalers, addresses.

Source: kserve/kserve at commit aaac4e29, under pkg/controller/v1beta1/inferenceservice unless a function names another
path. The storage initializer and the agent are left out, since KServe's pod webhook adds them when it makes the pods;
tests with pods add their own.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

Object = dict[str, Any]

LABEL = "serving.kserve.io/inferenceservice"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
CONTAINER = "kserve-container"
AGENT_PORT = 9081

_INTERNAL = "internal.serving.kserve.io/"
# pkg/constants/constants.go, ServiceAnnotationDisallowedList: these stay on the InferenceService.
_KEPT = (
    "autoscaling.knative.dev/min-scale",
    "autoscaling.knative.dev/max-scale",
    f"{_INTERNAL}storage-initializer-sourceuri",
    "kubectl.kubernetes.io/last-applied-configuration",
    "modelFormat",
)
# Fields of a component that are not part of its pods.
_EXTENSIONS = {
    *(
        "minReplicas",
        "maxReplicas",
        "scaleTarget",
        "scaleMetric",
        "scaleMetricType",
        "autoScaling",
        "timeout",
        "logger",
    ),
    *("containerConcurrency", "canaryTrafficPercent", "batcher", "labels", "annotations", "deploymentStrategy"),
    *("model", "name", "storageUris", "workerSpec"),
}
# utils/utils.go, MergePodSpec: the pod fields that come from a runtime; its labels and annotations are merged
# elsewhere.
_FROM_RUNTIME = ("nodeSelector", "affinity", "tolerations", "volumes", "imagePullSecrets", "schedulerName")
_FIXED = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")


class UnservableError(ValueError):
    """The controller makes no objects and gives the reason and message in the status."""


def service_name(service: Object, part: str, name: str = "") -> str:
    """Return the name of a component's Deployment and Service (pkg/constants/constants.go, PredictorServiceName)."""
    return "-".join(filter(None, (service["metadata"]["name"], name, part)))


def objects(service: Object, runtime: Object | None, ready: Mapping[str, bool] | None = None) -> Iterator[Object]:
    """Yield only a Service, a Deployment and, if configured, an autoscaler for each component.

    In particular there is no Service with the InferenceService's name: that name is a host name of a gateway.

    Args:
        service: the stored InferenceService.
        runtime: the spec of the ServingRuntime that its predictor names; canaries have the same one.
        ready: which canaries have an available pod; while one has, the predictor's own minimum shrinks.

    Raises:
        UnservableError: KServe makes no objects of it.
    """
    spec = service["spec"]
    for canary in spec.get("canary") or ():
        predictor = merged(spec["predictor"], canary["predictor"])
        for field in _FIXED:
            predictor.pop(field, None)
        predictor["minReplicas"] = canary_replicas(service, canary)
        bounds = {"minReplicas": predictor["minReplicas"]}
        yield from _component(service, predictor, bounds, _predictor(service, predictor, runtime), runtime)
    stable = copy.deepcopy(spec["predictor"])
    if "minReplicas" in stable:
        taken = sum(canary_replicas(service, c) for c in spec.get("canary") or () if _ready(c, ready))
        stable["minReplicas"] = max(stable["minReplicas"] - taken, 1) if taken else stable["minReplicas"]
    yield from _component(service, stable, stable, _predictor(service, stable, runtime), runtime)
    if transformer := spec.get("transformer"):
        yield from _component(service, transformer, transformer, _transformer(service))


def addresses(service: Object) -> dict[str, Any]:
    """Return the addresses in its status (reconcilers/ingress: createRawURL, createAddress, domain.go).

    `url` follows the domain template, by default example.com, even if nothing answers there; `address` is the Service
    of the transformer or, without one, of the predictor.
    """
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    if service["spec"].get("transformer"):
        inside = service_name(service, "transformer")
    else:
        inside = service_name(service, "predictor", service["spec"]["predictor"].get("name", ""))
    return {
        "url": f"http://{name}-{namespace}.example.com",
        "address": {"url": f"http://{inside}.{namespace}.svc.cluster.local"},
    }


def canary_replicas(service: Object, canary: Object) -> int:
    """Return how many pods a canary has (components/predictor.go, canaryReplicaCount)."""
    if "minReplicas" in canary["predictor"]:
        return int(canary["predictor"]["minReplicas"])
    return math.ceil(service["spec"]["predictor"].get("minReplicas", 1) * canary["trafficPercent"] / 100)


def merged(stable: Object, canary: Object) -> Object:
    """Return a canary merged over its predictor (buildCanaryPredictor): mappings are merged, lists are replaced."""
    found = copy.deepcopy(stable)
    for key, value in canary.items():
        below = found.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        found[key] = merged(below, value) if both else copy.deepcopy(value)
    return found


def _ready(canary: Object, ready: Mapping[str, bool] | None) -> bool:
    return bool((ready or {}).get(canary["predictor"]["name"]))


def _predictor(service: Object, predictor: Object, runtime: Object | None) -> Object:
    """Return a predictor's pod (components/predictor.go: reconcileModel, buildPodSpec; utils/utils.go)."""
    model = predictor["model"]
    _supported(model, runtime)
    assert runtime is not None
    found = next((c for c in runtime["containers"] if c["name"] == CONTAINER), None)
    if found is None:
        raise UnservableError(f"InvalidPredictorSpec: failed to find {CONTAINER} in ServingRuntime containers")
    # MergeRuntimeContainers: a strategic merge, with the model's arguments after the runtime's. The API server stores a
    # missing name as an empty one.
    patch = {key: value for key, value in model.items() if key in _CONTAINER_FIELDS and (key, value) != ("name", "")}
    container = _strategic(found, patch)
    container["args"] = [*found.get("args", ()), *model.get("args", ())]
    container = _placed(container, service)
    pod = {key: copy.deepcopy(runtime[key]) for key in _FROM_RUNTIME if key in runtime}
    pod = _strategic(pod, {key: value for key, value in predictor.items() if key not in _EXTENSIONS})
    others = [c for c in runtime["containers"] if c["name"] != CONTAINER]
    return pod | {"containers": [_named(container, service), *copy.deepcopy(others)]}


def _supported(model: Object, runtime: Object | None) -> None:
    """Refuse a runtime (components/predictor.go, reconcileModel; predictor_model.go, RuntimeSupportsModel)."""
    if runtime is None:
        raise UnservableError("RuntimeNotRecognized: Waiting for runtime to become available")
    if runtime.get("disabled"):
        raise UnservableError("RuntimeDisabled: Specified runtime is disabled")
    asked = model.get("protocolVersion")
    # A runtime that names no protocol speaks v1 (pkg/apis/serving/v1alpha1, IsProtocolVersionSupported).
    if asked and asked not in runtime.get("protocolVersions", (asked,)):
        raise UnservableError("NoSupportingRuntime: Specified runtime does not support specified protocol version")
    wanted = model["modelFormat"]
    for item in runtime.get("supportedModelFormats", ()):
        if item["name"] == wanted["name"] and wanted.get("version") in (None, item.get("version")):
            return
    raise UnservableError("NoSupportingRuntime: Specified runtime does not support specified framework/version")


def _transformer(service: Object) -> Object:
    """Return a transformer's pod (components/transformer.go; transformer_custom.go, GetContainer)."""
    component = service["spec"]["transformer"]
    pod = {key: copy.deepcopy(value) for key, value in component.items() if key not in _EXTENSIONS}
    container = pod["containers"][0]
    host = service_name(service, "predictor", service["spec"]["predictor"].get("name", ""))
    given = {
        "--model_name": service["metadata"]["name"],
        "--predictor_host": f"{host}.{service['metadata']['namespace']}",
        "--http_port": "8080",
    }
    args = container.setdefault("args", [])
    for flag, value in given.items():
        # pkg/utils/utils.go, IncludesArg: it looks for the beginning of an argument.
        if not any(argument.startswith(flag) for argument in args):
            args += [flag, value]
    pod["containers"][0] = _named(container, service)
    return pod


def _named(container: Object, service: Object) -> Object:
    env = [*container.get("env", ()), {"name": "INFERENCE_SERVICE_NAME", "value": service["metadata"]["name"]}]
    return container | {"env": env}


def _placed(value: Any, service: Object) -> Any:
    """Return a container with the placeholders replaced by the service's name (utils/utils.go, ReplacePlaceholders)."""
    if isinstance(value, dict):
        return {key: _placed(item, service) for key, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, service) for item in value]
    return value.replace("{{.Name}}", service["metadata"]["name"]) if isinstance(value, str) else value


def _component(
    service: Object, component: Object, bounds: Object, pod: Object, runtime: Object | None = None
) -> Iterator[Object]:
    metadata = _metadata(service, component, runtime)
    yield _service(metadata, component, pod)
    scaler = metadata["annotations"].get(AUTOSCALER, "hpa")
    template = {"metadata": {key: metadata[key] for key in ("labels", "annotations")}, "spec": _completed(pod)}
    spec: Object = {"selector": {"matchLabels": {"app": metadata["labels"]["app"]}}, "template": template}
    # reconcilers/deployment/deployment_reconciler.go, createRawDefaultDeployment.
    if scaler == "none" and "minReplicas" in bounds:
        spec["replicas"] = bounds["minReplicas"]
    yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
    yield from _autoscaler(scaler, metadata, bounds)


def _metadata(service: Object, component: Object, runtime: Object | None) -> Object:
    """Return the name, labels and annotations of Deployment and pods (buildObjectMeta, Transformer.Reconcile).

    The component's values win over the service's, and those win over the runtime's. The service's values go to every
    component, so a change there replaces all pods.
    """
    part = "predictor" if runtime is not None else "transformer"
    name = service_name(service, part, component.get("name", ""))
    given = [(runtime or {}), service["metadata"], component]
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    for holder in given:
        labels |= holder.get("labels") or {}
        annotations |= {key: text for key, text in (holder.get("annotations") or {}).items() if key not in _KEPT}
    if logger := component.get("logger"):
        annotations |= {f"{_INTERNAL}logger": "true", f"{_INTERNAL}logger-mode": logger["mode"]}
        annotations |= {f"{_INTERNAL}logger-sink-url": logger["url"]} if "url" in logger else {}
    if uri := component.get("model", {}).get("storageUri"):
        annotations[f"{_INTERNAL}storage-initializer-sourceuri"] = uri
    labels |= {LABEL: service["metadata"]["name"], "component": part, "app": f"isvc.{name}"}
    return {
        "name": name,
        "namespace": service["metadata"]["namespace"],
        "labels": labels,
        "annotations": annotations,
    }


def _service(metadata: Object, component: Object, pod: Object) -> Object:
    """Return a component's Service (reconcilers/service/service_reconciler.go, createDefaultSvc)."""
    given = pod["containers"][0].get("ports") or [{"name": metadata["name"], "containerPort": 8080, "protocol": "TCP"}]
    ports = [
        {
            "name": port.get("name", ""),
            "port": port["containerPort"] if number else 80,
            "targetPort": port["containerPort"],
            "protocol": port.get("protocol", "TCP"),
        }
        for number, port in enumerate(given)
    ]
    if component.get("logger") or component.get("batcher"):
        ports[0]["targetPort"] = AGENT_PORT
    spec = {"selector": {"app": metadata["labels"]["app"]}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _completed(pod: Object) -> Object:
    """Return a pod that always has a readiness probe (deployment_reconciler.go, setDefaultPodSpec)."""
    found = copy.deepcopy(pod)
    for container in found["containers"]:
        if container["name"] == CONTAINER and "readinessProbe" not in container:
            port = (container.get("ports") or [{"containerPort": 8080}])[0]["containerPort"]
            container["readinessProbe"] = {"tcpSocket": {"port": port}, "timeoutSeconds": 1, "periodSeconds": 10}
    return found


def _autoscaler(kind: str, metadata: Object, bounds: Object) -> Iterator[Object]:
    """Yield an autoscaler (reconcilers/autoscaler, hpa, keda)."""
    least = bounds.get("minReplicas", 1)
    if kind == "hpa":
        least = max(least, 1)
        target = {"type": "Utilization", "averageUtilization": bounds.get("scaleTarget", 80)}
        resource = {"name": bounds.get("scaleMetric", "cpu"), "target": target}
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]},
            "minReplicas": least,
            "maxReplicas": max(bounds.get("maxReplicas", 0), least),
            "metrics": [{"type": "Resource", "resource": resource}],
        }
        yield {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}
    elif kind == "keda":
        # From `autoScaling` only: without it there are no triggers, and KEDA's schema refuses that.
        metrics = (bounds.get("autoScaling") or {}).get("metrics")
        triggers = [
            {
                "type": item["resource"]["name"],
                "metricType": item["resource"]["target"]["type"],
                "metadata": {"value": str(item["resource"]["target"].get("averageUtilization", 80))},
            }
            for item in metrics or ()
        ]
        spec = {
            "scaleTargetRef": {"name": metadata["name"]},
            "minReplicaCount": least,
            "maxReplicaCount": max(bounds.get("maxReplicas", 0), least),
            "triggers": triggers or None,
        }
        yield {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata, "spec": spec}


# Fields of a container in `model`; the others belong to the model.
_CONTAINER_FIELDS = {
    *("name", "image", "command", "args", "env", "envFrom", "ports", "resources", "securityContext", "volumeMounts"),
    *("imagePullPolicy", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "terminationMessagePolicy"),
}
_KEYS = {"env": "name", "volumes": "name", "volumeMounts": "mountPath", "ports": "containerPort", "containers": "name"}
_KEYS |= {"imagePullSecrets": "name", "topologySpreadConstraints": "topologyKey"}


def _strategic(below: Object, above: Object) -> Object:
    """Return a strategic merge as Kubernetes does it: keyed lists are merged by key, others replaced."""
    found = copy.deepcopy(below)
    for key, value in above.items():
        old = found.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            found[key] = _strategic(old, value)
        elif isinstance(value, list) and isinstance(old, list) and key in _KEYS:
            field = _KEYS[key]
            rest = [item for item in old if item[field] not in {new[field] for new in value}]
            found[key] = [*copy.deepcopy(rest), *copy.deepcopy(value)]
        else:
            found[key] = copy.deepcopy(value)
    return found

"""What an InferenceService says about its pods on a cluster: images, resources, identity, scaling, privileges."""

import copy
import math
from typing import Any

from kubeloop import containers, names
from kubeloop.config import Loop
from kubeloop.config_cluster import Resources
from kubeloop.serving import MOST_DRAINS
from kubeloop.serving.manifest import IDENTITY

PORT = 8080
USER = 65532
AUTOSCALER = "serving.kserve.io/autoscalerClass"


def place(loop: Loop, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return an InferenceService with what its pods need on a cluster.

    KServe makes the autoscaler, from the annotation and the replicas: an HPA or, with `scaler: keda`, a ScaledObject.

    Args:
        loop: the use case; its `delivery` says how the pods run.
        manifest: as `manifest.inference_service` builds it; it is left as it is.
    """
    found = copy.deepcopy(manifest)
    delivery = loop.delivery
    found["metadata"]["annotations"][AUTOSCALER] = delivery.autoscaling.scaler
    spec = found["spec"]
    predictors = [spec["predictor"], *(canary["predictor"] for canary in spec.get("canary", ()))]
    for predictor in predictors:
        predictor |= _pod(loop, "predictor", delivery.predictor)
        predictor["model"] = _model(loop, predictor["model"])
    transformer = spec["transformer"]
    transformer |= _pod(loop, "transformer", delivery.transformer)
    transformer["volumes"] = [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}]
    (container,) = transformer["containers"]
    container |= _transformer(loop, container)
    return found


def _model(loop: Loop, model: dict[str, Any]) -> dict[str, Any]:
    """Return a predictor's model as its runtime takes it; KServe appends the arguments to the runtime's own."""
    delivery = loop.delivery
    runtime = delivery.runtime or (names.RUNTIME_GPU if delivery.predictor.gpu else names.RUNTIME)
    found = model | {"runtime": runtime, "resources": containers.resources(delivery.predictor)}
    if runtime in (names.RUNTIME, names.RUNTIME_GPU):
        found["args"] = [*model["args"], f"--drain-s={delivery.drain_s:g}"]
    elif runtime == names.RUNTIME_TRITON:
        found["args"] = [arg for arg in model["args"] if arg.startswith(IDENTITY)]
    else:
        # Another server's flags are not ours to give; it checks no digest either.
        del found["args"]
    return found


def _pod(loop: Loop, component: str, resources: Resources) -> dict[str, Any]:
    """Return the fields of a component's pod."""
    delivery, scaling = loop.delivery, loop.delivery.autoscaling
    labels = {"app.kubernetes.io/name": loop.name, names.COMPONENT: component}
    pod: dict[str, Any] = {
        # The drain begins with SIGTERM, and the answers on their way must still go out. KServe's agent in a predictor's
        # pod stays for all of it, so that a pod takes so long to end.
        "terminationGracePeriodSeconds": math.ceil(MOST_DRAINS * delivery.drain_s + loop.serving.timeout_s) + 1,
        "minReplicas": scaling.min_replicas,
        "maxReplicas": scaling.max_replicas,
        "scaleMetric": "cpu",
        "scaleTarget": scaling.cpu_percent,
        "securityContext": containers.unprivileged(USER) | {"runAsGroup": USER, "fsGroup": USER},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ],
    }
    if delivery.service_account:
        pod["serviceAccountName"] = delivery.service_account
    pod |= containers.pull_secrets(loop.pipelines.images.pull_secrets)
    return pod | containers.placement({}, (), resources.gpu)


def _transformer(loop: Loop, container: dict[str, Any]) -> dict[str, Any]:
    """Return the transformer's container; the predictor's comes from its ServingRuntime."""
    delivery, images = loop.delivery, loop.pipelines.images
    args = [*container["args"], "--host=0.0.0.0", f"--port={PORT}", f"--drain-s={delivery.drain_s:g}"]
    if delivery.runtime == names.RUNTIME_TRITON:
        # It answers 400 to null.
        args.append("--missing=nan")
    return {
        "image": images.core,
        "imagePullPolicy": images.pull_policy,
        "args": args,
        "env": [
            *containers.environment(delivery.config_map, delivery.secrets),
            *({"name": name, "value": value} for name, value in containers.LEAN.items()),
        ],
        "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
        "resources": containers.resources(delivery.transformer),
        "startupProbe": _probe("/v2/health/live", failureThreshold=60, periodSeconds=2),
        "readinessProbe": _probe("/v2/health/ready", periodSeconds=5),
        "livenessProbe": _probe("/v2/health/live", periodSeconds=10, failureThreshold=6),
        # Or nobody could say why a pod ended without reading its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **containers.confined(),
    }


def _probe(path: str, **times: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": PORT}, "timeoutSeconds": 2, **times}

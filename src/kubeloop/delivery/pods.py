"""Add the fields for pods on a cluster to an InferenceService: images, resources, identity, scaling, privileges."""

import copy
import math
from decimal import Decimal
from typing import Any

from kubeloop import names
from kubeloop.config import Loop
from kubeloop.config.cluster import Autoscaling, Resources
from kubeloop.delivery import containers
from kubeloop.delivery.manifest import IDENTITY
from kubeloop.serving import MOST_DRAINS

PORT = 8080
GRPC_PORT = 9000
METRICS_PORT = 8082
USER = 65532
_METRICS = "prometheus.kserve.io/port"
AUTOSCALER = "serving.kserve.io/autoscalerClass"

_GPU = "nvidia.com/gpu"
"""The accelerator that the chart's runtimes request."""


def place(loop: Loop, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return an InferenceService with the fields that its pods need on a cluster.

    KServe makes the autoscaler from the annotation and the replicas: an HPA or, with `scaler: keda`, a ScaledObject.
    A canary has none: KServe refuses its bounds and metrics, would make a ScaledObject without triggers, and keeps
    its HPA when the canary is removed.

    Args:
        loop: the use case; its `delivery` says how the pods run.
        manifest: as `manifest.inference_service` builds it; it is not changed.
    """
    found = copy.deepcopy(manifest)
    delivery = loop.delivery
    found["metadata"]["annotations"][AUTOSCALER] = delivery.autoscaling.scaler
    spec = found["spec"]
    canaries = [canary["predictor"] for canary in spec.get("canary", ())]
    for predictor in (spec["predictor"], *canaries):
        predictor |= _pod(loop, "predictor", delivery.predictor)
        predictor["model"] = _model(loop, predictor["model"])
    for canary, wanted in zip(canaries, spec.get("canary", ()), strict=True):
        canary["minReplicas"] = max(1, math.ceil(delivery.autoscaling.min_replicas * wanted["trafficPercent"] / 100))
        canary["annotations"] = canary["annotations"] | {AUTOSCALER: "none"}
    transformer = spec["transformer"]
    transformer |= _pod(loop, "transformer", delivery.transformer)
    for component in (spec["predictor"], transformer):
        component |= _scaling(delivery.autoscaling)
    # The PodMonitor reads there; no port of the container, since KServe's Service takes every one for clients.
    transformer["annotations"] = {_METRICS: str(METRICS_PORT)}
    transformer["volumes"] = [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}]
    (container,) = transformer["containers"]
    container |= _transformer(loop, container)
    return found


def _model(loop: Loop, model: dict[str, Any]) -> dict[str, Any]:
    """Return a predictor's model in the form of its runtime; KServe appends the arguments to the runtime's own."""
    delivery = loop.delivery
    ours, ours_gpu = (names.runtime(delivery.runtimes, server) for server in ("onnx", "onnx-gpu"))
    triton = names.runtime(delivery.runtimes, "triton")
    runtime = delivery.runtime or (ours_gpu if delivery.predictor.gpu else ours)
    resources = containers.resources(delivery.predictor)
    gpu = delivery.predictor.gpu
    if gpu and gpu.resource != _GPU and runtime in (ours_gpu, triton):
        # KServe merges the limits, so the pod would also request the runtime's usual accelerator.
        resources["limits"][_GPU] = "0"
    found = model | {"runtime": runtime, "resources": resources}
    if runtime in (ours, ours_gpu):
        found["args"] = [*model["args"], f"--drain-s={delivery.drain_s:g}"]
    elif runtime == triton:
        found["args"] = [arg for arg in model["args"] if arg.startswith(IDENTITY)]
    else:
        # We do not know another server's flags, and it does not check digests.
        del found["args"]
    return found


def _pod(loop: Loop, component: str, resources: Resources) -> dict[str, Any]:
    """Return the fields of a component's pod."""
    delivery = loop.delivery
    labels = {"app.kubernetes.io/name": loop.name, names.COMPONENT: component}
    pod: dict[str, Any] = {
        # The drain begins with SIGTERM, and pending answers must still be sent. KServe's agent in a predictor's pod
        # stays until the end of this period, so the pod takes that long to end.
        "terminationGracePeriodSeconds": math.ceil(MOST_DRAINS * delivery.drain_s + loop.serving.timeout_s) + 1,
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


def _scaling(scaling: Autoscaling) -> dict[str, Any]:
    """Return the fields from which KServe makes a component's autoscaler, as its webhook accepts them."""
    bounds = {"minReplicas": scaling.min_replicas, "maxReplicas": scaling.max_replicas}
    if scaling.scaler != "keda":
        return bounds | {"scaleMetric": "cpu", "scaleTarget": scaling.cpu_percent}
    target = {"type": "Utilization", "averageUtilization": scaling.cpu_percent}
    return bounds | {"autoScaling": {"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]}}


def _limited(resources: dict[str, Any]) -> dict[str, Any]:
    """Return resources that limit the processor.

    KServe adds a limit of one to a transformer that has none, and a pod that requests more is refused.
    """
    asked = resources["requests"]["cpu"]
    return resources | {"limits": {"cpu": asked if _cores(asked) > 1 else "1"} | resources["limits"]}


def _cores(quantity: str) -> Decimal:
    return Decimal(quantity[:-1]) / 1000 if quantity.endswith("m") else Decimal(quantity)


def _transformer(loop: Loop, container: dict[str, Any]) -> dict[str, Any]:
    """Return the transformer's container; the predictor's comes from its ServingRuntime."""
    delivery, images = loop.delivery, loop.pipelines.images
    args = [
        *container["args"],
        "--host=0.0.0.0",
        f"--port={PORT}",
        f"--metrics-port={METRICS_PORT}",
        f"--drain-s={delivery.drain_s:g}",
    ]
    if delivery.runtime == names.runtime(delivery.runtimes, "triton"):
        # It answers 400 to null.
        args.append("--missing=nan")
    ports = [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}]
    if loop.serving.grpc:
        # Not the predictor: gRPC would bypass KServe's agent and be missing from the payload log.
        args.append(f"--grpc-port={GRPC_PORT}")
        # KServe's Service takes every port, and HTTP/2 from the name (service_reconciler.go: "grpc" or "h2c").
        ports.append({"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"})
    return {
        "image": images.core,
        "imagePullPolicy": images.pull_policy,
        "args": args,
        "env": [
            *containers.environment(delivery.config_map, delivery.secrets),
            *({"name": name, "value": value} for name, value in containers.LEAN.items()),
        ],
        "ports": ports,
        "resources": _limited(containers.resources(delivery.transformer)),
        "startupProbe": _probe("/v2/health/live", failureThreshold=60, periodSeconds=2),
        "readinessProbe": _probe("/v2/health/ready", periodSeconds=5),
        "livenessProbe": _probe("/v2/health/live", periodSeconds=10, failureThreshold=6),
        # So that the reason why a pod ended is in its status, not only in its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **containers.confined(),
    }


def _probe(path: str, **times: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": PORT}, "timeoutSeconds": 2, **times}

"""Model versions as the cluster serves them, and our own applier to serve one without a pipeline."""

import json
import re
from dataclasses import asdict
from datetime import datetime
from typing import Any

from kubeloop import config, names
from kubeloop.config import Loop
from kubeloop.delivery import Applied, cluster, pods
from kubeloop.delivery import installed as of_release
from kubeloop.delivery.manifest import ModelRef, inference_service
from tests.e2e_cluster.cluster import LOOP, PREDICTOR, kubectl, one
from tests.e2e_cluster.workspace import Workspace

ISVC = "inferenceservices.serving.kserve.io"


def service() -> dict[str, Any]:
    """Return the InferenceService."""
    return one(ISVC, LOOP)


def written() -> float:
    """Return when the pipelines last changed the InferenceService, in seconds since 1970 by the API server's clock."""
    fields = json.loads(kubectl("get", ISVC, LOOP, "-o", "json", "--show-managed-fields"))["metadata"]["managedFields"]
    return max(datetime.fromisoformat(item["time"]).timestamp() for item in fields if item["manager"] == "kubeloop")


def served() -> ModelRef:
    """Return the version that the InferenceService names."""
    found = service()
    notes = found["spec"]["predictor"].get("annotations") or found["metadata"]["annotations"]
    uri = found["spec"]["predictor"]["model"]["storageUri"]
    return ModelRef(notes[names.VERSION], uri, notes[names.DIGEST], notes[names.RUN])


def remember(workspace: Workspace) -> ModelRef:
    """Record the served version for later switches."""
    found = served()
    workspace.keep(models={**workspace.record.get("models", {}), found.version: asdict(found)})
    return found


def known(workspace: Workspace) -> list[ModelRef]:
    """Return the recorded versions, the oldest first."""
    models = workspace.record.get("models", {})
    return [ModelRef(**models[version]) for version in sorted(models, key=int)]


def installed(workspace: Workspace) -> Loop:
    """Return the loop as the chart installed it."""
    name = config.load(workspace.folder / "loop.yaml").name
    return Loop.parse(of_release.loop("kubeloop", "kubeloop", name))


def serve(
    loop: Loop,
    model: ModelRef,
    *,
    canary: ModelRef | None = None,
    percent: int = 0,
    replicas: tuple[int, int] | None = None,
) -> Applied:
    """Apply the InferenceService of a version, as a promotion does, and wait until only that version serves.

    Args:
        loop: the installed loop.
        model: the version.
        canary: a second version.
        percent: the canary's share of the traffic.
        replicas: minimum and maximum number of pods of each component.
    """
    now = service()["spec"]
    (container,) = now["transformer"]["containers"]
    (features,) = (match[1] for item in container["args"] if (match := re.match("--feature-dir=(.+)", item)))
    if replicas:
        scaling = loop.delivery.autoscaling.model_copy(
            update={"min_replicas": replicas[0], "max_replicas": replicas[1]}
        )
        loop = loop.model_copy(update={"delivery": loop.delivery.model_copy(update={"autoscaling": scaling})})
    manifest = inference_service(
        loop,
        model,
        logger_url=now["predictor"]["logger"]["url"],
        feature_dir=features,
        canary=canary,
        canary_percent=percent,
    )
    return cluster.apply([pods.place(loop, manifest)], loop.delivery.ready_timeout.total_seconds())


def gateway() -> tuple[str, str] | None:
    """Return address and host name of the gateway that splits the predictors' traffic, or None without a gateway."""
    content = one("configmap", "inferenceservice-config", "kserve")["data"]["ingress"]
    ingress = json.loads(re.sub(r"^\s*//.*$", "", content, flags=re.MULTILINE))
    if not ingress.get("enableGatewayApi"):
        return None
    namespace, _, name = ingress["kserveIngressGateway"].partition("/")
    found = one("gateways.gateway.networking.k8s.io", name, namespace)
    route = one("httproutes.gateway.networking.k8s.io", PREDICTOR)
    addresses = [item["value"] for item in found["status"].get("addresses", ())]
    if not addresses:
        # This cluster assigns no addresses to load balancers, so the gateway's own Service must do.
        owner = f"gateway.envoyproxy.io/owning-gateway-name={name}"
        service, *_ = json.loads(kubectl("get", "services", "-A", "-l", owner, "-o", "json"))["items"]
        addresses = [f"{service['metadata']['name']}.{service['metadata']['namespace']}"]
    return addresses[0], route["spec"]["hostnames"][0]

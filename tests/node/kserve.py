"""KServe's controller in Standard mode, played for one InferenceService on a node: Deployments, Services, status.

What its storage initializer does, a container of our own image does: nothing of KServe's is on this machine.
"""

import copy
from typing import Any

import yaml

from kubeloop.delivery.rollout import SERVICE
from tests.control_plane.plane import ControlPlane

Object = dict[str, Any]

_CONTAINER = "kserve-container"
_MODELS = {"name": "kserve-provision-location", "mountPath": "/mnt/models"}
_MERGE = {"content-type": "application/merge-patch+json"}
_COPY = """
import sys
from pathlib import Path
from kubeloop import config
from kubeloop.bucket import Bucket
root, _, prefix = sys.argv[1].removeprefix("s3://").partition("/")
settings = config.settings().model_copy(update={"bucket": f"s3://{root}"})
sys.exit(not Bucket.open(settings).pull(prefix, Path(sys.argv[2])))
"""


class Kserve:
    """The controller's moves for one InferenceService."""

    def __init__(self, plane: ControlPlane, namespace: str, name: str) -> None:
        self._plane = plane
        self._namespace = namespace
        self._name = name
        self._path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{name}"

    def service(self) -> Object | None:
        """Return the InferenceService, if somebody applied it."""
        response = self._plane.http.get(self._path)
        return response.json() if response.is_success else None

    def deploy(self) -> None:
        """Make what KServe makes of the InferenceService as it is now."""
        service = self.service()
        assert service
        objects = [self._service(self._name, "transformer")]
        for part in ("predictor", "transformer"):
            component = service["spec"][part]
            spec = self._predictor(component) if part == "predictor" else self._transformer(component)
            objects += [self._service(f"{self._name}-{part}", part), self._deployment(service, part, spec)]
        apply = ("apply", "--server-side", "--validate=strict", "-n", self._namespace, "-f", "-")
        self._plane.kubectl(*apply, input=yaml.safe_dump_all(objects))

    def report(self) -> None:
        """Say in the status that it is ready."""
        url = f"http://{self._name}.{self._namespace}.svc.cluster.local"
        kinds = ("PredictorReady", "TransformerReady", "IngressReady", "Ready")
        conditions = [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"} for kind in kinds]
        status = {
            "conditions": conditions,
            "observedGeneration": 1,
            "deploymentMode": "Standard",
            "url": url,
            "address": {"url": url},
            "modelStatus": {"transitionStatus": "UpToDate"},
        }
        self._plane.request("PATCH", f"{self._path}/status", {"status": status}, headers=_MERGE)

    def _predictor(self, component: Object) -> Object:
        """Return the runtime's pod with the model's own fields over it, and the model copied to where it is read."""
        model = component["model"]
        path = f"/apis/serving.kserve.io/v1alpha1/namespaces/{self._namespace}/servingruntimes/{model['runtime']}"
        runtime = self._plane.request("GET", path)["spec"]
        container = copy.deepcopy(runtime["containers"][0])
        container["args"] += model.get("args", [])
        container["env"] = [*container.get("env", []), *model.get("env", [])]
        container.update({key: model[key] for key in ("resources", "securityContext") if key in model})
        container["volumeMounts"] = [*container.get("volumeMounts", []), _MODELS | {"readOnly": True}]
        initializer = {
            "name": "storage-initializer",
            "image": container["image"],
            "command": ["python", "-c", _COPY, model["storageUri"], "/mnt/models"],
            "envFrom": [{"configMapRef": {"name": "kubeloop-env"}}, {"secretRef": {"name": "kubeloop-s3"}}],
            "securityContext": container["securityContext"],
            "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "50m"}},
            "volumeMounts": [_MODELS],
        }
        volumes = [*runtime.get("volumes", []), {"name": _MODELS["name"], "emptyDir": {}}]
        return _pod(component) | {"initContainers": [initializer], "containers": [container], "volumes": volumes}

    def _transformer(self, component: Object) -> Object:
        spec = _pod(component)
        spec["containers"] = copy.deepcopy(component["containers"])
        container = spec["containers"][0]
        container["name"] = _CONTAINER
        host = f"{self._name}-predictor.{self._namespace}"
        for flag, value in (("--model_name", self._name), ("--predictor_host", host), ("--http_port", "8080")):
            if not any(argument.partition("=")[0] == flag for argument in container["args"]):
                container["args"] += [flag, value]
        return spec

    def _deployment(self, service: Object, part: str, spec: Object) -> Object:
        component = service["spec"][part]
        labels = self._labels(part)
        metadata = {
            "labels": service["metadata"].get("labels", {}) | component.get("labels", {}) | labels,
            "annotations": service["metadata"].get("annotations", {}) | component.get("annotations", {}),
        }
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": f"{self._name}-{part}"} | metadata,
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": metadata, "spec": spec}},
        }

    def _service(self, name: str, part: str) -> Object:
        spec = {"selector": self._labels(part), "ports": [{"port": 80, "targetPort": 8080}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}

    def _labels(self, part: str) -> dict[str, str]:
        return {SERVICE: self._name, "component": part}


def _pod(component: Object) -> Object:
    """Return the fields of a component that its pods take over as they are."""
    ours = ("serviceAccountName", "securityContext", "volumes", "tolerations", "nodeSelector", "imagePullSecrets")
    more = ("topologySpreadConstraints", "affinity", "automountServiceAccountToken", "enableServiceLinks")
    return {key: copy.deepcopy(component[key]) for key in (*ours, *more) if key in component}

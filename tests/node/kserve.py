"""A stand-in for KServe's controller in Standard mode, for one InferenceService: Deployments, Services, status.

tests/kserve/controller.py says what it makes. A container of our own image does the work of the storage initializer,
since nothing of KServe is on this machine.
"""

import copy
from typing import Any

import yaml

from tests.control_plane.plane import ControlPlane
from tests.kserve import controller, rules
from tests.kserve.defaults import defaulted

Object = dict[str, Any]

_MADE = ("Service", "Deployment")
_PORT = 8080
_URI = "internal.serving.kserve.io/storage-initializer-sourceuri"
_MODELS = {"name": "kserve-provision-location", "mountPath": "/mnt/models"}
_MERGE = {"content-type": "application/merge-patch+json"}
_COPY = """
import sys
from pathlib import Path
from kubeloop import config
from kubeloop.stores.bucket import Bucket
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
        """Return the InferenceService if it was applied."""
        response = self._plane.http.get(self._path)
        return response.json() if response.is_success else None

    def deploy(self) -> None:
        """Make what KServe makes of the current InferenceService; fail on what KServe would refuse."""
        service = self.service()
        assert service
        rules.validate(service)
        service = defaulted(service)
        runtime = self._runtime(service["spec"]["predictor"]["model"]["runtime"])
        made = [self._here(item) for item in controller.objects(service, runtime) if item["kind"] in _MADE]
        apply = ("apply", "--server-side", "--validate=strict", "-n", self._namespace, "-f", "-")
        self._plane.kubectl(*apply, input=yaml.safe_dump_all(made))

    def report(self) -> None:
        """Write into the status that it is ready."""
        service = self.service()
        assert service
        kinds = ("PredictorReady", "TransformerReady", "IngressReady", "Ready")
        conditions = [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"} for kind in kinds]
        status = {
            "conditions": conditions,
            "observedGeneration": 1,
            "deploymentMode": "Standard",
            "modelStatus": {"transitionStatus": "UpToDate"},
        } | controller.addresses(service)
        self._plane.request("PATCH", f"{self._path}/status", {"status": status}, headers=_MERGE)

    def _runtime(self, name: str) -> Object:
        path = f"/apis/serving.kserve.io/v1alpha1/namespaces/{self._namespace}/servingruntimes/{name}"
        found: Object = self._plane.request("GET", path)["spec"]
        return found

    def _here(self, item: Object) -> Object:
        """Return an object with the additions of KServe's pod webhook, as far as this machine has them.

        There is no agent: a predictor's Service points to its server, and nothing is logged.
        """
        predictor = item["metadata"]["labels"]["component"] == "predictor"
        if item["kind"] == "Service":
            ports = [port | {"targetPort": _PORT} for port in item["spec"]["ports"]]
            return item | {"spec": item["spec"] | {"ports": ports}}
        return _with_model(item) if predictor else item


def _with_model(deployment: Object) -> Object:
    """Return a predictor's Deployment whose pods first copy the model to the folder where it is read."""
    found = copy.deepcopy(deployment)
    template = found["spec"]["template"]
    pod, uri = template["spec"], template["metadata"]["annotations"][_URI]
    container = pod["containers"][0]
    container["volumeMounts"] = [*container.get("volumeMounts", []), _MODELS | {"readOnly": True}]
    pod["initContainers"] = [
        {
            "name": "storage-initializer",
            "image": container["image"],
            "command": ["python", "-c", _COPY, uri, "/mnt/models"],
            "envFrom": [{"configMapRef": {"name": "kubeloop-env"}}, {"secretRef": {"name": "kubeloop-s3"}}],
            "securityContext": container["securityContext"],
            "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "50m"}},
            "volumeMounts": [_MODELS],
        }
    ]
    pod["volumes"] = [*pod.get("volumes", []), {"name": _MODELS["name"], "emptyDir": {}}]
    return found

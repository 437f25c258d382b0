"""KServe's controller, played by hand on a real API server: Deployments, pods and statuses as it would write them.

What it makes is tests/kserve/controller.py's; when, and how far its pods are, is each test's.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kubeloop.config import Loop
from kubeloop.delivery.manifest import ModelRef, inference_service
from tests.control_plane.plane import CommandError, ControlPlane
from tests.kserve import controller

NAME = "flights"
MERGE = {"content-type": "application/merge-patch+json"}
APPLY = {"content-type": "application/apply-patch+yaml"}
RUNTIME = {
    "supportedModelFormats": [{"name": "onnx", "version": "1"}],
    "protocolVersions": ["v1", "v2"],
    "containers": [{"name": controller.CONTAINER, "image": "example.org/server:1.0.0"}],
    "volumes": [{"name": "tmp", "emptyDir": {}}],
}
"""What every predictor runs on; the chart's own runtimes are tested in tests/charts."""


def build(namespace: str, version: str = "7", **options: Any) -> dict[str, Any]:
    """Return the InferenceService of a model version."""
    loop = Loop.model_validate(
        {
            "name": NAME,
            "source": {"tables": {"events": {"available_at": "at"}}},
            "features": {"service": "flights_v1"},
            "delivery": {"namespace": namespace},
        }
    )
    model = ModelRef(version, f"s3://models/{version}", version * 64, f"run-{version}")
    plain = inference_service(loop, model, logger_url="http://collector/", feature_dir="/project", **options)
    # What only a cluster needs is `pods.place`'s; an image is the least that the API server wants.
    plain["spec"]["transformer"]["containers"][0]["image"] = "kubeloop-core:0"
    return plain


class Kserve:
    """The controller's moves; like KServe's, they start from what the InferenceService says at that moment."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace
        self.path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{NAME}"

    def service(self, uri: str | None = None) -> dict[str, Any]:
        """Return the InferenceService as soon as it is there, and asks for a model if one is named."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            response = self.plane.http.get(self.path)
            if response.is_success and uri in (None, response.json()["spec"]["predictor"]["model"]["storageUri"]):
                found: dict[str, Any] = response.json()
                return found
            time.sleep(0.02)
        raise AssertionError(f"nobody applied {uri or NAME}")

    def deployment(
        self, part: str, *, updated: int = 1, total: int = 1, available: int = 1, progressing: str = ""
    ) -> None:
        """Make or update a component's Deployment, and say how far its pods are."""
        body = self.made("Deployment")[f"{NAME}-{part}"]
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{NAME}-{part}"
        found = self.plane.request("PATCH", f"{path}?fieldManager=kserve&force=true", body, headers=APPLY)
        status: dict[str, Any] = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": total,
            "updatedReplicas": updated,
            "readyReplicas": available,
            "availableReplicas": available,
        }
        if progressing:
            status["conditions"] = [
                {
                    "type": "Progressing",
                    "status": "False",
                    "reason": progressing,
                    "message": f"{NAME}-{part} takes too long.",
                }
            ]
        self.plane.request("PATCH", f"{path}/status", {"status": status}, headers=MERGE)

    def pod(self, part: str, container: dict[str, Any]) -> None:
        """Make a pod of a component with one container in the given state."""
        name = f"{NAME}-{part}-x"
        metadata = self.made("Deployment")[f"{NAME}-{part}"]["spec"]["template"]["metadata"] | {"name": name}
        spec = {"containers": RUNTIME["containers"]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        self.plane.request("POST", path, body)
        status = {
            "name": "kserve-container",
            "image": "x",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
        } | container
        self.plane.request("PATCH", f"{path}/{name}/status", {"status": {"containerStatuses": [status]}}, headers=MERGE)

    def status(self, ready: str, reason: str = "", message: str = "", **fields: Any) -> None:
        """Write the InferenceService's status in the shape that KServe gives it since v0.20."""
        conditions = [
            {"type": kind, "status": ready, "reason": reason, "message": message, "lastTransitionTime": _NOW}
            for kind in ("PredictorReady", "TransformerReady", "IngressReady", "Ready")
        ]
        status = {
            "conditions": conditions,
            # A Deployment's generation, as in KServe, where it says nothing about the service's own.
            "observedGeneration": 1,
            "deploymentMode": "Standard",
            "modelStatus": {"transitionStatus": "UpToDate" if ready == "True" else "InProgress"},
        } | controller.addresses(self.service())
        self.plane.request("PATCH", f"{self.path}/status", {"status": status | fields}, headers=MERGE)

    def serve(self) -> None:
        """Bring everything that the manifest asks for into service."""
        for name in self.made("Deployment"):
            self.deployment(name.removeprefix(f"{NAME}-"))
        self.status("True")

    def made(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return what KServe makes of the InferenceService as it is now, of one kind and by name."""
        found = controller.objects(self.service(), RUNTIME)
        return {item["metadata"]["name"]: item for item in found if item["kind"] == kind}


@pytest.fixture
def kserve(control_plane: ControlPlane, namespace: str) -> Kserve:
    return Kserve(control_plane, namespace)


@contextmanager
def meanwhile(play: Callable[[], None]) -> Iterator[None]:
    """Let something happen beside the applier; what fails in it fails the test."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            play()
        except (AssertionError, CommandError) as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        assert not problems, problems


_NOW = "2026-01-01T00:00:00Z"

"""A stand-in for KServe's controller on a real API server: it writes Deployments, pods and statuses as KServe would.

tests/kserve/controller.py says what it makes. Each test says when, and how many pods are ready.
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
"""The runtime of every predictor here; tests/charts tests the chart's own runtimes."""


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
    # `pods.place` adds what only a cluster needs; the API server requires only an image.
    plain["spec"]["transformer"]["containers"][0]["image"] = "kubeloop-core:0"
    return plain


class Kserve:
    """The controller's moves. Like KServe's, each starts from the InferenceService's current content."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace
        self.path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{NAME}"

    def service(self, uri: str | None = None) -> dict[str, Any]:
        """Return the InferenceService once it exists and, if `model` is given, asks for that model."""
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
        """Create or update a component's Deployment, and set how many of its pods are ready."""
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
        """Create a pod of a component with one container in the given state."""
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
        """Write the InferenceService's status in the form that KServe has used since v0.20."""
        conditions = [
            {"type": kind, "status": ready, "reason": reason, "message": message, "lastTransitionTime": _NOW}
            for kind in ("PredictorReady", "TransformerReady", "IngressReady", "Ready")
        ]
        status = {
            "conditions": conditions,
            # As in KServe, this is a Deployment's generation and says nothing about the service's own.
            "observedGeneration": 1,
            "deploymentMode": "Standard",
            "modelStatus": {"transitionStatus": "UpToDate" if ready == "True" else "InProgress"},
        } | controller.addresses(self.service())
        self.plane.request("PATCH", f"{self.path}/status", {"status": status | fields}, headers=MERGE)

    def serve(self) -> None:
        """Serve everything that the manifest asks for."""
        for name in self.made("Deployment"):
            self.deployment(name.removeprefix(f"{NAME}-"))
        self.status("True")

    def made(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the objects of one kind that KServe makes from the current InferenceService, by name."""
        found = controller.objects(self.service(), RUNTIME)
        return {item["metadata"]["name"]: item for item in found if item["kind"] == kind}


@pytest.fixture
def kserve(control_plane: ControlPlane, namespace: str) -> Kserve:
    return Kserve(control_plane, namespace)


@contextmanager
def meanwhile(play: Callable[[], None]) -> Iterator[None]:
    """Run a function in parallel with the applier; an error in it fails the test."""
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

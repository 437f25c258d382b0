"""The tests' pipelines API on the node, which asks the cluster about each token, as Kubeflow's does."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.control_plane.plane import ControlPlane

AUDIENCE = "pipelines.kubeflow.org"
_FOLDER = Path(__file__).parents[1] / "kfp"


class Reviewed:
    """The tokens for the pipelines API that the cluster recognizes; `users` are those who sent one."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.users: set[str] = set()

    def __contains__(self, token: str) -> bool:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        status = self._plane.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body)["status"]
        if status.get("authenticated"):
            self.users.add(status["user"]["username"])
        return bool(status.get("authenticated"))

    def __len__(self) -> int:
        return 1


@contextlib.contextmanager
def kubeflow(plane: ControlPlane) -> Iterator[Any]:
    """Serve an empty pipelines API; in the end, it must not have received a request that the specification forbids."""
    spec, store, server = (_load(name) for name in ("spec", "store", "server"))
    found = server.KfpServer(spec.Specification(), store.Store(), store.ApiError, spec.SpecError)
    found.tokens = Reviewed(plane)
    # Argo's executor panics without a token, and the steps' account decides whether its pods get one.
    found.store.account = lambda name: _account(plane, name)
    try:
        yield found
    finally:
        found.close()
    assert found.violations == []


def _account(plane: ControlPlane, name: str) -> Any:
    found = plane.request("GET", "/api/v1/serviceaccounts")["items"]
    return next((item for item in found if item["metadata"]["name"] == name), {})


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"node_tests_{name}", _FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

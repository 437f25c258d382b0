"""Fixtures over a real API server that `make control-plane` builds; without it, the tests that use them are skipped."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import outside
from tests.control_plane import crds as upstream
from tests.control_plane.plane import PROGRAMS, ControlPlane
from tests.kserve import webhook

PROJECT = Path(__file__).parents[2]
FLUX = PROJECT / ".control-plane" / "flux"


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with kube-apiserver, etcd, kubectl, helm, kustomize, kube-score, checkov and actionlint."""
    return outside.assets(PROGRAMS)


@pytest.fixture(scope="session")
def crds() -> Path:
    """The folder with the upstream CustomResourceDefinitions."""
    return outside.crds(upstream.folder())


@pytest.fixture(scope="session")
def flux_crds() -> Path:
    """The folder with Flux's CustomResourceDefinitions; the API server installs them if the folder exists."""
    return outside.flux_crds(FLUX)


@pytest.fixture(scope="session")
def control_plane(
    assets: Path, crds: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[ControlPlane]:
    """A running API server: RBAC, Pod Security admission, all upstream CRDs, and stand-ins for KServe's webhooks."""
    # The API server takes twelve seconds to install all CRDs, and three to start with them installed.
    kept = pytestconfig.cache.mkdir("control-plane") / "etcd" / _digest(assets, crds, FLUX)
    plane = ControlPlane(assets, tmp_path_factory.mktemp("control-plane"))
    try:
        if kept.is_dir():
            plane.start(kept)
        else:
            plane.start()
            for folder in (crds, FLUX):
                plane.install(folder)
            plane.keep(kept)
        with _kserve(plane):
            yield plane
    finally:
        plane.stop()


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A new namespace, deleted afterwards."""
    with control_plane.namespace() as name:
        yield name


@pytest.fixture
def restricted_namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A new namespace that enforces Pod Security "restricted", deleted afterwards."""
    with control_plane.namespace("restricted", restricted=True) as name:
        yield name


def _digest(assets: Path, *folders: Path) -> str:
    """Return a name for the state of these servers with these CRDs installed."""
    servers = [(name, (assets / name).stat().st_mtime_ns) for name in ("etcd", "kube-apiserver")]
    digest = hashlib.sha256(repr(servers).encode())
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _kserve(plane: ControlPlane) -> Iterator[None]:
    """Make the API server admit KServe's objects as KServe does: with its defaults, or refused in its words."""

    def there(runtime: dict[str, Any]) -> list[dict[str, Any]]:
        namespace = runtime["metadata"].get("namespace")
        where = f"namespaces/{namespace}/servingruntimes" if namespace else "clusterservingruntimes"
        found: list[dict[str, Any]] = plane.request("GET", f"/apis/serving.kserve.io/v1alpha1/{where}")["items"]
        return found

    def refused() -> bool:
        response = plane.http.post(f"{_SERVICES}?dryRun=All", json=_REFUSED)
        return response.status_code == 403 and "supported autoscaler class" in response.text

    with webhook.served(plane.authority, there) as configurations:
        for configuration in configurations:
            kind = configuration["kind"].lower()
            plane.request("POST", f"/apis/admissionregistration.k8s.io/v1/{kind}s", configuration)
        plane.wait(refused)
        yield


_SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices"
_REFUSED = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "probe", "annotations": {"serving.kserve.io/autoscalerClass": "not one"}},
    "spec": {"predictor": {"model": {"modelFormat": {"name": "onnx"}}}},
}

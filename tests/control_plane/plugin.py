"""Fixtures over a real API server; `make control-plane` builds it; tests that need it are skipped without."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import outside
from tests.control_plane import crds as upstream
from tests.control_plane.plane import PROGRAMS, ControlPlane

PROJECT = Path(__file__).parents[2]
FLUX = PROJECT / ".control-plane" / "flux"


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with kube-apiserver, etcd, kubectl, helm, kustomize, kube-score and actionlint."""
    return outside.assets(PROGRAMS)


@pytest.fixture(scope="session")
def crds() -> Path:
    """The folder with the upstream CustomResourceDefinitions."""
    return outside.crds(upstream.folder())


@pytest.fixture(scope="session")
def flux_crds() -> Path:
    """The folder with Flux's CustomResourceDefinitions, which the API server has where they are there."""
    return outside.flux_crds(FLUX)


@pytest.fixture(scope="session")
def control_plane(
    assets: Path, crds: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[ControlPlane]:
    """A running API server with RBAC, Pod Security admission and every upstream CRD; see `ControlPlane`."""
    # The API server takes twelve seconds to take in all CRDs, and three to start with them.
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
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace, deleted afterwards."""
    with control_plane.namespace() as name:
        yield name


@pytest.fixture
def restricted_namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace that enforces Pod Security "restricted", deleted afterwards."""
    with control_plane.namespace("restricted", restricted=True) as name:
        yield name


def _digest(assets: Path, *folders: Path) -> str:
    """Return a name for the state that these servers have with these CRDs installed."""
    servers = [(name, (assets / name).stat().st_mtime_ns) for name in ("etcd", "kube-apiserver")]
    digest = hashlib.sha256(repr(servers).encode())
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

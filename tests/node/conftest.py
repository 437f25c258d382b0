"""A node, and kubeloop installed on it as in docs/install.md; `make e2e-node` gives them separate namespaces."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import outside
from tests.images.conftest import builder as builder
from tests.images.conftest import checkout as checkout
from tests.node import ground
from tests.node.installation import Installation
from tests.node.kubeflow import kubeflow
from tests.node.node import CNI, PROGRAMS, Node

IMAGES = ("pause", "kubeloop-core", "kubeloop-runtime", "kubeloop-detector")
_DEBIAN = ("conntrack", "containerd", "iptables", "runc")


@pytest.fixture(scope="session")
def archives(assets: Path) -> Path:
    """The folder of image archives; it is defined here, since all tests of this folder need the same permission."""
    outside.node()
    return assets.parent / "images"


@pytest.fixture(scope="session")
def node(assets: Path, crds: Path, archives: Path) -> Iterator[Node]:
    """A running node with our images and KServe's CRDs."""
    needed = [*(assets / name for name in PROGRAMS), *(archives / f"{name}.tar" for name in IMAGES), CNI / "bridge"]
    missing = [*map(str, (path for path in needed if not path.exists()))]
    missing += [name for name in _DEBIAN if not shutil.which(name)]
    if missing:
        pytest.fail(f"{', '.join(missing)} missing; run `make e2e-node`", pytrace=False)
    if not ground.apart():
        pytest.fail("a node must have a network of its own; run `make e2e-node`", pytrace=False)
    # Not one of pytest's folders, which outlive the session: images take gigabytes.
    with tempfile.TemporaryDirectory(prefix="kubeloop-node-") as name, ground.laid(Path(name)) as group:
        state = Path(name) / "state"
        state.mkdir()
        found = Node(assets, state, group)
        try:
            found.start()
            found.install(crds / "kserve")
            for image in IMAGES:
                found.load(archives / f"{image}.tar")
            yield found
        finally:
            found.stop()


@pytest.fixture(scope="session")
def installed(
    node: Node,
    postgres_server: Any,
    redis_server: Callable[[], str],
    seaweed: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installation]:
    """The chart on the node, with one loop, MLflow, and every database that it uses."""
    with kubeflow(node) as pipelines:
        yield Installation.make(
            node,
            tmp_path_factory.mktemp("installed"),
            database=postgres_server.database,
            online=redis_server(),
            store=seaweed,
            pipelines=pipelines,
        )

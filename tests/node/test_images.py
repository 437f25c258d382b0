"""The images as archives, for a node that has no network to pull them; runs before the node's own tests."""

from pathlib import Path
from typing import Any

import pytest

from tests.images.conftest import BUILT
from tests.node.node import PAUSE

pytestmark = pytest.mark.timeout(1800)


def test_images_are_kept_for_the_node(archives: Path, builder: Any, assets: Path, tmp_path: Path) -> None:
    archives.mkdir(exist_ok=True)
    listed = {item["name"]: item for item in builder.build(*BUILT, "--registry", "localhost", out=tmp_path)}
    for name in BUILT:
        item = listed[f"localhost/kubeloop-{name}"]
        _keep(builder, f"{item['name']}:{item['tag']}", archives / f"kubeloop-{name}.tar", item["id"])
    container = builder.buildah("from", "scratch")
    builder.buildah("copy", container, str(assets / "pause"), "/pause")
    builder.buildah("config", "--entrypoint", '["/pause"]', "--user", "65535:65535", container)
    made = builder.buildah("commit", "--timestamp", "0", container, PAUSE)
    builder.buildah("rm", container)
    _keep(builder, PAUSE, archives / "pause.tar", made)


def _keep(builder: Any, image: str, archive: Path, digest: str) -> None:
    """Write an image to an archive, unless the archive already has it."""
    mark = archive.with_suffix(".id")
    if archive.exists() and mark.exists() and mark.read_text() == digest:
        return
    archive.unlink(missing_ok=True)
    builder.buildah("push", image, f"docker-archive:{archive}:{image}")
    mark.write_text(digest)

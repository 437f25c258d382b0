"""The images in the registry are what was asked for, no larger than necessary, and the same in every build."""

import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kubeloop import __version__, config
from tests.images.conftest import BUILT, Builder, Image

pytestmark = pytest.mark.timeout(900)

# Unpacked sizes on the stand-in for the base: the measured size and a quarter more.
LARGEST_MB = {"core": 1700, "runtime": 800, "detector": 1050}


@pytest.mark.parametrize("name", BUILT)
def test_registry_and_listing_agree(built: dict[str, Image], name: str) -> None:
    image = built[name]
    assert image.listing["name"].endswith(f"/kubeloop-{name}")
    assert image.listing["tag"] == __version__
    assert image.listing["id"] == image.manifest["config"]["digest"]
    assert image.listing["digest"].startswith("sha256:")
    assert 50e6 < image.listing["size"] < LARGEST_MB[name] * 1e6


@pytest.mark.parametrize("name", BUILT)
def test_runs_as_nobody_and_says_what_it_is(built: dict[str, Image], checkout: Path, name: str) -> None:
    code = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    found = built[name].config["config"]
    assert found["User"] == "65532:65532"
    assert "Entrypoint" not in found
    labels = found["Labels"]
    assert labels["org.opencontainers.image.title"] == f"kubeloop-{name}"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == code.stdout.strip()
    assert built[name].environ["KUBELOOP_CODE"] == code.stdout.strip()


def test_core_is_quiet_and_at_home(built: dict[str, Image]) -> None:
    environ = built["core"].environ
    assert config.QUIET.items() <= environ.items()
    assert environ["KUBELOOP_HOME"] == built["core"].config["config"]["WorkingDir"] == "/project"


def test_images_share_the_system(built: dict[str, Image]) -> None:
    first = {image.manifest["layers"][0]["digest"] for image in built.values()}
    assert len(first) == 1


def test_code_is_a_small_layer(built: dict[str, Image]) -> None:
    """A change of kubeloop's code must not change the layers of the libraries."""
    sizes = [layer["size"] for layer in built["runtime"].manifest["layers"]]
    assert sum(size > 10e6 for size in sizes) == 2, sizes


@pytest.mark.parametrize("name", BUILT)
def test_bill_of_materials_names_what_is_installed(built: dict[str, Image], name: str) -> None:
    image = built[name]
    inside = (image.root / "usr/share/kubeloop/sbom.json").read_bytes()
    assert (image.out / "sbom" / f"kubeloop-{name}.cdx.json").read_bytes() == inside
    bill: dict[str, Any] = json.loads(inside)
    assert bill["specVersion"] == "1.5"
    named = {(part["name"], part.get("version")) for part in bill["components"]}
    folder = str(image.root / "opt/venv/lib/python3.11/site-packages")
    installed = {
        (dist.name.lower().replace("_", "-").replace(".", "-"), dist.version)
        for dist in importlib.metadata.distributions(path=[folder])
        if dist.name != "kubeloop"
    }
    assert installed <= named
    assert "libc6" in {part for part, _ in named}
    assert not {"apt", "dpkg", "pip", "python3-pip"} & {part for part, _ in named}


def test_a_second_build_is_the_same(builder: Builder, built: dict[str, Image], tmp_path: Path) -> None:
    again = builder.build("runtime", "--no-cache", "--tag", "again", out=tmp_path)
    assert _content(builder, again[0]) == built["runtime"].config["rootfs"]["diff_ids"]


def _content(builder: Builder, listing: dict[str, Any]) -> list[str]:
    found = json.loads(builder.buildah("inspect", "--type", "image", f"{listing['name']}:{listing['tag']}"))
    layers: list[str] = found["OCIv1"]["rootfs"]["diff_ids"]
    return layers

"""A release's chart, made by the workflow's own script: its version is the tag, its images are the pushed ones."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
NAMES = ("core", "runtime", "runtime-gpu", "detector")
DIGESTS = {name: f"sha256:{number:064x}" for number, name in enumerate(NAMES, start=1)}


def pushed(name: str, **changes: Any) -> dict[str, Any]:
    """The output of images/build.py for an image that it has pushed."""
    image = {"name": f"ghcr.io/acme/kubeloop-{name}", "tag": "1.2.3", "digest": DIGESTS[name]}
    return {**image, "id": "sha256:0", "size": 1, "sbom": "build/sbom/x.json", **changes}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("charts", "images"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    for name in NAMES:
        listing = tmp_path / "build" / "pushed" / f"image-{name}" / "images.json"
        listing.parent.mkdir(parents=True)
        listing.write_text(json.dumps([pushed(name)]))
    return tmp_path


def step(name: str) -> str:
    """The script of the workflow step whose name starts with this text."""
    jobs = yaml.safe_load((PROJECT / ".github/workflows/images.yml").read_text())["jobs"]
    (script,) = [found["run"] for found in jobs["chart"]["steps"] if found.get("name", "").startswith(name)]
    return str(script)


def test_the_published_chart_names_what_the_release_pushed(assets: Path, checkout: Path) -> None:
    path = f"{assets}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step("Package the chart")],
        cwd=checkout,
        env={"PATH": path, "HOME": str(checkout), "GITHUB_REF_NAME": "v1.2.3"},
        check=True,
        capture_output=True,
    )
    package = checkout / "build" / "kubeloop-1.2.3.tgz"
    assert str(package.relative_to(checkout)) in step("Push and sign").replace("${GITHUB_REF_NAME#v}", "1.2.3")

    def helm(*arguments: str) -> str:
        return subprocess.run(
            [assets / "helm", *arguments], check=True, capture_output=True, text=True, timeout=60
        ).stdout

    chart = yaml.safe_load(helm("show", "chart", str(package)))
    assert (chart["version"], chart["appVersion"]) == ("1.2.3", "1.2.3")
    flags = ["--kube-version", "1.36", "--set-file", f"loops.flight-delay.config={PROJECT / 'loop.yaml'}"]
    flags += ["--set", "runtimes.onnxGpu.enabled=true,mlflow.enabled=true"]
    rendered = helm("template", "kubeloop", str(package), *flags)
    used = set()
    for line in rendered.splitlines():
        if line.strip().startswith("image: ") and "kubeloop-" in line:
            used.add(line.partition("image: ")[2].strip())
    assert used == {f"ghcr.io/acme/kubeloop-{name}:1.2.3@{digest}" for name, digest in DIGESTS.items()}
    values = yaml.safe_load(helm("show", "values", str(package)))
    plain = yaml.safe_load((PROJECT / "charts/kubeloop/values.yaml").read_text())
    assert {**values, "images": None} == {**plain, "images": None}, "nothing else differs"
    assert values["images"]["pullPolicy"] == plain["images"]["pullPolicy"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([pushed(name) for name in NAMES[:3]], "kubeloop-detector is not among the images"),
        ([pushed(name, digest=None) for name in NAMES], "kubeloop-core has no digest; push it"),
        ([*(pushed(name) for name in NAMES[:3]), pushed("detector", tag="1.2.2")], "several registries or versions"),
        ([pushed("core") | {"name": "ghcr.io/acme/other"}], "the chart has no image other"),
    ],
)
def test_an_incomplete_release_is_refused(checkout: Path, images: list[dict[str, Any]], message: str) -> None:
    (checkout / "images.json").write_text(json.dumps(images))
    command = ["python3", "images/chart.py", "images.json", "--out", "out"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (checkout / "out").exists()


def test_a_chart_without_the_entry_is_refused(checkout: Path) -> None:
    values = checkout / "charts/kubeloop/values.yaml"
    values.write_text(values.read_text().replace("  runtimeGpu: ", "  runtimeGPU: "))
    listings = sorted(map(str, (checkout / "build" / "pushed").rglob("images.json")))
    command = ["python3", "images/chart.py", *listings, "--out", "out"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "values.yaml has no images.runtimeGpu")

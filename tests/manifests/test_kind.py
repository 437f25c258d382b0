"""What `make kind-up` does, as far as that can be tested without a container engine."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from kubeloop.chart.values import Values
from tests.e2e_cluster.page import INSTALL, PREFIX, blocks

PROJECT = Path(__file__).parents[2]
KIND = PROJECT / "tests" / "kind"
UP = (KIND / "up.sh").read_text()
SCRIPTS = sorted(KIND.glob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_and_shellcheck_take_the_scripts(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", path], check=True)


def test_without_an_engine_nothing_is_begun(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    env = {"PATH": str(tmp_path)}
    done = subprocess.run([shutil.which("bash"), KIND / "up.sh"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "make kind-up needs docker; nothing was changed"


def test_every_variable_that_the_page_wants_is_given() -> None:
    wanted = {
        name
        for block in blocks(INSTALL.read_text())
        for line in block.text.splitlines()
        if block.step == 1 and line.startswith("export ")
        for name in re.findall(r"([A-Z][A-Z0-9_]*)=", line)
    }
    given = set(re.findall(rf"^{PREFIX}(\w+)=", UP, re.MULTILINE))
    assert wanted <= given
    hooks = {f"{way}_{what}" for way in ("STOP", "START") for what in ("API", "POSTGRES", "S3")}
    assert given - wanted == {"IMAGES_ARE_THERE", "VALUES_FILE", *hooks}


def test_the_versions_are_the_pages() -> None:
    """The script reads the page for what the page installs, and pins only what the page leaves to the user."""
    assert "tests.e2e_cluster.page 2 3" in UP
    assert re.findall(r"v\d+\.\d+\.\d+", UP) == re.findall(r"^envoy_gateway=(\S+)$", UP, re.MULTILINE)
    assert '--version "$KSERVE"' in UP
    assert yaml.safe_load((PROJECT / "charts/kubeloop/Chart.yaml").read_text())["appVersion"] == "0.1.0"
    assert set(re.findall(r"\d+\.\d+\.\d+", re.sub(r"v\d+\.\d+\.\d+", "", UP))) == {"0.1.0"}


def test_the_values_are_values_of_the_chart() -> None:
    Values.model_validate(yaml.safe_load((KIND / "values.yaml").read_text()))


def test_the_backends_are_accepted(assets: Path, control_plane) -> None:
    done = subprocess.run([assets / "kustomize", "build", KIND], capture_output=True, text=True, check=True)
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    assert {item["kind"] for item in objects} == {
        *("ConfigMap", "Deployment", "Namespace", "PersistentVolumeClaim", "Service"),
    }
    with control_plane.namespace("backends") as name:
        text = yaml.safe_dump_all([item for item in objects if item["kind"] != "Namespace"])
        moved = text.replace("namespace: backends", f"namespace: {name}")
        control_plane.kubectl("apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-", input=moved)
    images = [c["image"] for item in objects if item["kind"] == "Deployment" for c in _containers(item)]
    assert all(":" in image.rpartition("/")[2] for image in images)
    assert not any(image.endswith(":latest") for image in images)


def _containers(deployment: dict) -> list[dict]:
    return deployment["spec"]["template"]["spec"]["containers"]

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop.config import Loop

IMAGE = "registry.example/kubeloop-core@sha256:" + "a" * 64


def compiled(folder: Path, loop_file: Path, *flags: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "compile", "--out", str(folder), "--loop", str(loop_file), *flags],
        capture_output=True,
        text=True,
        cwd=folder.parent,
        check=True,
    )
    return folder.parent / done.stdout.strip()


@pytest.fixture(scope="module")
def package(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("compile") / "one", project / "loop.yaml", "--image", IMAGE)


@pytest.fixture(scope="module")
def spec(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(package.read_text())
    return found


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tasks of the pipeline and of the branches in it."""
    found = dict(spec["root"]["dag"]["tasks"])
    for component in spec["components"].values():
        found |= component.get("dag", {}).get("tasks", {})
    return found


def test_compiling_twice_gives_the_same_bytes(package: Path, project: Path) -> None:
    again = compiled(package.parent.parent / "two", project / "loop.yaml", "--image", IMAGE)
    assert again.read_bytes() == package.read_bytes()
    assert package.name == "flight-delay-training.yaml"


def test_every_step_has_the_image_that_was_asked_for(package: Path, spec: dict[str, Any]) -> None:
    executors = spec["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {IMAGE}
    assert "unset" not in package.read_text()


def test_every_component_is_a_step(spec: dict[str, Any], project: Path) -> None:
    files = {path.stem.replace("_", "-") for path in (project / "components").glob("[!_]*.py")}
    steps = {executor.removeprefix("exec-") for executor in spec["deploymentSpec"]["executors"]}
    assert steps == files == {name for name in tasks(spec) if not name.startswith("condition")}


@pytest.mark.parametrize("name", ["gate-model", "deploy-model"])
def test_what_depends_on_the_champion_is_never_cached(spec: dict[str, Any], name: str) -> None:
    found = tasks(spec)
    assert "enableCache" not in found[name].get("cachingOptions", {})
    assert found["train-model"]["cachingOptions"] == {"enableCache": True}


def test_only_a_promoted_model_is_deployed(spec: dict[str, Any]) -> None:
    (branch,) = (name for name in spec["root"]["dag"]["tasks"] if name.startswith("condition"))
    condition = spec["root"]["dag"]["tasks"][branch]["triggerPolicy"]["condition"]
    assert "== true" in condition
    assert "deploy-model" not in spec["root"]["dag"]["tasks"]


def test_no_step_installs_anything(package: Path) -> None:
    assert "pip install" not in package.read_text()


def test_the_use_case_is_the_default_of_a_parameter(spec: dict[str, Any], demo: Loop) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert Loop.parse(parameters["loop"]["defaultValue"]) == demo
    assert {name for name, item in parameters.items() if not item.get("isOptional")} == {"as_of", "run", "snapshot"}


def test_the_default_image_names_a_version(project: Path, tmp_path: Path) -> None:
    spec = yaml.safe_load(compiled(tmp_path / "out", project / "loop.yaml").read_text())
    images = {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()}
    assert len(images) == 1
    assert images.pop().split(":")[1] not in ("", "latest")


def test_a_missing_loop_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "compile"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode
    assert "loop.yaml does not exist" in done.stderr

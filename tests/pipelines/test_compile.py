"""The compiled pipelines with one pod per step; test_grouping.py has the other groupings."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop import config
from kubeloop.config import Loop

IMAGE = "registry.example/kubeloop-core@sha256:" + "a" * 64
NAMES = ("training", "materialize", "batch-scoring", "backfill")
CLUSTER = {
    "grouping": "step",
    "defaults": {"cpu": "250m", "memory": "3Gi", "retries": 1, "backoff": "10s", "timeout": "30m"},
    "steps": {
        "train-model": {
            "cpu": "4",
            "cpu_limit": "8",
            "memory": "16Gi",
            "retries": 0,
            "timeout": "6h",
            "gpu": {"count": 2, "node_selector": {"pool": "gpu"}},
        },
        "extract-data": {"cache": False, "tolerations": [{"key": "batch", "operator": "Exists"}]},
    },
    "secrets": [{"secret": "kubeloop-s3", "env": {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "secret"}}],
    "images": {"core": IMAGE, "pull_secrets": ["registry"], "pull_policy": "Always"},
    "deadline": "8h",
    "ttl": "2d",
    "run_as_user": 1234,
}
GIT = {
    "repository": "https://git.example.org/team/loops",
    "secrets": [{"secret": "kubeloop-git", "env": {"KUBELOOP_GIT_TOKEN": "token"}}],
}


def compiled(folder: Path, loop_file: Path, *flags: str) -> dict[str, Path]:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "compile", "--out", str(folder), "--loop", str(loop_file), *flags],
        capture_output=True,
        text=True,
        cwd=folder.parent,
        check=True,
    )
    return dict(zip(NAMES, (folder.parent / line for line in done.stdout.split()), strict=True))


@pytest.fixture(scope="module")
def packages(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compile")
    loop = yaml.safe_load((project / "loop.yaml").read_text())
    loop["pipelines"]["grouping"] = "step"
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop))
    return compiled(folder / "one", folder / "loop.yaml", "--image", IMAGE)


@pytest.fixture(scope="module")
def configured(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pipelines of a loop that configures how they run on the cluster."""
    folder = tmp_path_factory.mktemp("configured")
    loop = yaml.safe_load((project / "loop.yaml").read_text()) | {"pipelines": CLUSTER}
    loop["delivery"] = {"applier": "gitops", "git": GIT}
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop))
    return compiled(folder / "out", folder / "loop.yaml")


def read(package: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pipeline spec and the platform spec."""
    spec, platform = yaml.safe_load_all(package.read_text())
    return spec, platform["platforms"]["kubernetes"]


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tasks of the pipeline and of its branches."""
    found = dict(spec["root"]["dag"]["tasks"])
    for component in spec["components"].values():
        found |= component.get("dag", {}).get("tasks", {})
    return found


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the containers by step."""
    executors = spec["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()}


def test_compiling_twice_gives_the_same_bytes(packages: dict[str, Path]) -> None:
    folder = packages["training"].parent.parent
    again = compiled(folder / "two", folder / "loop.yaml", "--image", IMAGE)
    assert {name: path.read_bytes() for name, path in again.items()} == {
        name: path.read_bytes() for name, path in packages.items()
    }
    assert [path.name for path in packages.values()] == [f"flight-delay-{name}.yaml" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_every_step_has_the_image_that_was_asked_for(packages: dict[str, Path], name: str) -> None:
    spec, _ = read(packages[name])
    assert {container["image"] for container in containers(spec).values()} == {IMAGE}
    assert "unset" not in packages[name].read_text()
    assert "pip install" not in packages[name].read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_named_to_our_program_and_its_source_stays_in_the_image(packages: dict[str, Path], name: str) -> None:
    spec, _ = read(packages[name])
    found = tasks(spec)
    for step, container in containers(spec).items():
        assert container["command"] == ["python3", "-m", "pipelines.pod"]
        flag, plan, *rest = container["args"]
        assert (flag, rest) == ("--plan", ["--executor_input", "{{$}}"])
        (member,) = json.loads(plan)
        policy = found[step]["retryPolicy"]
        assert member == {
            "step": step,
            "function": step.replace("-", "_"),
            "inputs": {name: name for name in member["inputs"]},
            "retries": policy["maxRetryCount"],
            "backoff_s": float(policy["backoffDuration"].removesuffix("s")),
        }
        given = spec["components"][f"comp-{step}"].get("inputDefinitions", {})
        assert member["inputs"].keys() == {name for kind in given.values() for name in kind}


def test_every_component_is_a_step(packages: dict[str, Path], project: Path) -> None:
    files = {path.stem.replace("_", "-") for path in (project / "components").glob("[!_]*.py")}
    steps = {step for path in packages.values() for step in containers(read(path)[0])}
    assert steps == files


@pytest.mark.parametrize("name", ["begin-run", "gate-model", "deploy-model"])
def test_what_depends_on_the_champion_is_never_cached(packages: dict[str, Path], name: str) -> None:
    found = tasks(read(packages["training"])[0])
    assert "enableCache" not in found[name].get("cachingOptions", {})
    assert found["train-model"]["cachingOptions"] == {"enableCache": True}


def test_only_a_promoted_model_is_deployed(packages: dict[str, Path]) -> None:
    spec, _ = read(packages["training"])
    (branch,) = (name for name in spec["root"]["dag"]["tasks"] if name.startswith("condition"))
    condition = spec["root"]["dag"]["tasks"][branch]["triggerPolicy"]["condition"]
    assert "== true" in condition
    assert "deploy-model" not in spec["root"]["dag"]["tasks"]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_default_and_says_what_it_is(packages: dict[str, Path], name: str, demo: Loop) -> None:
    """A recurring run sets no parameters."""
    parameters = read(packages[name])[0]["root"]["inputDefinitions"]["parameters"]
    assert all(item["isOptional"] and item["description"] for item in parameters.values())
    loop = Loop.parse(parameters["loop"]["defaultValue"])
    assert loop.pipelines.images.core == IMAGE
    assert loop.model_copy(update={"pipelines": demo.pipelines}) == demo


def test_a_step_gets_what_the_configuration_says(configured: dict[str, Path]) -> None:
    spec, platform = read(configured["training"])
    trained, gated = containers(spec)["train-model"], containers(spec)["gate-model"]
    assert {name: value for name, value in trained["resources"].items() if name.startswith("resource")} == {
        "resourceCpuRequest": "4",
        "resourceCpuLimit": "8",
        "resourceMemoryRequest": "16Gi",
        "resourceMemoryLimit": "16Gi",
    }
    assert trained["resources"]["accelerator"] == {
        "count": "2",
        "type": "nvidia.com/gpu",
        "resourceCount": "2",
        "resourceType": "nvidia.com/gpu",
    }
    assert "accelerator" not in gated["resources"]
    assert gated["resources"]["resourceCpuRequest"] == "250m"
    found = tasks(spec)
    assert "retryPolicy" not in found["train-model"]
    assert found["gate-model"]["retryPolicy"] == {
        "maxRetryCount": 1,
        "backoffDuration": "10s",
        "backoffFactor": 2.0,
        "backoffMaxDuration": "3600s",
    }
    assert "enableCache" not in found["extract-data"].get("cachingOptions", {})
    steps = platform["deploymentSpec"]["executors"]
    assert steps["exec-train-model"]["nodeSelector"] == {"labels": {"pool": "gpu"}}
    assert steps["exec-train-model"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert steps["exec-extract-data"]["tolerations"] == [{"key": "batch", "operator": "Exists"}]
    assert steps["exec-train-model"]["activeDeadlineSeconds"] == "21600"
    assert steps["exec-gate-model"]["activeDeadlineSeconds"] == "1800"


@pytest.mark.parametrize("name", NAMES)
def test_every_pod_is_unprivileged_and_finds_its_settings(configured: dict[str, Path], name: str) -> None:
    spec, platform = read(configured[name])
    steps = platform["deploymentSpec"]["executors"]
    assert steps.keys() == spec["deploymentSpec"]["executors"].keys()
    for label, step in steps.items():
        assert step["securityContext"] == {"runAsUser": "1234", "runAsNonRoot": True}
        assert step["imagePullPolicy"] == "Always"
        assert [item["secretName"] for item in step["imagePullSecret"]] == ["registry"]
        assert step["podMetadata"]["labels"]["app.kubernetes.io/name"] == "flight-delay"
        secret, *git = step["secretAsEnv"]
        asks = label in ("exec-gate-model", "exec-deploy-model", "exec-score-batch")
        assert [item["secretName"] for item in git] == ["kubeloop-git"] * asks
        assert secret["secretName"] == "kubeloop-s3"
        assert {item["secretKey"]: item["envVar"] for item in secret["keyToEnv"]} == {
            "access": "AWS_ACCESS_KEY_ID",
            "secret": "AWS_SECRET_ACCESS_KEY",
        }
        (run,) = step["fieldPathAsEnv"]
        assert run == {"name": "KUBELOOP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}
        public, *installed = step["configMapAsEnv"]
        told = [{pair["configMapKey"]: pair["envVar"] for pair in item["keyToEnv"]} for item in installed]
        keys = {"loop.flight-delay": "KUBELOOP_INSTALLED_LOOP", "KUBELOOP_RELEASE": "KUBELOOP_RELEASE"}
        assert told == [keys] * (label in ("exec-begin-run", "exec-gate-model"))
        assert all(item["optional"] for item in installed), "an older release did not write such keys"
        assert public["configMapName"] == "kubeloop-env"
        assert public["optional"] is True
        assert tuple(item["envVar"] for item in public["keyToEnv"]) == config.PUBLIC
    assert platform["pipelineConfig"] == {
        "activeDeadlineSeconds": 28800,
        "resourceTtlOnCompletion": 172800,
        "resourceTtlOnSuccess": 172800,
        "resourceTtlOnFailure": 172800,
    }


@pytest.mark.parametrize("image", ["kubeloop-core", "kubeloop-core:latest", "host:5000/kubeloop-core", "a@sha256:12"])
def test_an_image_without_a_version_is_refused(project: Path, tmp_path: Path, image: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "compile", "--loop", str(project / "loop.yaml"), "--image", image],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode
    assert image in done.stderr
    assert "digest" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_loop_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "compile"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode
    assert "loop.yaml does not exist" in done.stderr
    assert "Traceback" not in done.stderr

"""Groups of steps as Kubeflow Pipelines gets them: one task, with all inputs, outputs and resources of its steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

from kubeloop.config import ConfigError, Loop
from pipelines import catalog, grouping
from pipelines.plan import Plan

Object = dict[str, Any]
Compile = Callable[..., tuple[Object, Object]]

GROUPS = {
    "stage": {
        "training": {
            "data": ["begin-run", "extract-data", "validate-data", "build-features", "validate-features"],
            "model": ["train-model", "evaluate-model"],
            "decision": ["gate-model", "register-model", "deploy-model"],
        },
        "materialize": {"data": ["begin-run", "extract-data", "validate-data", "materialize-features"]},
        "batch-scoring": {"data": ["begin-run", "extract-data", "validate-data"], "score-batch": ["score-batch"]},
        "backfill": {"windows": ["begin-run", "judge-windows"]},
    },
    "run": {
        "training": {
            "training": [
                *("begin-run", "extract-data", "validate-data", "build-features", "validate-features"),
                *("train-model", "evaluate-model", "gate-model", "register-model", "deploy-model"),
            ]
        },
        "materialize": {"materialize": ["begin-run", "extract-data", "validate-data", "materialize-features"]},
        "batch-scoring": {"batch-scoring": ["begin-run", "extract-data", "validate-data", "score-batch"]},
        "backfill": {"backfill": ["begin-run", "judge-windows"]},
    },
}
GIT = {
    "repository": "https://git.example.org/team/loops",
    "secrets": [{"secret": "kubeloop-git", "env": {"KUBELOOP_GIT_TOKEN": "token"}}],
}
CASES = [(how, name) for how in ("step", "stage", "run") for name in catalog.PIPELINES]


@pytest.fixture
def compile_grouped(demo: Loop, tmp_path: Path) -> Compile:
    """Compile one of the demo's pipelines with a grouping and other pipeline settings; return both specs."""

    def compiled(how: str, name: str = "training", **settings: Any) -> tuple[Object, Object]:
        content = json.loads(demo.dump())
        content["pipelines"] = {"grouping": how} | settings
        content["delivery"] = {"applier": "gitops", "git": GIT}
        path = catalog.write(Loop.model_validate(content), name, tmp_path / how)
        spec, platform = yaml.safe_load_all(path.read_text())
        return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    return compiled


def plan(spec: Object, name: str) -> Plan:
    return Plan.parse(spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]["args"][1])


def test_stages_are_what_a_user_gets(demo: Loop) -> None:
    assert demo.pipelines.grouping == "stage"


@pytest.mark.parametrize(("how", "name"), CASES)
def test_kfp_takes_what_we_make_of_its_pipelines(compile_grouped: Compile, how: str, name: str) -> None:
    spec, platform = compile_grouped(how, name)
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    components.load_component_from_text(yaml.safe_dump(spec))
    used = [
        task["componentRef"]["name"]
        for dag in (spec["root"]["dag"], *(item["dag"] for item in spec["components"].values() if "dag" in item))
        for task in dag["tasks"].values()
    ]
    assert sorted(used) == sorted(spec["components"])
    labels = {item["executorLabel"] for item in spec["components"].values() if "executorLabel" in item}
    assert labels == spec["deploymentSpec"]["executors"].keys() == platform.keys()


@pytest.mark.parametrize(("how", "name"), [case for case in CASES if case[0] != "step"])
def test_steps_share_pods_in_the_order_of_their_needs(compile_grouped: Compile, how: str, name: str) -> None:
    spec, _ = compile_grouped(how, name)
    found = {task: [member.step for member in plan(spec, task).members] for task in spec["root"]["dag"]["tasks"]}
    assert found == GROUPS[how][name]


def test_a_group_has_every_output_of_its_steps_with_its_type(compile_grouped: Compile) -> None:
    alone, _ = compile_grouped("step")
    spec, _ = compile_grouped("stage")
    for group, steps in GROUPS["stage"]["training"].items():
        wanted = {
            (kind, f"{step}-{name}"): item
            for step in steps
            for kind, named in alone["components"][f"comp-{step}"]["outputDefinitions"].items()
            for name, item in named.items()
        }
        outputs = spec["components"][f"comp-{group}"]["outputDefinitions"]
        assert {(kind, name): item for kind, named in outputs.items() for name, item in named.items()} == wanted
    kinds = spec["components"]["comp-model"]["outputDefinitions"]["artifacts"]
    assert kinds["evaluate-model-curves"]["artifactType"]["schemaTitle"] == "system.ClassificationMetrics"
    outputs = spec["root"]["dag"]["outputs"]["parameters"]
    assert outputs["version"] == {
        "valueFromParameter": {"outputParameterKey": "register-model-version", "producerSubtask": "decision"}
    }


def test_an_input_that_several_steps_share_appears_once(compile_grouped: Compile) -> None:
    spec, _ = compile_grouped("stage")
    tasks = spec["root"]["dag"]["tasks"]
    assert tasks["data"]["inputs"]["parameters"].keys() == {"as_of", "run", "job", "loop"}
    assert tasks["model"]["inputs"] == {
        "parameters": {
            "loop": {"taskOutputParameter": {"outputParameterKey": "begin-run-loop", "producerTask": "data"}}
        },
        "artifacts": {
            "training_set": {
                "taskOutputArtifact": {"outputArtifactKey": "validate-features-clean", "producerTask": "data"}
            }
        },
    }
    assert tasks["model"]["dependentTasks"] == ["data"]
    assert tasks["decision"]["dependentTasks"] == ["data", "model"]


@pytest.mark.parametrize("how", ["stage", "run"])
def test_only_a_promoted_model_is_deployed(compile_grouped: Compile, how: str) -> None:
    spec, _ = compile_grouped(how)
    deploy = plan(spec, "decision" if how == "stage" else "training").members[-1]
    assert deploy.step == "deploy-model"
    assert deploy.when == (("Output", "gate-model"), True)


def test_a_group_is_cached_if_each_of_its_steps_may_be(compile_grouped: Compile) -> None:
    """begin-run takes the run's name, and so does its group: only an attempt of the same run finds the cache entry."""
    tasks = compile_grouped("stage")[0]["root"]["dag"]["tasks"]
    assert {name: bool(task["cachingOptions"]) for name, task in tasks.items()} == {
        "data": True,
        "model": True,
        "decision": False,
    }
    assert tasks["data"]["inputs"]["parameters"]["job"] == {"runtimeValue": {"constant": "{{$.pipeline_job_name}}"}}
    tasks = compile_grouped("stage", steps={"build-features": {"cache": False}})[0]["root"]["dag"]["tasks"]
    assert not tasks["data"]["cachingOptions"]
    tasks = compile_grouped("run")[0]["root"]["dag"]["tasks"]
    assert not tasks["training"]["cachingOptions"]


def test_a_pod_gets_the_most_that_a_step_asks_for(compile_grouped: Compile) -> None:
    spec, platform = compile_grouped(
        "stage",
        defaults={"cpu": "250m", "memory": "3Gi", "retries": 1, "backoff": "10s", "timeout": "30m"},
        steps={
            "train-model": {
                "cpu": "4",
                "cpu_limit": "8",
                "retries": 0,
                "timeout": "6h",
                "gpu": {"count": 2, "node_selector": {"pool": "gpu"}},
            },
            "evaluate-model": {"memory": "16Gi", "retries": 3, "tolerations": [{"key": "batch"}]},
        },
    )
    resources = spec["deploymentSpec"]["executors"]["exec-model"]["container"]["resources"]
    assert {name: value for name, value in resources.items() if name.startswith("resource")} == {
        "resourceCpuRequest": "4",
        "resourceCpuLimit": "8",
        "resourceMemoryRequest": "16Gi",
        "resourceMemoryLimit": "16Gi",
    }
    assert resources["accelerator"]["resourceCount"] == "2"
    pod = platform["exec-model"]
    assert pod["activeDeadlineSeconds"] == str(6 * 3600 + 1800)
    assert pod["nodeSelector"] == {"labels": {"pool": "gpu"}}
    assert [item["key"] for item in pod["tolerations"]] == ["nvidia.com/gpu", "batch"]
    assert [(member.retries, member.backoff_s) for member in plan(spec, "model").members] == [(0, 0), (3, 10)]
    # For a lost node.
    assert spec["root"]["dag"]["tasks"]["model"]["retryPolicy"]["maxRetryCount"] == 3
    assert "accelerator" not in spec["deploymentSpec"]["executors"]["exec-data"]["container"]["resources"]


@pytest.mark.parametrize("how", ["stage", "run"])
def test_only_a_pod_with_a_step_that_uses_git_gets_the_token(compile_grouped: Compile, how: str) -> None:
    secrets = [{"secret": "kubeloop-s3", "env": {"AWS_ACCESS_KEY_ID": "access"}}]
    for name in catalog.PIPELINES:
        _, platform = compile_grouped(how, name, secrets=secrets)
        for label, pod in platform.items():
            found = [item["secretName"] for item in pod["secretAsEnv"]]
            asks = label in ("exec-decision", "exec-training", "exec-score-batch", "exec-batch-scoring")
            assert found == ["kubeloop-s3"] + ["kubeloop-git"] * asks, (name, label)
            assert pod["securityContext"] == {"runAsUser": "65532", "runAsNonRoot": True}
            assert [item["name"] for item in pod["fieldPathAsEnv"]] == ["KUBELOOP_RUN_ID"]
            assert pod["podMetadata"]["labels"]["app.kubernetes.io/name"] == "flight-delay"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            {
                "train-model": {"node_selector": {"pool": "gpu"}},
                "evaluate-model": {"node_selector": {"pool": "cheap"}},
            },
            r"evaluate-model .*another pod.nodeSelector.labels.pool \(gpu and cheap\).*grouping: step",
        ),
        ({"train-model": {"gpu": {"count": 1}}, "evaluate-model": {"gpu": {"count": 2}}}, "another accelerator.*count"),
    ],
)
def test_steps_that_exclude_each_other_are_named(compile_grouped: Compile, steps: Object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_grouped("stage", steps=steps)
    compile_grouped("step", steps=steps)


def test_what_cannot_be_grouped_is_refused_and_compiles_step_by_step(
    compile_grouped: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage waits for a later one."""
    with monkeypatch.context() as patch:
        patch.setattr(
            grouping, "STAGES", grouping.STAGES | {"validate-features": "model", "build-features": "decision"}
        )
        with pytest.raises(ConfigError, match=r"decision, model wait for each other; .*grouping: step"):
            compile_grouped("stage")
    spec, _ = compile_grouped("step")
    (branch,) = (name for name in spec["root"]["dag"]["tasks"] if name.startswith("condition"))
    assert spec["root"]["dag"]["tasks"][branch]["triggerPolicy"]["condition"].endswith("== true")


def test_the_plan_is_short(compile_grouped: Compile) -> None:
    """Argo keeps it in the workflow's status, which may hold a megabyte; the steps' sources took 25 KB."""
    spec, _ = compile_grouped("stage")
    texts = [json.dumps(item["container"]) for item in spec["deploymentSpec"]["executors"].values()]
    assert sum(map(len, texts)) < 4500

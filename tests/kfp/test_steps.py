"""The steps of a run, derived from the task details of Kubeflow Pipelines: every node of the Argo workflow."""

from typing import Any

import pytest

from kubeloop.config import Loop
from kubeloop.kubeflow import submission
from kubeloop.kubeflow.api import Api
from kubeloop.kubeflow.runs import Runs
from kubeloop.kubeflow.submission import Package
from tests.kfp import argo

NAME = "steps-1"


@pytest.fixture
def run_id(api: Api, case: Loop, runs: Runs, packages: dict[str, Package]) -> str:
    version = submission.upload(api, case, packages["training"])
    return runs.start(NAME, 1, version, {"run": NAME}).run.run_id


def seen(api: Api, run_id: str) -> list[tuple[str, str, int]]:
    run = api.run(run_id)
    assert run is not None
    return [(step.name, step.state, step.attempt) for step in run.steps]


def test_neither_the_workflow_nor_drivers_branches_or_attempts_are_steps(server: Any, api: Api, run_id: str) -> None:
    server.store.set_tasks(run_id, extract_data="SUCCEEDED", train_model="RUNNING", gate_model="PENDING")
    names = {task["display_name"] for task in server.store.runs[run_id]["run_details"]["task_details"]}
    assert {"root", "root(0)", "condition-1", "executor", "executor(0)", "train-model(0)"} <= names
    assert {"train-model-driver", "train-model-driver(0)", "gate-model-driver"} <= names
    assert seen(api, run_id) == [
        ("extract-data", "SUCCEEDED", 1),
        ("train-model", "RUNNING", 1),
        ("gate-model", "PENDING", 1),
    ]


def test_a_step_that_is_tried_again_says_which_attempt_it_is(server: Any, api: Api, run_id: str) -> None:
    """Every step has an executor of the same name: only ids tell which step an attempt belongs to."""
    server.store.set_tasks(run_id, extract_data=("FAILED", "SUCCEEDED"), train_model=("FAILED", "FAILED", "RUNNING"))
    assert seen(api, run_id) == [("extract-data", "SUCCEEDED", 2), ("train-model", "RUNNING", 3)]
    server.store.set_tasks(run_id, extract_data="SUCCEEDED", train_model=("FAILED", "FAILED", "FAILED"))
    server.store.finish(run_id, "FAILED")
    assert seen(api, run_id) == [("extract-data", "SUCCEEDED", 1), ("train-model", "FAILED", 3)]


def test_a_step_whose_driver_fails_is_the_step_that_failed(server: Any, api: Api, run_id: str) -> None:
    server.store.report(run_id, argo.progress("w-x7k2p", {"extract-data": "SUCCEEDED"}, driver_failed="train-model"))
    assert seen(api, run_id) == [("extract-data", "SUCCEEDED", 1), ("train-model", "FAILED", 1)]


def test_without_kubeflows_defaults_there_are_no_nodes_of_attempts(server: Any, api: Api, run_id: str) -> None:
    """As in an Argo installation without Kubeflow."""
    nodes = argo.Nodes("w-x7k2p")
    nodes.add("w-x7k2p", "DAG", phase="Running")
    for name in ("root-driver", "root"):
        nodes.add(f"w-x7k2p.{name}", "DAG", "w-x7k2p")
    for name, phase in (("train-model-driver", "Succeeded"), ("train-model", "Running")):
        nodes.add(f"w-x7k2p.root.{name}", "DAG", "w-x7k2p.root", phase=phase)
    nodes.add("w-x7k2p.root.train-model.executor", "Pod", "w-x7k2p.root.train-model", phase="Running")
    server.store.report(run_id, nodes)
    assert seen(api, run_id) == [("train-model", "RUNNING", 1)]


def test_what_argo_omits_after_a_failure_is_skipped(server: Any, api: Api, run_id: str) -> None:
    nodes = argo.progress("w-x7k2p", {"train-model": "FAILED"})
    root = "w-x7k2p(0).root(0)"
    for name in ("gate-model-driver", "gate-model"):
        nodes.add(f"{root}.{name}", "Skipped", root, phase="Omitted")
    server.store.report(run_id, nodes)
    assert sorted(seen(api, run_id)) == [("gate-model", "SKIPPED", 1), ("train-model", "FAILED", 1)]


def test_a_step_of_a_run_that_is_over_does_not_run_for_ever(server: Any, api: Api, run_id: str) -> None:
    """Above Argo's limit, the task details of a workflow are no longer updated."""
    server.store.set_tasks(run_id, train_model="RUNNING")
    server.store.report(run_id, argo.progress("w-x7k2p", {"train-model": "SUCCEEDED"}), size=argo.MAX_WORKFLOW_SIZE + 1)
    assert seen(api, run_id) == [("train-model", "RUNNING", 1)]
    server.store.finish(run_id, "SUCCEEDED")
    assert seen(api, run_id) == [("train-model", "UNKNOWN", 1)]


def test_a_run_whose_pods_get_no_token_fails_before_its_first_step(
    server: Any, api: Api, runs: Runs, case: Loop, packages: dict[str, Package]
) -> None:
    version = submission.upload(api, case, packages["training"])
    asked = []

    def account(name: str) -> dict[str, Any]:
        asked.append(name)
        return {"automountServiceAccountToken": False}

    server.store.account = account
    run = api.run(runs.start(NAME, 1, version, {"run": NAME}).run.run_id)
    assert asked == ["kubeloop-pipeline"]
    assert run is not None
    assert (run.state, run.steps) == ("FAILED", ())

"""Grouped pipelines run as on a cluster, compared with the same pipelines run step by step on this machine."""

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop.config import Loop
from kubeloop.models import registry
from pipelines import catalog
from tests.pipelines.launcher import Cluster, Done

pytestmark = pytest.mark.timeout(900)

Object = dict[str, Any]


def compiled(loop: Loop, how: str, name: str, folder: Path) -> Object:
    """Compile a pipeline with a grouping, and return its spec."""
    pipelines = loop.pipelines.model_copy(update={"grouping": how})
    path = catalog.write(loop.model_copy(update={"pipelines": pipelines}), name, folder)
    spec: Object = next(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    return spec


@pytest.mark.parametrize("how", ["stage", "run"])
def test_a_grouped_run_ends_as_one_step_by_step(
    undisturbed: Any,
    install: Callable[[str], Any],
    loop: Loop,
    as_of: datetime,
    project: Path,
    tmp_path: Path,
    how: str,
) -> None:
    place = install(f"grouped-{how}")
    settings = place.settings
    variables = os.environ | settings.environ() | {"PYTHONPATH": str(project)}
    cluster = Cluster(tmp_path / "cluster", settings.home, variables)
    # Use the name of the run in the other installation, so that everything can be compared.
    given = {"as_of": as_of.isoformat(), "run": "first", "reason": "a test", "loop": loop.dump()}

    def run(name: str, job: str) -> Done:
        wanted = compiled(loop, how, name, tmp_path)
        inputs = wanted["root"]["inputDefinitions"]["parameters"]
        return cluster.run(wanted, {key: value for key, value in given.items() if key in inputs}, job)

    done = run("training", "first")
    expected = undisturbed.report("first")["result"]
    assert done.result == expected
    ours, theirs = (registry.versions(item.settings, loop.name) for item in (place, undisturbed))
    (made,) = ours
    like = next(version for version in theirs if version.version == "1")
    assert (made.sha256, made.run, made.aliases) == (like.sha256, like.run, made.aliases)
    assert json.loads(made.tags["kubeloop.gate"]) == json.loads(like.tags["kubeloop.gate"])
    for tag in ("kubeloop.training_set_sha256", "kubeloop.raw_sha256", "kubeloop.reason", "kubeloop.as_of"):
        assert made.tags[tag] == like.tags[tag], tag
    champion = registry.champion(settings, loop.name)
    assert champion is not None
    assert champion.version == "1"

    groups = {"stage": ["data", "model", "decision"], "run": ["training"]}[how]
    assert done.states == dict.fromkeys(groups, "COMPLETE")
    artifacts = {name: item for found in done.artifacts.values() for name, item in found.items()}
    assert artifacts["evaluate-model-metrics"]["metadata"]["auc"] > 0.5
    assert artifacts["evaluate-model-curves"]["metadata"]["confidenceMetrics"]
    assert artifacts["gate-model-gate"]["metadata"]
    assert "<html" in cluster.path(artifacts["evaluate-model-report"]).read_text()
    # The launcher uploads a file for each artifact.
    assert {name for name, item in artifacts.items() if not cluster.path(item).exists()} == set()

    # Another attempt as the trigger starts it: the name is the same, and finished steps come from the cache.
    again = run("training", "first")
    assert again.result == expected
    finished = {"data": "CACHED", "model": "CACHED", "decision": "COMPLETE"}
    assert again.states == (finished if how == "stage" else {"training": "COMPLETE"})
    assert [item.version for item in registry.versions(settings, loop.name)] == ["1"]
    # A recurring run has only the name of its job.
    if how == "stage":
        del given["run"]
        other = run("batch-scoring", "second")
        assert other.states == {"data": "COMPLETE", "score-batch": "COMPLETE"}
        assert other.parameters["data"]["begin-run-run"] == "second"

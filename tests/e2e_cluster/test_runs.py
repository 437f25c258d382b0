"""The cost of a training run: its seconds by grouping of steps into pods, and the size of its workflow's status."""

import json
from datetime import datetime

import pytest

from tests.e2e_cluster.cluster import run_of
from tests.e2e_cluster.figures import Figures
from tests.e2e_cluster.workspace import Workspace

pytestmark = pytest.mark.timeout(2400)

LIMIT = 1 << 20
"""Size in bytes of a workflow's nodes above which Argo compresses them."""


@pytest.mark.parametrize("grouping", ["run", "step", "stage"])
def test_a_run(grouping: str, workspace: Workspace, figures: Figures) -> None:
    workspace.upgrade({"pipelines": {"grouping": grouping}})
    name = f"e2e-{grouping}-{workspace.number()}"
    found = workspace.submit("training", name)
    assert found["state"] == "SUCCEEDED", found
    began, ended = (datetime.fromisoformat(found[key]) for key in ("created", "finished"))
    figures.note("seconds of a training run", f"grouping: {grouping}", (ended - began).total_seconds())
    workflow = run_of(name)
    assert workflow is not None
    size = len(json.dumps(workflow["status"], separators=(",", ":")))
    figures.note("bytes of a workflow's status", f"grouping: {grouping}", size)
    assert "compressedNodes" not in workflow["status"]
    # With one pod per step, each output of a driver is copied six times. The default grouping must stay below half the
    # limit.
    assert size < LIMIT * (0.6 if grouping == "step" else 0.5)
    wrong = [
        step for step in found["steps"] if "driver" in step["name"] or "(" in step["name"] or step["name"] == "root"
    ]
    assert wrong == [], "what is shown as a step is one"
    assert {step["state"] for step in found["steps"]} <= {"SUCCEEDED", "SKIPPED"}

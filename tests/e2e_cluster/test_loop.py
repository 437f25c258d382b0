"""The whole loop once: schedule, materialize, train, serve, predict, drift, retrain, promote, roll back."""

import json
import time
from datetime import datetime
from typing import Any

import pytest

from kubeloop import names
from tests.e2e_cluster import inventory, models
from tests.e2e_cluster.cluster import (
    COLLECTOR,
    KUBEFLOW,
    LOOP,
    MONITOR,
    NAMESPACE,
    TRIGGER,
    ask,
    exists,
    forwarded,
    get,
    kubectl,
    run_of,
    until,
)
from tests.e2e_cluster.figures import Figures
from tests.e2e_cluster.traffic import Client
from tests.e2e_cluster.workspace import Workspace

pytestmark = pytest.mark.timeout(3000)

REST_S = 60
BETTER = {"n_estimators": 80, "num_leaves": 31}


def runs() -> list[dict[str, Any]]:
    """Return the runs in the trigger's ledger, the oldest first."""
    found: list[dict[str, Any]] = ask(TRIGGER)["runs"]
    return sorted(found, key=lambda run: run["created_at"])


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_the_recurring_run_is_scheduled() -> None:
    made = get("scheduledworkflows.kubeflow.org", namespace=KUBEFLOW)
    # Kubeflow names the run after the loop and the schedule, and adds a number.
    (found,) = (item["spec"] for item in made if item["metadata"].get("generateName") == f"{LOOP}-hourly")
    assert found["enabled"]
    assert found["trigger"]["cronSchedule"]["cron"] == "0 5 * * * *"


def test_the_first_version_is_served(workspace: Workspace) -> None:
    assert models.remember(workspace).version == "1"
    conditions = {item["type"]: item["status"] for item in models.service()["status"]["conditions"]}
    assert conditions["Ready"] == "True"


def test_predictions_and_labels_reach_the_monitor(client: Client) -> None:
    before = ask(MONITOR)
    taken = ask(COLLECTOR)["acknowledged_seq"]
    with client.traffic(connections=4, rate=10) as traffic:
        until(lambda: traffic.answers >= 20, "twenty answers")
    assert traffic.last["failed"] == 0, traffic.last["failures"]
    assert list(traffic.last["versions"]) == [models.served().version]
    end = until(
        lambda: ask(COLLECTOR)["acknowledged_seq"] >= taken + 40 and ask(COLLECTOR)["acknowledged_seq"], "events"
    )
    found = until(lambda: (now := ask(MONITOR))["last_seq"] >= end and now, "the monitor has read them", 240)
    assert found["malformed"] == before["malformed"]


def test_at_rest_nothing_is_logged_and_memory_is_known(figures: Figures) -> None:
    before = ask(COLLECTOR)["acknowledged_seq"]
    time.sleep(REST_S)
    junk = ask(COLLECTOR)["acknowledged_seq"] - before
    figures.note("at rest", f"payload events in {REST_S} s", junk)
    used = inventory.memory()
    for name, size in used.items():
        figures.note("memory at rest, MiB", name, round(size))
    figures.note("memory at rest, MiB", "all together", round(sum(used.values())))
    assert junk == 0


def turned_down(number: int) -> None:
    """Fail if a run has ended in any way other than a promotion."""
    run = runs()[number]
    assert run["outcome"] in (None, "promoted"), run["detail"]


def test_an_upgrade_rolls_out_a_better_recipe(workspace: Workspace) -> None:
    before = models.served().version
    workspace.upgrade({"training": {"parameters": BETTER}})
    assert models.installed(workspace).training.parameters == BETTER
    assert models.served().version == before


def test_drift_starts_one_retrain_and_its_model_takes_the_traffic(
    client: Client, workspace: Workspace, figures: Figures
) -> None:
    before = len(runs())
    older = models.served().version
    with client.traffic(connections=16, rate=4, rows=20, drifted=True) as traffic:
        begun = traffic.read()["versions"][older]["first"]
        episode = until(lambda: ask(MONITOR)["open_episode"], "an episode opens", 600)
        run = until(lambda: (now := runs())[before:] and now[before], "the trigger asks for a run")
        workflow = until(lambda: (f := run_of(run["name"])) and f.get("status", {}).get("startedAt") and f, "it starts")
        started = seconds(workflow["status"]["startedAt"])
        figures.note(
            "drift to a running retrain, s", "from the end of the window", started - seconds(episode["opened_at"])
        )
        figures.note("drift to a running retrain, s", "from the first drifted request", started - begun)
        # Its number counts the versions that no gate promoted, too.
        until(lambda: models.served().version != older or turned_down(before), "a version is promoted", 1800, 0.5)
        promoted, newer = models.written(), models.served().version
        first = until(lambda: traffic.first(newer), f"version {newer} answers", 600)
        figures.note("promotion to the first answer, s", "of the new version", max(0.0, first - promoted))
        until(lambda: runs()[before]["outcome"], "the trigger knows the outcome", 300)
    figures.note("failed requests", "in the promotion", traffic.last["failed"])
    models.remember(workspace)
    assert [item["outcome"] for item in runs()[before:]] == ["promoted"]
    until(lambda: ask(MONITOR)["open_episode"] is None, "the episode closes", 300)
    assert traffic.last["failed"] == 0, traffic.last["kinds"]


def test_a_canary_serves_next_to_the_champion(client: Client, workspace: Workspace, figures: Figures) -> None:
    older, newer = models.known(workspace)[-2:]
    loop = models.installed(workspace)
    models.serve(loop, newer)
    with client.traffic(connections=32, rate=20) as traffic:
        models.serve(loop, newer, canary=older, percent=30)
        gateway = models.gateway()
        if gateway:
            with client.traffic(connections=16, rate=20, gateway=gateway) as split:
                until(lambda: split.answers >= 400, "four hundred answers", 120)
        models.serve(loop, newer)
    until(lambda: not exists("deployment", f"{LOOP}-canary-predictor"), "the canary goes")
    figures.note("failed requests", "while a canary comes and goes", traffic.last["failed"])
    assert traffic.last["failed"] == 0, traffic.last["kinds"]
    assert set(traffic.last["versions"]) == {newer.version}, "the transformer asks only the champion"
    if not gateway:
        pytest.skip("the canary served, but KServe splits traffic only by HTTPRoutes, and has none here")
    answers = {version: item["answers"] for version, item in split.last["versions"].items()}
    share = answers.get(older.version, 0) / sum(answers.values())
    figures.note("canary", "share of 30 % at the gateway", f"{share:.1%}")
    assert 0.2 < share < 0.4, answers


def test_a_promotion_is_taken_back_by_hand(client: Client, workspace: Workspace, figures: Figures) -> None:
    """docs/operations.md, Roll a model back: address, version, digest and annotations, then the alias."""
    older, newer = models.known(workspace)[-2:]
    edited = json.dumps(models.service())
    for now, before in ((newer.uri, older.uri), (newer.sha256, older.sha256), (newer.run, older.run)):
        edited = edited.replace(json.dumps(now)[1:-1], json.dumps(before)[1:-1])
    edited = edited.replace(f"--version={newer.version}", f"--version={older.version}")
    edited = edited.replace(f'"{names.VERSION}": "{newer.version}"', f'"{names.VERSION}": "{older.version}"')
    with client.traffic(connections=32, rate=20) as traffic:
        kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=kubeloop", "-f", "-", input=edited)
        until(lambda: traffic.first(older.version), "the older version answers", 300)
        with forwarded(f"{NAMESPACE}-mlflow") as mlflow:
            point = {"name": LOOP, "alias": "champion", "version": older.version}
            mlflow.post("/api/2.0/mlflow/registered-models/alias", json=point).raise_for_status()
        # The old pods end.
        time.sleep(20)
    figures.note("failed requests", "in a rollback by hand", traffic.last["failed"])
    # Promote as a pipeline does, over the fields that a person edited.
    models.serve(models.installed(workspace), newer)
    with forwarded(f"{NAMESPACE}-mlflow") as mlflow:
        point = {"name": LOOP, "alias": "champion", "version": newer.version}
        mlflow.post("/api/2.0/mlflow/registered-models/alias", json=point).raise_for_status()
    assert traffic.last["failed"] == 0, traffic.last["kinds"]

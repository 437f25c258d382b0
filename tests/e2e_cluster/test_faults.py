"""Kills parts of the loop and takes away what it needs; each case ends as docs/operations.md promises.

The tests must not stop a cluster's API server, PostgreSQL or S3 themselves. The cluster's owner names commands for it
in KUBELOOP_E2E_STOP_API and KUBELOOP_E2E_START_API, and in the same variables with _POSTGRES and _S3.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from kubeloop import names
from tests.e2e_cluster import inventory
from tests.e2e_cluster.cluster import (
    COLLECTOR,
    KUBEFLOW,
    LOOP,
    MONITOR,
    MONITORS,
    OURS,
    TRIGGER,
    TRIGGERS,
    ask,
    component,
    forwarded,
    get,
    kubectl,
    pods,
    ready,
    rolled_out,
    run_of,
    until,
)
from tests.e2e_cluster.figures import Figures
from tests.e2e_cluster.hooks import hook
from tests.e2e_cluster.page import PREFIX
from tests.e2e_cluster.traffic import Client
from tests.e2e_cluster.workspace import Workspace

pytestmark = pytest.mark.timeout(2400)

AWAY_S = float(os.environ.get(f"{PREFIX}AWAY_S", "60"))


def killed(pod: str, namespace: str) -> None:
    """Delete a pod without a grace period, as when its node dies."""
    kubectl("delete", "pod", pod, "--grace-period=0", "--force", namespace=namespace)


def drift(episode: str) -> int:
    """Post a drift event by hand and return the trigger's answer."""
    now = datetime.now(UTC).isoformat()
    data = {
        "service": LOOP,
        "episode": episode,
        "opened_at": now,
        "as_of": now,
        "kind": "manual",
        "features": [],
        "reason": "a test asks",
    }
    head = {"ce-specversion": "1.0", "ce-type": names.DRIFT_EVENT, "ce-source": "e2e", "ce-id": episode}
    with forwarded(TRIGGER) as trigger:
        return trigger.post("/events", headers=head | {"ce-subject": episode}, json=data).status_code


def asked_for(episode: str) -> str:
    """Return the name of the run that an episode requested."""
    found = until(lambda: [run for run in ask(TRIGGER)["runs"] if run["episode"] == episode], "the run is known")
    return str(found[0]["name"])


def test_a_pod_of_a_step_is_killed(workspace: Workspace) -> None:
    name = f"e2e-step-{workspace.number()}"
    workspace.kubeloop("submit", "training", "--name", name, "--no-follow")
    kill_one(name, "impl")
    found = workspace.submit("training", name)
    assert found["state"] == "SUCCEEDED", found


def test_a_driver_of_a_retrain_is_killed(workspace: Workspace) -> None:
    """Kubeflow may end the run because it counts a repeated driver's task twice; the trigger then starts another."""
    episode = f"{LOOP}-e2e-{workspace.number()}"
    assert drift(episode) == 202
    name = asked_for(episode)
    kill_one(name, "driver")
    ended = until(lambda: [r for r in ask(TRIGGER)["runs"] if r["name"] == name and r["outcome"]], "an outcome", 1500)
    assert ended[0]["outcome"] in ("promoted", "rejected"), ended
    assert ended[0]["attempts"] <= 2


def kill_one(name: str, kind: str) -> None:
    """Kill a pod of a run's steps or drivers, but not the first: the values that begin-run fixes must survive, too."""
    workflow = until(lambda: run_of(name), "the run has a workflow")["metadata"]["name"]
    selector = f"workflows.argoproj.io/workflow={workflow}"
    until(lambda: _over(selector, kind) >= 1, f"one {kind} pod has ended", 600, 0.5)
    victim = until(
        lambda: next((p for p in pods(selector, KUBEFLOW) if f"-{kind}-" in p), ""), "another runs", 600, 0.3
    )
    killed(victim, KUBEFLOW)


def _over(selector: str, kind: str) -> int:
    found = get("pods", selector, KUBEFLOW)
    return sum(f"-{kind}-" in pod["metadata"]["name"] and pod["status"]["phase"] == "Succeeded" for pod in found)


def test_a_trigger_is_killed_and_one_run_goes_on(workspace: Workspace) -> None:
    episode = f"{LOOP}-e2e-{workspace.number()}"
    assert drift(episode) == 202

    def run() -> dict[str, Any]:
        return next(item for item in ask(TRIGGER)["runs"] if item["episode"] == episode)

    found = until(lambda: (now := run())["status"] == "running" and now, "the run is running", 300)
    (holder,) = (pod for pod in pods(TRIGGERS) if pod in found["holder"])
    killed(holder, "kubeloop")
    until(lambda: run()["holder"] not in (found["holder"], None), "another trigger takes over", 180)
    assert drift(episode) == 202, "the same event again"
    ended = until(lambda: (now := run())["outcome"] and now, "the run has an outcome", 1500)
    assert ended["outcome"] in ("promoted", "rejected"), ended
    assert ended["attempts"] == 1
    assert len([item for item in ask(TRIGGER)["runs"] if item["episode"] == episode]) == 1
    rolled_out()


def test_a_monitor_is_killed_and_reads_on(client: Client) -> None:
    episodes = ask(MONITOR)["episodes"]
    with client.traffic(connections=8, rate=20) as traffic:
        (victim,) = pods(MONITORS)
        killed(victim, "kubeloop")
        until(lambda: traffic.answers >= 400, "traffic continues")
    assert traffic.last["failed"] == 0, traffic.last["kinds"]
    rolled_out()
    caught_up()
    # The traffic may drift by itself meanwhile.
    assert ask(MONITOR)["episodes"] >= episodes


def test_the_only_predictor_is_killed(client: Client, figures: Figures) -> None:
    (victim,) = pods(component("predictor"))
    with client.traffic(connections=32, rate=20) as traffic:
        killed(victim, "kubeloop")
        until(lambda: (now := ready(component("predictor"))) and victim not in now, "another is ready", 240)
        answered = traffic.answers
        until(lambda: traffic.answers > answered + 50, "it answers again")
        # From here on, no request may fail.
        time.sleep(10)
        before = traffic.read()["failed"]
        time.sleep(10)
    figures.note("failed requests", "the only predictor killed", f"{traffic.last['failed']} of {traffic.last['sent']}")
    kinds = {kind.split()[0] for kind in traffic.last["kinds"]}
    assert kinds <= {"503", "504"}, f"docs/operations.md, KubeloopServingErrors: {traffic.last['kinds']}"
    assert traffic.last["failed"] == before


@contextlib.contextmanager
def away(what: str) -> Iterator[None]:
    """Make something unavailable for a minute."""
    hook(f"STOP_{what}")
    try:
        yield
    finally:
        hook(f"START_{what}")


def caught_up() -> None:
    """Wait until the monitor has read everything that the collector acknowledged; it must not have failed."""
    last = until(lambda: ask(COLLECTOR)["acknowledged_seq"], "the collector answers")
    until(lambda: ask(MONITOR)["last_seq"] >= last, "the monitor reads on", 300)
    assert ask(MONITOR)["failure"] is None


def answering() -> bool:
    return kubectl("get", "--raw", "/readyz").strip() == "ok"


def test_the_api_server_is_away(client: Client, workspace: Workspace) -> None:
    """A Kubeflow driver that needs the API server fails meanwhile, and so does its run; the trigger starts another."""
    episode = f"{LOOP}-e2e-{workspace.number()}"
    before = inventory.restarts(OURS)
    with client.traffic(connections=32, rate=20) as traffic:
        if not os.environ.get(f"{PREFIX}STOP_API"):
            hook("STOP_API")
        assert drift(episode) == 202
        name = until(lambda: [r for r in ask(TRIGGER)["runs"] if r["episode"] == episode], "the run is known")[0][
            "name"
        ]
        until(lambda: run_of(name), "the run has a workflow")
        with away("API"):
            time.sleep(AWAY_S)
        until(answering, "the API server answers", 180)
    assert traffic.last["failed"] == 0, traffic.last["kinds"]
    ended = until(lambda: [r for r in ask(TRIGGER)["runs"] if r["name"] == name and r["outcome"]], "an outcome", 1500)
    assert ended[0]["outcome"] in ("promoted", "rejected"), ended
    assert ended[0]["attempts"] <= 2
    rolled_out()
    caught_up()
    assert inventory.restarts(OURS) == before, "nothing has to be restarted afterwards"


def test_postgresql_is_away(client: Client, workspace: Workspace) -> None:
    episode = f"{LOOP}-e2e-{workspace.number()}"
    before = inventory.restarts(OURS)
    with client.traffic(connections=32, rate=20) as traffic, contextlib.ExitStack() as stack:
        stack.enter_context(away("POSTGRES"))
        time.sleep(AWAY_S)
        assert ready(TRIGGERS) == []
        stack.close()
        until(lambda: ready(TRIGGERS), "a trigger is ready again", 180)
        assert drift(episode) == 202
        time.sleep(5)
    assert traffic.last["failed"] == 0, traffic.last["kinds"]
    rolled_out()
    caught_up()
    ended = until(lambda: [r for r in ask(TRIGGER)["runs"] if r["episode"] == episode and r["outcome"]], "a run", 1500)
    assert ended[0]["outcome"] in ("promoted", "rejected"), ended
    assert inventory.restarts(OURS) == before, "nothing has to be restarted afterwards"


def test_s3_is_away(client: Client) -> None:
    before = inventory.restarts(OURS)
    with client.traffic(connections=32, rate=20) as traffic:
        taken = ask(COLLECTOR)["acknowledged_seq"]
        with away("S3"):
            time.sleep(AWAY_S)
            assert ask(COLLECTOR)["acknowledged_seq"] > taken, "segments wait on the collector's volume"
        time.sleep(5)
    assert traffic.last["failed"] == 0, traffic.last["kinds"]
    caught_up()
    rolled_out()
    assert inventory.restarts(OURS) == before, "nothing has to be restarted afterwards"

"""The trigger's ledger with runs on Kubeflow Pipelines: a real ledger, a strict API, a real S3 store."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop import failures
from kubeloop.config import ConfigError, Drift, Loop, Settings
from kubeloop.failures import Failure
from kubeloop.kubeflow import submission
from kubeloop.kubeflow.api import Api
from kubeloop.kubeflow.submission import Package
from kubeloop.steps.stages import StageError
from kubeloop.stores.bucket import Bucket
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.kubeflow import KfpRunner
from kubeloop.trigger.ledger import Ledger
from kubeloop.trigger.store import Run

MOMENT = datetime(2013, 7, 1, tzinfo=UTC)
LEASE = timedelta(seconds=30)


@pytest.fixture(scope="module")
def bucket(seaweed: Any) -> str:
    """One bucket for all tests: the store keeps separate volumes for each bucket, and has few."""
    from pyarrow import fs

    store = fs.S3FileSystem(
        endpoint_override=seaweed.endpoint.removeprefix("http://"),
        scheme="http",
        access_key=seaweed.environ["AWS_ACCESS_KEY_ID"],
        secret_key=seaweed.environ["AWS_SECRET_ACCESS_KEY"],
        allow_bucket_creation=True,
    )
    store.create_dir("runner-tests")
    return "s3://runner-tests"


@pytest.fixture
def here(place: Settings, seaweed: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in seaweed.environ.items():
        monkeypatch.setenv(name, value)
    return place.model_copy(
        update={
            "bucket": f"{bucket}/{secrets.token_hex(8)}",
            "s3_endpoint": seaweed.endpoint,
            "ledger_db": f"sqlite:///{tmp_path / 'ledger.db'}",
        }
    )


@pytest.fixture
def event() -> DriftEvent:
    episode = f"flight-delay-{MOMENT.isoformat()}"
    return DriftEvent("flight-delay", episode, MOMENT, MOMENT, "drift", ("dep_delay",), "D = 0.31 over 0.2")


class Replica:
    """A trigger without its HTTP server."""

    def __init__(self, settings: Settings, loop: Loop, holder: str = "one") -> None:
        self.ledger = Ledger(settings.ledger_db, Drift(), backoff=timedelta(0))
        self.runner = KfpRunner(settings, loop, clock=lambda: datetime.now(UTC) + self.later)
        self.runner._runs._looks_s = (0.0,)
        self.later = timedelta(0)
        self._holder = holder

    def step(self) -> Run:
        """Reconcile once, release the run to another trigger, and return the only run."""
        self.ledger.reconcile("flight-delay", self.runner, self._holder, LEASE)
        self.ledger.release(self._holder)
        [run] = self.ledger.runs()
        return run


@pytest.fixture
def uploaded(api: Api, case: Loop, packages: dict[str, Package]) -> None:
    submission.upload(api, case, packages["training"])


@pytest.fixture
def trigger(here: Settings, case: Loop, event: DriftEvent) -> Replica:
    replica = Replica(here, case)
    assert replica.ledger.record(event).accepted
    return replica


def decide(settings: Settings, run: Run, **verdict: Any) -> None:
    Bucket.open(settings).put(f"outcomes/{run.name}.json", json.dumps(verdict).encode())


def newest(server: Any) -> str:
    return str(list(server.store.runs)[-1])


@pytest.mark.usefixtures("uploaded")
@pytest.mark.parametrize(("promote", "outcome"), [(True, "promoted"), (False, "rejected")])
def test_an_event_becomes_a_run_with_a_verdict(
    server: Any, trigger: Replica, here: Settings, case: Loop, promote: bool, outcome: str
) -> None:
    run = trigger.step()
    assert run.status == "running"
    [started] = server.store.runs.values()
    assert started["runtime_config"]["parameters"] == {
        "as_of": MOMENT.isoformat(),
        "run": run.name,
        "reason": "D = 0.31 over 0.2",
        "loop": case.dump(),
    }
    server.store.set_tasks(newest(server), train_model="RUNNING")
    assert trigger.step().status == "running"
    decide(here, run, promote=promote, reason="+0.02 AUC", version="7")
    server.store.finish(newest(server), "SUCCEEDED")
    run = trigger.step()
    assert (run.outcome, run.detail, run.result) == (
        outcome,
        "+0.02 AUC",
        {"promote": promote, "reason": "+0.02 AUC", "version": "7"},
    )
    assert len(server.store.runs) == 1


@pytest.mark.usefixtures("uploaded")
def test_a_failed_attempt_names_its_step_and_the_next_is_a_run_of_its_own(server: Any, trigger: Replica) -> None:
    trigger.step()
    first = newest(server)
    server.store.set_tasks(first, extract_data="SUCCEEDED", train_model="FAILED")
    server.store.finish(first, "FAILED")
    run = trigger.step()
    assert (run.status, run.detail) == ("failed", "failed in train-model")
    run = trigger.step()
    assert (run.status, run.attempts) == ("running", 2)
    assert server.store.runs[newest(server)]["display_name"] == run.name, "KFP's cache must see the same name"


@pytest.mark.usefixtures("uploaded")
@pytest.mark.parametrize(
    ("error", "status"), [(OSError("MLflow is away"), "failed"), (StageError("the table is empty"), "abandoned")]
)
def test_the_ledger_says_why_a_step_failed_and_does_not_repeat_what_would_fail_again(
    server: Any, trigger: Replica, here: Settings, error: Exception, status: str
) -> None:
    trigger.step()
    first = newest(server)
    failures.tell(here.model_copy(update={"run_id": first}), Failure.of(error, "train-model"))
    # The pipelines API knows only the pod, in which several steps may have run.
    server.store.set_tasks(first, data="SUCCEEDED", model="FAILED")
    server.store.finish(first, "FAILED")
    run = trigger.step()
    assert (run.status, run.detail) == (status, f"failed in train-model: {error}")
    assert (run.attempts, run.lasting) == (1, status == "abandoned")


@pytest.mark.usefixtures("uploaded")
@pytest.mark.parametrize("verdict", [None, b"[]", b"{"])
def test_a_success_without_a_verdict_has_failed(
    server: Any, trigger: Replica, here: Settings, verdict: bytes | None
) -> None:
    run = trigger.step()
    if verdict:
        Bucket.open(here).put(f"outcomes/{run.name}.json", verdict)
    server.store.finish(newest(server), "SUCCEEDED")
    run = trigger.step()
    assert run.failures == 1
    assert "without a verdict" in str(run.detail)


@pytest.mark.usefixtures("uploaded")
def test_a_run_that_was_ended_by_hand_is_not_tried_again(server: Any, trigger: Replica) -> None:
    trigger.step()
    server.store.run_service_terminate_run(newest(server))
    run = trigger.step()
    assert (run.status, run.detail) == ("abandoned", "ended by hand in Kubeflow Pipelines")


@pytest.mark.usefixtures("uploaded")
def test_a_run_that_outlives_its_deadline_is_ended(server: Any, trigger: Replica) -> None:
    server.store.ends_at_once = False
    trigger.step()
    run_id = newest(server)
    trigger.later = timedelta(hours=1, minutes=59)
    trigger.step()
    assert server.count("terminate_run") == 0
    trigger.later = timedelta(hours=2)
    assert trigger.step().status == "running", "it is not over yet"
    assert trigger.step().status == "running"
    assert server.count("terminate_run") == 1, "it is terminated only once"
    begun = datetime.fromisoformat(server.store.runs[run_id]["created_at"])
    server.store.clock = lambda: begun + timedelta(hours=2)
    server.store.finish(run_id, "CANCELED")
    run = trigger.step()
    assert (run.status, run.detail) == ("failed", "outlived pipelines.deadline (2h)")
    assert trigger.step().attempts == 2


def test_a_pipeline_that_is_not_there_says_what_to_do(trigger: Replica) -> None:
    run = trigger.step()
    assert run.status == "failed"
    assert run.detail == "flight-delay-training is not uploaded; run `kubeloop schedule` once"


@pytest.mark.usefixtures("uploaded")
def test_a_run_that_can_never_start_is_abandoned_at_once(server: Any, trigger: Replica) -> None:
    [version] = server.store.versions.values()
    del version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]["reason"]
    run = trigger.step()
    assert run.status == "abandoned"
    assert "parameter reason provided is not required" in str(run.detail)


@pytest.mark.usefixtures("uploaded")
@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_while_the_api_is_away_the_run_waits_and_loses_no_attempt(
    server: Any, trigger: Replica, fault: Any, status: int
) -> None:
    server.fault = lambda _: fault("status", status=status)
    for _ in range(5):
        run = trigger.step()
    assert (run.status, run.attempts, run.failures) == ("starting", 1, 0)
    server.fault = lambda _: None
    run = trigger.step()
    assert (run.status, run.attempts) == ("running", 1)
    server.fault = lambda _: fault("lost before")
    assert trigger.step().status == "running"
    assert len(server.store.runs) == 1


@pytest.mark.usefixtures("uploaded")
def test_while_the_bucket_is_away_a_success_waits(
    server: Any, here: Settings, case: Loop, event: DriftEvent, unused: int
) -> None:
    away = here.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{unused}"})
    replica = Replica(away, case)
    replica.ledger.record(event)
    run = replica.step()
    server.store.finish(newest(server), "SUCCEEDED")
    assert replica.step().status == "running"
    decide(here, run, promote=True, reason="better", version="7")
    assert Replica(here, case).step().outcome == "promoted"


@pytest.fixture
def unused() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.usefixtures("uploaded")
@pytest.mark.parametrize("seed", range(15))
def test_two_replicas_and_lost_answers_make_one_run(
    server: Any, here: Settings, case: Loop, event: DriftEvent, fault: Any, seed: int
) -> None:
    chance = random.Random(seed)
    replicas = [Replica(here, case, name) for name in ("one", "two")]
    for replica in replicas:
        replica.ledger.record(event)

    def lose(operation: str) -> Any:
        if chance.random() < 0.6:
            return None
        late = operation.endswith("create_run") and chance.random() < 0.3
        return fault("late" if late else chance.choice(["lost before", "lost after"]))

    server.fault = lose
    for _ in range(20):
        chance.choice(replicas).step()
        if chance.random() < 0.2:
            server.release()
    server.fault = lambda _: None
    server.release()
    run = chance.choice(replicas).step()
    for replica in replicas:
        run = replica.step()
    if run.status == "abandoned":
        assert run.failures == 3
        return
    [live] = server.store.live()
    decide(here, run, promote=True, reason="better", version="7")
    server.store.finish(live["run_id"], "SUCCEEDED")
    assert chance.choice(replicas).step().outcome == "promoted"
    assert server.store.live() == []


@pytest.mark.parametrize(("field", "variable"), [("bucket", "KUBELOOP_BUCKET"), ("kfp_url", "KUBELOOP_KFP_URL")])
def test_what_is_not_set_is_named(here: Settings, case: Loop, field: str, variable: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        KfpRunner(here.model_copy(update={field: ""}), case)


@pytest.mark.usefixtures("uploaded")
def test_the_trigger_runs_it_as_a_process(
    server: Any, here: Settings, case: Loop, event: DriftEvent, tmp_path: Path, wait: Callable[..., Any]
) -> None:
    loop_file = tmp_path / "loop.yaml"
    loop_file.write_text(case.dump())
    command = [sys.executable, "-m", "kubeloop.trigger.server", "--port", "0", "--loop", str(loop_file)]
    command += ["--runner", "kfp", "--poll-seconds", "0.1", "--lease-seconds", "5"]
    environment = {**os.environ, **here.environ(), "KUBELOOP_BUCKET": here.bucket}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        url = process.stdout.readline().decode().split()[1]
        data = {"service": event.service, "episode": event.episode, "kind": "drift", "reason": event.reason}
        data |= {"as_of": MOMENT.isoformat(), "opened_at": MOMENT.isoformat(), "features": ["dep_delay"]}
        headers = {"ce-specversion": "1.0", "ce-type": "io.kubeloop.drift", "ce-source": "/test"}
        headers |= {"ce-id": event.episode, "ce-subject": event.episode}
        assert httpx.post(f"{url}/events", json=data, headers=headers).status_code == 202
        wait(lambda: server.store.live())
        [run] = httpx.get(f"{url}/status").json()["runs"]
        Bucket.open(here).put(f"outcomes/{run['name']}.json", b'{"promote": true, "reason": "better", "version": "7"}')
        server.store.finish(newest(server), "SUCCEEDED")
        found = wait(lambda: next(iter(r for r in httpx.get(f"{url}/status").json()["runs"] if r["outcome"]), None))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert (found["outcome"], found["result"]["version"]) == ("promoted", "7")


@pytest.fixture
def wait() -> Callable[..., Any]:
    def until(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 15
        while not (found := condition()):
            assert time.monotonic() < deadline, "the condition stayed false"
            time.sleep(0.05)
        return found

    return until

import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest


def only_run(trigger: Any) -> dict[str, Any]:
    [run] = trigger.status()["runs"]
    return run


@pytest.mark.parametrize(("end", "outcome", "days"), [("promote", "promoted", "2w"), ("reject", "rejected", "4w")])
def test_an_event_becomes_a_finished_run(
    home: Any, serve: Any, event: Any, eventually: Any, end: str, outcome: str, days: str
) -> None:
    home.behave(end)
    trigger = serve()
    answer = trigger.post(event())
    assert answer.status_code == 202
    name = answer.json()["run_name"]
    assert answer.json() == {"accepted": True, "run_name": name, "reason": f"starts {name}", "duplicate": False}
    eventually(lambda: only_run(trigger)["outcome"])
    run = trigger.client.get(f"/runs/{name}").json()
    assert (run["status"], run["outcome"], run["detail"]) == ("succeeded", outcome, f"to {end}")
    assert run["result"]["version"] == "2"
    status = trigger.status()
    assert status["active"] is None
    assert status["cooldown"]["length"] == days
    [start] = home.starts()
    assert (start["run_name"], start["as_of"], start["reason"]) == (name, run["as_of"], event()["data"]["reason"])


def test_failures_are_retried_under_the_same_name(home: Any, serve: Any, event: Any, eventually: Any) -> None:
    home.behave("die")
    trigger = serve("--max-failures", "3")
    trigger.post(event())
    eventually(lambda: only_run(trigger)["failures"] == 1)
    home.behave("promote")
    eventually(lambda: only_run(trigger)["outcome"])
    run = only_run(trigger)
    assert run["outcome"] == "promoted"
    assert run["failures"] >= 1
    assert run["attempts"] == len(home.starts()) == run["failures"] + 1
    assert {start["run_name"] for start in home.starts()} == {run["name"]}


def test_a_run_that_keeps_failing_is_abandoned(home: Any, serve: Any, event: Any, eventually: Any) -> None:
    home.behave("fail")
    trigger = serve("--max-failures", "2")
    trigger.post(event())
    eventually(lambda: only_run(trigger)["outcome"])
    run = only_run(trigger)
    assert (run["status"], run["outcome"], run["attempts"], run["detail"]) == ("abandoned", "failed", 2, "no labels")
    assert len(home.starts()) == 2


def test_a_run_that_would_fail_again_is_tried_once(home: Any, serve: Any, event: Any, eventually: Any) -> None:
    home.behave("lasting")
    trigger = serve()
    trigger.post(event())
    eventually(lambda: only_run(trigger)["outcome"])
    run = only_run(trigger)
    assert (run["status"], run["outcome"], run["attempts"], run["detail"]) == ("abandoned", "failed", 1, "one class")
    assert len(home.starts()) == 1


def test_anything_but_a_drift_event_of_this_service_is_refused(serve: Any, event: Any) -> None:
    trigger = serve()
    for wrong, message in (
        (event(kind="whim"), "data.kind"),
        (event(service="trains"), "this trigger retrains 'flights'"),
        ({**event(), "id": "other"}, "id is 'other'"),
    ):
        answer = trigger.post(wrong)
        assert answer.status_code == 400
        assert message in answer.json()["error"]
    assert trigger.post(event(reason="x" * 70_000)).status_code == 413
    assert trigger.client.get("/runs/none").status_code == 404
    assert trigger.client.get("/events").status_code == 405
    assert trigger.status()["events"] == []


def test_binary_mode_over_http(serve: Any, event: Any) -> None:
    trigger = serve()
    structured = event()
    data = structured.pop("data")
    headers = {f"ce-{name}": value for name, value in structured.items()}
    answer = trigger.client.post("/events", json=data, headers=headers)
    assert answer.status_code == 202
    assert answer.json()["accepted"]


def test_metrics_and_probes_tell_what_the_ledger_holds(home: Any, serve: Any, event: Any, eventually: Any) -> None:
    trigger = serve()
    trigger.post(event(1))
    eventually(lambda: only_run(trigger)["outcome"])
    for _ in range(3):
        trigger.post(event(2))
    trigger.kill()
    trigger = serve()
    metrics = trigger.client.get("/metrics").text
    for line in (
        'kubeloop_trigger_events_total{decision="accepted",service="flights"} 1.0',
        'kubeloop_trigger_events_total{decision="absorbed",service="flights"} 1.0',
        'kubeloop_trigger_events_total{decision="duplicate",service="flights"} 2.0',
        'kubeloop_trigger_runs_total{outcome="promoted",service="flights"} 1.0',
        'kubeloop_trigger_runs_total{outcome="rejected",service="flights"} 0.0',
        'kubeloop_trigger_active{service="flights"} 0.0',
        'kubeloop_trigger_cooldown_until_seconds{service="flights"} 1.3738464e+09',
    ):
        assert line in metrics.splitlines()
    assert trigger.client.get("/healthz").status_code == 200
    assert trigger.client.get("/readyz").status_code == 200


def test_a_thousand_copies_and_a_killed_server_make_one_run(home: Any, serve: Any, event: Any, eventually: Any) -> None:
    home.behave("promote", wait=True)
    trigger = [serve()]
    copies = [event(1), event(2)] * 500
    random.Random(7).shuffle(copies)
    restart = threading.Event()
    lock = threading.Lock()
    sent = 0

    def send(body: dict[str, Any]) -> tuple[str, bool]:
        nonlocal sent
        with lock:
            sent += 1
            if sent == 400:
                restart.set()
        while True:
            try:
                answer = trigger[0].post(body)
            except (httpx.TransportError, RuntimeError):  # the killed server's client was closed
                time.sleep(0.05)
                continue
            assert answer.status_code == 202
            return body["id"], answer.json()["accepted"]

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(send, copies)
        assert restart.wait(60)
        trigger[0].kill()
        trigger[0] = serve()
        decisions = set(answers)
    assert len(decisions) == 2, "every copy of an event got the same answer, before the restart and after"
    assert sorted(accepted for _, accepted in decisions) == [False, True]
    eventually(lambda: only_run(trigger[0])["status"] == "running")
    assert sum(item["received"] for item in trigger[0].status()["events"]) >= 1000
    home.gate.touch()
    eventually(lambda: only_run(trigger[0])["outcome"] == "promoted")
    assert len(home.starts()) == 1
    assert only_run(trigger[0])["attempts"] == 1


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1, 0.3])
def test_a_server_killed_at_any_moment_starts_nothing_twice(
    home: Any, serve: Any, event: Any, eventually: Any, delay: float
) -> None:
    home.behave("promote", wait=True)
    trigger = serve()
    assert trigger.post(event()).json()["accepted"]
    time.sleep(delay)
    trigger.kill()
    trigger = serve()
    eventually(lambda: only_run(trigger)["status"] == "running" and home.starts())
    home.gate.touch()
    eventually(lambda: only_run(trigger)["outcome"] == "promoted")
    assert len(home.starts()) == 1


def test_two_triggers_on_one_ledger_share_the_work(home: Any, serve: Any, event: Any, eventually: Any) -> None:
    home.behave("promote", wait=True)
    first, second = serve(), serve()
    assert [t.post(event()).json()["duplicate"] for t in (first, second)] == [False, True]
    holder = eventually(lambda: only_run(second)["status"] == "running" and only_run(second)["holder"])
    (first if f"-{first.process.pid}-" in holder else second).kill()
    survivor = second if first.process.poll() is not None else first
    eventually(lambda: only_run(survivor)["holder"] not in (holder, None))
    home.gate.touch()
    eventually(lambda: only_run(survivor)["outcome"] == "promoted")
    assert len(home.starts()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_trigger_ends_its_run_and_the_next_one_starts_it_again(
    home: Any, serve: Any, event: Any, eventually: Any, number: signal.Signals
) -> None:
    home.behave("promote", wait=True)
    trigger = serve("--lease-seconds", "60")
    name = trigger.post(event()).json()["run_name"]
    eventually(home.starts)
    eventually(lambda: only_run(trigger)["status"] == "running")
    assert trigger.stop(number) == 0
    assert home.report(name)["status"] == "interrupted"
    home.gate.touch()
    trigger = serve("--lease-seconds", "60")
    eventually(lambda: only_run(trigger)["outcome"] == "promoted")
    run = only_run(trigger)
    assert (run["attempts"], run["failures"]) == (2, 0), "a stop is not a failure"
    assert len(home.starts()) == 2


def test_a_wrong_loop_file_ends_with_advice(home: Any, serve: Any) -> None:
    home.loop_file.write_text("name: flights")
    with pytest.raises(AssertionError, match=r"source: Field required"):
        serve()

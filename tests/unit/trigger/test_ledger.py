import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from kubeloop.config import Drift
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.ledger import LeaseLostError, Ledger
from kubeloop.trigger.runners import Parameters, RunState
from kubeloop.trigger.store import Outcome, Run

Event = Callable[..., DriftEvent]
LEASE = timedelta(seconds=10)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path / 'state' / 'ledger.db'}"


@pytest.fixture
def ledger(url: str, policy: Drift, clock: Any) -> Iterator[Ledger]:
    ledger = Ledger(url, policy, clock=clock)
    yield ledger
    ledger.close()


def complete(ledger: Ledger, event: DriftEvent, outcome: Outcome) -> Run:
    decision = ledger.record(event)
    assert decision.accepted, decision.reason
    run = ledger.claim("flights", "a", LEASE)
    assert run
    assert run.name == decision.run_name
    return ledger.finish(ledger.mark_started(run), outcome, "because", {"version": "2"})


def test_an_event_asks_for_one_run(ledger: Ledger, episode: Event) -> None:
    first = ledger.record(episode())
    again = ledger.record(episode())
    assert (first.accepted, first.duplicate) == (True, False)
    assert (again.accepted, again.duplicate, again.run_name) == (True, True, first.run_name)
    assert [(run.name, run.status, run.kind, run.features) for run in ledger.runs()] == [
        (first.run_name, "requested", "drift", ["dep_delay", "wind_speed"])
    ]
    assert [event.received for event in ledger.events("flights")] == [2]


def test_an_event_during_a_run_is_absorbed_for_good(ledger: Ledger, episode: Event) -> None:
    first = ledger.record(episode(0))
    during = ledger.record(episode(1))
    assert not during.accepted
    assert during.run_name is None
    assert during.reason == f"absorbed: {first.run_name} is running"
    run = ledger.claim("flights", "a", LEASE)
    assert run
    ledger.finish(run, "promoted", "better")
    later = ledger.record(episode(1))
    assert (later.accepted, later.reason, later.duplicate) == (False, during.reason, True)
    assert len(ledger.runs()) == 1


def test_services_do_not_wait_for_each_other(ledger: Ledger, episode: Event) -> None:
    assert ledger.record(episode(service="flights")).accepted
    assert ledger.record(episode(service="trains")).accepted
    assert [run.service for run in ledger.runs("trains")] == ["trains"]


def test_the_database_itself_refuses_a_second_active_run(ledger: Ledger, url: str, episode: Event) -> None:
    ledger.record(episode(0))
    ledger.record(episode(1))
    insert = (
        "INSERT INTO runs (name, service, episode, status, attempts, failures, created_at, revision)"
        " SELECT 'second', service, episode, :status, 0, 0, first_received, 0 FROM events WHERE NOT accepted"
    )
    engine = create_engine(url)
    for status in ("requested", "starting", "running", "failed"):
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(text(insert), {"status": status})
    with engine.begin() as connection:
        connection.execute(text(insert), {"status": "succeeded"})
    engine.dispose()


@pytest.mark.parametrize(
    ("outcomes", "days"),
    [
        (["promoted"], 14),
        (["rejected"], 28),
        (["rejected", "rejected"], 56),
        (["rejected", "rejected", "rejected"], 56),
        (["rejected", "promoted"], 14),
        (["rejected", "rejected", "promoted", "rejected"], 28),
    ],
)
def test_cooldown_doubles_on_rejection_and_resets_on_promotion(
    ledger: Ledger, episode: Event, outcomes: list[Outcome], days: int
) -> None:
    for number, outcome in enumerate(outcomes):
        complete(ledger, episode(100 * number), outcome)
    last = 100 * (len(outcomes) - 1)
    cooldown = ledger.cooldown("flights")
    assert cooldown
    assert cooldown.length == timedelta(days=days)
    assert cooldown.until == episode(last + days).as_of
    before = ledger.record(episode(last + days - 1))
    assert not before.accepted
    assert before.reason == f"absorbed: flights is in its cooldown until {cooldown.until.isoformat()}"
    assert ledger.record(episode(last + days)).accepted


def test_cooldown_is_event_time_whatever_the_wall_clock_says(ledger: Ledger, episode: Event, clock: Any) -> None:
    complete(ledger, episode(0), "promoted")
    clock.advance(365 * 86400)
    assert not ledger.record(episode(13)).accepted


@pytest.mark.parametrize("kind", ["drift", "performance", "schedule", "manual"])
def test_only_a_person_and_the_calendar_skip_the_cooldown(ledger: Ledger, episode: Event, kind: str) -> None:
    complete(ledger, episode(0), "promoted")
    assert ledger.record(episode(1, kind=kind)).accepted == (kind in ("schedule", "manual"))


def test_a_manual_event_waits_for_no_run_either(ledger: Ledger, episode: Event) -> None:
    ledger.record(episode(0))
    assert not ledger.record(episode(1, kind="manual")).accepted


def test_a_rejected_manual_run_never_shortens_the_rest(ledger: Ledger, episode: Event) -> None:
    complete(ledger, episode(100), "promoted")
    complete(ledger, episode(10, kind="manual"), "rejected")
    cooldown = ledger.cooldown("flights")
    assert cooldown
    assert cooldown.until == episode(114).as_of
    assert cooldown.length == timedelta(days=28)


def test_a_failed_run_is_retried_with_backoff_then_abandoned(ledger: Ledger, episode: Event, clock: Any) -> None:
    decision = ledger.record(episode(0))
    for attempt, wait in ((1, 5), (2, 10)):
        run = ledger.claim("flights", "a", LEASE)
        assert run
        assert (run.attempts, run.status) == (attempt, "starting")
        run = ledger.finish(run, "failed", "out of memory")
        assert (run.status, run.outcome, run.failures) == ("failed", None, attempt)
        assert not ledger.record(episode(attempt)).accepted, "a run that waits for its next attempt is active"
        clock.advance(wait - 0.1)
        assert ledger.claim("flights", "a", LEASE) is None
        clock.advance(0.1)
    run = ledger.claim("flights", "a", LEASE)
    assert run
    run = ledger.finish(run, "failed", "out of memory")
    assert (run.name, run.status, run.outcome, run.attempts) == (decision.run_name, "abandoned", "failed", 3)
    assert ledger.runs() == [run]
    assert ledger.active("flights") is None
    cooldown = ledger.cooldown("flights")
    assert cooldown
    assert cooldown.length == timedelta(days=14), "a failure of the infrastructure says nothing about the model"


def test_a_failure_that_would_repeat_itself_is_given_up_at_once(ledger: Ledger, episode: Event) -> None:
    ledger.record(episode(0))
    run = ledger.claim("flights", "a", LEASE)
    assert run
    run = ledger.finish(run, "failed", "dep_delay is null", lasting=True)
    assert (run.status, run.outcome, run.attempts) == ("abandoned", "failed", 1)
    assert ledger.active("flights") is None


def test_a_lease_keeps_others_out_until_it_runs_out(ledger: Ledger, episode: Event, clock: Any) -> None:
    ledger.record(episode())
    first = ledger.claim("flights", "a", LEASE)
    assert first
    assert ledger.claim("flights", "b", LEASE) is None
    clock.advance(LEASE.total_seconds())
    second = ledger.claim("flights", "b", LEASE)
    assert second
    assert (second.holder, second.status, second.attempts) == ("b", "starting", 1)
    for write in (ledger.mark_started, lambda run: ledger.finish(run, "promoted", "")):
        with pytest.raises(LeaseLostError, match="another trigger"):
            write(first)
    assert ledger.cooldown("flights") is None, "an outdated finish must not set a cooldown"


def test_released_runs_can_be_claimed_at_once(ledger: Ledger, episode: Event) -> None:
    ledger.record(episode())
    assert ledger.claim("flights", "a", LEASE)
    ledger.release("a")
    run = ledger.claim("flights", "b", LEASE)
    assert run
    assert run.holder == "b"


def test_a_trigger_leaves_the_runs_of_other_services_alone(ledger: Ledger, episode: Event, clock: Any) -> None:
    """Loops share a ledger; each has a runner that knows only its own pipelines."""
    for service in ("flights", "trains"):
        ledger.record(episode(service=service))
    trains = Script(None, RUNNING, RUNNING)
    ledger.reconcile("trains", trains, "a", LEASE)
    clock.now += 10 * LEASE
    ledger.reconcile("flights", flights := Script(None, RUNNING), "b", LEASE)
    assert [(run.service, run.status, run.holder) for run in ledger.runs()] == [
        ("flights", "running", "b"),
        ("trains", "running", "a"),
    ]
    assert {name.partition("-")[0] for name in trains.names} == {"trains"}
    assert {name.partition("-")[0] for name in flights.names} == {"flights"}
    ledger.reconcile("trains", trains, "b", LEASE)
    assert ledger.active("trains").holder == "b", "the same service's other trigger does take over"


def test_a_run_survives_a_restart(url: str, policy: Drift, clock: Any, episode: Event) -> None:
    first = Ledger(url, policy, clock=clock)
    run = complete(first, episode(0), "rejected")
    first.close()
    second = Ledger(url, policy, clock=clock)
    assert second.runs() == [run]
    assert second.run(run.name) == run
    assert second.run("no-such-run") is None
    assert not second.record(episode(20)).accepted
    second.close()


def test_a_thousand_copies_in_many_threads_and_two_ledgers_make_one_run_an_episode(
    url: str, policy: Drift, clock: Any, episode: Event
) -> None:
    events = [episode(day, service=service) for day in range(5) for service in ("flights", "trains")] * 100
    random.Random(7).shuffle(events)
    ledgers = [Ledger(url, policy, clock=clock) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        decisions = list(pool.map(lambda pair: pair[1].record(pair[0]), zip(events, ledgers * 500, strict=True)))
    assert sum(event.received for event in ledgers[0].events()) == 1000
    assert sorted(run.service for run in ledgers[0].runs()) == ["flights", "trains"]
    assert len({d.run_name for d in decisions if d.accepted}) == 2
    assert sum(not decision.duplicate for decision in decisions) == 10
    answers = {(e.service, e.episode, d.accepted, d.run_name) for e, d in zip(events, decisions, strict=True)}
    assert len(answers) == 10, "every copy of an event gets the same answer"
    for ledger in ledgers:
        ledger.close()


class Script:
    """A runner that answers from a script, and keeps the requests."""

    def __init__(self, *answers: RunState | OSError | None) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.names: set[str] = set()

    def _answer(self, run_name: str, question: str) -> RunState | None:
        self.names.add(run_name)
        self.asked.append(question)
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def find(self, run_name: str) -> RunState | None:
        return self._answer(run_name, "find")

    def start(self, run_name: str, parameters: Parameters) -> RunState:
        state = self._answer(run_name, f"start {parameters['attempt']}")
        assert state
        return state


RUNNING = RunState("running", 1)
BROKEN = RunState("failed", 1, error="disk full")
PROMOTE = RunState("succeeded", 1, result={"promote": True, "reason": "better by 0.02", "version": "2"})
REJECT = RunState("succeeded", 1, result={"promote": False, "reason": "no gain"})


@pytest.mark.parametrize(
    ("answers", "asked", "status", "outcome", "detail"),
    [
        ([None, RUNNING], ["find", "start 1"], "running", None, None),
        ([RUNNING], ["find"], "running", None, None),
        ([PROMOTE], ["find"], "succeeded", "promoted", "better by 0.02"),
        ([REJECT], ["find"], "succeeded", "rejected", "no gain"),
        ([RunState("succeeded", 1, result={})], ["find"], "failed", None, "the pipeline ended without a verdict"),
        ([RunState("succeeded", 1)], ["find"], "failed", None, "the pipeline ended without a verdict"),
        ([BROKEN], ["find"], "failed", None, "disk full"),
        ([RunState("interrupted", 1, error="stopped")], ["find"], "requested", None, "stopped"),
        ([OSError("no answer")], ["find"], "starting", None, None),
        ([None, TimeoutError(), RUNNING], ["find", "start 1", "find"], "running", None, None),
        ([None, OSError("no space"), None], ["find", "start 1", "find"], "failed", None, "could not be started: no sp"),
        ([None, OSError(), OSError()], ["find", "start 1", "find"], "starting", None, None),
    ],
)
def test_a_step_of_a_new_run(
    ledger: Ledger,
    episode: Event,
    answers: list[Any],
    asked: list[str],
    status: str,
    outcome: str | None,
    detail: str | None,
) -> None:
    ledger.record(episode())
    runner = Script(*answers)
    ledger.reconcile("flights", runner, "a", LEASE)
    [run] = ledger.runs()
    assert runner.asked == asked
    assert runner.names == {run.name}
    assert (run.status, run.outcome) == (status, outcome)
    assert (run.detail or "").startswith(detail or "")
    assert (run.detail is None) == (detail is None)


def test_a_second_attempt_looks_past_the_first_ones_remains(ledger: Ledger, episode: Event, clock: Any) -> None:
    ledger.record(episode())
    ledger.reconcile("flights", Script(BROKEN), "a", LEASE)
    clock.advance(5)
    runner = Script(BROKEN, RunState("running", 2))
    ledger.reconcile("flights", runner, "a", LEASE)
    assert runner.asked == ["find", "start 2"]
    [run] = ledger.runs()
    assert (run.status, run.attempts, run.failures) == ("running", 2, 1)


def test_a_second_attempt_adopts_a_first_that_runs_after_all(ledger: Ledger, episode: Event, clock: Any) -> None:
    ledger.record(episode())
    ledger.reconcile("flights", Script(None, TimeoutError(), None), "a", LEASE)
    clock.advance(5)
    runner = Script(RUNNING)
    ledger.reconcile("flights", runner, "a", LEASE)
    assert runner.asked == ["find"]
    assert [run.status for run in ledger.runs()] == ["running"]


def test_a_running_run_that_the_runner_lost_has_failed(ledger: Ledger, episode: Event) -> None:
    ledger.record(episode())
    ledger.reconcile("flights", Script(RUNNING), "a", LEASE)
    ledger.reconcile("flights", Script(None), "a", LEASE)
    [run] = ledger.runs()
    assert (run.status, run.detail) == ("failed", "the runner no longer knows the run")


def test_following_a_run_keeps_its_lease(ledger: Ledger, episode: Event, clock: Any) -> None:
    ledger.record(episode())
    for _ in range(10):
        ledger.reconcile("flights", Script(RUNNING), "a", LEASE)
        clock.advance(LEASE.total_seconds() * 0.4)
        assert ledger.claim("flights", "b", LEASE) is None

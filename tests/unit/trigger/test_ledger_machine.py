"""Any order of events, copies, crashes, restarts and lost answers, with two triggers on one ledger."""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kubeloop.config import Drift
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.ledger import Decision, Ledger
from kubeloop.trigger.runners import Parameters, RunState
from kubeloop.trigger.store import Cooldown, Outcome

POLICY = Drift(cooldown=timedelta(days=14), max_cooldown=timedelta(days=56))
LEASE = timedelta(seconds=10)
SERVICES = ("flights", "trains")
ENDS: dict[str, RunState] = {
    "promote": RunState("succeeded", 0, result={"promote": True, "reason": "better"}),
    "reject": RunState("succeeded", 0, result={"promote": False, "reason": "no gain"}),
    "fail": RunState("failed", 0, error="disk full"),
    "interrupt": RunState("interrupted", 0, error="stopped"),
}


class Crash(BaseException):
    """Simulates the end of the process."""


class World:
    """The place where the runs happen; it outlives every trigger and keeps the promises of the runner port."""

    def __init__(self) -> None:
        self.attempts: dict[str, list[RunState]] = {}
        self.launched: Counter[tuple[str, int]] = Counter()

    def find(self, name: str) -> RunState | None:
        return self.attempts[name][-1] if name in self.attempts else None

    def start(self, name: str, attempt: int) -> RunState:
        state = self.find(name)
        if state and (state.status in ("running", "succeeded") or state.attempt >= attempt):
            return state
        self.launched[name, attempt] += 1
        self.attempts.setdefault(name, []).append(RunState("running", attempt))
        return self.attempts[name][-1]

    def running(self) -> list[str]:
        return sorted(name for name, states in self.attempts.items() for s in states if s.status == "running")

    def end(self, name: str, how: str) -> None:
        self.attempts[name][-1] = replace(ENDS[how], attempt=self.attempts[name][-1].attempt)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.world = World()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.points = 0
        self.crash_at: int | None = None
        self.meanwhile: tuple[str, Callable[[], None]] | None = None
        self.serial = count()
        self.ledgers: dict[str, tuple[str, Ledger]] = {}
        self.decisions: dict[DriftEvent, Decision] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.rests: dict[str, Cooldown] = {}
        sa.event.listen(sa.Engine, "commit", self.point)
        for trigger in ("left", "right"):
            self.restart(trigger)

    def teardown(self) -> None:
        sa.event.remove(sa.Engine, "commit", self.point)
        for _ in range(40):
            self.now += timedelta(hours=1)
            for name in self.world.running():
                self.world.end(name, "promote")
            self.reconcile("left")
        self.agree()
        for run in self.ledgers["left"][1].runs():
            assert run.outcome, "every run ends once the faults are over"
            last = self.world.find(run.name)
            if last is None:
                assert run.outcome == "failed", "every start of the run was lost on the way"
                continue
            assert (run.outcome == "failed") == (last.status == "failed")
            assert last.result is None or last.result["promote"] == (run.outcome == "promoted")
        for _, ledger in self.ledgers.values():
            ledger.close()
        self.folder.cleanup()

    def point(self, *_: object) -> None:
        """Mark a point at which the process may crash."""
        self.points += 1
        if self.points == self.crash_at:
            raise Crash

    def clock(self) -> datetime:
        self.point()
        return self.now

    def restart(self, trigger: str) -> None:
        if trigger in self.ledgers:
            self.ledgers[trigger][1].close()
        ledger = Ledger(f"sqlite:///{self.folder.name}/ledger.db", POLICY, clock=self.clock)
        self.ledgers[trigger] = (f"{trigger}-{next(self.serial)}", ledger)

    def surviving(self, trigger: str, action: Callable[[], Any], crash_at: int | None) -> Any:
        """Call a function that may crash; after a crash the trigger comes back as a new process."""
        self.points, self.crash_at = 0, crash_at
        try:
            return action()
        except Crash:
            self.crash_at = None
            self.restart(trigger)
        finally:
            self.crash_at = None

    def reconcile(self, trigger: str) -> None:
        holder, ledger = self.ledgers[trigger]
        for service in SERVICES:
            ledger.reconcile(service, Port(self, service), holder, LEASE)

    @rule(
        day=st.integers(0, 120),
        service=st.sampled_from(SERVICES),
        kind=st.sampled_from(["drift", "performance", "schedule", "manual"]),
        trigger=st.sampled_from(["left", "right"]),
        crash_at=st.none() | st.integers(1, 3),
    )
    def event(self, day: int, service: str, kind: Any, trigger: str, crash_at: int | None) -> None:
        moment = datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=day)
        event = DriftEvent(service, f"{service}-{kind}-{day}", moment, moment, kind, (), "drift")
        self.send(event, trigger, crash_at)

    @precondition(lambda self: self.decisions)
    @rule(data=st.data(), trigger=st.sampled_from(["left", "right"]), crash_at=st.none() | st.integers(1, 3))
    def copy(self, data: st.DataObject, trigger: str, crash_at: int | None) -> None:
        self.send(data.draw(st.sampled_from(list(self.decisions))), trigger, crash_at)

    def send(self, event: DriftEvent, trigger: str, crash_at: int | None) -> None:
        ledger = self.ledgers[trigger][1]
        active, rest = ledger.active(event.service), self.rests.get(event.service)
        decision = self.surviving(trigger, lambda: ledger.record(event), crash_at)
        if decision is None:
            return
        if known := self.decisions.get(event):
            assert decision == replace(known, duplicate=True)
            return
        assert not decision.duplicate
        rests = rest is not None and event.kind not in ("schedule", "manual") and event.as_of < rest.until
        assert decision.accepted == (active is None and not rests)
        assert decision.run_name == (event.run_name if decision.accepted else None)
        self.decisions[event] = decision

    @rule(trigger=st.sampled_from(["left", "right"]), crash_at=st.none() | st.integers(1, 16))
    def work(self, trigger: str, crash_at: int | None) -> None:
        self.surviving(trigger, lambda: self.reconcile(trigger), crash_at)

    @rule(
        trigger=st.sampled_from(["left", "right"]),
        where=st.sampled_from(["before find", "after find", "before start", "after start"]),
        rounds=st.integers(1, 3),
        how=st.sampled_from(["nothing", *ENDS]),
    )
    def stall(self, trigger: str, where: str, rounds: int, how: str) -> None:
        """Stop one trigger at a point, let the other take over and work, and then let the first continue."""
        other = {"left": "right", "right": "left"}[trigger]

        def meanwhile() -> None:
            for _ in range(rounds):
                self.now += 10 * LEASE
                self.reconcile(other)
                if how != "nothing":
                    for name in self.world.running():
                        self.world.end(name, how)

        self.meanwhile = (where, meanwhile)
        self.surviving(trigger, lambda: self.reconcile(trigger), None)
        self.meanwhile = None

    @rule(
        trigger=st.sampled_from(["left", "right"]),
        where=st.sampled_from(["before find", "before start", "after start"]),
    )
    def lose_the_answer(self, trigger: str, where: str) -> None:
        def timeout() -> None:
            raise TimeoutError(where)

        self.meanwhile = (where, timeout)
        self.surviving(trigger, lambda: self.reconcile(trigger), None)
        self.meanwhile = None

    @rule(trigger=st.sampled_from(["left", "right"]))
    def stop_gracefully(self, trigger: str) -> None:
        holder, ledger = self.ledgers[trigger]
        held = {run.name for run in ledger.runs() if run.holder == holder and not run.outcome}
        for name in held.intersection(self.world.running()):
            self.world.end(name, "interrupt")
        ledger.release(holder)
        self.restart(trigger)

    @rule(seconds=st.sampled_from([1, 6, 11, 100]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.world.running())
    @rule(data=st.data(), how=st.sampled_from(list(ENDS)))
    def end(self, data: st.DataObject, how: str) -> None:
        self.world.end(data.draw(st.sampled_from(self.world.running())), how)

    @invariant()
    def agree(self) -> None:
        ledger = self.ledgers["left"][1]
        runs, events = ledger.runs(), ledger.events()
        accepted = sorted(event.run_name or "" for event in events if event.accepted)
        assert sorted(run.name for run in runs) == accepted, "one run per accepted episode, none for others"
        assert len({(run.service, run.episode) for run in runs}) == len(runs)
        active = Counter(run.service for run in runs if run.outcome is None)
        assert all(number == 1 for number in active.values())
        assert all(number == 1 for number in self.world.launched.values()), "an attempt started twice"
        busy = Counter(name.partition("-")[0] for name in self.world.running())
        assert all(number == 1 for number in busy.values()), "two runs of one service at once"
        for run in runs:
            assert self.outcomes.get(run.name, run.outcome) == run.outcome, "an outcome is final"
            if run.outcome and run.name not in self.outcomes:
                self.outcomes[run.name] = run.outcome
                self.rests[run.service] = expected_rest(
                    self.rests.get(run.service), run.service, run.as_of, run.outcome
                )
        for service in SERVICES:
            assert ledger.cooldown(service) == self.rests.get(service)


def expected_rest(before: Cooldown | None, service: str, as_of: datetime, outcome: Outcome) -> Cooldown:
    length = before.length if before else timedelta(days=14)
    length = {"promoted": timedelta(days=14), "rejected": min(2 * length, timedelta(days=56)), "failed": length}[
        outcome
    ]
    until = as_of + length
    return Cooldown(service, until if before is None or outcome == "promoted" else max(until, before.until), length)


class Port:
    """One service's connection to the world, on which its trigger may crash, stall or get no answer."""

    def __init__(self, machine: Machine, service: str) -> None:
        self.machine = machine
        self.service = service
        self.found: set[str] = set()

    def find(self, run_name: str) -> RunState | None:
        assert run_name.startswith(f"{self.service}-"), "a service's runner was asked for another's run"
        self.at("before find")
        state = self.machine.world.find(run_name)
        self.found.add(run_name)
        self.at("after find")
        return state

    def start(self, run_name: str, parameters: Parameters) -> RunState:
        assert run_name in self.found, "a start without a look"
        self.found.discard(run_name)
        self.at("before start")
        state = self.machine.world.start(run_name, parameters["attempt"])
        self.at("after start")
        return state

    def at(self, where: str) -> None:
        self.machine.point()
        if self.machine.meanwhile and self.machine.meanwhile[0] == where:
            action = self.machine.meanwhile[1]
            self.machine.meanwhile = None
            action()


TestLedger = Machine.TestCase
TestLedger.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

"""The trigger ledger: turn drift events into pipeline runs, exactly one per episode, even if messages are lost."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kubeloop.config import Drift
from kubeloop.errors import KubeloopError
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.runners import Parameters, Runner, RunState
from kubeloop.trigger.store import COOLDOWNS, EVENTS, IS_ACTIVE, RUNS, Cooldown, Outcome, Received, Run, open_engine

_log = logging.getLogger(__name__)
_TRIES = 5

_RUN = sa.select(RUNS, EVENTS.c.kind, EVENTS.c.as_of, EVENTS.c.features, EVENTS.c.reason).join(
    EVENTS, (EVENTS.c.service == RUNS.c.service) & (EVENTS.c.episode == RUNS.c.episode)
)


@dataclass(frozen=True)
class Decision:
    """The ledger's decision on an event; a repeated event gets the first decision again."""

    accepted: bool
    run_name: str | None
    reason: str
    duplicate: bool = False


class LeaseLostError(KubeloopError):
    """Another trigger has taken over the run or finished it, so this holder's write is refused."""

    lasting = False


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """Records what was requested, what was started and how it ended, in a database that several triggers may share.

    Leases and retries follow `clock` (wall time). Cooldowns follow the events' own time, so that months replayed in
    minutes behave like months. Every change is one transaction, so that a crash may follow any of them.
    """

    def __init__(
        self,
        url: str,
        policy: Drift,
        *,
        max_failures: int = 3,
        backoff: timedelta = timedelta(seconds=5),
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._engine = open_engine(url)
        self._reader = self._engine.execution_options(reads_only=True)
        self._policy = policy
        self._max_failures = max_failures
        self._backoff = backoff
        self._clock = clock

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def record(self, event: DriftEvent) -> Decision:
        """Decide about an event once: the same episode always gets the same answer."""
        for _ in range(_TRIES - 1):
            # Another replica may write this episode, or a run of this service, after we read; then read again.
            with contextlib.suppress(IntegrityError):
                return self._record(event)
        return self._record(event)

    def claim(self, service: str, holder: str, lease: timedelta) -> Run | None:
        """Lease the service's run that waits for a start, or whose holder is gone; None if there is none.

        A waiting run becomes `starting` with its next attempt. This is committed before the runner is asked.
        """
        now = self._clock()
        waiting = RUNS.c.status.in_(("requested", "failed")) & (
            RUNS.c.not_before.is_(None) | (RUNS.c.not_before <= now)
        )
        orphaned = RUNS.c.status.in_(("starting", "running")) & (RUNS.c.lease_until <= now)
        for run in self._select((RUNS.c.service == service) & (waiting | orphaned)):
            values: dict[str, Any] = {"holder": holder, "lease_until": now + lease}
            if run.status in ("requested", "failed"):
                values |= {"status": "starting", "attempts": run.attempts + 1, "not_before": None}
            try:
                return self._write(run, **values)
            except LeaseLostError:
                continue
        return None

    def mark_started(self, run: Run) -> Run:
        """Record that the runner has the run.

        Raises:
            LeaseLostError: another holder has written to the run since it was read.
        """
        return self._write(run, status="running", started_at=run.started_at or self._clock())

    def finish(
        self, run: Run, outcome: Outcome, reason: str, result: dict[str, Any] | None = None, lasting: bool = False
    ) -> Run:
        """Close a run and start its cooldown; a failure that is not `lasting` allows the remaining attempts.

        Raises:
            LeaseLostError: another holder has written to the run since it was read.
        """
        now = self._clock()
        values: dict[str, Any] = {"detail": reason, "result": result, "lease_until": None, "holder": None}
        if outcome == "failed":
            values |= {"failures": run.failures + 1, "lasting": lasting}
            if values["failures"] < self._max_failures and not lasting:
                return self._write(run, **values, status="failed", not_before=now + self._backoff * 2**run.failures)
        status = "abandoned" if outcome == "failed" else "succeeded"
        with self._engine.begin() as connection:
            closed = _update(connection, run, **values, status=status, outcome=outcome, finished_at=now)
            self._rest(connection, closed, outcome)
        return closed

    def requeue(self, run: Run, reason: str) -> Run:
        """Let an interrupted attempt start again at once, without counting a failure.

        Raises:
            LeaseLostError: another holder has written to the run since it was read.
        """
        return self._write(run, status="requested", detail=reason, holder=None, lease_until=None)

    def release(self, holder: str) -> None:
        """Return every lease of a holder that stops."""
        with self._engine.begin() as connection:
            held = RUNS.c.status.in_(("starting", "running")) & (RUNS.c.holder == holder)
            values = {"lease_until": self._clock(), "revision": RUNS.c.revision + 1}
            connection.execute(RUNS.update().where(held).values(values))

    def reconcile(self, service: str, runner: Runner, holder: str, lease: timedelta) -> None:
        """Claim the service's run if possible, and advance the run that this holder leases by one step.

        Services may share a ledger, each with its own runner; no service changes another one's runs.

        If the runner does not answer (OSError), the run does not change, and the next call asks again.
        """
        while self.claim(service, holder, lease):
            pass
        held = RUNS.c.status.in_(("starting", "running")) & (RUNS.c.holder == holder)
        for run in self._select((RUNS.c.service == service) & held):
            try:
                self._advance(self._renew(run, lease), runner)
            except (LeaseLostError, OSError) as error:
                _log.warning("%s: %s", run.name, error)

    def runs(self, service: str | None = None) -> list[Run]:
        """Return the runs of a service, or all, oldest first."""
        return self._select(RUNS.c.service == service if service else sa.true())

    def run(self, name: str) -> Run | None:
        """Return a run by its name."""
        return next(iter(self._select(RUNS.c.name == name)), None)

    def active(self, service: str) -> Run | None:
        """Return the run of a service that has no outcome yet; there is at most one."""
        return next(iter(self._select(IS_ACTIVE & (RUNS.c.service == service))), None)

    def events(self, service: str | None = None) -> list[Received]:
        """Return the events of a service, or all, in event time."""
        query = sa.select(EVENTS).order_by(EVENTS.c.as_of, EVENTS.c.episode)
        with self._reader.connect() as connection:
            rows = connection.execute(query.where(EVENTS.c.service == service) if service else query)
            return [Received(**row._mapping) for row in rows]

    def cooldown(self, service: str) -> Cooldown | None:
        """Return the newest cooldown of a service, over or not."""
        with self._reader.connect() as connection:
            return _cooldown(connection, service)

    def _record(self, event: DriftEvent) -> Decision:
        with self._engine.begin() as connection:
            return self._repeat(connection, event) or self._decide(connection, event)

    def _repeat(self, connection: sa.Connection, event: DriftEvent) -> Decision | None:
        same = (EVENTS.c.service == event.service) & (EVENTS.c.episode == event.episode)
        again = EVENTS.update().where(same).values(received=EVENTS.c.received + 1, last_received=self._clock())
        row = connection.execute(again.returning(EVENTS.c.accepted, EVENTS.c.run_name, EVENTS.c.decision)).one_or_none()
        return Decision(row.accepted, row.run_name, row.decision, duplicate=True) if row else None

    def _decide(self, connection: sa.Connection, event: DriftEvent) -> Decision:
        refusal = self._refusal(connection, event)
        run_name = None if refusal else event.run_name
        decision = Decision(not refusal, run_name, refusal or f"starts {run_name}")
        now = self._clock()
        connection.execute(
            EVENTS.insert().values(
                **asdict(event),
                accepted=decision.accepted,
                run_name=run_name,
                decision=decision.reason,
                received=1,
                first_received=now,
                last_received=now,
            )
        )
        if run_name:
            values = {"service": event.service, "episode": event.episode, "status": "requested", "created_at": now}
            connection.execute(RUNS.insert().values(name=run_name, **values))
        return decision

    def _refusal(self, connection: sa.Connection, event: DriftEvent) -> str | None:
        # In this order: if a run ends between the two queries, the second one finds its cooldown.
        active = connection.execute(sa.select(RUNS.c.name).where(IS_ACTIVE & (RUNS.c.service == event.service)))
        if name := active.scalar_one_or_none():
            return f"absorbed: {name} is running"
        rest = _cooldown(connection, event.service)
        if rest and event.kind not in ("manual", "schedule") and event.as_of < rest.until:
            return f"absorbed: {event.service} is in its cooldown until {rest.until.isoformat()}"
        return None

    def _rest(self, connection: sa.Connection, run: Run, outcome: Outcome) -> None:
        before = _cooldown(connection, run.service)
        length = before.length if before else self._policy.cooldown
        if outcome == "promoted":
            length = self._policy.cooldown
        elif outcome == "rejected":
            length = max(self._policy.cooldown, min(2 * length, self._policy.max_cooldown))
        until = run.as_of + length
        if before and outcome != "promoted":
            until = max(before.until, until)
        values = {"until": until, "length": length}
        if before:
            connection.execute(COOLDOWNS.update().where(COOLDOWNS.c.service == run.service).values(values))
        else:
            connection.execute(COOLDOWNS.insert().values(service=run.service, **values))

    def _renew(self, run: Run, lease: timedelta) -> Run:
        now = self._clock()
        if run.lease_until and run.lease_until - now > lease / 2:
            return run
        return self._write(run, lease_until=now + lease)

    def _advance(self, run: Run, runner: Runner) -> None:
        state = self._look(run, runner)
        match state.status:
            case "running" if run.status == "starting":
                self.mark_started(run)
                _log.info("%s: attempt %d runs", run.name, state.attempt)
            case "succeeded" if state.result and isinstance(state.result.get("promote"), bool):
                outcome: Outcome = "promoted" if state.result["promote"] else "rejected"
                self.finish(run, outcome, str(state.result.get("reason") or outcome), state.result)
                _log.info("%s: %s", run.name, outcome)
            case "succeeded":
                self.finish(run, "failed", "the pipeline ended without a verdict: its result has no `promote`")
                _log.error("%s: attempt %d ended without a verdict", run.name, state.attempt)
            case "interrupted":
                self.requeue(run, state.error or "interrupted")
                _log.info("%s: attempt %d was interrupted and starts again", run.name, state.attempt)
            case "failed":
                reason = state.error or "the pipeline failed without a reason"
                self.finish(run, "failed", reason, lasting=state.lasting)
                _log.error("%s: attempt %d failed: %s", run.name, state.attempt, state.error)

    def _look(self, run: Run, runner: Runner) -> RunState:
        """Return the state of the run, after starting it if it was never started.

        The answer to an earlier start may have been lost, so the runner is always asked for the run first.
        """
        state = runner.find(run.name)
        if run.status == "running":
            return state or RunState("failed", run.attempts, error="the runner no longer knows the run")
        if state and not _is_over(state, run):
            return state
        parameters = Parameters(attempt=run.attempts, as_of=run.as_of.isoformat(), reason=run.reason)
        try:
            return runner.start(run.name, parameters)
        except OSError as error:
            _log.warning("%s: no answer to the start of attempt %d: %s", run.name, run.attempts, error)
            state = runner.find(run.name)
            if state and not _is_over(state, run):
                return state
            return RunState("failed", run.attempts, error=f"could not be started: {error}")

    def _select(self, which: sa.ColumnElement[bool]) -> list[Run]:
        with self._reader.connect() as connection:
            rows = connection.execute(_RUN.where(which).order_by(RUNS.c.created_at, RUNS.c.name))
            return [Run(**row._mapping) for row in rows]

    def _write(self, run: Run, **values: Any) -> Run:
        with self._engine.begin() as connection:
            return _update(connection, run, **values)


def _update(connection: sa.Connection, run: Run, **values: Any) -> Run:
    """Write to a run unless another holder has written since it was read: compare and swap on its revision."""
    values["revision"] = run.revision + 1
    unchanged = (RUNS.c.name == run.name) & (RUNS.c.revision == run.revision)
    if connection.execute(RUNS.update().where(unchanged).values(values)).rowcount != 1:
        raise LeaseLostError(f"{run.name} was written to by another trigger since revision {run.revision}")
    return replace(run, **values)


def _cooldown(connection: sa.Connection, service: str) -> Cooldown | None:
    row = connection.execute(sa.select(COOLDOWNS).where(COOLDOWNS.c.service == service)).one_or_none()
    return Cooldown(**row._mapping) if row else None


def _is_over(state: RunState, run: Run) -> bool:
    """Return whether the state belongs to an attempt before the run's current one."""
    return state.attempt < run.attempts and state.status in ("failed", "interrupted")

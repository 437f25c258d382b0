"""Take one policy through the history in virtual time, with the loop's own monitor, ledger and gate.

The rows that the payload log would bring are put into the monitor's store, window by window; events that the trigger
would get over HTTP are put into its ledger. The model of a retraining comes from the history. It serves from the
moment at which it was requested: training takes minutes, and windows last days.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from kubeloop.backtest import history as past
from kubeloop.backtest.history import History, Model
from kubeloop.backtest.policies import Policy
from kubeloop.config import Loop
from kubeloop.errors import KubeloopError
from kubeloop.models import gates
from kubeloop.models.gates import Verdict
from kubeloop.monitoring import outbox, performance
from kubeloop.monitoring.detector.port import Detector, Score, UntestableError, Window
from kubeloop.monitoring.held import Part
from kubeloop.monitoring.rounds import Monitor
from kubeloop.monitoring.store import Store
from kubeloop.monitoring.versions import Versions
from kubeloop.monitoring.windows import Grid, micros
from kubeloop.monitoring.windows import moment as _moment
from kubeloop.steps import promotion, stages
from kubeloop.tasks.port import EvaluationError
from kubeloop.tasks.reference import Reference
from kubeloop.tasks.tabular import training
from kubeloop.tasks.tabular.holdout import Answered
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.ledger import Ledger
from kubeloop.trigger.store import Outcome

_FAILURES = (past.FailedError, stages.StageError, training.TrainingError, gates.GateError, EvaluationError)
"""The errors with which a run can fail; any other is an error of the backtest itself."""
_LEASE = timedelta(days=1)


@dataclass(frozen=True)
class Retraining:
    """One run: when and why it was requested, which model it made, and its outcome."""

    moment: datetime
    kind: str
    reason: str
    version: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Walk:
    """The actions of a policy: which model served from which moment, and every retraining."""

    policy: str
    served: tuple[tuple[datetime, str], ...]
    retrainings: tuple[Retraining, ...]

    @property
    def promotions(self) -> int:
        """Retrainings whose model was promoted."""
        return sum(one.outcome == "promoted" for one in self.retrainings)


@dataclass(frozen=True)
class Need:
    """A model that a policy needs and that does not exist yet."""

    moment: datetime
    window: timedelta


class _NeedError(KubeloopError):
    """A needed model does not exist yet; caught at the beginning of the walk."""

    lasting = False

    def __init__(self, need: Need) -> None:
        super().__init__(need)
        self.need = need


class _Direct(outbox.Outbox):
    """Puts the events that the trigger would get over HTTP into the ledger of this walk."""

    def __init__(self, store: Store, service: str, ledger: Ledger) -> None:
        super().__init__(store, service)
        self._ledger = ledger

    def deliver(self) -> None:
        """Record every waiting episode."""
        for row in outbox.waiting(self._store, self._service):
            names = [field.name for field in fields(DriftEvent) if field.name != "episode"]
            known: dict[str, Any] = {**row, "features": tuple(row["features"])}
            values = {name: known[name] for name in names}
            decision = self._ledger.record(DriftEvent(**values, episode=row["id"]))
            self._settle(row, decision.accepted, asdict(decision))


class Holder(Protocol):
    """Opens a detector on first use."""

    @property
    def detector(self) -> Detector:
        """The detector."""


class Remembered:
    """A detector with a cache: the same window against the same model has the same scores."""

    def __init__(self, inner: Holder | None, engine: str, history: History) -> None:
        self._inner = inner
        self._about = [engine, [field.name for field in fields(Score)]]
        self._folder = history.folder / "scores"
        self._references: dict[str, Reference] = {}

    def fit(self, key: str, reference: Reference) -> None:
        """Remember a reference."""
        self._references[key] = reference

    def score(self, key: str, window: Window) -> list[Score]:
        """Return the scores of a window.

        Raises:
            UntestableError: the policy does not test drift.
        """
        inner = self._inner
        if inner is None:
            raise UntestableError("this policy does not test drift")

        def make() -> dict[str, Any]:
            detector = inner.detector
            detector.fit(key, self._references[key])
            return {"scores": [asdict(score) for score in detector.score(key, window)]}

        digest = [past.content(array) for array in (window.numeric, window.categorical, window.score)]
        found = past.remembered(self._folder, [*self._about, key, digest], make)
        return [Score(**score) for score in found["scores"]]

    def close(self) -> None:
        """Do nothing: the detector belongs to the caller."""


def walk(policy: Policy, history: History, holder: Holder) -> Walk | Need:
    """Take a policy through the history.

    Args:
        policy: the policy.
        history: rows and models.
        holder: holds the detector, for a policy that tests drift.

    Returns:
        The policy's actions, or the first model that it needs and that does not exist.
    """
    loop = policy.apply(history.loop)
    with past.scratch(history.folder) as folder:
        try:
            return _Walker(policy, loop, history, holder, folder).run()
        except _NeedError as error:
            return error.need


class _Walker:
    def __init__(self, policy: Policy, loop: Loop, history: History, holder: Holder, scratch: Path) -> None:
        self._policy, self._loop, self._history = policy, loop, history
        self._base = history.span.ends(history.loop.drift.window)
        self._detector = Remembered(holder if policy.looks(history.loop) else None, loop.drift.engine, history)
        self._scratch = scratch
        self._now = history.span.start
        self._retrainings: list[Retraining] = []

    def run(self) -> Walk:
        loop, span = self._loop, self._history.span
        first = self._model(span.start)
        self._served = [(span.start, first.version)]
        grid = Grid(loop.drift.window, span.start)
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(contextlib.closing(Store(f"sqlite:///{self._scratch}/monitor.db")))
            ledger = stack.enter_context(
                contextlib.closing(Ledger(f"sqlite:///{self._scratch}/ledger.db", loop.drift, clock=lambda: self._now))
            )
            versions = stack.enter_context(
                contextlib.closing(Versions(store, loop.name, loop.delivery.namespace, references=self._history.models))
            )
            told = stack.enter_context(contextlib.closing(_Direct(store, loop.name, ledger)))
            monitor = Monitor(loop, self._scratch, store, self._detector, versions, grid, told)
            for barrier in self._barriers():
                self._bring(store, grid, self._now, barrier)
                self._now = barrier
                monitor.judge()
                self._retrain(ledger)
        return Walk(self._policy.name, tuple(self._served), tuple(self._retrainings))

    def _barriers(self) -> Iterator[datetime]:
        drift, until = self._loop.drift, self._history.span.until
        ends = self._history.span.ends(drift.window)
        yield from sorted({moment for end in ends for moment in (end, end + drift.label_wait) if moment <= until})

    def _bring(self, store: Store, grid: Grid, start: datetime, end: datetime) -> None:
        """Put the events between two moments into the monitor's store, as if it had read them from the log."""
        history, model = self._history, self._history.model(self._served[-1][1])
        rows = history.rows(start, end)
        stamps = history.moments[rows]
        parts = []
        live = {}
        if len(stamps):
            table = history.table[rows].drop_columns(["label", "label_available_at"])
            answers = model.scores[rows].reshape(len(table), -1)
            for name, column in zip(history.task.columns, answers.T, strict=True):
                table = table.append_column(name, pa.array(column, pa.float32()))
            live[model.version] = _moment(stamps[0])
            starts = grid.starts(stamps)
            for begin in np.unique(starts):
                here = starts == begin
                parts.append(
                    _part(
                        "features", model.version, begin, grid, table.filter(pa.array(here)), _moment(stamps[here][-1])
                    )
                )
        parts += self._labels(grid, start, end)
        now = store.progress(self._loop.name)
        store.ingest(replace(now, watermark=end), parts, live)

    def _labels(self, grid: Grid, start: datetime, end: datetime) -> Iterator[Part]:
        """Yield the labels that came between two moments: before the later one, not at it."""
        history = self._history
        first = history.rows(history.span.start, history.span.until).start
        known = history.known[first:]
        came = first + np.flatnonzero((known >= micros(start)) & (known < micros(end)))
        # A label that came before the first request belongs to no served row.
        if not len(came):
            return
        table = pa.table(
            {
                "event_id": history.table["event_id"].take(came),
                "label": pa.array(history.labels[came]),
                "observed_at": history.table["label_available_at"].take(came),
                "known": pa.array(history.known[came]),
            }
        ).cast(performance.LABELS)
        starts = grid.starts(history.known[came])
        for begin in np.unique(starts):
            yield _part("labels", "", begin, grid, table.filter(pa.array(starts == begin)), None)

    def _retrain(self, ledger: Ledger) -> None:
        """Do the work of the trigger's runner if a run waits in the ledger."""
        if self._now >= self._base[-1]:
            # A model that is trained now would serve no row that counts.
            return
        run = ledger.claim(self._loop.name, "backtest", _LEASE)
        if run is None:
            return
        run = ledger.mark_started(run)
        # All policies share the models of the windows' ends; a run one day later would learn little more.
        moment = max(end for end in [self._history.span.start, *self._base] if end <= self._now)
        champion = self._served[-1][1]
        name = past.version(self._loop, moment)
        try:
            challenger = self._model(moment)
            verdict = self._gate(champion, challenger, moment)
        except _FAILURES as error:
            outcome: Outcome = "failed"
            detail = str(error)
            ledger.finish(run, outcome, detail, lasting=True)
        else:
            outcome, detail = "promoted" if verdict.promote else "rejected", verdict.reason
            ledger.finish(run, outcome, detail)
            if verdict.promote:
                self._served.append((self._now, name))
        self._retrainings.append(Retraining(self._now, run.kind, run.reason, name, outcome, detail))

    def _model(self, moment: datetime) -> Model:
        name = past.version(self._loop, moment)
        if reason := self._history.failure(name):
            raise past.FailedError(reason)
        if not self._history.has(name):
            raise _NeedError(Need(moment, self._loop.training.window))
        return self._history.model(name)

    def _gate(self, champion: str, challenger: Model, moment: datetime) -> Verdict:
        """Judge a challenger as a run's gate does, on the hold-out of its own training set."""
        history, loop = self._history, self._loop
        old = history.model(champion)
        about = [loop.gates.model_dump(mode="json"), loop.training.model_dump(mode="json"), champion]
        about += [challenger.version, [field.name for field in fields(Verdict)]]

        def make() -> dict[str, Any]:
            table = past.cut(history, loop, moment)
            _, holdout = training.split(history.task, table.to_pandas(), loop.training.holdout)
            place = dict(zip(history.table["event_id"].to_pylist(), range(len(history.moments)), strict=True))

            def scores(model: Model) -> Any:
                return lambda frame: model.scores[[place[event] for event in frame["event_id"]]]

            truths = training.truths(history.task, holdout, "the hold-out")
            answered = Answered(holdout, truths, scores(challenger)(holdout))
            verdict = promotion.compare(loop, answered, old.trained_to, champion, scores(old))
            verdict = gates.warned(verdict, challenger.warnings, loop.gates)
            return {"verdict": verdict.to_dict()}

        found = past.remembered(history.folder / "gates", about, make)
        return gates.Verdict.from_dict(found["verdict"])


def _part(kind: Any, version: str, begin: int, grid: Grid, table: pa.Table, newest: datetime | None) -> Part:
    start = _moment(begin)
    return Part(kind, version, start, start + grid.length, table, newest)

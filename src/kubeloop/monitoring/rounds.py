"""The monitor's rounds: read the log, close the windows that have ended, judge them, and notify the trigger."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from kubeloop import moments
from kubeloop.config import Loop
from kubeloop.errors import KubeloopError
from kubeloop.monitoring import intake, performance, policy, schedule
from kubeloop.monitoring.detector.port import MOST_ROWS, Detector, UntestableError, Window
from kubeloop.monitoring.held import Part
from kubeloop.monitoring.outbox import Outbox
from kubeloop.monitoring.policy import Episode, Kind, Vote
from kubeloop.monitoring.rows import EpisodeRow, PerformanceRow, ScoreRow, WindowKey, WindowRow
from kubeloop.monitoring.store import Due, Progress, Store
from kubeloop.monitoring.versions import NodeError, VersionError, Versions
from kubeloop.monitoring.windows import Grid, micros
from kubeloop.payloads import decode
from kubeloop.tasks import port
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.port import EvaluationError, Task
from kubeloop.tasks.reference import BrokenReferenceError, Reference

_log = logging.getLogger(__name__)

READING = 10_000
"""Events that are read from the log at a time."""

QUARANTINE = "ahead-of-now.jsonl"
"""File next to the log with predictions that claim a time in the future, for a person to check."""

_QUARANTINED_BYTES = 1 << 20

SILENCE_S = 600.0
"""Seconds between two warnings about events that cannot be decoded."""

_SEED = 7
"""Seed of a large window's sample, so that a window that is judged again gets the same verdict."""


class AheadError(KubeloopError):
    """The stored watermark is in the future: every row would be late, so nothing is read until a person resets it."""

    lasting = False


class Monitor:
    """Watches one inference service. `step` and `advance` may be called from several threads; a lock orders them."""

    def __init__(
        self,
        loop: Loop,
        log: Path,
        store: Store,
        detector: Detector,
        versions: Versions,
        grid: Grid,
        outbox: Outbox,
        *,
        until: datetime | None = None,
    ) -> None:
        """Watch the service of a loop; if its clients replay the past, `until` is the end of the replay."""
        self.service = loop.name
        self.task = port.of(loop)
        self.drift = loop.drift
        self.grid = grid
        self.store = store
        self._until = until
        self.log = log
        self._detector = detector
        self._versions = versions
        self._outbox = outbox
        self._turn = threading.Lock()
        self._carry: tuple[int, decode.Carry] | None = None
        self._malformed = 0
        self._silent_until = 0.0

    def step(self) -> None:
        """Read the log, judge the windows that are due, and send waiting episodes to the trigger.

        Raises:
            LogError, DetectorError, NodeError, StoreConflictError, sqlalchemy.exc.OperationalError: a needed part does
                not answer; nothing is lost, and a later step continues from there.
        """
        with self._turn:
            self._round(None)

    def advance(self, until: datetime) -> None:
        """Do what `step` does, on the assumption that event time has reached `until`.

        Every window that ends by then is judged when this returns. Rows that arrive afterwards are late.
        """
        with self._turn:
            self._outbox.hurry()
            self._round(until)

    def judge(self) -> None:
        """Judge every window that is due with what the store holds, and tell the trigger."""
        with self._turn:
            self._close()

    def reset(self) -> None:
        """Delete the rows that a wrong clock dated in the future, so that windows close again."""
        with self._turn:
            self.store.reset(self.store.progress(self.service), datetime.now(UTC))

    def _round(self, until: datetime | None) -> None:
        marked = self.store.progress(self.service).watermark
        if marked is not None and marked > datetime.now(UTC) + self.drift.skew:
            raise AheadError(f"the watermark {marked.isoformat()} is ahead of now; start with --reset-watermark once")
        if until is not None:
            moments.past(until, self.drift.skew)
        while self._take():
            self._close()
        now = self.store.progress(self.service)
        if until is not None and (now.watermark is None or now.watermark < until):
            self.store.ingest(replace(now, watermark=until), (), {})
        self._close()
        self._outbox.deliver()
        decode.release(self.log, now.cursor)
        decode.check(self.log, now.cursor)

    def _take(self) -> bool:
        """Commit one reading of the log; return whether there was anything to read."""
        now = self.store.progress(self.service)
        table, last = decode.read(self.log, now.cursor, READING)
        if last == now.cursor:
            return False
        if self._carry is None or self._carry[0] != now.cursor:
            self._carry = now.cursor, decode.resume(self.task, self.log, now.cursor, self.service)
        decoded = decode.decode(self.task, table, self._carry[1], self.service)
        self._warn(decoded)
        taken = intake.sort(decoded, last, now, self.grid, self._until, skew=self.drift.skew, now=datetime.now(UTC))
        if early := taken.progress.early_rows - now.early_rows:
            _log.warning(
                "%s predictions claim a time in the future and belong to no window; see %s",
                early,
                self.log / QUARANTINE,
            )
        _quarantine(self.log / QUARANTINE, taken.early)
        self.store.ingest(taken.progress, taken.parts, taken.live_since)
        self._carry = last, decoded.carry
        try:
            self._versions.meet({part.version for part in taken.parts if part.kind == "features"})
        except NodeError as error:
            # The window's verdict will need the answer and ask again.
            _log.warning("%s", error)
        return True

    def _warn(self, decoded: decode.Decoded) -> None:
        """Log why events were not decoded, but not each time, since a client sends many such events."""
        self._malformed += decoded.malformed
        if not decoded.malformed or time.monotonic() < self._silent_until:
            return
        self._silent_until = time.monotonic() + SILENCE_S
        for reason in decoded.reasons:
            _log.warning("not decoded: %s", reason)
        _log.warning("%d events were not decoded since this process began", self._malformed)

    def _close(self) -> None:
        watermark = self.store.progress(self.service).watermark
        if watermark is None:
            return
        # Closing a window may make its own performance due before the next window, so handle one at a time.
        while found := self.store.due(self.service, watermark, self.drift.label_wait):
            due, now = found[0], self.store.progress(self.service)
            if due.kind == "features":
                self._end_episodes(due.end)
                self._close_window(now, due)
            else:
                self._end_episodes(due.end + self.drift.label_wait)
                self._close_performance(now, due)
            self._outbox.deliver()
        self._end_episodes(watermark)

    def _close_window(self, now: Progress, due: Due) -> None:
        parts = self.store.parts(self.service, due)
        live = max((p for p in parts if p.newest), key=lambda p: (p.newest, p.version), default=None)
        windows: list[WindowRow] = []
        scores: list[ScoreRow] = []
        for part in parts:
            row, found = self._judge(part, live=part is live)
            windows.append(row)
            scores += found
        episode = None
        newest = next((row for row in windows if row["live"] and row["status"] == "judged"), None)
        if newest is not None:
            votes = [*self._votes(newest["version"], "drift"), _vote(newest, scores)]
            episode = self._propose(newest["version"], "drift", votes, due.end, now)
        if episode is None and live is not None:
            episode = self._scheduled(live.version, due, now)
        scored = [replace(p, kind="scored", table=performance.scored(self.task, p.table), newest=None) for p in parts]
        self.store.close_window(now, due, windows, scores, scored, episode)
        for row in windows:
            _log.info(
                "window %s to %s of version %s: %s rows, %s%s%s",
                row["start"].isoformat(),
                row["end"].isoformat(),
                row["version"],
                row["rows"],
                row["status"],
                ", drifted" if row["drifted"] else "",
                f" ({row['note']})" if row["note"] else "",
            )

    def _judge(self, part: Part, *, live: bool) -> tuple[WindowRow, list[ScoreRow]]:
        key = self._key(part)
        row: WindowRow = {
            **key,
            "rows": len(part.table),
            "status": "small",
            "live": live,
            "drifted": None,
            "importance": None,
            "prediction_drifted": None,
            "note": None,
        }
        if len(part.table) < self.drift.min_rows:
            return row, []
        try:
            reference = self._versions.reference(part.version)
            table, row["note"] = _sample(part.table)
            window = _encode(self.task, reference, table)
            self._detector.fit(part.version, reference)
            found = self._detector.score(part.version, window)
        except VersionError as error:
            return row | {"status": "no_reference", "note": str(error)}, []
        except (BrokenReferenceError, UntestableError) as error:
            return row | {"status": "unreadable", "note": str(error)}, []
        verdict = policy.judge(found, reference.importance, self.drift)
        scores = [
            cast(
                "ScoreRow",
                {
                    **key,
                    **asdict(j.score),
                    "p_adjusted": j.p_adjusted,
                    "importance": j.importance,
                    "drifted": j.drifted,
                },
            )
            for j in verdict.judged
        ]
        row |= {
            "status": "judged",
            "drifted": verdict.drifted,
            "importance": verdict.importance,
            "prediction_drifted": verdict.prediction_drifted,
        }
        return row, scores

    def _key(self, part: Part) -> WindowKey:
        return {"service": self.service, "start": part.start, "version": part.version, "end": part.end}

    def _close_performance(self, now: Progress, due: Due) -> None:
        deadline = due.end + self.drift.label_wait
        arrived = self.store.labels(self.service, due.start - self.grid.length)
        live = {w["version"] for w in self.store.windows(self.service) if w["start"] == due.start and w["live"]}
        rows: list[PerformanceRow] = []
        episode = None
        for part in self.store.parts(self.service, due):
            row = self._measure(part, arrived, micros(deadline), live=part.version in live)
            rows.append(row)
            if row["live"] and row["status"] == "judged":
                votes = [*self._votes(part.version, "performance"), _vote(row, ())]
                episode = self._propose(part.version, "performance", votes, deadline, now)
        self.store.close_performance(now, due, rows, episode, slack=self.grid.length)

    def _measure(self, part: Part, arrived: Sequence[pa.Table], before: int, *, live: bool) -> PerformanceRow:
        metric = self.task.headline
        y, p = performance.join(self.task, part.table, arrived, before)
        row: PerformanceRow = {
            **self._key(part),
            "rows": len(part.table),
            "live": live,
            "status": "unreadable",
            **performance.measured(self.task, y, None),
            "windows": None,
            "drifted": None,
            "reference": None,
            "note": None,
        }
        try:
            status, metrics = performance.measure(self.task, y, p, self.drift.min_rows)
        except EvaluationError as error:
            row["note"] = str(error)
            return row
        row["status"] = status
        if metrics is None:
            return row
        row = {**row, **performance.measured(self.task, y, metrics)}
        row["windows"] = 1
        sure = Estimate(*(metrics[f"{metric.name}{end}"] for end in ("", "_low", "_high")))
        if status == "few":
            found = performance.together(self.task, [*self._unjudged(part.version), row])
            if found is None:
                return row | {"note": self.task.few(y)}
            sure, row["positives"], row["windows"] = found
            row |= {"status": "judged", "value": sure.value, "low": sure.low, "high": sure.high}
        try:
            known = self._versions.reference(part.version).measured
        except VersionError as error:
            known = None
            row["note"] = str(error)
        # A version that was trained for another metric has no value of this one.
        reference = known.sure if known and known.metric == metric.name else None
        verdict = policy.performance(metric, sure, reference, self.drift)
        row |= {"drifted": verdict.drifted, "reference": reference.value if reference else None}
        return row | ({"note": verdict.reason} if verdict.drifted else {})

    def _unjudged(self, version: str) -> list[PerformanceRow]:
        """Return the performance of a version's windows since the last episode ended."""
        ended = [row["closed_at"] for row in self.store.episodes(self.service) if row["closed_at"] is not None]
        rows = [row for row in self.store.performance(self.service) if row["version"] == version and row["live"]]
        return [row for row in rows if not ended or row["start"] >= max(ended)]

    def _votes(self, version: str, kind: Kind) -> list[Vote]:
        """Return the votes of the last judged windows, as many as can count."""
        known: Sequence[WindowRow | PerformanceRow] = (
            self.store.performance(self.service) if kind == "performance" else self.store.windows(self.service)
        )
        rows = [row for row in known if row["version"] == version and row["live"] and row["status"] == "judged"]
        return [
            _vote(row, self.store.scores(self.service, row["start"]) if kind == "drift" else ())
            for row in rows[-self.drift.of :]
        ]

    def _scheduled(self, version: str, due: Due, now: Progress) -> EpisodeRow | None:
        past = [_episode(row) for row in self.store.episodes(self.service)]
        since = min((row["start"] for row in self.store.windows(self.service)), default=due.start)
        episode = schedule.propose(self.service, version, due.end, since, past, self.drift)
        if episode is None:
            return None
        _log.info("episode %s opens: %s", episode.id, episode.reason)
        return _opened(episode, now)

    def _propose(
        self, version: str, kind: Kind, votes: list[Vote], opened_at: datetime, now: Progress
    ) -> EpisodeRow | None:
        if kind not in self.drift.retrain_on:
            return None
        past = [_episode(row) for row in self.store.episodes(self.service)]
        episode = policy.propose(self.service, version, kind, votes, opened_at, past, self.drift)
        if episode is None:
            return None
        _log.warning("episode %s opens: %s", episode.id, episode.reason)
        return _opened(episode, now)

    def _end_episodes(self, at: datetime) -> None:
        for row in self.store.episodes(self.service):
            if row["closed_at"] is not None:
                continue
            since = [v["live_since"] for v in self.store.versions(self.service).values() if v["live_since"]]
            took_over = min((s for s in since if row["opened_at"] <= s <= at), default=None)
            ended = policy.end(_episode(row), took_over, at, self.drift)
            if ended is not None:
                _log.info("episode %s ends: %s", row["id"], ended[1])
                self.store.update_episode(row["id"], closed_at=ended[0], outcome=ended[1])


def _quarantine(path: Path, early: pa.Table) -> None:
    """Keep early rows up to a size: a client may send many, and the log has them all."""
    if not len(early) or (path.exists() and path.stat().st_size > _QUARANTINED_BYTES):
        return
    rows = early.select(["event_id", "model_version", "event_time", "received_at"]).slice(0, 1000).to_pylist()
    with path.open("ab") as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _vote(row: WindowRow | PerformanceRow, scores: Sequence[ScoreRow]) -> Vote:
    found = [s for s in scores if s["version"] == row["version"] and s["drifted"]]
    return Vote(
        start=row["start"],
        end=row["end"],
        drifted=bool(row["drifted"]),
        features=tuple((s["feature"], s["effect"], s["importance"]) for s in found),
        reason=row["note"] or "",
    )


def _episode(row: EpisodeRow) -> Episode:
    found: dict[str, Any] = {**row, "features": tuple(row["features"])}
    return Episode(**{field.name: found[field.name] for field in fields(Episode)})


def _opened(episode: Episode, now: Progress) -> EpisodeRow:
    """Return the row of an episode that the trigger has not heard of yet."""
    answer = dict.fromkeys(("emitted_at", "accepted", "run_name", "decision"))
    return cast("EpisodeRow", asdict(episode) | {"features": list(episode.features), "as_of": now.watermark} | answer)


def _sample(table: pa.Table) -> tuple[pa.Table, str | None]:
    """Return the rows to test, and a note if they are not all."""
    rows = len(table)
    if rows <= MOST_ROWS:
        return table, None
    chosen = np.zeros(rows, dtype=bool)
    chosen[np.random.default_rng(_SEED).choice(rows, MOST_ROWS, replace=False)] = True
    return table.filter(pa.array(chosen)), f"tested on a seeded sample of {MOST_ROWS:,} of {rows:,} rows"


def _encode(task: Task, reference: Reference, table: pa.Table) -> Window:
    numeric, categorical = reference.encode({name: _values(table, name) for name in reference.names})
    score = task.answers(table).astype(np.float32)
    known = ~np.isnan(score.reshape(len(score), -1)).any(axis=1)
    return Window(numeric=numeric, categorical=categorical, score=score[known])


def _values(table: pa.Table, name: str) -> NDArray[Any]:
    """Return a column; a feature that no request of the window contained is missing in every row."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    if pa.types.is_string(table[name].type):
        return np.array(table[name].to_pylist(), dtype=object)
    return np.asarray(table[name].to_numpy())

"""The monitor's state: its position in the payload log, its open windows, verdicts and episodes.

The rows that a round read from the log and the position that it reached are committed together. So are a window's
verdict, the rows that it used and the episode that it opened. A killed process starts again without loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal, cast

import pyarrow as pa
import sqlalchemy as sa

from kubeloop.errors import KubeloopError
from kubeloop.monitoring import held, schema
from kubeloop.monitoring.held import Part
from kubeloop.monitoring.rows import EpisodeRow, FillingRow, PerformanceRow, ScoreRow, VersionRow, WindowRow
from kubeloop.stores import database


class StoreConflictError(KubeloopError):
    """Another monitor of the same service wrote to the same state; only one may run."""

    lasting = False


@dataclass(frozen=True)
class Progress:
    """The position of a service's monitor in the log, and its counts.

    `late_rows` came after their window had closed; `early_rows` claimed a time in the future when they arrived.
    These rows are not in any window.
    """

    service: str
    cursor: int = 0
    revision: int = 0
    watermark: datetime | None = None
    late_rows: int = 0
    early_rows: int = 0
    malformed: int = 0


@dataclass(frozen=True)
class Due:
    """A window that waits for its verdict (kind `features`) or for its performance (kind `scored`)."""

    kind: Literal["features", "scored"]
    start: datetime
    end: datetime


class Store:
    """The state behind one database URL; many may read while one monitor writes.

    Every method that takes a Progress is one transaction and returns the progress as stored. If another monitor has
    changed the service since that progress was read, it raises StoreConflictError and changes nothing.
    """

    def __init__(self, url: str) -> None:
        self._engine = database.connect(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _tune_sqlite)
        database.prepare(self._engine, schema.MONITOR)

    @property
    def engine(self) -> sa.Engine:
        """The SQLAlchemy engine, for observers of its transactions."""
        return self._engine

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def progress(self, service: str) -> Progress:
        """Return the service's progress; for an unknown service, the beginning."""
        found = self._select(schema.progress, service)
        return Progress(**found[0]) if found else Progress(service)

    def ingest(self, now: Progress, rows: Sequence[Part], live_since: Mapping[str, datetime]) -> Progress:
        """Commit one reading of the log: its rows, and the position reached.

        Args:
            now: the progress that was read, with the new cursor, watermark and counts.
            rows: the rows, under their windows.
            live_since: versions in ordinary traffic, with the event time of their first row in this reading; a version
                that is already live keeps its first time.
        """
        c = schema.versions.c
        with self._write(now) as connection:
            for part in rows:
                held.add(connection, now.service, part)
            for version, since in live_since.items():
                key = {"service": now.service, "version": version}
                _put(connection, schema.versions, key, {})
                first = sa.update(schema.versions).filter_by(**key).where(c.live_since.is_(None))
                connection.execute(first.values(live_since=since))
        return replace(now, revision=now.revision + 1)

    def reset(self, now: Progress, bound: datetime) -> Progress:
        """Drop the rows, verdicts and open episodes of windows that end after `bound`, and lower the watermark.

        Args:
            now: the progress as read; it is returned with the end of the last remaining window as its watermark.
            bound: the latest moment that event time can have reached.
        """
        ended = [row["end"] for row in self.windows(now.service) if row["end"] <= bound]
        now = replace(now, watermark=max(ended, default=None))
        with self._write(now) as connection:
            for table in (schema.windows, schema.window_scores, schema.performance):
                connection.execute(sa.delete(table).where(table.c.service == now.service, table.c.end > bound))
            c = schema.held.c
            connection.execute(sa.delete(schema.held).where(c.service == now.service, c.start > bound))
            e = schema.episodes.c
            wrong = sa.or_(e.opened_at > bound, e.as_of > bound, e.closed_at > bound)
            connection.execute(sa.delete(schema.episodes).where(e.service == now.service, wrong))
            v = schema.versions.c
            later = sa.update(schema.versions).where(v.service == now.service, v.live_since > bound)
            connection.execute(later.values(live_since=None))
        return replace(now, revision=now.revision + 1)

    def due(self, service: str, watermark: datetime, label_wait: timedelta) -> list[Due]:
        """Return the windows that are due, in the order of their deadlines."""
        c = schema.held.c
        wait = {"features": timedelta(0), "scored": label_wait}
        ripe = [sa.and_(c.kind == kind, c.end <= watermark - waits) for kind, waits in wait.items()]
        query = sa.select(c.kind, c.start, c.end).distinct().where(c.service == service, sa.or_(*ripe))
        with self._engine.connect() as connection:
            found = [Due(**row) for row in connection.execute(query).mappings()]
        return sorted(found, key=lambda d: (d.end + wait[d.kind], d.start, d.kind))

    def parts(self, service: str, due: Due) -> list[Part]:
        """Return the rows of one window, one part per version, in the order of the versions."""
        with self._engine.connect() as connection:
            found = held.load(connection, *_of(service, due))
        groups = groupby(sorted(found, key=attrgetter("version")), key=attrgetter("version"))
        return [held.merge(list(group)) for _, group in groups]

    def labels(self, service: str, since: datetime) -> list[pa.Table]:
        """Return the labels that arrived in windows that start at or after a time."""
        c = schema.held.c
        with self._engine.connect() as connection:
            return [s.table for s in held.load(connection, c.service == service, c.kind == "labels", c.start >= since)]

    def close_window(
        self,
        now: Progress,
        due: Due,
        windows: Sequence[WindowRow],
        scores: Sequence[ScoreRow],
        scored: Sequence[Part],
        episode: EpisodeRow | None,
    ) -> Progress:
        """Commit the verdict on a window: delete its rows, but keep the scores that its labels will be compared with.

        Args:
            now: the progress as read.
            due: the window.
            windows: a row of `windows` for each version.
            scores: rows of `window_scores`.
            scored: event ids and scores for each version.
            episode: the row of the episode that this window opens.
        """
        with self._write(now) as connection:
            connection.execute(sa.delete(schema.held).where(*_of(now.service, due)))
            _insert(connection, schema.windows, windows)
            _insert(connection, schema.window_scores, scores)
            _insert(connection, schema.episodes, [episode] if episode else [])
            for part in scored:
                held.add(connection, now.service, part)
        return replace(now, revision=now.revision + 1)

    def close_performance(
        self, now: Progress, due: Due, rows: Sequence[PerformanceRow], episode: EpisodeRow | None, slack: timedelta
    ) -> Progress:
        """Commit the performance of a window, and drop the labels that no other window needs.

        Args:
            now: the progress as read.
            due: the window.
            rows: a row of `performance` for each version.
            episode: the row of the episode that this window opens.
            slack: how far a label may arrive ahead of its prediction.
        """
        c = schema.held.c
        with self._write(now) as connection:
            connection.execute(sa.delete(schema.held).where(*_of(now.service, due)))
            _insert(connection, schema.performance, rows)
            _insert(connection, schema.episodes, [episode] if episode else [])
            waiting = sa.select(sa.func.min(c.start)).where(c.service == now.service, c.kind != "labels")
            needed = (connection.execute(waiting).scalar() or due.end) - slack
            used = sa.delete(schema.held).where(c.service == now.service, c.kind == "labels", c.end <= needed)
            connection.execute(used)
        return replace(now, revision=now.revision + 1)

    def versions(self, service: str) -> dict[str, VersionRow]:
        """Return what is known about each model version: its `uri`, and `live_since` in event time."""
        found = cast("list[VersionRow]", self._select(schema.versions, service))
        return {row["version"]: row for row in found}

    def remember(self, service: str, version: str, uri: str) -> None:
        """Store where a version's model is, for the time when it is no longer served."""
        with self._engine.begin() as connection:
            _put(connection, schema.versions, {"service": service, "version": version}, {"uri": uri})

    def update_episode(self, episode: str, **values: Any) -> None:
        """Set columns of one episode, such as the trigger's decision."""
        with self._engine.begin() as connection:
            connection.execute(sa.update(schema.episodes).filter_by(id=episode).values(values))

    def windows(self, service: str) -> list[WindowRow]:
        """Return the windows that have closed, in order of time, one row per version."""
        return cast("list[WindowRow]", self._select(schema.windows, service, "start", "version"))

    def scores(self, service: str, start: datetime | None = None) -> list[ScoreRow]:
        """Return the scores of every feature in every tested window, or in the one that starts at `start`."""
        one = {} if start is None else {"start": start}
        found = self._select(schema.window_scores, service, "start", "version", "kind", "feature", **one)
        return cast("list[ScoreRow]", found)

    def performance(self, service: str) -> list[PerformanceRow]:
        """Return the live performance of windows whose labels are in, in order of time, one row per version."""
        return cast("list[PerformanceRow]", self._select(schema.performance, service, "start", "version"))

    def episodes(self, service: str) -> list[EpisodeRow]:
        """Return the episodes in the order in which they opened."""
        return cast("list[EpisodeRow]", self._select(schema.episodes, service, "opened_at", "id"))

    def open_windows(self, service: str) -> list[FillingRow]:
        """Return `start`, `end`, `version` and `rows` of the windows that are filling."""
        c = schema.held.c
        part = (c.start, c.end, c.version)
        query = sa.select(*part, sa.func.sum(c.rows).label("rows")).where(c.service == service, c.kind == "features")
        with self._engine.connect() as connection:
            return cast("list[FillingRow]", _plain(connection.execute(query.group_by(*part).order_by(*part))))

    def _select(self, table: sa.Table, service: str, *order: str, **where: Any) -> list[dict[str, Any]]:
        query = sa.select(table).filter_by(service=service, **where).order_by(*(table.c[name] for name in order))
        with self._engine.connect() as connection:
            return _plain(connection.execute(query))

    @contextmanager
    def _write(self, now: Progress) -> Iterator[sa.Connection]:
        values = asdict(now) | {"revision": now.revision + 1}
        first = sa.insert(schema.progress).values(values)
        next_one = sa.update(schema.progress).filter_by(service=now.service, revision=now.revision).values(values)
        with self._engine.begin() as connection:
            try:
                # Not every database reports how many rows an insert made; the primary key shows whether it made one.
                moved = connection.execute(next_one).rowcount == 1 if now.revision else bool(connection.execute(first))
            except sa.exc.IntegrityError:
                moved = False
            if not moved:
                raise StoreConflictError(f"another monitor of {now.service} writes to the same state; run only one")
            yield connection


def _plain(result: sa.Result[Any]) -> list[dict[str, Any]]:
    # SQLAlchemy's keys can be a subclass of str, which JSON writers refuse.
    return [{str(name): value for name, value in row.items()} for row in result.mappings()]


def _of(service: str, due: Due) -> list[sa.ColumnElement[bool]]:
    c = schema.held.c
    return [c.service == service, c.kind == due.kind, c.start == due.start, c.end == due.end]


def _insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(sa.insert(table), [dict(row) for row in rows])


def _put(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Set columns of a row; insert it if it does not exist."""
    if connection.execute(sa.select(sa.func.count()).select_from(table).filter_by(**key)).scalar() == 0:
        connection.execute(sa.insert(table).values({**key, **values}))
    elif values:
        connection.execute(sa.update(table).filter_by(**key).values(values))


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # WAL lets the report read while the monitor writes. Without an fsync per commit, a power cut can undo the last
    # commits; they are made again from the log, with the same episode ids.
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()

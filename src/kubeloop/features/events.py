"""Read the events of a feature repo from `sql/events.sql`: moments to predict, request-time fields and labels."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kubeloop.data import sources
from kubeloop.errors import KubeloopError

EVENT_COLUMNS = ("event_id", "event_timestamp", "label", "label_available_at")
_MOMENTS = "kubeloop_moments"


class FeatureError(KubeloopError):
    """The feature repo or a feature table is wrong; the message says what to change."""

    lasting = True


def body(query: Path) -> str:
    """Return a file's query in a form that can be part of another query."""
    return query.read_text().strip().rstrip(";")


def events(
    repo: Path,
    raw: Path,
    *,
    start: datetime,
    end: datetime,
    labelled_by: datetime | None = None,
    most: int | None = None,
    at: npt.NDArray[np.datetime64] | None = None,
) -> pa.Table:
    """Return the events (one row per prediction) with `start <= event_timestamp < end`, oldest first.

    Args:
        repo: feature repo with `sql/events.sql`.
        raw: folder of raw tables.
        start: first moment, inclusive.
        end: last moment, exclusive.
        labelled_by: keep only rows whose label was known at that moment.
        most: return at most about this many rows, evenly spaced, all with a label.
        at: keep only rows of these moments, in UTC.

    Raises:
        FeatureError: the query is missing or fails, or its result lacks a column that every event has.
    """
    condition = _between(start, end)
    if labelled_by is not None:
        moment = sources.literal(labelled_by.isoformat())
        condition += f" AND label IS NOT NULL AND label_available_at <= {moment}::TIMESTAMPTZ"
    tables = {}
    if at is not None:
        tables[_MOMENTS] = pa.table({"moment": at})
        condition += f" AND event_timestamp IN (SELECT moment FROM {_MOMENTS})"
    if most is not None:
        order = "row_number() OVER (ORDER BY event_timestamp, event_id) - 1"
        condition += f" AND label IS NOT NULL QUALIFY ({order}) % greatest(1, ceil(count(*) OVER () / {most})) = 0"
    return _run(repo, raw, "*", f"WHERE {condition} ORDER BY event_timestamp, event_id", tables)


def moments(repo: Path, raw: Path, *, start: datetime, end: datetime) -> npt.NDArray[np.datetime64]:
    """Return the distinct moments of the events with `start <= event_timestamp < end` [n], oldest first, in UTC.

    Raises:
        FeatureError: as `events`.
    """
    found = _run(repo, raw, "DISTINCT event_timestamp", f"WHERE {_between(start, end)} ORDER BY 1")
    return np.asarray(found["event_timestamp"].to_numpy(), dtype="datetime64[us]")


def newest_label(repo: Path, raw: Path) -> datetime | None:
    """Return the moment at which the newest label became known, or None; labels in the future do not count."""
    with sources.connect(sources.tables(raw)) as db:
        query = f"SELECT max(label_available_at) FROM ({body(repo / 'sql' / 'events.sql')}) WHERE label IS NOT NULL "
        query += "AND label_available_at <= now()"
        row = db.execute(query).fetchone()
    found: datetime | None = row[0] if row else None
    return found.astimezone(UTC) if found else None


def _between(start: datetime, end: datetime) -> str:
    first, last = (f"{sources.literal(moment.isoformat())}::TIMESTAMPTZ" for moment in (start, end))
    return f"event_timestamp >= {first} AND event_timestamp < {last}"


def _run(repo: Path, raw: Path, columns: str, clauses: str, tables: dict[str, pa.Table] | None = None) -> pa.Table:
    """Select from the events; `tables` are further tables that the clauses name.

    Raises:
        FeatureError: see `events`.
    """
    import duckdb

    query = repo / "sql" / "events.sql"
    if not query.is_file():
        raise FeatureError(f"{query} is missing; write a query for the moments to predict, with their labels")
    with sources.connect(sources.tables(raw)) as db:
        for name, table in (tables or {}).items():
            db.register(name, table)
        try:
            names = [row[0] for row in db.execute(f"DESCRIBE {body(query)}").fetchall()]
            missing = [name for name in EVENT_COLUMNS if name not in names]
            if missing:
                raise FeatureError(f"{query} must also return {', '.join(missing)}")
            return db.sql(f"SELECT {columns} FROM ({body(query)}) {clauses}").to_arrow_table()
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise FeatureError(f"{query} fails: {error}") from error

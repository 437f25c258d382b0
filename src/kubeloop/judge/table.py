"""Read the events of a rollout from a table: one row per request, for `kubeloop judge`."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from kubeloop import moments
from kubeloop.config import Loop
from kubeloop.judge.exposures import ExposureError, Exposures, failures
from kubeloop.tasks import port
from kubeloop.tasks.port import EvaluationError

__all__ = ["COLUMNS", "due", "exposures", "read"]

COLUMNS = {
    "event_time": "when the request was assigned, with an offset or in UTC",
    "arm": "champion or canary",
    "share": "probability with which it was given to the canary, 0 to 1",
    "unit": "what was assigned: request or entity; each row is its own where this is left out",
    "status": "HTTP status of the arm's answer; 0 for a timeout or a lost connection; empty means answered",
    "seconds": "how long the arm took",
    "label": "what came true, empty where it is not known yet",
}
"""Of a table of events, next to the answers (the names of the task's columns), slices and metrics."""
_NEEDED = ("event_time", "arm", "share")
_READ = {
    ".parquet": pyarrow.parquet.read_table,
    ".csv": pyarrow.csv.read_csv,
    ".jsonl": pyarrow.json.read_json,
}


def read(path: Path) -> pa.Table:
    """Read a Parquet, CSV or JSON Lines file.

    Raises:
        ExposureError: it is not there, or none of them.
    """
    kind = _READ.get(path.suffix.lower())
    if kind is None:
        raise ExposureError(f"{path}: events are read from {', '.join(_READ)} files")
    try:
        return kind(path)
    except FileNotFoundError:
        raise ExposureError(f"{path} does not exist") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ExposureError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def exposures(loop: Loop, table: pa.Table) -> Exposures:
    """Return the events of a table, in the order of time.

    Raises:
        ExposureError: a column is missing, or holds what it should not.
    """
    task, have = port.of(loop), set(table.column_names)
    if missing := [name for name in _NEEDED if name not in have]:
        told = "; ".join(f"{name}: {COLUMNS[name]}" for name in missing)
        raise ExposureError(f"the events have no column {', '.join(missing)} ({told})")
    n = table.num_rows
    arms = _texts(table, "arm")
    if strange := sorted(set(arms) - {"champion", "canary"}):
        raise ExposureError(f"arm is champion or canary, not {strange[0]!r}")
    if pa.types.is_boolean(table["status"].type if "status" in have else pa.null()):
        raise ExposureError("status is the HTTP status of the answer, such as 200, not whether there was one")
    status = _numbers(table, "status", n)
    if loop.rollout.unit == "entity" and ("unit" not in have or table["unit"].null_count):
        raise ExposureError("rollout.unit is entity: each row needs the entity in the column unit")
    answered = [name in have for name in task.columns]
    if any(answered) and not all(answered):
        raise ExposureError(f"an answer of {loop.name} has the columns {', '.join(task.columns)}")
    answers = np.full(n, np.nan)
    if all(answered):
        parts = [_numbers(table, name, n) for name in task.columns]
        answers = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
    wanted = [name for name in loop.gates.slices if name in have]
    found = Exposures(
        at=_times(table),
        canary=np.asarray(arms == "canary", dtype=bool),
        share=_numbers(table, "share", n),
        unit=_texts(table, "unit") if "unit" in have else np.arange(n).astype(str).astype(object),
        failed=failures(status) if "status" in have else np.zeros(0, dtype=bool),
        seconds=_numbers(table, "seconds", n),
        answers=answers,
        truths=_truths(loop, table, n),
        slices={name: _texts(table, name) for name in wanted},
        metrics={m.name: _numbers(table, m.name, n) for m in loop.rollout.metrics if m.name in have},
    )
    return found.take(np.argsort(found.at, kind="stable"))


def due(loop: Loop, rows: Exposures, now: datetime) -> Exposures:
    """Return the rows of whole blocks (`gates.block`) whose labels all had until `now` to come (`drift.label_wait`)."""
    size = loop.gates.block // timedelta(microseconds=1)
    last = np.datetime64(now.replace(tzinfo=None), "us") - np.timedelta64(
        loop.drift.label_wait // timedelta(microseconds=1), "us"
    )
    ends = (rows.at.astype("datetime64[us]").astype(np.int64) // size + 1) * size
    return rows.take(ends <= last.astype(np.int64))


def _is_text(column: pa.ChunkedArray) -> bool:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _times(table: pa.Table) -> npt.NDArray[np.datetime64]:
    column = table["event_time"]
    try:
        if not pa.types.is_timestamp(column.type):
            if not _is_text(column):
                raise ValueError(f"it has the type {column.type}")
            zoned = [moments.read(value) if value else None for value in column.to_pylist()]
            column = pa.chunked_array([pa.array(zoned, pa.timestamp("us", "UTC"))])
        # Finer than a microsecond is cut off.
        found = column.cast(pa.timestamp("us"), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, TypeError) as error:
        raise ExposureError(f"event_time is not a column of moments such as 2013-04-01T12:00:00Z: {error}") from error
    if found.null_count:
        raise ExposureError("event_time is missing in some rows")
    return np.asarray(found.to_numpy())


def _texts(table: pa.Table, name: str) -> npt.NDArray[np.object_]:
    return np.array(["missing" if value is None else str(value) for value in table[name].to_pylist()], dtype=object)


def _numbers(table: pa.Table, name: str, n: int) -> npt.NDArray[np.float64]:
    if name not in table.column_names:
        return np.full(n, np.nan)
    try:
        if _is_text(table[name]):
            texts = table[name].to_pylist()
            return np.array([math.nan if text in (None, "") else float(text) for text in texts], dtype=np.float64)
        return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ExposureError(f"{name} is not a column of numbers: {error}") from error


def _truths(loop: Loop, table: pa.Table, n: int) -> npt.NDArray[np.float64]:
    found = np.full(n, np.nan)
    if "label" not in table.column_names:
        return found
    values: Sequence[Any] = table["label"].to_pylist()
    known = np.array([value not in (None, "") and value == value for value in values], dtype=bool)
    try:
        found[known] = port.of(loop).truths([value for value, there in zip(values, known, strict=True) if there])
    except (EvaluationError, ValueError) as error:
        raise ExposureError(f"label: {error}") from error
    return found

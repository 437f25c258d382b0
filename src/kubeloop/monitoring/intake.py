"""From a reading of the payload log to rows under their windows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubeloop.monitoring import performance, windows
from kubeloop.monitoring.held import Kind, Part
from kubeloop.monitoring.payloads import Decoded
from kubeloop.monitoring.store import Progress
from kubeloop.monitoring.windows import NEVER, Clock, Grid, Micros, micros, moment

AHEAD = timedelta(hours=1)
"""How far a client's clock may run ahead. One bogus event time must not close every window."""

UNKNOWN = "unknown"
"""The version of responses that name none."""

_ORDINARY = ("", "default")
_TIMES = ("event_time", "received_at")


@dataclass(frozen=True)
class Intake:
    """What a reading brings: the progress to store with it, rows under their windows, and live versions."""

    progress: Progress
    parts: list[Part]
    live_since: dict[str, datetime]


def sort(decoded: Decoded, cursor: int, before: Progress, grid: Grid) -> Intake:
    """Put a reading's rows under their windows, and count those that belong to none.

    The order of arrival (`received_at`) stands for the order of the log, so the outcome does not depend on how the
    log was cut into readings.

    Args:
        decoded: the events, decoded.
        cursor: the last event's place in the log.
        before: where the service stood before them.
        grid: the windows.
    """
    predictions = decoded.predictions
    times, received = (_int64(predictions[name]) for name in _TIMES)
    early = times > received + AHEAD // timedelta(microseconds=1)
    predictions = predictions.filter(pa.array(~early))
    clock = Clock(received[~early], times[~early], NEVER if before.watermark is None else micros(before.watermark))
    late = windows.late(clock, grid)
    on_time = predictions.filter(pa.array(~late))
    versions = pc.fill_null(on_time["model_version"], UNKNOWN)
    ordinary = np.asarray(pc.is_in(predictions["endpoint"], pa.array(_ORDINARY)))
    progress = replace(
        before,
        cursor=cursor,
        watermark=None if clock.last == NEVER else moment(clock.last),
        late_rows=before.late_rows + int(late.sum()),
        early_rows=before.early_rows + int(early.sum()),
        malformed=before.malformed + decoded.malformed,
    )
    parts = list(_parts("features", on_time, clock.times[~late], versions, grid, ordinary[~late]))
    return Intake(progress, parts + _labels(decoded.labels, clock, grid), _first_seen(predictions, clock, ordinary))


def _labels(table: pa.Table, clock: Clock, grid: Grid) -> list[Part]:
    known = clock.before(_int64(table["received_at"]))
    # Before the first prediction there is no watermark to go by.
    arrived = np.where(known == NEVER, np.minimum(_int64(table["observed_at"]), _int64(table["received_at"])), known)
    nobody = pa.array([""] * len(table), pa.string())
    return list(_parts("labels", performance.labels(table, known), arrived, nobody, grid))


def _parts(
    kind: Kind,
    table: pa.Table,
    times: Micros,
    versions: pa.Array | pa.ChunkedArray,
    grid: Grid,
    ordinary: np.ndarray | None = None,
) -> Iterator[Part]:
    starts = grid.starts(times)
    names = np.asarray(versions.to_pylist(), dtype=object)
    for start in np.unique(starts):
        for version in sorted(set(names[starts == start])):
            rows = (starts == start) & (names == version)
            usual = times[rows & ordinary] if ordinary is not None else times[:0]
            yield Part(
                kind=kind,
                version=version,
                start=moment(start),
                end=moment(start) + grid.length,
                table=table.filter(pa.array(rows)),
                newest=moment(usual.max()) if len(usual) else None,
            )


def _first_seen(predictions: pa.Table, clock: Clock, ordinary: np.ndarray) -> dict[str, datetime]:
    """Return the event time of the first row of every version in ordinary traffic, in order of arrival."""
    found: dict[str, datetime] = {}
    names = pc.fill_null(predictions["model_version"], UNKNOWN).to_pylist()
    for row in np.argsort(clock.positions, kind="stable"):
        if ordinary[row]:
            found.setdefault(names[row], moment(clock.times[row]))
    return found


def _int64(column: pa.ChunkedArray) -> Micros:
    return np.asarray(column.cast(pa.int64()), dtype=np.int64)

"""Assign the rows of a reading of the payload log to their windows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubeloop.monitoring import performance, windows
from kubeloop.monitoring.held import Kind, Part
from kubeloop.monitoring.store import Progress
from kubeloop.monitoring.windows import NEVER, Clock, Grid, Micros, micros, moment
from kubeloop.payloads.decode import Decoded

UNKNOWN = "unknown"
"""The version of responses that do not name one."""

_ORDINARY = ("", "default")
_TIMES = ("event_time", "received_at")


@dataclass(frozen=True)
class Intake:
    """What a reading brings: the progress to store with it, rows under their windows, and live versions."""

    progress: Progress
    parts: list[Part]
    live_since: dict[str, datetime]
    early: pa.Table


def sort(
    decoded: Decoded,
    cursor: int,
    before: Progress,
    grid: Grid,
    until: datetime | None = None,
    *,
    skew: timedelta,
    now: datetime,
) -> Intake:
    """Assign a reading's rows to their windows, and count those that belong to none.

    Rows are processed in their order of arrival (`received_at`), so the outcome does not depend on how the log was
    cut into readings.

    Args:
        decoded: the events, decoded.
        cursor: the last event's position in the log.
        before: the service's progress before them.
        grid: the windows.
        until: end of the replay, if the loop follows its time. Before that end, rows with a later time do not count: a
            request without an event time gets the wall time and must not end the replay's windows.
        skew: how far a client's clock may run ahead. One wrong event time must not close every window.
        now: limits the event times that a collector with a fast clock has accepted.
    """
    predictions = decoded.predictions
    times, received = (_int64(predictions[name]) for name in _TIMES)
    watermark = NEVER if before.watermark is None else micros(before.watermark)
    early = times > np.minimum(received, micros(now)) + skew // timedelta(microseconds=1)
    if until is not None:
        early |= _beyond(np.where(early, NEVER, times), received, watermark, micros(until))
    ahead = predictions.filter(pa.array(early))
    predictions = predictions.filter(pa.array(~early))
    clock = Clock(received[~early], times[~early], watermark)
    late = windows.late(clock, grid)
    on_time = predictions.filter(pa.array(~late))
    ordinary = np.asarray(pc.is_in(predictions["endpoint"], pa.array(_ORDINARY)))
    progress = replace(
        before,
        cursor=cursor,
        watermark=None if clock.last == NEVER else moment(clock.last),
        late_rows=before.late_rows + int(late.sum()),
        early_rows=before.early_rows + int(early.sum()),
        malformed=before.malformed + decoded.malformed,
    )
    names, codes = _versions(predictions)
    parts = [
        _part("features", names[code], start, on_time, rows, grid, clock.times[~late][rows & ordinary[~late]])
        for start, code, rows in _cells(grid.starts(clock.times[~late]), codes[~late])
    ]
    usual = np.argsort(clock.positions, kind="stable")
    usual = usual[ordinary[usual]]
    found, first = np.unique(codes[usual], return_index=True)
    live_since = {names[code]: moment(time) for code, time in zip(found, clock.times[usual[first]], strict=True)}
    return Intake(progress, parts + _labels(decoded.labels, clock, grid, micros(now)), live_since, ahead)


def _beyond(times: Micros, received: Micros, watermark: int, until: int) -> NDArray[np.bool_]:
    """Return which rows are after `until` although the watermark before them in the log has begun and is still earlier.

    If the very first row is after `until`, it counts: then this loop does not follow a replay's time.
    """
    beyond = times > until
    marks = Clock(received[~beyond], times[~beyond], watermark).before(received)
    inside = (marks != NEVER) & (marks < until)
    live = received[beyond & ~inside]
    found: NDArray[np.bool_] = beyond & inside & (received < live.min(initial=np.iinfo(np.int64).max))
    return found


def _labels(table: pa.Table, clock: Clock, grid: Grid, now: int) -> list[Part]:
    known = clock.before(_int64(table["received_at"]))
    # Before the first prediction there is no watermark.
    arrived = np.where(
        known == NEVER, np.minimum(np.minimum(_int64(table["observed_at"]), _int64(table["received_at"])), now), known
    )
    labels, nobody = performance.labels(table, known), np.zeros(len(table), np.int64)
    return [
        _part("labels", "", start, labels, rows, grid, arrived[:0])
        for start, _, rows in _cells(grid.starts(arrived), nobody)
    ]


def _versions(predictions: pa.Table) -> tuple[list[str], Micros]:
    """Return the names of the versions, and the index of each row's version among them."""
    encoded = pc.fill_null(predictions["model_version"], UNKNOWN).combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), np.asarray(encoded.indices, dtype=np.int64)


def _cells(starts: Micros, codes: Micros) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Yield every window and version that occur together, with a mask of their rows."""
    for start in np.unique(starts):
        here = starts == start
        for code in np.unique(codes[here]):
            yield int(start), int(code), here & (codes == code)


def _part(
    kind: Kind, version: str, start: int, table: pa.Table, rows: NDArray[np.bool_], grid: Grid, ordinary: Micros
) -> Part:
    return Part(
        kind=kind,
        version=version,
        start=moment(start),
        end=moment(start) + grid.length,
        table=table.filter(pa.array(rows)),
        newest=moment(ordinary.max()) if len(ordinary) else None,
    )


def _int64(column: pa.ChunkedArray) -> Micros:
    return np.asarray(column.cast(pa.int64()), dtype=np.int64)

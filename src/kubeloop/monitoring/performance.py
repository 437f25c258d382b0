"""Measure how well a model performs on live traffic, once the labels have arrived."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubeloop.monitoring.rows import Measured, PerformanceRow, PerformanceStatus
from kubeloop.monitoring.windows import Micros
from kubeloop.tasks import intervals
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.port import Floats, Task

LABELS = pa.schema(
    [
        pa.field("event_id", pa.string()),
        pa.field("label", pa.float64()),
        pa.field("observed_at", pa.timestamp("us", tz="UTC")),
        pa.field("known", pa.int64()),
    ]
)
"""Labels as they arrived; `known` is the watermark at their position in the log, in microseconds."""


def schema(task: Task) -> pa.Schema:
    """Return the columns that are kept of a window's predictions until their labels arrive."""
    return pa.schema([pa.field("event_id", pa.string()), *(pa.field(name, pa.float32()) for name in task.columns)])


def scored(task: Task, predictions: pa.Table) -> pa.Table:
    """Return the predictions for the labels, `schema`: one row per event ID, the last prediction."""
    kept = predictions.select(schema(task).names).filter(pc.is_valid(predictions["event_id"]))
    for name in task.columns:
        kept = kept.filter(pc.invert(pc.is_nan(pc.fill_null(kept[name], float("nan")))))
    return _last(kept).cast(schema(task))


def labels(table: pa.Table, known: Micros) -> pa.Table:
    """Return decoded labels as `LABELS`, given the watermark at each label's position in the log."""
    return table.select(LABELS.names[:-1]).append_column("known", pa.array(known, pa.int64())).cast(LABELS)


def join(task: Task, predictions: pa.Table, arrived: Sequence[pa.Table], before: int) -> tuple[Floats, Floats]:
    """Pair predictions with their labels.

    If an event has several labels, the one observed last counts, since it corrects the others.

    Args:
        task: the loop's.
        predictions: `schema`.
        arrived: tables of `LABELS`.
        before: labels that arrived once the watermark had reached this are too late, in microseconds.

    Returns:
        Truths [m] and answers [m] or [m, k] of the predictions that have one.
    """
    # Labels that an older kubeloop kept have one byte.
    known = pa.concat_tables([LABELS.empty_table(), *(table.cast(LABELS) for table in arrived)])
    known = known.filter(pc.less(known["known"], before))
    known = _last(known.sort_by([("observed_at", "ascending"), ("known", "ascending")]))
    place = pc.index_in(predictions["event_id"], value_set=known["event_id"])
    found = pc.is_valid(place)
    y = known["label"].take(place.filter(found))
    return np.asarray(y.to_numpy(), dtype=np.float64), task.answers(predictions.filter(found))


def measure(task: Task, y: Floats, p: Floats, min_rows: int) -> tuple[PerformanceStatus, dict[str, float] | None]:
    """Return a status and, when it is `judged` or `few`, the metrics of `Task.score`.

    The other statuses say why nothing can be judged: `small` (fewer labels than `min_rows`) or `one_class` (all labels
    are the same). With `few`, the task needs more labels, so the window waits and is judged `together` with others.
    """
    if len(y) < max(min_rows, 1):
        return "small", None
    if task.undefined(y) is not None:
        return "one_class", None
    return "few" if task.few(y) else "judged", task.score(y, p)


def measured(task: Task, y: Floats, metrics: Mapping[str, float] | None) -> Measured:
    """Return the values of a row of `performance` for a window's truths [m] and the `metrics` of `measure`."""
    name = task.headline.name
    return {
        "labelled": len(y),
        "positives": task.positives(y),
        "scarce": task.scarce(y) if len(y) else None,
        "metric": name,
        "value": metrics[name] if metrics else None,
        "low": metrics[f"{name}_low"] if metrics else None,
        "high": metrics[f"{name}_high"] if metrics else None,
        "metrics": {one: metrics[one] for one in task.metrics if metrics[one] == metrics[one]} if metrics else None,
    }


def together(task: Task, windows: Sequence[PerformanceRow]) -> tuple[Estimate, int | None, int] | None:
    """Return the common headline of windows that each have too few rows, with their positives and their number.

    If positives are rare, no single window would ever be judged. So the newest ones are judged together once they have
    enough.

    Args:
        task: the loop's.
        windows: rows of the monitor's `performance` of one version in order of time; the newest is the last, and is
        `few`.

    Returns:
        None while the windows since the last judged one have fewer than `intervals.FEW` rows outside of the most
        frequent class.
    """
    since = next((at for at in range(len(windows), 0, -1) if windows[at - 1]["status"] == "judged"), 0)
    name = task.headline.name
    few = [row for row in windows[since:] if row["status"] == "few" and row["metric"] == name]
    few = [row for row in few if row["scarce"] is not None and row["value"] is not None]
    if sum(row["scarce"] or 0 for row in few) < intervals.FEW:
        return None
    parts = [(_estimate(row), row["labelled"], row["positives"]) for row in few]
    positives = [row["positives"] for row in few if row["positives"] is not None]
    return task.pooled(parts), sum(positives) if positives else None, len(parts)


def _estimate(row: PerformanceRow) -> Estimate:
    value, low, high = row["value"], row["low"], row["high"]
    assert value is not None  # noqa: S101 - `together` left the others out
    return Estimate(value, math.nan if low is None else low, math.nan if high is None else high)


def _last(table: pa.Table) -> pa.Table:
    """Keep the last row of every event id, in order."""
    rows = pa.array(np.arange(len(table)))
    last = pa.table({"event_id": table["event_id"], "row": rows}).group_by("event_id").aggregate([("row", "max")])
    return table.take(last["row_max"].combine_chunks().sort())

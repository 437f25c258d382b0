"""How well a model does on live traffic, once the labels are in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubeloop.monitoring.windows import Micros
from kubeloop.tasks import intervals
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.tabular import evaluation

SCORED = pa.schema([pa.field("event_id", pa.string()), pa.field("score", pa.float32())])
"""What is kept of a window's predictions until their labels come."""

LABELS = pa.schema(
    [
        pa.field("event_id", pa.string()),
        pa.field("label", pa.int8()),
        pa.field("observed_at", pa.timestamp("us", tz="UTC")),
        pa.field("known", pa.int64()),
    ]
)
"""Labels as they came; `known` is the watermark at their place in the log, in microseconds."""


def scored(predictions: pa.Table) -> pa.Table:
    """Return what labels can be held against, `SCORED`: one row an event id, the last one that was predicted."""
    kept = predictions.select(SCORED.names).filter(pc.is_valid(predictions["event_id"]))
    kept = kept.filter(pc.invert(pc.is_nan(pc.fill_null(kept["score"], float("nan")))))
    return _last(kept).cast(SCORED)


def labels(table: pa.Table, known: Micros) -> pa.Table:
    """Return decoded labels as `LABELS`, given the watermark at each one's place in the log."""
    return table.select(LABELS.names[:-1]).append_column("known", pa.array(known, pa.int64())).cast(LABELS)


def join(
    predictions: pa.Table, arrived: Sequence[pa.Table], before: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pair predictions with their labels.

    Of several labels for one event the one observed last counts: it corrects the others.

    Args:
        predictions: `SCORED`.
        arrived: tables of `LABELS`.
        before: labels that came when the watermark had reached this are too late, in microseconds.

    Returns:
        Labels [m] and scores [m] of the predictions that have one.
    """
    known = pa.concat_tables([LABELS.empty_table(), *arrived])
    known = known.filter(pc.less(known["known"], before))
    known = _last(known.sort_by([("observed_at", "ascending"), ("known", "ascending")]))
    place = pc.index_in(predictions["event_id"], value_set=known["event_id"])
    found = pc.is_valid(place)
    y = known["label"].take(place.filter(found))
    p = predictions["score"].filter(found)
    return y.to_numpy().astype(np.int64), p.to_numpy().astype(np.float64)


def measure(y: NDArray[np.int64], p: NDArray[np.float64], min_rows: int) -> tuple[str, dict[str, float] | None]:
    """Return a status and, when it is `judged` or `few`, the metrics of `evaluation.score`.

    The others say why there is nothing to judge: `small` (fewer labels than `min_rows`) or `one_class`. `few` is too
    few to judge: there are fewer than `intervals.FEW` rows of a class, so the window waits for others to be taken
    together with (`together`).
    """
    if len(y) < max(min_rows, 1):
        return "small", None
    if evaluation.undefined(y) is not None:
        return "one_class", None
    return "few" if evaluation.few(y) else "judged", evaluation.score(y, p)


def together(windows: Sequence[Mapping[str, Any]]) -> tuple[Estimate, int, int] | None:
    """Return the AUC of windows that are each too few to judge, taken together, their positives and their number.

    Where positives are rare no single window would ever be judged, so the newest of them are, once they have enough.

    Args:
        windows: rows of the monitor's `performance` of one version in order of time, the newest last, which is `few`.

    Returns:
        None while those since the last that was judged have fewer than `intervals.FEW` rows of a class.
    """
    since = next((at for at in range(len(windows), 0, -1) if windows[at - 1]["status"] == "judged"), 0)
    few = [row for row in windows[since:] if row["status"] == "few" and row["positives"] is not None]
    parts = [(row["auc"], row["positives"], row["labelled"] - row["positives"]) for row in few]
    if min((sum(part[place] for part in parts) for place in (1, 2)), default=0) < intervals.FEW:
        return None
    return intervals.pooled(parts), sum(part[1] for part in parts), len(parts)


def _last(table: pa.Table) -> pa.Table:
    """Keep the last row of every event id, in order."""
    rows = pa.array(np.arange(len(table)))
    last = pa.table({"event_id": table["event_id"], "row": rows}).group_by("event_id").aggregate([("row", "max")])
    return table.take(last["row_max"].combine_chunks().sort())

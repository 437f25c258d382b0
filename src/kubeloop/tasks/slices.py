"""Divide rows into slices and measure each: one value of one column, or a quarter of its numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.port import EvaluationError, Task

_MAX_VALUES = 20
_PARTS = 4
_MISSING = frozenset({"", "None", "nan", "NaT", "<NA>"})


@dataclass(frozen=True)
class Slice:
    """The metrics of the rows that share one value of one column, with the interval of the headline.

    `note` says why a metric is NaN, or that the headline has too few rows to judge by. `positives` counts the rows of
    class 1; None if there is no such class.
    """

    column: str
    value: str
    rows: int
    positives: int | None
    metrics: dict[str, float]
    sure: Estimate
    note: str | None


def measure(
    task: Task, frame: Mapping[str, Any], y: npt.ArrayLike, p: npt.ArrayLike, columns: Sequence[str], min_rows: int
) -> list[Slice]:
    """Measure every slice with at least `min_rows` rows.

    Args:
        task: the loop's.
        frame: a data frame or mapping with the columns, [n] each.
        y: truths [n].
        p: answers [n] or [n, k].
        columns: columns to slice by, as `members` does it.
        min_rows: smaller slices are left out.

    Raises:
        EvaluationError: as `Task.score`, or a column is not in the frame.
    """
    truths, answers = task.checked(y, p)
    found = []
    name = task.headline.name
    for column, value, rows in members(frame, columns, min_rows):
        metrics = task.score(truths[rows], answers[rows])
        kept = {metric: metrics[metric] for metric in task.metrics}
        sure = Estimate(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])
        note = task.undefined(truths[rows]) or task.few(truths[rows])
        found.append(Slice(column, value, len(rows), task.positives(truths[rows]), kept, sure, note))
    return found


def members(
    frame: Mapping[str, Any], columns: Sequence[str], min_rows: int
) -> Iterator[tuple[str, str, npt.NDArray[np.intp]]]:
    """Yield (column, value, row numbers) of every slice with at least `min_rows` rows.

    A slice is one value; numeric columns with more than 20 values are cut into quarters of equal mass. Missing values
    form the slice `missing`.

    Raises:
        EvaluationError: a column is not in the frame.
    """
    for column in columns:
        if column not in frame:
            raise EvaluationError(f"gates.slices names {column!r}, which the data do not have; remove it or add it")
        names = _names(frame[column])
        for value in np.unique(names):
            rows = np.flatnonzero(names == value)
            if len(rows) >= min_rows:
                yield column, str(value), rows


def _names(values: Any) -> npt.NDArray[np.str_]:
    column = np.asarray(values)
    if column.dtype.kind in "iufb":
        numbers = column.astype(np.float64)
        known = ~np.isnan(numbers)
        if len(np.unique(numbers[known])) > _MAX_VALUES:
            edges = np.quantile(numbers[known], np.linspace(0, 1, _PARTS + 1))
            part = np.searchsorted(edges[1:-1], numbers, side="left")
            labels = np.array([f"{low:g} to {high:g}" for low, high in pairwise(edges)])
            return np.where(known, labels[part], "missing")
        return np.array([f"{value:g}" if ok else "missing" for value, ok in zip(numbers, known, strict=True)])
    return np.array(["missing" if str(value) in _MISSING else str(value) for value in column])

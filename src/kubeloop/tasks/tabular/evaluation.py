"""Measure a binary classifier: one set of formulas for a hold-out, its slices and a bootstrap's resamples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from kubeloop.errors import KubeloopError
from kubeloop.tasks import intervals
from kubeloop.tasks.intervals import Estimate

Floats = npt.NDArray[np.float64]
Weighted = Callable[[npt.ArrayLike], Floats]

DIRECTION = {"auc": 1.0, "pr_auc": 1.0, "log_loss": -1.0, "brier": -1.0, "ece": -1.0}
"""1 where a larger value is better, -1 where a smaller one is."""

BINS = 15
_MAX_VALUES = 20
_PARTS = 4
_MISSING = frozenset({"", "None", "nan", "NaT", "<NA>"})


class EvaluationError(KubeloopError, ValueError):
    """Labels and predictions cannot be compared; the message says what is wrong with them."""

    lasting = True


@dataclass(frozen=True)
class Slice:
    """The metrics of the rows that share one value of one column, with the interval of their AUC.

    `note` says why a metric is NaN, or that the AUC rests on too few rows of a class to judge by.
    """

    column: str
    value: str
    rows: int
    positives: int
    metrics: dict[str, float]
    auc: Estimate
    note: str | None


def score(y: npt.ArrayLike, p: npt.ArrayLike) -> dict[str, float]:
    """Measure predictions against labels.

    auc, pr_auc (average precision), log_loss and brier are those of scikit-learn. ece is the expected calibration
    error (Naeini et al. 2015) over 15 bins of equal mass (Nixon et al. 2019); equal predictions share a bin, so that
    the order of the rows does not matter.

    Args:
        y: labels [n], 0 or 1.
        p: probabilities of class 1 [n].

    Returns:
        auc, pr_auc, log_loss, brier, ece, auc_low and auc_high (its 95 % interval by `intervals.auc`), rows and
        positives; NaN where `undefined` gives a reason.

    Raises:
        EvaluationError: shapes differ, labels are not 0 or 1, or a prediction is not a probability.
    """
    labels, scores = checked(y, p)
    ones = np.ones((1, len(labels)))
    if len(labels) == 0:
        values = dict.fromkeys(DIRECTION, float("nan"))
    else:
        values = {name: float(weighted(name, labels, scores)(ones)[0]) for name in DIRECTION if name != "ece"}
        values["ece"] = _ece(labels, scores)
    sure = intervals.auc(labels, scores)
    bounds = {"auc_low": sure.low, "auc_high": sure.high}
    return {**values, **bounds, "rows": len(labels), "positives": int(labels.sum())}


def few(y: npt.ArrayLike) -> str | None:
    """Say that labels [n] are too few of a class to judge an AUC by, or return None if they are not."""
    labels = np.asarray(y)
    positives = int(labels.sum())
    if min(positives, labels.size - positives) >= intervals.FEW:
        return None
    return f"too few to judge: {positives} of {labels.size} labels are 1, and either class needs {intervals.FEW}"


def miscalibration(y: npt.ArrayLike, p: npt.ArrayLike) -> float:
    """Return the ECE without what chance alone adds to it.

    Every bin of a perfectly calibrated model is off by chance: its labels' sum has variance sum(p (1 - p)), so that its
    mean gap is that root times sqrt(2 / pi). On 300 rows 15 bins have an ECE of some 0.07 that way. Squares of both add
    up, so their difference is taken (as Kumar et al. 2019 do with the calibration error's square), 0 where it is less.

    Args:
        y: labels [n], 0 or 1.
        p: probabilities of class 1 [n], at least one.
    """
    labels, scores = checked(y, p)
    spread = np.bincount(calibration_bins(scores), weights=scores * (1 - scores))
    chance = float(np.sqrt(2 / np.pi * spread).sum() / len(labels))
    return float(np.sqrt(max(0.0, _ece(labels, scores) ** 2 - chance**2)))


def undefined(y: npt.ArrayLike) -> str | None:
    """Say why auc and pr_auc are undefined for these labels [n], or return None if they are defined."""
    labels = np.asarray(y)
    if labels.size == 0:
        return "there are no rows"
    positives = int(labels.sum())
    if 0 < positives < labels.size:
        return None
    return f"all {labels.size} labels are {int(labels[0])}, so nothing can be ranked"


def weighted(metric: str, y: npt.ArrayLike, p: npt.ArrayLike, groups: npt.NDArray[np.intp] | None = None) -> Weighted:
    """Prepare a metric for many weightings of the same predictions; the sort happens once, here.

    Args:
        metric: auc, pr_auc, log_loss or brier.
        y: labels [n], 0 or 1.
        p: probabilities of class 1 [n].
        groups: group of each row [n], 0 to g-1; each row is its own group when left out.

    Returns:
        A function from non-negative group weights [r, g] to the metric [r]; NaN where the weights leave one class.

    Raises:
        EvaluationError: as `score`, or the metric has no weighted form.
    """
    labels, scores = checked(y, p)
    groups = np.arange(len(labels)) if groups is None else groups
    if metric == "log_loss":
        return _mean(_log_losses(labels, scores), groups)
    if metric == "brier":
        return _mean((labels - scores) ** 2, groups)
    if metric not in ("auc", "pr_auc"):
        raise EvaluationError(f"{metric!r} has no weighted form; use auc, pr_auc, log_loss or brier")
    order = np.argsort(-scores, kind="stable")
    positive, index = labels[order], groups[order]
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    area = _roc_area if metric == "auc" else _average_precision

    def measure(weights: npt.ArrayLike) -> Floats:
        rows = np.take(np.asarray(weights, dtype=np.float64), index, axis=1)
        total = np.cumsum(rows, axis=1)[:, ends]
        np.multiply(rows, positive, out=rows)
        hits = np.cumsum(rows, axis=1)[:, ends]
        with np.errstate(invalid="ignore", divide="ignore"):
            return area(hits, total)

    return measure


def slices(
    frame: Mapping[str, Any], y: npt.ArrayLike, p: npt.ArrayLike, columns: Sequence[str], min_rows: int
) -> list[Slice]:
    """Measure every slice with at least `min_rows` rows.

    Args:
        frame: a data frame or mapping with the columns, [n] each.
        y: labels [n].
        p: probabilities of class 1 [n].
        columns: columns to slice by; see `members` for how.
        min_rows: smaller slices are left out.

    Raises:
        EvaluationError: as `score`, or a column is not in the frame.
    """
    labels, scores = checked(y, p)
    found = []
    for column, value, rows in members(frame, columns, min_rows):
        metrics = score(labels[rows], scores[rows])
        kept = {name: metrics[name] for name in DIRECTION}
        sure = Estimate(metrics["auc"], metrics["auc_low"], metrics["auc_high"])
        note = undefined(labels[rows]) or few(labels[rows])
        found.append(Slice(column, value, len(rows), int(metrics["positives"]), kept, sure, note))
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
            raise EvaluationError(f"gates.slices names {column!r}, which the data do not have; take it out or add it")
        names = _names(frame[column])
        for value in np.unique(names):
            rows = np.flatnonzero(names == value)
            if len(rows) >= min_rows:
                yield column, str(value), rows


def checked(y: npt.ArrayLike, p: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return labels and predictions as float64 [n].

    Raises:
        EvaluationError: shapes differ, labels are not 0 or 1, or a prediction is not a probability.
    """
    labels, scores = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise EvaluationError(f"labels {labels.shape} and predictions {scores.shape} must be two lists of one length")
    if not np.isin(labels, (0, 1)).all():
        raise EvaluationError("labels must be 0 or 1; leave rows out whose label is not known yet")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise EvaluationError("predictions must be probabilities between 0 and 1, and none may be missing")
    return labels, scores


def calibration_bins(p: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Return the bin of each prediction [n]: 15 bins of equal mass, where equal predictions share a bin."""
    _, inverse, counts = np.unique(np.asarray(p), return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return (middle * BINS / max(len(inverse), 1)).astype(np.intp)[inverse]


def _ece(labels: Floats, scores: Floats) -> float:
    gaps = np.bincount(calibration_bins(scores), weights=scores - labels)
    return float(np.abs(gaps).sum() / len(labels))


def _log_losses(labels: Floats, scores: Floats) -> Floats:
    eps = np.finfo(np.float64).eps
    likely = np.clip(np.where(labels == 1, scores, 1 - scores), eps, 1 - eps)
    return np.asarray(-np.log(likely))


def _mean(losses: Floats, groups: npt.NDArray[np.intp]) -> Weighted:
    sums, counts = np.bincount(groups, weights=losses), np.bincount(groups)

    def measure(weights: npt.ArrayLike) -> Floats:
        shares = np.asarray(weights, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray(shares @ sums / (shares @ counts))

    return measure


def _roc_area(hits: Floats, total: Floats) -> Floats:
    """Return the area under the ROC curve by the trapezoidal rule, ties counted half (Hanley & McNeil 1982)."""
    false = total - hits
    area = (hits[:, 0] * false[:, 0] + ((hits[:, 1:] + hits[:, :-1]) * np.diff(false, axis=1)).sum(axis=1)) / 2
    return np.asarray(area / (hits[:, -1] * false[:, -1]))


def _average_precision(hits: Floats, total: Floats) -> Floats:
    precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    area = (np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1) / hits[:, -1]
    return np.asarray(np.where(hits[:, -1] < total[:, -1], area, np.nan))


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

"""Measure a binary classifier: one set of formulas for a hold-out, its slices and a bootstrap's resamples.

auc, pr_auc (average precision), log_loss and brier are those of scikit-learn.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kubeloop.tasks import forms, intervals
from kubeloop.tasks.port import EvaluationError, Floats, Groups, Weighted

BINS = 15


def log_loss(labels: Floats, scores: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the log loss, as scikit-learn's; arguments as in `port.Metric.weighted`."""
    return forms.mean(log_losses(labels, scores), groups)


def brier(labels: Floats, scores: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the Brier score."""
    return forms.mean((labels - scores) ** 2, groups)


def auc(labels: Floats, scores: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the area under the ROC curve."""
    return _ranked(labels, scores, groups, _roc_area)


def pr_auc(labels: Floats, scores: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the average precision, as scikit-learn's."""
    return _ranked(labels, scores, groups, _average_precision)


def _ranked(labels: Floats, scores: Floats, groups: Groups, area: Callable[[Floats, Floats], Floats]) -> Weighted:
    order = np.argsort(-scores, kind="stable")
    positive, index = labels[order], groups[order]
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))

    def measure(weights: npt.ArrayLike) -> Floats:
        rows = np.take(np.asarray(weights, dtype=np.float64), index, axis=1)
        total = np.cumsum(rows, axis=1)[:, ends]
        np.multiply(rows, positive, out=rows)
        hits = np.cumsum(rows, axis=1)[:, ends]
        with np.errstate(invalid="ignore", divide="ignore"):
            return area(hits, total)

    return measure


def few(y: npt.ArrayLike) -> str | None:
    """Say that one class has too few labels [n] to judge by an AUC, or return None if both have enough."""
    labels = np.asarray(y)
    positives = int(labels.sum())
    if min(positives, labels.size - positives) >= intervals.FEW:
        return None
    return f"too few to judge: {positives} of {labels.size} labels are 1, and either class needs {intervals.FEW}"


def miscalibration(y: npt.ArrayLike, p: npt.ArrayLike) -> float:
    """Return the ECE without what chance alone adds to it.

    Every bin of a perfectly calibrated model deviates by chance: the sum of its labels has the variance sum(p (1 - p)),
    so its mean deviation is the root of that times sqrt(2 / pi). On 300 rows, this alone gives 15 bins an ECE of about
    0.07. The squares of both parts add up, so the square of the chance part is subtracted (as Kumar et al. 2019 do with
    the squared calibration error). A negative difference counts as 0.

    Args:
        y: labels [n], 0 or 1.
        p: probabilities of class 1 [n], at least one.
    """
    labels, scores = checked(y, p)
    spread = np.bincount(calibration_bins(scores), weights=scores * (1 - scores))
    chance = float(np.sqrt(2 / np.pi * spread).sum() / len(labels))
    return float(np.sqrt(max(0.0, ece(labels, scores) ** 2 - chance**2)))


def undefined(y: npt.ArrayLike) -> str | None:
    """Say why auc and pr_auc are undefined for these labels [n], or return None if they are defined."""
    labels = np.asarray(y)
    if labels.size == 0:
        return "there are no rows"
    positives = int(labels.sum())
    if 0 < positives < labels.size:
        return None
    return f"all {labels.size} labels are {int(labels[0])}, so nothing can be ranked"


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


def ece(labels: Floats, scores: Floats) -> float:
    """Return the expected calibration error (Naeini et al. 2015) over 15 bins of equal mass (Nixon et al. 2019).

    Equal predictions share a bin, so that the order of the rows does not matter.
    """
    gaps = np.bincount(calibration_bins(scores), weights=scores - labels)
    return float(np.abs(gaps).sum() / len(labels))


def log_losses(labels: Floats, scores: Floats) -> Floats:
    """Return the log loss of each row [n]."""
    eps = np.finfo(np.float64).eps
    likely = np.clip(np.where(labels == 1, scores, 1 - scores), eps, 1 - eps)
    return np.asarray(-np.log(likely))


def _roc_area(hits: Floats, total: Floats) -> Floats:
    """Return the area under the ROC curve by the trapezoidal rule, ties counted half (Hanley & McNeil 1982)."""
    false = total - hits
    area = (hits[:, 0] * false[:, 0] + ((hits[:, 1:] + hits[:, :-1]) * np.diff(false, axis=1)).sum(axis=1)) / 2
    return np.asarray(area / (hits[:, -1] * false[:, -1]))


def _average_precision(hits: Floats, total: Floats) -> Floats:
    precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    area = (np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1) / hits[:, -1]
    return np.asarray(np.where(hits[:, -1] < total[:, -1], area, np.nan))

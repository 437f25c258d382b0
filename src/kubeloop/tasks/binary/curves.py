"""Compute ROC, precision-recall, calibration and confusion as plain lists, and draw them as figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kubeloop.tasks.binary import evaluation
from kubeloop.tasks.port import EvaluationError, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 200


@dataclass(frozen=True)
class Curve:
    """A line of at most 200 points; `threshold` is empty if its points have no thresholds."""

    x: list[float]
    y: list[float]
    threshold: list[float]


@dataclass(frozen=True)
class Confusion:
    """Counts at a threshold: a prediction at or above it is class 1. Rows are true classes: [[tn, fp], [fn, tp]]."""

    threshold: float
    matrix: list[list[int]]

    @property
    def precision(self) -> float:
        """Share of true alarms among alarms; 0 without alarms."""
        (_, fp), (_, tp) = self.matrix
        return tp / (tp + fp) if tp + fp else 0.0

    @property
    def recall(self) -> float:
        """Share of class 1 that was found."""
        _, (fn, tp) = self.matrix
        return tp / (tp + fn)


@dataclass(frozen=True)
class Curves:
    """Everything that is drawn for one model on one hold-out.

    roc: x false positive rate, y true positive rate. pr: x recall, y precision. calibration: x mean prediction, y share
    of class 1, one point per bin of equal mass, at most `evaluation.BINS`.
    """

    roc: Curve
    pr: Curve
    calibration: Curve
    confusion: Confusion
    prevalence: float


def draw(y: npt.ArrayLike, p: npt.ArrayLike, threshold: float | None = None) -> Curves:
    """Compute all curves.

    Args:
        y: labels [n], 0 or 1.
        p: probabilities of class 1 [n].
        threshold: that of the confusion matrix; by default the one with the largest F1.

    Raises:
        EvaluationError: labels or predictions are not valid, or there is only one class.
    """
    labels, scores = evaluation.checked(y, p)
    reason = evaluation.undefined(labels)
    if reason:
        raise EvaluationError(f"no curve can be drawn: {reason}")
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.flatnonzero(np.append(np.diff(falling) != 0, True))
    hits = np.cumsum(labels[order])[ends]
    alarms = ends + 1.0
    positives = float(labels.sum())
    if threshold is None:
        threshold = float(falling[ends][np.argmax(2 * hits / (alarms + positives))])
    # The curve starts at "no alarm"; its true threshold is infinite, which neither JSON nor KFP can carry.
    thresholds = np.append(1.0, falling[ends])
    recall = np.append(0.0, hits / positives)
    false = np.append(0.0, (alarms - hits) / (len(labels) - positives))
    precision = np.append(1.0, hits / alarms)
    return Curves(
        roc=_thin(false, recall, thresholds),
        pr=_thin(recall, precision, thresholds),
        calibration=calibration(labels, scores),
        confusion=_confusion(labels, scores, threshold),
        prevalence=positives / len(labels),
    )


def figures(curves: Curves, metrics: Mapping[str, float]) -> dict[str, "Figure"]:
    """Return matplotlib figures by name: roc, pr, calibration, confusion.

    Args:
        curves: the result of `draw`.
        metrics: the result of `Task.score`, for the titles.
    """
    lines: dict[str, tuple[Curve, list[float], str, str, str]] = {
        "roc": (curves.roc, [0.0, 1.0], f"ROC, AUC {metrics['auc']:.3f}", "false positive rate", "true positive rate"),
        "pr": (
            curves.pr,
            [curves.prevalence] * 2,
            f"Precision and recall, area {metrics['pr_auc']:.3f}",
            "recall",
            "precision",
        ),
        "calibration": (
            curves.calibration,
            [0.0, 1.0],
            f"Calibration, ECE {metrics['ece']:.3f}",
            "mean prediction",
            "share of class 1",
        ),
    }
    drawn: dict[str, Figure] = {}
    for name, (curve, base, title, x_label, y_label) in lines.items():
        figure, axes = _figure(title, x_label, y_label)
        axes.plot([0, 1], base, color="0.7", linewidth=1, linestyle="--")
        axes.plot(curve.x, curve.y, color="#2563eb", marker="o" if name == "calibration" else "")
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        drawn[name] = figure
    figure, axes = _figure(f"Confusion at {curves.confusion.threshold:.3f}", "predicted", "true")
    axes.imshow(curves.confusion.matrix, cmap="Blues")
    axes.set(xticks=[0, 1], yticks=[0, 1])
    most = np.max(curves.confusion.matrix)
    for row, counts in enumerate(curves.confusion.matrix):
        for column, count in enumerate(counts):
            color = "white" if count > most / 2 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color)
    return {**drawn, "confusion": figure}


def _figure(title: str, x_label: str, y_label: str) -> "tuple[Figure, Axes]":
    # Not pyplot, which keeps every figure in a global variable.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def _thin(x: Floats, y: Floats, threshold: Floats) -> Curve:
    """Keep the ends and evenly spaced points along the line, so that steep parts do not lose more than flat ones."""
    if len(x) > MAX_POINTS:
        way = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
        kept = np.unique(np.searchsorted(way, np.linspace(0, way[-1], MAX_POINTS)))
        kept[-1] = len(x) - 1
        x, y, threshold = x[kept], y[kept], threshold[kept]
    return Curve(x.tolist(), y.tolist(), threshold.tolist())


def calibration(labels: Floats, scores: Floats) -> Curve:
    """Return the mean prediction and the share of class 1 of each bin, at most `evaluation.BINS` bins.

    Args:
        labels: 0 or 1 [n].
        scores: probabilities of 1 [n].
    """
    bins = evaluation.calibration_bins(scores)
    counts = np.bincount(bins)
    used = counts > 0
    mean = np.bincount(bins, weights=scores)[used] / counts[used]
    share = np.bincount(bins, weights=labels)[used] / counts[used]
    return Curve(mean.tolist(), share.tolist(), [])


def _confusion(labels: Floats, scores: Floats, threshold: float) -> Confusion:
    cells = np.bincount((2 * labels + (scores >= threshold)).astype(np.intp), minlength=4)
    return Confusion(threshold, cells.reshape(2, 2).tolist())

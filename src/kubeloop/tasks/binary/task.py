"""A binary task for monitor, gates and report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kubeloop.config import Training
from kubeloop.tasks import intervals
from kubeloop.tasks.binary import evaluation
from kubeloop.tasks.port import EvaluationError, Floats, Level, Metric, Task, Tensor

METRICS = (
    Metric("auc", "AUC", 1, "share", evaluation.auc, intervals.auc, pooled=intervals.pooled),
    Metric("pr_auc", "PR AUC", 1, "share", evaluation.pr_auc),
    Metric(
        "log_loss",
        "Log loss",
        -1,
        "loss",
        evaluation.log_loss,
        lambda y, p: intervals.mean(evaluation.log_losses(y, p)),
    ),
    Metric("brier", "Brier score", -1, "loss", evaluation.brier, lambda y, p: intervals.mean((y - p) ** 2)),
    Metric("ece", "Calibration error", -1, "share", plain=evaluation.ece),
)


class Binary(Task):
    """A label of 0 or 1, and the probability of 1."""

    kind = "binary"
    metrics: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}
    tensors = (Tensor("probability"),)
    columns = ("score",)
    titles = ("probability",)
    level = Level("Label 1", "share, predicted", ".0%")

    def __init__(self, metric: str = "auc") -> None:
        self.headline = self.metrics[metric]

    def label(self, value: Any) -> float:
        """See `Task`."""
        if value not in (0, 1):
            raise ValueError("a label must be 0 or 1")
        return float(value)

    def truths(self, labels: npt.ArrayLike) -> Floats:
        """See `Task`."""
        found = np.asarray(labels, dtype=np.float64)
        if not np.isin(found, (0, 1)).all():
            raise EvaluationError("labels must be 0 or 1; leave rows out whose label is not known yet")
        return found

    def checked(self, y: npt.ArrayLike, p: npt.ArrayLike) -> tuple[Floats, Floats]:
        """See `Task`."""
        return evaluation.checked(y, p)

    def undefined(self, y: npt.ArrayLike) -> str | None:
        """See `Task`."""
        return evaluation.undefined(y)

    def few(self, y: npt.ArrayLike) -> str | None:
        """See `Task`."""
        return evaluation.few(y)

    def scarce(self, y: npt.ArrayLike) -> int | None:
        """See `Task`."""
        labels = np.asarray(y)
        positives = int(labels.sum())
        return min(positives, labels.size - positives)

    def positives(self, y: npt.ArrayLike) -> int | None:
        """See `Task`."""
        return int(np.asarray(y).sum())

    def support(self, y: npt.ArrayLike) -> str:
        """See `Task`."""
        return f"{self.positives(y):,} of {np.asarray(y).size:,} rows positive"

    def levels(self, y: Floats, p: Floats) -> tuple[float, float]:
        """See `Task`."""
        return float(y.mean()), float(p.mean())

    def text(self, answer: Floats) -> str:
        """See `Task`."""
        return f"{float(answer):.4f}"

    def limited(self, name: str, y: Floats, p: Floats) -> float:
        """See `Task`; the calibration error excludes what chance adds to it in a small hold-out."""
        return evaluation.miscalibration(y, p) if name == "ece" else super().limited(name, y, p)


BINARY = Binary()


def of(training: Training, metric: str) -> Binary:  # noqa: ARG001 - nothing of it matters here
    """Return the task with a loop's settings."""
    return Binary(metric)

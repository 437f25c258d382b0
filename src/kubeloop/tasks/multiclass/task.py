"""What monitor, gates and report need to know of a multiclass task."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kubeloop.tasks import forms, intervals
from kubeloop.tasks.binary import evaluation as two
from kubeloop.tasks.multiclass import evaluation
from kubeloop.tasks.multiclass.settings import Training
from kubeloop.tasks.port import EvaluationError, Floats, Level, Metric, Task, Tensor

_TOP = 3
_NAMED = 5


class Multiclass(Task):
    """A label that is one of several texts, and one probability for each of them.

    Calibration is that of the likeliest class (Guo et al. 2017): the share of rows in which it is the true class,
    compared with its predicted probability.
    """

    kind = "multiclass"
    level = Level("Likeliest class", "true, predicted", ".0%")

    def __init__(self, classes: Sequence[str], metric: str = "log_loss") -> None:
        self.classes = tuple(classes)
        self._codes = {name: float(code) for code, name in enumerate(self.classes)}
        count = len(self.classes)
        top = max(2, min(_TOP, count - 2))
        known = (
            Metric("log_loss", "Log loss", -1, "loss", evaluation.log_loss, _log_loss),
            Metric("macro_f1", "Macro F1", 1, "share", evaluation.macro_f1),
            Metric("balanced_accuracy", "Balanced accuracy", 1, "share", evaluation.balanced_accuracy),
            Metric("accuracy", "Accuracy", 1, "share", evaluation.accuracy),
            Metric(
                "top_k",
                f"Top-{top} accuracy",
                1,
                "share",
                lambda y, p, groups: forms.mean(evaluation.hits(y, p, top), groups),
            ),
            Metric("ece", "Calibration error", -1, "share", plain=lambda y, p: two.ece(*self.confidence(y, p))),
        )
        self.metrics = {one.name: one for one in known}
        self.headline = self.metrics[metric]
        self.tensors = (Tensor("probabilities", count),)
        self.columns = tuple(f"score_{code}" for code in range(count))
        self.titles = tuple(f"P({name})" for name in self.classes)

    def label(self, value: Any) -> float:
        """See `Task`."""
        try:
            return self._codes[_text(value)]
        except KeyError:
            raise ValueError(f"a label must be one of {self._shown()}, which training.classes has") from None

    def truths(self, labels: npt.ArrayLike) -> Floats:
        """See `Task`."""
        try:
            return np.array([self.label(value) for value in np.asarray(labels, dtype=object)], dtype=np.float64)
        except ValueError as error:
            raise EvaluationError(f"{error}; leave rows out whose label is another, or not known yet") from error

    def checked(self, y: npt.ArrayLike, p: npt.ArrayLike) -> tuple[Floats, Floats]:
        """See `Task`."""
        return evaluation.checked(y, p, len(self.classes))

    def undefined(self, y: npt.ArrayLike) -> str | None:
        """See `Task`."""
        truths = np.asarray(y, dtype=np.intp)
        if not truths.size:
            return "there are no rows"
        if (truths == truths[0]).all():
            return f"all {truths.size} labels are {self.classes[truths[0]]!r}, so no class can be told from another"
        return None

    def few(self, y: npt.ArrayLike) -> str | None:
        """See `Task`."""
        truths = np.asarray(y)
        if self.scarce(truths) >= intervals.FEW:
            return None
        return (
            f"too few to judge: all but {self.scarce(truths)} of {truths.size} labels are of one class, and "
            f"{intervals.FEW} must be of others"
        )

    def scarce(self, y: npt.ArrayLike) -> int:
        """See `Task`."""
        counts = np.bincount(np.asarray(y, dtype=np.intp), minlength=1)
        return int(counts.sum() - counts.max())

    def positives(self, y: npt.ArrayLike) -> int | None:  # noqa: ARG002 - there is no class 1
        """See `Task`."""
        return None

    def support(self, y: npt.ArrayLike) -> str:
        """See `Task`."""
        counts = np.bincount(np.asarray(y, dtype=np.intp), minlength=len(self.classes))
        rarest = int(np.argmin(counts))
        least = f"{counts[rarest]:,} of the rarest, {self.classes[rarest]}"
        return f"{counts.sum():,} rows of {len(self.classes)} classes, {least}"

    def levels(self, y: Floats, p: Floats) -> tuple[float, float]:
        """See `Task`."""
        right, sure = self.confidence(y, p)
        return float(right.mean()), float(sure.mean())

    def text(self, answer: Floats) -> str:
        """See `Task`."""
        best = np.argsort(-answer, kind="stable")[:_TOP]
        return ", ".join(f"{self.classes[code]} {answer[code]:.4f}" for code in best)

    def limited(self, name: str, y: Floats, p: Floats) -> float:
        """See `Task`; the calibration error excludes what chance adds to it in a small hold-out."""
        return two.miscalibration(*self.confidence(y, p)) if name == "ece" else super().limited(name, y, p)

    @staticmethod
    def confidence(y: Floats, p: Floats) -> tuple[Floats, Floats]:
        """Return whether the likeliest class is the true one [n], and its probability [n]."""
        return evaluation.hits(y, p), np.minimum(p.max(axis=1), 1.0)

    def _shown(self) -> str:
        more = f" and {len(self.classes) - _NAMED} more" if len(self.classes) > _NAMED else ""
        return ", ".join(self.classes[:_NAMED]) + more


def of(training: Training, metric: str) -> Multiclass:
    """Return the task with a loop's settings."""
    return Multiclass(training.classes, metric)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _log_loss(y: Floats, p: Floats) -> intervals.Estimate:
    return intervals.mean(evaluation.log_losses(y, p))

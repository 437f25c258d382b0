"""A regression task for monitor, gates and report."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kubeloop.tasks import forms, intervals
from kubeloop.tasks.port import EvaluationError, Floats, Level, Metric, Task, Tensor
from kubeloop.tasks.regression import evaluation
from kubeloop.tasks.regression.settings import Training


class Regression(Task):
    """A label that is a number, and an answer of a value with a prediction interval."""

    kind = "regression"
    tensors = (Tensor("value"), Tensor("low"), Tensor("high"))
    columns = ("score", "score_low", "score_high")
    titles = ("value", "low", "high")
    level = Level("Label", "mean, predicted", ",.4g")

    def __init__(self, coverage: float = 0.9, metric: str = "rmse") -> None:
        self.coverage = coverage
        known = (
            Metric("rmse", "RMSE", -1, "loss", evaluation.rmse, evaluation.rmse_interval),
            Metric("mae", "MAE", -1, "loss", evaluation.mae, lambda y, p: intervals.mean(evaluation.absolute(y, p))),
            Metric("r2", "R²", 1, "share", evaluation.r2),
            Metric(
                "pinball",
                "Pinball loss",
                -1,
                "loss",
                lambda y, p, groups: forms.mean(evaluation.pinball_losses(y, p, coverage), groups),
                lambda y, p: intervals.mean(evaluation.pinball_losses(y, p, coverage)),
            ),
            Metric(
                "coverage",
                "Coverage",
                1,
                "share",
                lambda y, p, groups: forms.mean(evaluation.inside(y, p), groups),
                lambda y, p: intervals.mean(evaluation.inside(y, p)),
            ),
        )
        self.metrics = {one.name: one for one in known}
        self.headline = self.metrics[metric]

    def label(self, value: Any) -> float:
        """See `Task`."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError("a label must be a number")
        return float(value)

    def truths(self, labels: npt.ArrayLike) -> Floats:
        """See `Task`."""
        try:
            found = np.asarray(labels, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise EvaluationError(f"labels must be numbers ({error})") from error
        if not np.isfinite(found).all():
            raise EvaluationError("labels must be numbers; leave rows out whose label is not known yet")
        return found

    def checked(self, y: npt.ArrayLike, p: npt.ArrayLike) -> tuple[Floats, Floats]:
        """See `Task`."""
        return evaluation.checked(y, p)

    def undefined(self, y: npt.ArrayLike) -> str | None:
        """See `Task`."""
        truths = np.asarray(y, dtype=np.float64)
        if not truths.size:
            return "there are no rows"
        if (truths == truths[0]).all():
            return f"all {truths.size} labels are {truths[0]:g}, so there is nothing to explain"
        return None

    def few(self, y: npt.ArrayLike) -> str | None:
        """See `Task`."""
        rows = np.asarray(y).size
        if rows >= intervals.FEW:
            return None
        return f"too few to judge: {rows} rows, but {intervals.FEW} are needed"

    def scarce(self, y: npt.ArrayLike) -> int | None:  # noqa: ARG002 - a number has no classes
        """See `Task`."""
        return None

    def positives(self, y: npt.ArrayLike) -> int | None:  # noqa: ARG002 - a number has no classes
        """See `Task`."""
        return None

    def levels(self, y: Floats, p: Floats) -> tuple[float, float]:
        """See `Task`."""
        return float(y.mean()), float(p[:, evaluation.VALUE].mean())

    def text(self, answer: Floats) -> str:
        """See `Task`."""
        value, low, high = answer
        return f"{value:,.6g}, {self.coverage:.0%} interval {low:,.6g} to {high:,.6g}"

    def tolerance(self, limit: float, y: Floats, p: Floats) -> float:
        """See `Task`; numbers have units, so the limit is a share of the champion's value."""
        return limit * abs(self.headline.value(y, p))

    def support(self, y: npt.ArrayLike) -> str:
        """See `Task`."""
        return f"{np.asarray(y).size:,} rows"


def of(training: Training, metric: str) -> Regression:
    """Return the task with a loop's settings."""
    return Regression(training.interval.coverage, metric)

"""Measure numbers and their prediction intervals; answers [n, 3] are the value and the ends of its interval.

RMSE, MAE, R² and the pinball loss are those of scikit-learn.
"""

import math

import numpy as np
import numpy.typing as npt

from kubeloop.tasks import forms, intervals
from kubeloop.tasks.port import EvaluationError, Floats, Groups, Weighted

VALUE, LOW, HIGH = range(3)


def checked(y: npt.ArrayLike, p: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return truths [n] and answers [n, 3] as float64.

    Raises:
        EvaluationError: shapes differ, or a number is missing or infinite.
    """
    truths, answers = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if truths.ndim != 1 or answers.shape != (len(truths), 3):
        raise EvaluationError(
            f"truths {truths.shape} and answers {answers.shape} must be [n] and [n, 3]: value, low, high"
        )
    if not np.isfinite(truths).all():
        raise EvaluationError("labels must be numbers; leave rows out whose label is not known yet")
    if not np.isfinite(answers).all():
        raise EvaluationError("answers must be numbers, and none may be missing or infinite")
    return truths, answers


def squares(y: Floats, p: Floats) -> Floats:
    """Return the squared error of each row [n]."""
    return np.asarray((y - p[:, VALUE]) ** 2)


def rmse(y: Floats, p: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the root of the mean squared error."""
    mean = forms.mean(squares(y, p), groups)
    return lambda weights: np.asarray(np.sqrt(mean(weights)))


def rmse_interval(y: Floats, p: Floats) -> intervals.Estimate:
    """Return the RMSE with the roots of the mean squared error's interval."""
    found = intervals.mean(squares(y, p))
    return intervals.Estimate(*(math.sqrt(max(0.0, value)) for value in found))


def absolute(y: Floats, p: Floats) -> Floats:
    """Return the absolute error of each row [n]."""
    return np.asarray(np.abs(y - p[:, VALUE]))


def mae(y: Floats, p: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of the mean absolute error."""
    return forms.mean(absolute(y, p), groups)


def r2(y: Floats, p: Floats, groups: Groups) -> Weighted:
    """Return the weighted form of R²: 1 minus the ratio of the squared errors to those of the rows' own mean."""
    # Deviations from the overall mean, since the difference of large sums of squares would lose digits.
    centred = y - (y.mean() if len(y) else 0.0)
    parts = np.stack(
        [np.bincount(groups, weights=values) for values in (np.ones(len(y)), centred, centred**2, squares(y, p))],
        axis=1,
    )

    def measure(weights: npt.ArrayLike) -> Floats:
        rows, total, square, error = (np.asarray(weights, dtype=np.float64) @ parts).T
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = square - total**2 / rows
            return np.asarray(np.where(spread > 0, 1 - error / spread, np.nan))

    return measure


def pinball_losses(y: Floats, p: Floats, coverage: float) -> Floats:
    """Return for each row [n] the mean of the pinball losses of both ends of the interval."""
    tail = (1 - coverage) / 2
    below, above = y - p[:, LOW], y - p[:, HIGH]
    low = np.maximum(tail * below, (tail - 1) * below)
    high = np.maximum((1 - tail) * above, -tail * above)
    return np.asarray((low + high) / 2)


def inside(y: Floats, p: Floats) -> Floats:
    """Return 1 for each row [n] whose truth is in its interval, else 0."""
    return np.asarray((p[:, LOW] <= y) & (y <= p[:, HIGH]), dtype=np.float64)

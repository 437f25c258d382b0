"""Turn feature columns into one float32 matrix, using only operations that ONNX has."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from kubeloop.errors import KubeloopError

Matrix = npt.NDArray[np.float32]
Targets = npt.NDArray[np.float64]
Kind = Literal["numeric", "categorical"]

SMOOTHING = 20.0
"""Number of rows with which the prior counts in a category's mean (the m of the m-estimate)."""

EXACT = 2**24
"""Whole numbers up to this one are exact in float32; beyond it, only every second, fourth, ... one is."""

MOST_CATEGORIES = 100_000
"""Most values of a category that are learned, by frequency: two megabytes of a graph, without loss of speed."""

_FOLDS = 5
_LEAST_MISSING, _LEAST_SHARE = 20, 0.001
"""Rows, and share of the rows, in which a number must be missing before a model can learn what that means."""


class EncodingError(KubeloopError, ValueError):
    """A feature column is missing or cannot be read as its kind; the message names it."""

    lasting = True


@dataclass(frozen=True)
class Encoder:
    """What was learned about each feature; all numbers are exact float32 values.

    Numeric columns: a missing or infinite value becomes the column's fill. The fill is NaN if the estimator has learned
    what a missing value means. It is the median in two cases. If the estimator cannot learn it, it gets one more
    column, which is 1 where the value is missing. If training had too few such rows to learn from, the median makes an
    outage of a source that was never missing give a usual prediction, not an arbitrary one.

    Categorical columns: a value becomes the smoothed mean of a target among its rows, (sum + m * prior) / (rows + m)
    (Micci-Barreca 2001); there is a column for each target: the label, or whether the row belongs to a class. Missing
    is a value like any other, because rows with an empty field may differ from all others. If there are only a few, m
    keeps their mean near the prior. An unknown value becomes the prior, the mean of the target over all rows.

    Attributes:
        columns: the features, in the order of the training set.
        fills: what a missing value of each numeric feature becomes.
        means: by categorical feature, and by target, the mean of each value; the empty string stands for missing.
        priors: by target, the mean for an unknown value.
        flags: numeric features with an extra column that is 1 where they are missing.
    """

    columns: tuple[str, ...]
    fills: dict[str, float]
    means: dict[str, tuple[dict[str, float], ...]]
    priors: tuple[float, ...]
    flags: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The feature of each column of the matrix: numeric, then categorical, then those with a flag."""
        return (*self.fills, *(name for name, _, _ in self.tables), *self.flags)

    @property
    def tables(self) -> list[tuple[str, dict[str, float], float]]:
        """Feature, mean of each value, and prior of each column that encodes a category."""
        return [
            (name, means, prior)
            for name, targets in self.means.items()
            for means, prior in zip(targets, self.priors, strict=True)
        ]

    @property
    def kinds(self) -> dict[str, Kind]:
        """How each feature is read, in the order of the training set."""
        return {name: "numeric" if name in self.fills else "categorical" for name in self.columns}

    def transform(self, frame: pd.DataFrame) -> Matrix:
        """Return the matrix [n, F], columns as in `names`.

        Raises:
            EncodingError: a column is missing or cannot be read as its kind.
        """
        matrix = np.empty((len(frame), len(self.names)), dtype=np.float32)
        tables = self.tables
        for position, (name, fill) in enumerate(self.fills.items()):
            values = numbers(frame, name)
            known = np.isfinite(values)
            matrix[:, position] = np.where(known, values, np.float32(fill))
            if name in self.flags:
                matrix[:, len(self.fills) + len(tables) + self.flags.index(name)] = ~known
        read = {name: texts(frame, name) for name in self.means}
        for position, (name, means, prior) in enumerate(tables, start=len(self.fills)):
            matrix[:, position] = read[name].map(means).fillna(prior).to_numpy(dtype=np.float32)
        return matrix


def learn(frame: pd.DataFrame, targets: Targets, *, native: bool = False) -> tuple[Encoder, Matrix]:
    """Learn the encoding of a training set.

    Args:
        frame: the feature columns; strings are categorical, all others numeric.
        targets: the targets whose means encode categories [n, T].
        native: whether the estimator learns from NaN what a missing number means.

    Returns:
        The encoder, and the matrix [n, F] to fit an estimator on. In that matrix, a row's own label does not count in
        its category's means (each fifth of the rows is encoded from the other four), so that the estimator does not
        learn to trust an encoding that contains the answer.

    Raises:
        EncodingError: there is no column, or one is neither text nor a number.
    """
    if frame.shape[1] == 0:
        raise EncodingError("the training set has no feature columns; add features to the feature service")
    categorical = [str(name) for name in frame.columns if is_text(frame[name])]
    numeric = {str(name): numbers(frame, name) for name in frame.columns if name not in categorical}
    telling = [name for name, column in numeric.items() if _telling(column)]
    fills = {name: float("nan") if native and name in telling else _median(column) for name, column in numeric.items()}
    priors = tuple(_float32(float(target.mean())) for target in targets.T)
    values = {name: texts(frame, name) for name in categorical}
    means = {
        name: tuple(_means(values[name], target, prior) for target, prior in zip(targets.T, priors, strict=True))
        for name in categorical
    }
    flags = () if native else tuple(telling)
    encoder = Encoder(tuple(str(name) for name in frame.columns), fills, means, priors, flags)
    matrix = encoder.transform(frame)
    own = ((name, target) for name in categorical for target in targets.T)
    for position, (name, target) in enumerate(own, start=len(fills)):
        matrix[:, position] = out_of_fold(values[name], target)
    return encoder, matrix


def out_of_fold(values: "pd.Series[str]", y: npt.NDArray[Any]) -> Matrix:
    """Return for each row the mean of its category [n], learned from the four fifths of the rows without it.

    Args:
        values: categories [n], as `texts` gives them.
        y: a target [n].
    """
    prior, fold = _float32(float(y.mean())), np.arange(len(y)) % _FOLDS
    found = np.empty(len(y), dtype=np.float32)
    for part in range(_FOLDS):
        own = fold == part
        others = _means(values[~own], y[~own], prior)
        found[own] = values[own].map(others).fillna(prior).to_numpy(dtype=np.float32)
    return found


def numbers(frame: pd.DataFrame, name: str) -> Matrix:
    """Return a numeric column as float32 [n], NaN where a value is missing.

    Raises:
        EncodingError: the column is missing or holds something other than numbers.
    """
    column = _column(frame, name)
    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        raise EncodingError(f"feature {name!r} is a time; make it a number, such as an hour or an age, in its SQL")
    try:
        with np.errstate(over="ignore"):
            return column.to_numpy(dtype=np.float32, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise EncodingError(
            f"feature {name!r} is not a number in every row ({error}); make it a number or text in its SQL"
        ) from error


def blurred(frame: pd.DataFrame) -> dict[str, float]:
    """Return the numeric columns whose whole numbers float32 cannot distinguish, with their median.

    Most of the values must be that large. For a few large values among small ones, as in an amount, seven digits are
    enough.
    """
    found = {}
    for name in (str(name) for name in frame.columns if not is_text(frame[name])):
        values = numbers(frame, name)
        values = values[np.isfinite(values)]
        middle = float(np.median(np.abs(values))) if len(values) else 0.0
        if middle > EXACT and (values == np.floor(values)).all():
            found[name] = middle
    return found


def texts(frame: pd.DataFrame, name: str) -> "pd.Series[str]":
    """Return a categorical column as Python strings [n], empty where a value is missing.

    Raises:
        EncodingError: the column is missing.
    """
    column = _column(frame, name).astype(object)
    return column.where(column.notna(), "").astype(str)


def is_text(column: "pd.Series[str]") -> bool:
    """Return whether a column is categorical: it holds strings, or nothing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return pd.api.types.is_string_dtype(column.cat.categories)
    has_objects = pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column)
    return has_objects and pd.api.types.infer_dtype(column, skipna=True) in ("string", "empty")


def _column(frame: pd.DataFrame, name: str) -> "pd.Series[str]":
    if name not in frame:
        raise EncodingError(f"feature {name!r} is not among the columns {list(frame.columns)}")
    return frame[name]


def _telling(values: Matrix) -> bool:
    """Return whether enough values are missing, and enough are known, to learn the difference."""
    known = int(np.isfinite(values).sum())
    return known > 0 and len(values) - known >= max(_LEAST_MISSING, _LEAST_SHARE * len(values))


def _median(values: Matrix) -> float:
    known = values[np.isfinite(values)]
    return _float32(float(np.median(known))) if len(known) else 0.0


def _means(values: "pd.Series[str]", y: npt.NDArray[Any], prior: float) -> dict[str, float]:
    groups = pd.Series(y, index=values.index).groupby(values)
    counts = groups.count()
    smoothed = (groups.sum() + SMOOTHING * prior) / (counts + SMOOTHING)
    if len(counts) > MOST_CATEGORIES:
        smoothed = smoothed[counts.nlargest(MOST_CATEGORIES).index]
    return {str(value): _float32(mean) for value, mean in smoothed.items()}


def _float32(value: float) -> float:
    return float(np.float32(value))

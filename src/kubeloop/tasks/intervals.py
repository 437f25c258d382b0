"""The uncertainty of numbers from few rows: intervals of an AUC, of several windows' AUC, and of a difference.

`evaluation` reports them; `gates` and the monitor decide by them. No SciPy, so that the monitor stays small.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["FEW", "Estimate", "bootstrap", "mean"]

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
"""Confidence of every two-sided interval of an AUC or an effect; chance exceeds each end in 2.5 % of cases."""

FEW = 10
"""With fewer rows of either class, an AUC is too uncertain to judge a model by."""

_HALVINGS = 40
_GROUPS, _DRAWS, _SEED, _CELLS = 1_000, 400, 7, 2_000_000

Weigh = Callable[[npt.ArrayLike], Floats]


class Estimate(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def z(confidence: float = CONFIDENCE) -> float:
    """Return the standard normal quantile of a two-sided interval."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def auc(y: Floats, p: Floats, confidence: float = CONFIDENCE) -> Estimate:
    """Return an AUC with its interval.

    The interval is Newcombe's fifth method (Statistics in Medicine 25, 2006, part 2): it solves
    |found - true| = z sqrt(V(true)) with the variance of Hanley & McNeil (1982), which holds for few rows and for an
    AUC near 1, for which methods that put the found value into V are too narrow. V assumes a certain distribution of
    the scores; if the rows' own variance (DeLong et al. 1988) is larger than V, V is scaled up to it.

    Args:
        y: labels [n], 0 or 1.
        p: scores [n].
        confidence: of the two-sided interval.

    Returns:
        All NaN if there is only one class.
    """
    positive, negative = np.sort(p[y == 1]), np.sort(p[y == 0])
    m, n = len(positive), len(negative)
    if not m or not n:
        return Estimate(math.nan, math.nan, math.nan)
    above, below = _wins(negative, positive), 1 - _wins(positive, negative)
    value = float(above.mean())
    spread = sum(float(part.var(ddof=1)) / len(part) for part in (above, below) if len(part) > 1)
    supposed = _variance(value, m, n)
    scale = max(1.0, spread / supposed) if supposed > 0 else 1.0
    return _solve(value, lambda true: scale * _variance(true, m, n), confidence)


def pooled(parts: Sequence[tuple[float, int, int]], confidence: float = CONFIDENCE) -> Estimate:
    """Return the AUC of several windows taken together: only rows of one window are compared with each other.

    Each window weighs as many pairs as it has (a stratified AUC), and the interval is that of `auc` with the sum of the
    windows' variances.

    Args:
        parts: AUC, positives and negatives of each window, at least one of either class.
        confidence: of the two-sided interval.
    """
    pairs = sum(m * n for _, m, n in parts)
    shares = [m * n / pairs for _, m, n in parts]
    value = sum(share * found for share, (found, _, _) in zip(shares, parts, strict=True))

    def variance(true: float) -> float:
        return sum(share**2 * _variance(true, m, n) for share, (_, m, n) in zip(shares, parts, strict=True))

    return _solve(value, variance, confidence)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Return a - b of two independent estimates with intervals of one confidence.

    MOVER, G. Zou and A. Donner, Statistics in Medicine 27 (2008): each end combines the uncertainty of both estimates
    in that direction.
    """
    value = a.value - b.value
    return Estimate(
        value,
        value - math.hypot(a.value - a.low, b.high - b.value),
        value + math.hypot(a.high - a.value, b.value - b.low),
    )


def mean(values: Floats, confidence: float = CONFIDENCE) -> Estimate:
    """Return a mean with its interval by the central limit theorem.

    Args:
        values: one per row [n].
        confidence: of the two-sided interval.
    """
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    found = float(values.mean())
    reach = z(confidence) * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(found, found - reach, found + reach)


def bootstrap(prepare: Callable[[npt.NDArray[np.intp]], Weigh], rows: int, confidence: float = CONFIDENCE) -> Estimate:
    """Return a metric with its percentile bootstrap interval over the rows (Efron & Tibshirani 1993, ch. 13).

    If there are many rows, they are divided into 1,000 random groups, and groups are drawn instead of rows.

    Args:
        prepare: returns the weighted form of the metric for the group of each row [n].
        rows: how many there are.
        confidence: of the two-sided interval.
    """
    random = np.random.default_rng(_SEED)
    count = min(rows, _GROUPS)
    groups = np.arange(rows) if rows == count else random.permutation(np.arange(rows) % count)
    weigh = prepare(groups)
    value = float(weigh(np.ones((1, count)))[0])
    even, chunk = np.full(count, 1 / count), max(1, _CELLS // rows)
    sizes = [min(chunk, _DRAWS - start) for start in range(0, _DRAWS, chunk)]
    draws = np.concatenate([weigh(random.multinomial(count, even, size=size)) for size in sizes])
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or len(draws) < _DRAWS / 2:
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def mixed(parts: Sequence[Estimate], rows: Sequence[int]) -> Estimate:
    """Return the mean of independent estimates, weighted by their rows, with its interval.

    Each end combines the uncertainty of the estimates in that direction (MOVER, see `difference`).

    Args:
        parts: at least one.
        rows: of each.
    """
    shares = [count / sum(rows) for count in rows]
    value = sum(share * part.value for share, part in zip(shares, parts, strict=True))
    below = math.hypot(*(share * (part.value - part.low) for share, part in zip(shares, parts, strict=True)))
    above = math.hypot(*(share * (part.high - part.value) for share, part in zip(shares, parts, strict=True)))
    return Estimate(value, value - below, value + above)


def _wins(others: Floats, values: Floats) -> Floats:
    """Return for each value the share of the sorted others that are smaller; ties count half."""
    left, right = (np.searchsorted(others, values, side=side) for side in ("left", "right"))
    return np.asarray((left + right) / (2 * len(others)))


def _variance(true: float, m: int, n: int) -> float:
    """Return Hanley & McNeil's variance with both counts less one replaced by their mean, as Newcombe does."""
    half = (m + n) / 2 - 1
    return true * (1 - true) * (1 + half * (1 - true) / (2 - true) + half * true / (1 + true)) / (m * n)


def _solve(value: float, variance: Callable[[float], float], confidence: float) -> Estimate:
    """Find the points on both sides from which the value is z standard errors away; 0 and 1 if there are none."""
    reach, ends = z(confidence), []
    for end in (0.0, 1.0):
        near, far = value, end
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            if abs(middle - value) < reach * math.sqrt(max(0.0, variance(middle))):
                near = middle
            else:
                far = middle
        ends.append(far)
    return Estimate(value, *ends)

"""The formulas of the drift tests: p-values, effect sizes and the population stability index."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc, gammaln  # type: ignore[import-untyped]
from scipy.stats import kstwo  # type: ignore[import-untyped]

Counts = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_PSI_FLOOR = 1e-4
"""Share given to an empty bin, whose logarithm would be infinite."""


def ks_p_values(distances: Sequence[float], n: Sequence[int], m: Sequence[int]) -> list[float]:
    """Return the asymptotic two-sided p-values of f distances between samples of n and m rows.

    The same as `scipy.stats.ks_2samp(method="asymp")` to 1e-9: the law of the one-sample statistic at the
    effective size round(n m / (n + m)), R. Simard and P. L'Ecuyer, Journal of Statistical Software 39 (2011).
    SciPy gives NaN where that size rounds to 0; no rows are no evidence, so this gives 1.
    """
    d = np.asarray(distances, dtype=np.float64)
    rows, others = np.asarray(n, dtype=np.float64), np.asarray(m, dtype=np.float64)
    size = np.round(rows * others / np.maximum(rows + others, 1))
    # From here on Simard and L'Ecuyer take twice the one-sided law; SciPy sums it in a slow loop a feature.
    tail = (size > 140) & (size * d * d >= 2.2) & (d < 1)
    p = np.ones_like(d)
    plain = ~tail & (size >= 1)
    if plain.any():
        p[plain] = kstwo.sf(d[plain], size[plain])
    for index in np.flatnonzero(tail):
        p[index] = 2 * _smirnov(int(size[index]), float(d[index]))
    return [float(value) for value in np.clip(p, 0, 1)]


def chi_square(reference: Counts, window: Counts) -> tuple[float, float]:
    """Return Pearson's chi-square statistic of homogeneity and its p-value for two rows of counts [k].

    The same as `scipy.stats.chi2_contingency(correction=False)` without the categories that neither side
    has. (0, 1) when a side is empty or only one category is left.
    """
    table = np.stack([reference, window]).astype(np.float64)
    table = table[:, table.sum(axis=0) > 0]
    rows = table.sum(axis=1, keepdims=True)
    if table.shape[1] < 2 or not rows.all():
        return 0.0, 1.0
    expected = rows * table.sum(axis=0) / rows.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return statistic, float(chdtrc(table.shape[1] - 1, statistic))


def cramers_v(reference: Counts, window: Counts) -> float:
    """Return Cramér's V in [0, 1] of two rows of counts [k], each sample weighted equally; not bias-corrected.

    V of the plain table shrinks as the reference outgrows the window: half of 200 rows changing carrier
    would be 0.35 against 200 rows and 0.11 against 10,000. With equal weights V² is half the triangular
    discrimination, sum((p - q)² / (p + q)) / 2, F. Topsøe, IEEE Trans. Information Theory 46 (2000): 0 for
    equal shares, 1 for no category in common, whatever the sizes.
    """
    if not reference.sum() or not window.sum():
        return 0.0
    p, q = reference / reference.sum(), window / window.sum()
    seen = p + q > 0
    return min(1.0, float(np.sqrt(((p - q)[seen] ** 2 / (p + q)[seen]).sum() / 2)))


def psi(reference: Counts, window: Counts) -> float:
    """Return the population stability index of two rows of counts [b] over the same bins.

    sum((q - p) ln(q / p)), N. Siddiqi, Credit Risk Scorecards (2006), with 1e-4 for the share of an empty bin.
    """
    if not reference.sum() or not window.sum():
        return 0.0
    p = np.maximum(reference / reference.sum(), _PSI_FLOOR)
    q = np.maximum(window / window.sum(), _PSI_FLOOR)
    return float(((q - p) * np.log(q / p)).sum())


def _smirnov(n: int, d: float) -> float:
    """Return P(D+ >= d) for n rows: Z. Birnbaum and F. Tingey, Annals of Mathematical Statistics 22 (1951)."""
    ways = _log_binomials(n)
    j = np.arange(int(n * (1 - d)) + 1)
    reach = d + j / n
    j, reach = j[reach < 1], reach[reach < 1]
    return d * float(np.exp(ways[: len(j)] + (j - 1) * np.log(reach) + (n - j) * np.log1p(-reach)).sum())


@lru_cache(maxsize=64)
def _log_binomials(n: int) -> Doubles:
    j = np.arange(n + 1)
    return np.asarray(gammaln(n + 1) - gammaln(j + 1) - gammaln(n - j + 1))

"""The formulas of the drift tests: p-values, effect sizes and the population stability index.

The laws of Kolmogorov and Smirnov are implemented here, because `scipy.stats` would take 37 MiB in every monitor.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kubeloop.tasks.intervals import z

Counts = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_KOLMOGOROV = math.pi**2 / 12
_LEAST = 0.5
"""Evidence of one row against one row, which proves nothing."""

_PSI_FLOOR = 1e-4
"""Share of an empty bin, since the logarithm of 0 is infinite."""


def ks_p_values(distances: Sequence[float], n: Sequence[int], m: Sequence[int]) -> list[float]:
    """Return the asymptotic two-sided p-values of f distances between samples of n and m rows.

    The same as `scipy.stats.ks_2samp(method="asymp")` to 1e-9: the law of the one-sample statistic at the
    effective size round(n m / (n + m)), R. Simard and P. L'Ecuyer, Journal of Statistical Software 39 (2011).
    SciPy gives NaN where that size rounds to 0; without rows there is no evidence, so this gives 1.
    """
    d = np.asarray(distances, dtype=np.float64)
    rows, others = np.asarray(n, dtype=np.float64), np.asarray(m, dtype=np.float64)
    size = np.round(rows * others / np.maximum(rows + others, 1))
    # SciPy uses the same formulas, but one feature at a time in Python, which would cost more than everything else.
    large = (size > 140) & (size * d > 1) & (d < 1)
    tail = large & (size * d * d >= 2.2)
    middle = large & ~tail & ((size > 1e5) | (size * d**1.5 > 1.4))
    rest = ~tail & ~middle & (size >= 1)
    p = np.ones_like(d)
    p[middle] = 1 - _pelz_good(size[middle], d[middle])
    for index in np.flatnonzero(tail):
        p[index] = 2 * _smirnov(int(size[index]), float(d[index]))
    for index in np.flatnonzero(rest):
        p[index] = _exact(int(size[index]), float(d[index]))
    return [float(value) for value in np.clip(p, 0, 1)]


def chi_square(reference: Counts, window: Counts) -> tuple[float, float]:
    """Return Pearson's chi-square statistic of homogeneity and its p-value for two rows of counts [k].

    The same as `scipy.stats.chi2_contingency(correction=False)` without the categories that neither side
    has. (0, 1) when a side is empty or only one category is left.
    """
    # Imported here, since a monitor with Alibi Detect's engine does not need SciPy.
    from scipy.special import chdtrc

    table = np.stack([reference, window]).astype(np.float64)
    table = table[:, table.sum(axis=0) > 0]
    rows = table.sum(axis=1, keepdims=True)
    if table.shape[1] < 2 or not rows.all():
        return 0.0, 1.0
    expected = rows * table.sum(axis=0) / rows.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return statistic, float(chdtrc(table.shape[1] - 1, statistic))


def cramers_v(reference: Counts, window: Counts) -> float:
    """Return Cramér's V in [0, 1] of two rows of counts [k], each sample weighted equally, corrected for bias.

    V of the plain table shrinks as the reference outgrows the window: for shares that go from 50:50 to 90:10
    in 200 rows it is 0.44 against a reference of 200 rows and 0.11 against one of 10,000. With equal weights V²
    is sum((p - q)² / (p + q)) / 2, half the triangular discrimination (F. Topsøe, IEEE Transactions on
    Information Theory 46, 2000): 0 for equal shares, 1 for no category in common, whatever the sizes.

    Chance alone makes V² of k categories (k - 1) / (N - 1) on average, if two samples of N / 2 rows are as certain as
    these two; W. Bergsma, Journal of the Korean Statistical Society 42 (2013). Without the correction, V of 48
    categories in 150 rows is 0.29 although nothing changed. For two categories the result is Bergsma's. For more, his
    divisor would give less than 1 if the samples have no category in common.
    """
    rows = evidence(int(reference.sum()), int(window.sum()))
    if rows <= _LEAST:
        return 0.0
    p, q = reference / reference.sum(), window / window.sum()
    seen = p + q > 0
    square = float(((p - q)[seen] ** 2 / (p + q)[seen]).sum()) / 2
    return unbiased(square, (int(seen.sum()) - 1) / (4 * rows - 1))


def evidence(n: int, m: int) -> float:
    """Return n m / (n + m): one sample of this size against a known distribution is as certain as n rows against m."""
    return n * m / (n + m) if n and m else 0.0


def unbiased(square: float, by_chance: float) -> float:
    """Return an effect without the part of its square that chance causes on average, `by_chance`.

    It is adjusted like R²: its square is 0 on average if nothing changed, and 1 if nothing is in common.
    """
    if by_chance >= 1:
        return 0.0
    return min(1.0, math.sqrt(max(0.0, (square - by_chance) / (1 - by_chance))))


def corrected_distance(distance: float, steps: Doubles, rows: float) -> float:
    """Return a Kolmogorov-Smirnov D without what chance adds to it.

    The square of Kolmogorov's limit has the mean pi² / 12, so chance makes D² that mean divided by the rows. For a
    feature with few values it is less: D² is at most the sum of the squared differences at each value, whose mean is
    the sum of F (1 - F) divided by the rows.

    Args:
        distance: D.
        steps: distribution function of the reference at each of its values.
        rows: of `evidence`.
    """
    if not rows:
        return distance
    return unbiased(distance**2, min(_KOLMOGOROV, float((steps * (1 - steps)).sum())) / rows)


def effect_interval(effect: float, rows: float, categories: int = 1) -> tuple[float, float]:
    """Return the 95 % interval of an effect.

    The standard error of a difference of two shares is at most 1 / (2 sqrt(rows)), and D is one (M. Raghavachari,
    Annals of Statistics 1, 1973). The standard error of V has the same bound: it is reached if the shares are almost
    equal, and is smaller the more they differ (delta method). Many categories add the variance of what chance adds to
    V²: 2 (k - 1) / N², as for chi-square.

    Args:
        effect: D, V or the change of a share.
        rows: of `evidence`.
        categories: the number of categories of V.
    """
    if not rows:
        return 0.0, 1.0
    chance = (categories - 1) / (4 * rows)
    added = chance / (8 * rows * max(effect**2, chance)) if chance else 0.0
    reach = z() * math.sqrt(1 / (4 * rows) + added)
    return max(0.0, effect - reach), min(1.0, effect + reach)


def psi(reference: Counts, window: Counts) -> float:
    """Return the population stability index of two rows of counts [b] over the same bins.

    sum((q - p) ln(q / p)), N. Siddiqi, Credit Risk Scorecards (2006), with 1e-4 for the share of an empty bin. It is
    shown in its usual form, so chance adds about (b - 1) (1 / n + 1 / m) to it (B. Yurdakul 2018). No decision depends
    on it.
    """
    if not reference.sum() or not window.sum():
        return 0.0
    p = np.maximum(reference / reference.sum(), _PSI_FLOOR)
    q = np.maximum(window / window.sum(), _PSI_FLOOR)
    return float(((q - p) * np.log(q / p)).sum())


def _pelz_good(n: Doubles, d: Doubles) -> Doubles:
    """Return P(D < d) [f] for n rows [f]: W. Pelz and I. Good, J. Royal Statistical Society B 38 (1976).

    The limit law and its three corrections in powers of 1 / sqrt(n), as series in the odd (`h`) and even (`k`)
    multiples of pi / 2 that converge fast below sqrt(n) d = 1.5.
    """
    z = (np.sqrt(n) * d)[:, None]
    h = (np.pi * (np.arange(6) + 0.5)) ** 2
    k = (np.pi * np.arange(1, 7)) ** 2
    odd, even = np.exp(-h / (2 * z**2)), np.exp(-k / (2 * z**2))
    k0 = 2 / z * odd
    k1 = (h - z**2) / (3 * z**4) * odd
    k2 = (6 * z**6 + 2 * z**4 + h * (2 * z**4 - 5 * z**2) + h**2 * (1 - 2 * z**2)) / (36 * z**7) * odd
    k2 -= k / (18 * z**3) * even
    k3 = h**3 * (5 - 30 * z**2) + h**2 * (212 * z**4 - 60 * z**2) + h * (135 * z**4 - 96 * z**6) - 90 * z**8 - 30 * z**6
    k3 = k3 / (3240 * z**10) * odd + (3 * k * z**2 - k**2) / (108 * z**6) * even
    root = np.sqrt(n)[:, None]
    terms = k0 + k1 / root + k2 / root**2 + k3 / root**3
    return np.asarray(np.sqrt(np.pi / 2) * terms.sum(axis=1))


def _exact(n: int, d: float) -> float:
    """Return P(D >= d) for n rows, n <= 140 or n d^1.5 <= 1.4: G. Marsaglia, W. Tsang and J. Wang, JSS 8 (2003).

    The matrix takes (2 n d)^3 operations. If the statistic can be that large on only one side, or if both sides at once
    are negligibly rare, twice Smirnov's law is enough. For n d <= 1 there is a closed form.
    """
    if d >= 1:
        return 0.0
    if n * d <= 1:
        reach = 2 * d - 1 / n
        return 1 - math.exp(math.lgamma(n + 1) + n * math.log(reach)) if reach > 0 else 1.0
    if d >= 0.5 or n * d * d > 4:
        return 2 * _smirnov(n, d)
    k = int(n * d) + 1
    order, h = 2 * k - 1, k - n * d
    matrix = np.tri(order, k=1)
    powers = h ** np.arange(1, order + 1)
    matrix[:, 0] -= powers
    matrix[-1] -= powers[::-1]
    matrix[-1, 0] += max(0.0, 2 * h - 1) ** order
    falls = np.arange(order)[:, None] - np.arange(order) + 1
    matrix /= np.array([math.factorial(fall) for fall in range(order + 1)], dtype=np.float64)[np.maximum(falls, 0)]
    # n! / n^n is distributed over the n factors, so that neither overflows.
    matrix *= math.exp(math.lgamma(n + 1) / n) / n
    return 1 - float(np.linalg.matrix_power(matrix, n)[k - 1, k - 1])


def _smirnov(n: int, d: float) -> float:
    """Return P(D+ >= d) for n rows: Z. Birnbaum and F. Tingey, Annals of Mathematical Statistics 22 (1951)."""
    ways = _log_binomials(n)
    j = np.arange(int(n * (1 - d)) + 1)
    reach = d + j / n
    j, reach = j[reach < 1], reach[reach < 1]
    return d * float(np.exp(ways[: len(j)] + (j - 1) * np.log(reach) + (n - j) * np.log1p(-reach)).sum())


@lru_cache(maxsize=64)
def _log_binomials(n: int) -> Doubles:
    factorials = np.array([math.lgamma(j + 1) for j in range(n + 1)])
    return np.asarray(factorials[n] - factorials - factorials[::-1])

"""The built-in engine: Kolmogorov-Smirnov and chi-square tests against a reference that is sorted once.

`Baseline` also computes the effect sizes, PSI and missing shares for every other engine, so that engines differ only in
how they compute the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kubeloop.monitoring.detector.measures import (
    Counts,
    chi_square,
    corrected_distance,
    cramers_v,
    effect_interval,
    evidence,
    ks_p_values,
    psi,
    unbiased,
)
from kubeloop.monitoring.detector.port import DetectorError, Kind, Score, UntestableError, Window
from kubeloop.tasks.reference import ABSENT, Floats, Reference

Test = tuple[float, float]
"""Statistic and p-value."""

_PSI_BINS = 10


@dataclass(frozen=True, eq=False)
class NumericBaseline:
    """One numeric column of a reference, sorted and counted once.

    Attributes:
        name: of the feature.
        kind: numeric, or score.
        values: [u] float32, the distinct values in order.
        below: [u + 1], the number of reference values smaller than `values[i]`; the last entry counts all.
        missing: rows without a value.
        edges: [e] float32 bounds of the PSI bins: the reference's deciles, its least value, and just above its largest.
        bins: [e + 2] reference rows under, between and over the edges, then those without a value.
    """

    name: str
    kind: Kind
    values: Floats
    below: Counts
    missing: int
    edges: Floats
    bins: Counts

    @classmethod
    def of(cls, name: str, kind: Kind, column: Floats) -> "NumericBaseline":
        """Prepare a column [n] float32 with NaN where missing."""
        ordered = np.sort(column[~np.isnan(column)])
        missing = len(column) - len(ordered)
        values, counts = np.unique(ordered, return_counts=True)
        edges = ordered[:0]
        if len(ordered):
            deciles = ordered[np.arange(_PSI_BINS) * len(ordered) // _PSI_BINS]
            edges = np.unique(np.append(deciles, np.nextafter(ordered[-1], np.float32(np.inf))))
        below = np.concatenate([[0], np.cumsum(counts)])
        return cls(name, kind, values, below, missing, edges, _binned(ordered, edges, missing))

    @property
    def rows(self) -> int:
        """Reference rows with a value."""
        return int(self.below[-1])


@dataclass(frozen=True, eq=False)
class Sample:
    """A window, sorted and counted for the features of one baseline.

    Attributes:
        numeric: for each numeric feature, then each number of the answers, its values in order and its missing rows.
        categorical: for each categorical feature the rows of each code, -1 first.
    """

    numeric: list[tuple[Floats, int]]
    categorical: list[Counts]


class Baseline:
    """A reference prepared for many windows."""

    def __init__(self, reference: Reference) -> None:
        self.numeric = [
            NumericBaseline.of(name, "numeric", reference.numeric[:, index])
            for index, name in enumerate(reference.numeric_names)
        ]
        found = reference.scores
        self.answers = len(found)
        self.numeric += [NumericBaseline.of(name, "score", column) for name, column in found.items()]
        self.categorical_names = reference.categorical_names
        self._sizes = np.array([len(reference.categories[name]) for name in self.categorical_names], dtype=np.int64)
        self.categorical = _count(reference.categorical, self._sizes)

    def read(self, window: Window) -> Sample:
        """Sort and count a window.

        Raises:
            UntestableError: the window has other features, or codes of other categories.
        """
        widths = (window.numeric.shape[1], window.categorical.shape[1])
        expected = (len(self.numeric) - self.answers, len(self.categorical))
        codes = window.categorical
        if widths != expected or ((codes < ABSENT) | (codes >= self._sizes)).any():
            raise UntestableError(
                f"the window's {widths[0]} numeric and {widths[1]} categorical features do not fit the reference's "
                f"{expected[0]} and {expected[1]}; encode it with the reference of the same model version"
            )
        answers = np.atleast_2d(window.score.T)
        if len(answers) != self.answers:
            raise UntestableError(f"the window's answers have {len(answers)} numbers, the reference's {self.answers}")
        ordered = np.sort(np.ascontiguousarray(window.numeric.T), axis=1)
        return Sample(
            numeric=[_split(column) for column in ordered] + [_split(np.sort(column)) for column in answers],
            categorical=_count(codes, self._sizes),
        )

    def scores(self, sample: Sample, tests: Sequence[Test]) -> list[Score]:
        """Complete an engine's tests, one per feature in the port's order, with effect, PSI and missing share."""
        features = len(self.numeric) - self.answers
        own = tests[-self.answers :]
        numeric = [
            _numeric_score(base, column, test)
            for base, column, test in zip(self.numeric, sample.numeric, [*tests[:features], *own], strict=True)
        ]
        categorical = [
            _categorical_score(name, reference, window, test)
            for name, reference, window, test in zip(
                self.categorical_names,
                self.categorical,
                sample.categorical,
                tests[features : -self.answers],
                strict=True,
            )
        ]
        return [*numeric[:features], *categorical, *numeric[features:]]


class BuiltinDetector:
    """The port on NumPy and SciPy, in process."""

    def __init__(self) -> None:
        self._baselines: dict[str, Baseline] = {}

    def fit(self, key: str, reference: Reference) -> None:
        """Sort and count a reference; a known key does not change."""
        if key not in self._baselines:
            self._baselines[key] = Baseline(reference)

    def score(self, key: str, window: Window) -> list[Score]:
        """Score a window against the key's reference.

        Raises:
            UntestableError: the window has other features.
            DetectorError: the key was never fitted.
        """
        if key not in self._baselines:
            raise DetectorError(f"no reference was fitted for {key!r}; call fit first")
        baseline = self._baselines[key]
        sample = baseline.read(window)
        columns = list(zip(baseline.numeric, (values for values, _ in sample.numeric), strict=True))
        distances = [ks_distance(base, values) for base, values in columns]
        p_values = ks_p_values(distances, [base.rows for base, _ in columns], [len(values) for _, values in columns])
        numeric = list(zip(distances, p_values, strict=True))
        categorical = [chi_square(*pair) for pair in zip(baseline.categorical, sample.categorical, strict=True)]
        answers = baseline.answers
        return baseline.scores(sample, [*numeric[:-answers], *categorical, *numeric[-answers:]])

    def close(self) -> None:
        """Forget the references."""
        self._baselines.clear()


def ks_distance(base: NumericBaseline, values: Floats) -> float:
    """Return the two-sample Kolmogorov-Smirnov D of a reference column and sorted values [m] without NaN.

    D is reached at a value of the window or just before one, so only those m values are looked up in the sorted
    reference. This is O(m log u); a plain test sorts and searches all n + m rows. 0 if a side is empty.
    """
    m, n = len(values), base.rows
    if not m or not n:
        return 0.0
    up_to = np.searchsorted(base.values, values, side="right")
    tied = base.values[np.maximum(up_to - 1, 0)] == values
    # n m times the two distribution functions, in integers: exact, and cheaper than their quotients.
    steps = np.arange(0, (m + 1) * n, n)
    over = (steps[1:] - base.below[up_to] * m).max()
    under = (base.below[up_to - tied] * m - steps[:-1]).max()
    return float(max(over, under)) / (n * m)


def _numeric_score(base: NumericBaseline, column: tuple[Floats, int], test: Test) -> Score:
    (values, missing), (statistic, p_value) = column, test
    before, now = base.rows + base.missing, len(values) + missing
    changed = abs(missing / now - base.missing / before) if before and now else 0.0
    if base.missing or missing:
        # The same test of "is missing", whose D is the change itself. On two values it is conservative.
        p_value = min(1.0, 2 * min(p_value, *ks_p_values([changed], [before], [now])))
    of_values, of_all = evidence(base.rows, len(values)), evidence(before, now)
    moved = corrected_distance(statistic, base.below[1:] / max(base.rows, 1), of_values)
    if of_all:
        share = (base.missing + missing) / (before + now)
        changed = unbiased(changed**2, share * (1 - share) / of_all)
    effect, rows = max((moved, of_values), (changed, of_all))
    low, high = effect_interval(effect, rows)
    return Score(
        feature=base.name,
        kind=base.kind,
        statistic=statistic,
        p_value=p_value,
        effect=effect,
        psi=psi(base.bins, _binned(values, base.edges, missing)),
        rows=len(values),
        missing_share=missing / now if now else 0.0,
        effect_low=low,
        effect_high=high,
    )


def _categorical_score(name: str, reference: Counts, window: Counts, test: Test) -> Score:
    rows, absent = int(window.sum()), int(window[0])
    effect = cramers_v(reference, window)
    low, high = effect_interval(effect, evidence(int(reference.sum()), rows), int(((reference + window) > 0).sum()))
    return Score(
        feature=name,
        kind="categorical",
        statistic=test[0],
        p_value=test[1],
        effect=effect,
        psi=psi(reference, window),
        rows=rows - absent,
        missing_share=absent / rows if rows else 0.0,
        effect_low=low,
        effect_high=high,
    )


def _split(ordered: Floats) -> tuple[Floats, int]:
    """Remove the missing rows from a sorted column, in which NaN comes last."""
    missing = int(np.isnan(ordered).sum())
    return ordered[: len(ordered) - missing], missing


def _binned(ordered: Floats, edges: Floats, missing: int) -> Counts:
    bounds = np.empty(len(edges) + 2, dtype=np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = 0, np.searchsorted(ordered, edges, side="left"), len(ordered)
    return np.append(bounds[1:] - bounds[:-1], missing)


def _count(codes: npt.NDArray[np.int32], sizes: Counts) -> list[Counts]:
    return [np.bincount(codes[:, index] - ABSENT, minlength=size + 1) for index, size in enumerate(sizes)]

"""The built-in engine: Kolmogorov-Smirnov and chi-square tests against a reference that is sorted once.

`Baseline` also gives the effect sizes, PSI and missing shares of every other engine, so that a change of
engine changes who computes the tests and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kubeloop.monitoring.detector.measures import Counts, chi_square, cramers_v, ks_p_values, psi
from kubeloop.monitoring.detector.port import SCORE, DetectorError, Kind, Score, Window
from kubeloop.reference import ABSENT, Floats, Reference

_PSI_BINS = 10


@dataclass(frozen=True, eq=False)
class NumericBaseline:
    """One numeric column of a reference, sorted and counted once.

    Attributes:
        name: of the feature.
        kind: numeric, or score.
        values: [u] float32, the distinct values in order.
        below: [u + 1], how many reference values are smaller than `values[i]`; the last entry counts all.
        missing: rows without a value.
        edges: [e] float32 bounds of the PSI bins: the reference's deciles, its least value, just over its largest.
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
        numeric: for each numeric feature, then the model's score, its values in order and its missing rows.
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
        self.numeric.append(NumericBaseline.of(SCORE, "score", reference.score))
        self.categorical_names = reference.categorical_names
        self._sizes = np.array([len(reference.categories[name]) for name in self.categorical_names], dtype=np.int64)
        self.categorical = _count(reference.categorical, self._sizes)

    def read(self, window: Window) -> Sample:
        """Sort and count a window.

        Raises:
            DetectorError: the window has other features, or codes of other categories.
        """
        widths = (window.numeric.shape[1], window.categorical.shape[1])
        expected = (len(self.numeric) - 1, len(self.categorical))
        codes = window.categorical
        if widths != expected or ((codes < ABSENT) | (codes >= self._sizes)).any():
            raise DetectorError(
                f"the window's {widths[0]} numeric and {widths[1]} categorical features do not fit the reference's "
                f"{expected[0]} and {expected[1]}; encode it with the reference of the same model version"
            )
        ordered = np.sort(np.ascontiguousarray(window.numeric.T), axis=1)
        return Sample(
            numeric=[_split(column) for column in ordered] + [_split(np.sort(window.score))],
            categorical=_count(codes, self._sizes),
        )

    def scores(self, sample: Sample, statistics: Sequence[float], p_values: Sequence[float]) -> list[Score]:
        """Complete an engine's tests, given in the port's order, with effect, PSI and missing share."""
        last = len(self.numeric) - 1
        scores = []
        vanished = missing_p_values(self.numeric, sample)
        order = [*range(last), *range(last + 1, last + 1 + len(self.categorical)), last]
        for index, statistic, p_value in zip(order, statistics, p_values, strict=True):
            if index > last:
                name, counts = self.categorical_names[index - last - 1], self.categorical[index - last - 1]
                scores.append(
                    _categorical_score(name, counts, sample.categorical[index - last - 1], statistic, p_value)
                )
                continue
            base, (values, missing) = self.numeric[index], sample.numeric[index]
            rows = len(values) + missing
            changed = _missing_change(base, values, missing)
            if base.missing or missing:
                p_value = min(1.0, 2 * min(p_value, vanished[index]))
            scores.append(
                Score(
                    feature=base.name,
                    kind=base.kind,
                    statistic=statistic,
                    p_value=p_value,
                    effect=max(statistic, changed),
                    psi=psi(base.bins, _binned(values, base.edges, missing)),
                    rows=len(values),
                    missing_share=missing / rows if rows else 0.0,
                )
            )
        return scores


class BuiltinDetector:
    """The port on NumPy and SciPy, in process."""

    def __init__(self) -> None:
        self._baselines: dict[str, Baseline] = {}

    def fit(self, key: str, reference: Reference) -> None:
        """Sort and count a reference; a known key is left as it is."""
        if key not in self._baselines:
            self._baselines[key] = Baseline(reference)

    def score(self, key: str, window: Window) -> list[Score]:
        """Score a window against the key's reference.

        Raises:
            DetectorError: the key was never fitted, or the window has other features.
        """
        if key not in self._baselines:
            raise DetectorError(f"no reference was fitted for {key!r}; call fit first")
        baseline = self._baselines[key]
        sample = baseline.read(window)
        distances = [
            ks_distance(base, values) for base, (values, _) in zip(baseline.numeric, sample.numeric, strict=True)
        ]
        survival = ks_p_values(
            distances,
            [base.rows for base in baseline.numeric],
            [len(values) for values, _ in sample.numeric],
        )
        tables = [chi_square(*pair) for pair in zip(baseline.categorical, sample.categorical, strict=True)]
        statistics = [*distances[:-1], *(statistic for statistic, _ in tables), distances[-1]]
        p_values = [*survival[:-1], *(p_value for _, p_value in tables), survival[-1]]
        return baseline.scores(sample, statistics, p_values)

    def close(self) -> None:
        """Forget the references."""
        self._baselines.clear()


def ks_distance(base: NumericBaseline, values: Floats) -> float:
    """Return the two-sample Kolmogorov-Smirnov D of a reference column and sorted values [m] without NaN.

    D is reached at a value of the window or just before one, so only those m places are looked up in the
    sorted reference: O(m log u), where a plain test sorts and searches all n + m rows. 0 when a side is empty.
    """
    m, n = len(values), base.rows
    if not m or not n:
        return 0.0
    up_to = np.searchsorted(base.values, values, side="right")
    tied = base.values[np.maximum(up_to - 1, 0)] == values
    steps = np.arange(m + 1) / m
    over = (steps[1:] - base.below[up_to] / n).max()
    under = (base.below[up_to - tied] / n - steps[:-1]).max()
    return float(max(over, under))


def missing_p_values(baselines: Sequence[NumericBaseline], sample: Sample) -> list[float]:
    """Return, for each numeric feature, the p-value of the change in its missing share.

    The Kolmogorov-Smirnov test of the indicator "is missing", whose D is the change itself; with ties it
    errs on the safe side.
    """
    columns = list(zip(baselines, sample.numeric, strict=True))
    return ks_p_values(
        [_missing_change(base, values, missing) for base, (values, missing) in columns],
        [base.rows + base.missing for base, _ in columns],
        [len(values) + missing for _, (values, missing) in columns],
    )


def _categorical_score(name: str, reference: Counts, window: Counts, statistic: float, p_value: float) -> Score:
    rows = int(window.sum())
    return Score(
        feature=name,
        kind="categorical",
        statistic=statistic,
        p_value=p_value,
        effect=cramers_v(reference, window),
        psi=psi(reference, window),
        rows=rows - int(window[0]),
        missing_share=int(window[0]) / rows if rows else 0.0,
    )


def _missing_change(base: NumericBaseline, values: Floats, missing: int) -> float:
    before, now = base.rows + base.missing, len(values) + missing
    return abs(missing / now - base.missing / before) if before and now else 0.0


def _split(ordered: Floats) -> tuple[Floats, int]:
    """Cut the missing rows off a sorted column, in which NaN comes last."""
    missing = int(np.isnan(ordered).sum())
    return ordered[: len(ordered) - missing], missing


def _binned(ordered: Floats, edges: Floats, missing: int) -> Counts:
    under = np.searchsorted(ordered, edges, side="left")
    return np.concatenate([np.diff(under, prepend=0, append=len(ordered)), [missing]])


def _count(codes: npt.NDArray[np.int32], sizes: Counts) -> list[Counts]:
    return [np.bincount(codes[:, index] - ABSENT, minlength=size + 1) for index, size in enumerate(sizes)]

"""The port of the drift detectors: their input, their output, and how to open one.

A detector measures; it decides nothing. Corrections, thresholds and episodes belong to the monitor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from kubeloop.errors import KubeloopError
from kubeloop.tasks.reference import Codes, Floats, Reference

Kind = Literal["numeric", "categorical", "score"]
Engine = Literal["alibi", "builtin"]

SCORE = "score"
"""Name under which the model's own answer is reported, where it is one number."""


MOST_ROWS = 100_000
"""Rows of a window that are tested; of a larger one a seeded sample is.

Two-sample tests see n m / (n + m) rows. Against the n = 10,000 of a reference these are 9,091 for m = 100,000, and
under 10,000 for any m: all further rows would make the standard error of an effect smaller by less than 5 %.
"""


class DetectorError(KubeloopError):
    """A detector cannot answer; the message says what to do."""

    lasting = False


class UntestableError(DetectorError):
    """The window or its reference is refused; another attempt would be refused too."""

    lasting = True


@dataclass(frozen=True, eq=False)
class Window:
    """Live rows, encoded with the reference they will be held against (`Reference.encode`).

    Attributes:
        numeric: [m, Fn] float32, NaN where missing.
        categorical: [m, Fc] int32 codes, -1 where missing or unseen in training.
        score: [s] float32, or [s, k] where an answer has k numbers: the model's answers; s may be less than m where
            responses were lost.

    Raises:
        ValueError: a shape or a type is wrong.
    """

    numeric: Floats
    categorical: Codes
    score: Floats

    def __post_init__(self) -> None:
        # Other types are refused, not cast: a float64 0.1 is not the float32 0.1 of the reference,
        # and the difference would be reported as drift.
        for name, array, dtype, ndim in (
            ("numeric", self.numeric, np.float32, 2),
            ("categorical", self.categorical, np.int32, 2),
            ("score", self.score, np.float32, max(1, min(self.score.ndim, 2))),
        ):
            if array.dtype != dtype or array.ndim != ndim:
                raise ValueError(f"window.{name} must be {np.dtype(dtype)} with {ndim} axes, not {array.dtype}")
        if len(self.numeric) != len(self.categorical):
            raise ValueError(f"{len(self.numeric)} numeric but {len(self.categorical)} categorical rows")


@dataclass(frozen=True)
class Score:
    """How far one feature of a window lies from the reference.

    Attributes:
        feature: its name, or what a number of the model's answers is called (`score` where there is one).
        kind: numeric, categorical, or score.
        statistic: Kolmogorov-Smirnov D of the values (numeric, score), or Pearson's chi-square (categorical).
        p_value: of that test; where values are missing, of that test and of the change in missingness
            together (Bonferroni over the two), so that a feature that vanishes drifts like one that moves.
        effect: size of the change in [0, 1], independent of the number of rows: what chance adds to it in few is
            taken off. Numeric and score: the larger of D and the change in the missing share, which is D of
            "is missing". Categorical: Cramér's V with both samples weighted equally.
        psi: population stability index, with bins fixed by the reference.
        rows: rows tested that have a value.
        missing_share: share of the rows tested that have none (categorical: none, or one unseen in training).
        effect_low: lower end of the effect's 95 % interval.
        effect_high: its upper end.
    """

    feature: str
    kind: Kind
    statistic: float
    p_value: float
    effect: float
    psi: float
    rows: int
    missing_share: float
    effect_low: float = 0.0
    effect_high: float = 1.0


class Detector(Protocol):
    """Holds references by key (the model version) and scores windows against them; for one thread at a time."""

    def fit(self, key: str, reference: Reference) -> None:
        """Remember a reference; a key that is known already is left as it is.

        Raises:
            UntestableError: the engine refuses it.
            DetectorError: the engine cannot be reached.
        """

    def score(self, key: str, window: Window) -> list[Score]:
        """Score the numeric features, the categorical ones, then the model's answers, in the reference's order.

        A feature without values on either side has statistic 0; a window without rows has p-value 1 throughout.

        Raises:
            UntestableError: the window has other features, or the engine refuses it.
            DetectorError: the key was never fitted, or the engine cannot be reached.
        """

    def close(self) -> None:
        """Let go of processes and connections."""


def open_detector(
    engine: Engine,
    detector_python: Path,
    log_dir: Path,
    *,
    url: str | None = None,
    token_file: Path | None = None,
) -> Detector:
    """Open a detector.

    Args:
        engine: `alibi` (Alibi Detect in its own process) or `builtin` (NumPy and SciPy in this one).
        detector_python: interpreter of the detector environment, for `alibi`.
        log_dir: folder that takes the worker's log, for `alibi`.
        url: address of a worker that runs already, such as a pod's sidecar; none is started then.
        token_file: what a worker that is started asks its callers for.

    Raises:
        DetectorError: the interpreter does not exist.
    """
    if engine == "builtin":
        from kubeloop.monitoring.detector.builtin import BuiltinDetector

        return BuiltinDetector()
    from kubeloop.monitoring.detector.alibi import AlibiDetector, WorkerProcess

    return AlibiDetector(url or WorkerProcess(detector_python, log_dir, token_file))


def correct(p_values: Sequence[float], method: Literal["holm", "bonferroni"] = "holm") -> list[float]:
    """Adjust p-values for having tested several features, keeping the family-wise error rate.

    Args:
        p_values: m p-values in [0, 1].
        method: `holm` is the step-down procedure of S. Holm, "A Simple Sequentially Rejective Multiple Test
            Procedure", Scandinavian Journal of Statistics 6 (1979): never less powerful than `bonferroni`.

    Returns:
        m adjusted p-values in the same order, to be compared with alpha itself.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if method == "bonferroni":
        return [float(value) for value in np.minimum(p * p.size, 1)]
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return [float(value) for value in adjusted]

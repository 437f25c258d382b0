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
"""Name under which the model's own answer is reported, if it is one number."""


MOST_ROWS = 100_000
"""Largest number of rows of a window that are tested; a larger window is sampled with a seed.

A two-sample test is worth n m / (n + m) rows. Against a reference of n = 10,000 rows, that is 9,091 for m = 100,000 and
below 10,000 for any m: all further rows would reduce the standard error of an effect by less than 5 %.
"""


class DetectorError(KubeloopError):
    """A detector cannot answer; the message says what to do."""

    lasting = False


class UntestableError(DetectorError):
    """The window or its reference is refused; another attempt would be refused too."""

    lasting = True


@dataclass(frozen=True, eq=False)
class Window:
    """Live rows, encoded with the reference that they are compared with (`Reference.encode`).

    Attributes:
        numeric: [m, Fn] float32, NaN where missing.
        categorical: [m, Fc] int32 codes, -1 where missing or unseen in training.
        score: [s] float32, or [s, k] if an answer has k numbers: the model's answers; s is less than m if responses
            were lost.

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
    """How much one feature of a window differs from the reference.

    Attributes:
        feature: its name, or the name of a number of the model's answers (`score` if there is only one).
        kind: numeric, categorical, or score.
        statistic: Kolmogorov-Smirnov D of the values (numeric, score), or Pearson's chi-square (categorical).
        p_value: of that test; if values are missing, of that test and of the change in missingness together (Bonferroni
            over the two), so that a feature that disappears also drifts.
        effect: size of the change in [0, 1], corrected for what chance adds to it in few rows. Numeric and score: the
            larger of D and the change in the missing share, which is D of "is missing". Categorical: Cramér's V with
            both samples weighted equally.
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
        """Remember a reference; a known key does not change.

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
        """End processes and close connections."""


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
        log_dir: folder of the worker's log, for `alibi`.
        url: address of a running worker, such as a pod's sidecar; then no worker is started.
        token_file: file with the token that a started worker requires from its callers.

    Raises:
        DetectorError: the interpreter does not exist.
    """
    if engine == "builtin":
        from kubeloop.monitoring.detector.builtin import BuiltinDetector

        return BuiltinDetector()
    from kubeloop.monitoring.detector.alibi import AlibiDetector, WorkerProcess

    return AlibiDetector(url or WorkerProcess(detector_python, log_dir, token_file))


def correct(p_values: Sequence[float], method: Literal["holm", "bonferroni"] = "holm") -> list[float]:
    """Adjust p-values for testing several features, so that the family-wise error rate holds.

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

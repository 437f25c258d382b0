"""The interface of every kind of task for monitor, gates and report.

*Cases* get *answers* from a candidate, and their *truths* arrive later. A *metric* compares both; it has a weighted
form, so that blocks of time can be resampled, and an interval. What makes candidates is the kind's `maker`, which
needs the core environment and is imported only there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kubeloop.config import Loop, kinds
from kubeloop.errors import KubeloopError
from kubeloop.tasks import intervals
from kubeloop.tasks.intervals import Estimate

__all__ = ["EvaluationError", "Floats", "Groups", "Level", "Metric", "Task", "Tensor", "Weighted"]

Floats = npt.NDArray[np.float64]
Groups = npt.NDArray[np.intp]
Weighted = Callable[[npt.ArrayLike], Floats]

_DROP = 0.05
"""Default of `drift.max_drop` for a share."""
_DROP_SHARE = 0.1
"""Default of `drift.max_drop` for a loss, as a share of its value on the hold-out."""


class EvaluationError(KubeloopError, ValueError):
    """Truths and answers cannot be compared; the message says what is wrong with them."""

    lasting = True


@dataclass(frozen=True)
class Metric:
    """One number that measures how good answers are.

    Attributes:
        name: as in loop.yaml.
        title: its name on pages.
        better: 1 if a larger value is better, -1 if a smaller one is.
        scale: `share` for values of 0 to 1, `loss` for values that are compared by their ratio.
        weighted: prepares the metric for many weightings of the same rows, from truths [n], answers [n] or [n, k] and
            the group of each row [n], 0 to g-1: a function from non-negative group weights [r, g] to the metric [r],
            NaN where the weights leave it undefined. None if there is no such form.
        estimate: the metric with its 95 % interval; a bootstrap over the rows if left out.
        plain: the metric if it has no weighted form.
        pooled: the metric of several windows taken together, from each one's value, positives and negatives.
    """

    name: str
    title: str
    better: Literal[1, -1]
    scale: Literal["share", "loss"]
    weighted: Callable[[Floats, Floats, Groups], Weighted] | None = None
    estimate: Callable[[Floats, Floats], Estimate] | None = None
    plain: Callable[[Floats, Floats], float] | None = None
    pooled: Callable[[Sequence[tuple[float, int, int]]], Estimate] | None = None

    def value(self, y: Floats, p: Floats) -> float:
        """Return the metric with the same weight for all rows."""
        if self.plain is not None:
            return self.plain(y, p)
        return float(self.prepare(y, p)(np.ones((1, len(y))))[0])

    def prepare(self, y: Floats, p: Floats, groups: Groups | None = None) -> Weighted:
        """Return the weighted form; each row is a separate group if `groups` is left out.

        Raises:
            EvaluationError: the metric has no weighted form.
        """
        if self.weighted is None:
            raise EvaluationError(f"{self.name!r} has no weighted form; name another metric")
        return self.weighted(y, p, np.arange(len(y)) if groups is None else groups)

    def interval(self, y: Floats, p: Floats) -> Estimate:
        """Return the metric with its 95 % interval."""
        if self.estimate is not None:
            return self.estimate(y, p)
        return intervals.bootstrap(lambda groups: self.prepare(y, p, groups), len(y))

    def drop(self, reference: float) -> float:
        """Return by how much it may be worse than a hold-out's value before it is reported."""
        return _DROP if self.scale == "share" else _DROP_SHARE * abs(reference)


@dataclass(frozen=True)
class Level:
    """What the report draws of truths and answers over time: a name, its meaning, and a number format."""

    title: str
    detail: str
    form: str


@dataclass(frozen=True)
class Tensor:
    """One output of a served model: its name, and how many numbers it has per row."""

    name: str
    width: int = 1


class Task(ABC):
    """A kind of task, with the settings of one loop.

    Attributes:
        kind: its name in loop.yaml.
        metrics: all metrics by name, in the order of pages; the first is the kind's default.
        headline: the metric that gates, monitor and report use: `gates.metric`.
        tensors: the outputs of a served model that make an answer.
        columns: names of an answer's numbers in tables: the payload log, the reference, a scored batch.
        titles: the same names for people.
        level: a description of what `levels` returns.
    """

    kind: str
    metrics: Mapping[str, Metric]
    headline: Metric
    tensors: tuple[Tensor, ...]
    columns: tuple[str, ...]
    titles: tuple[str, ...]
    level: Level

    @abstractmethod
    def label(self, value: Any) -> float:
        """Return one label, as a client sends it, as the number that truths hold.

        Raises:
            ValueError: it is not a label of this task; the message says what a label is.
        """

    @abstractmethod
    def truths(self, labels: npt.ArrayLike) -> Floats:
        """Return a column of labels [n] as truths [n].

        Raises:
            EvaluationError: a label is missing, or is not a label of this task.
        """

    @abstractmethod
    def checked(self, y: npt.ArrayLike, p: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Return truths [n] and answers ([n], or [n, k] where an answer has k numbers) as float64.

        Raises:
            EvaluationError: their lengths differ, or they are not of this task.
        """

    @abstractmethod
    def undefined(self, y: npt.ArrayLike) -> str | None:
        """Say why these truths [n] cannot tell good answers from bad ones, or return None if they can."""

    @abstractmethod
    def few(self, y: npt.ArrayLike) -> str | None:
        """Say why these truths [n] are too few to judge by, or return None if they are not."""

    @abstractmethod
    def scarce(self, y: npt.ArrayLike) -> int | None:
        """Return how many truths differ from the most frequent one; None if that is meaningless."""

    @abstractmethod
    def positives(self, y: npt.ArrayLike) -> int | None:
        """Return how many truths are of class 1; None if there is no such class."""

    @abstractmethod
    def support(self, y: npt.ArrayLike) -> str:
        """Describe in a few words the truths [n] behind a number."""

    @abstractmethod
    def levels(self, y: Floats, p: Floats) -> tuple[float, float]:
        """Return the average truth and the average prediction, from truths [n] and answers [n] or [n, k]."""

    @abstractmethod
    def text(self, answer: Floats) -> str:
        """Return one answer, a number or [k], as text for people."""

    def limited(self, name: str, y: Floats, p: Floats) -> float:
        """Return the value of a metric that a floor or ceiling is compared with."""
        return self.metrics[name].value(y, p)

    def tolerance(self, limit: float, y: Floats, p: Floats) -> float:  # noqa: ARG002 - kinds may need them
        """Return the headline's allowed loss in a slice, from `gates.slice_tolerance` and the champion's answers."""
        return limit

    def answers(self, table: Any) -> Floats:
        """Return the answers [n] or [n, k] of a table with `columns`."""
        found = [np.asarray(table[name].to_numpy(), dtype=np.float64) for name in self.columns]
        return found[0] if len(found) == 1 else np.stack(found, axis=1)

    def read(self, outputs: Mapping[str, npt.ArrayLike]) -> Floats:
        """Return the answers [n] or [n, k] in a served model's outputs."""
        found = [np.asarray(outputs[one.name], dtype=np.float64).reshape(-1, one.width) for one in self.tensors]
        joined = np.concatenate(found, axis=1)
        return joined[:, 0] if joined.shape[1] == 1 else joined

    def score(self, y: npt.ArrayLike, p: npt.ArrayLike) -> dict[str, float]:
        """Measure answers against truths.

        Returns:
            Every metric by name, the headline's interval as <name>_low and <name>_high, `rows`, and `positives` if the
            kind has them; NaN if `undefined` gives a reason.

        Raises:
            EvaluationError: as `checked`.
        """
        truths, answers = self.checked(y, p)
        if not len(truths):
            values = dict.fromkeys(self.metrics, math.nan)
            sure = Estimate(math.nan, math.nan, math.nan)
        else:
            values = {name: metric.value(truths, answers) for name, metric in self.metrics.items()}
            sure = self.headline.interval(truths, answers)
        name, positives = self.headline.name, self.positives(truths)
        counts = {"rows": float(len(truths))} | ({} if positives is None else {"positives": float(positives)})
        return {**values, f"{name}_low": sure.low, f"{name}_high": sure.high, **counts}

    def weighted(self, metric: str, y: npt.ArrayLike, p: npt.ArrayLike, groups: Groups | None = None) -> Weighted:
        """Prepare a metric for many weightings of the same rows; see `Metric.weighted`.

        Raises:
            EvaluationError: as `checked`, or the metric has no weighted form.
        """
        return self.metrics[metric].prepare(*self.checked(y, p), groups)

    def pooled(self, parts: Sequence[tuple[Estimate, int, int | None]]) -> Estimate:
        """Return the headline of several windows taken together.

        Args:
            parts: the headline's estimate, rows and positives of each window.
        """
        if self.headline.pooled is not None:
            return self.headline.pooled([(sure.value, few or 0, rows - (few or 0)) for sure, rows, few in parts])
        return intervals.mixed([sure for sure, _, _ in parts], [rows for _, rows, _ in parts])


def of(loop: Loop) -> Task:
    """Return the task of a loop."""
    found: Task = kinds.module(loop.task, "task").of(loop.training, loop.gates.metric)
    return found

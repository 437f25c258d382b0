"""The part of training that a kind of task provides; `training`, `export` and `model_folder` do the rest."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kubeloop.config import Loop, Training, kinds
from kubeloop.tasks.port import Floats, Task
from kubeloop.tasks.slices import Slice
from kubeloop.tasks.tabular import algorithms

if TYPE_CHECKING:
    import pandas as pd

    from kubeloop.tasks.tabular.graph import Graph, Output
    from kubeloop.tasks.tabular.model_folder import Card

__all__ = ["Draft", "Fit", "Heads", "HoldOut", "Maker", "Rows", "Shown"]

Rows = algorithms.Rows
Fit = Callable[[algorithms.Estimator, Rows, npt.NDArray[Any]], algorithms.Estimator]
"""Fits an estimator on rows and labels; if several machines train together, on this machine's share of them."""


@dataclass(frozen=True)
class Heads:
    """The fitted estimators, one or several, and the numbers that belong to them."""

    estimators: tuple[Any, ...]
    numbers: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class HoldOut:
    """The data of an evaluation page: truths [n], answers [n] or [n, k], event times [n] and slices."""

    y: Floats
    answers: Floats
    moments: npt.NDArray[np.datetime64]
    slices: Sequence[Slice]


@dataclass(frozen=True)
class Shown:
    """The evaluation of a model on the hold-out, in the form of pages and Kubeflow's artifacts.

    Attributes:
        page: the evaluation as one HTML page.
        roc: false positive rates, true positive rates and thresholds; None if there is no such curve.
        classes: their names; None if there are none.
        confusion: counts, rows are true classes; None if there are no classes.
    """

    page: str
    roc: tuple[list[float], list[float], list[float]] | None = None
    classes: list[str] | None = None
    confusion: list[list[int]] | None = None


@dataclass(frozen=True)
class Draft:
    """First limits of a new use case, each halfway between no knowledge and the first model.

    Attributes:
        floors: for `gates.floors`.
        ceilings: for `gates.ceilings`.
        watch: settings of `drift` about the metric.
        why: what the limits are based on, for a comment.
        poor: a warning if the first model hardly knows anything; None otherwise.
    """

    floors: dict[str, float]
    ceilings: dict[str, float]
    watch: dict[str, float]
    why: str
    poor: str | None = None


class Maker(ABC):
    """Makes models of tables for one kind of task; `task` is its other half."""

    task: Task

    @abstractmethod
    def targets(self, y: Floats) -> Floats:
        """Return the targets whose means encode the values of a category [n, T], given truths [n]."""

    @abstractmethod
    def fit(
        self, rows: Rows, y: Floats, training: Training, parameters: algorithms.Parameters, fit: Fit, *, draft: bool
    ) -> Heads:
        """Fit the estimators.

        Args:
            rows: the encoded training rows [n, F], oldest first.
            y: their truths [n].
            training: the settings.
            parameters: parameters of the algorithm.
            fit: fits one estimator.
            draft: whether it is one of many trials, of which only the headline is needed.
        """

    @abstractmethod
    def answer(self, heads: Heads, rows: Rows) -> Floats:
        """Return the answers [n] or [n, k] to encoded rows [n, F]."""

    def importance(self, algorithm: str, heads: Heads, spread: Rows) -> Rows:
        """Return each column's share [F] of the decisions; see `algorithms.importance`."""
        return algorithms.importance(algorithm, heads.estimators[0], spread)

    @abstractmethod
    def outputs(self, graph: "Graph", matrix: str, algorithm: str, heads: Heads) -> list["Output"]:
        """Add the estimators to an ONNX graph, and return its outputs.

        Args:
            graph: under construction.
            matrix: name of the encoded rows [batch, F].
            algorithm: the algorithm of the estimators.
            heads: the fitted estimators.
        """

    def tolerance(self, answers: npt.NDArray[Any]) -> float:  # noqa: ARG002 - kinds with units need them
        """Return the largest difference between the answers of graph and trained model that rounding can cause."""
        return 1e-5

    @abstractmethod
    def giveaways(self, frame: "pd.DataFrame", y: Floats) -> dict[str, str]:
        """Return the evidence for each feature that by itself predicts the truth almost perfectly.

        Args:
            frame: the feature columns.
            y: truths [n].
        """

    @abstractmethod
    def too_good(self, metrics: Mapping[str, float]) -> str | None:
        """Say which of the hold-out's metrics is too good for most tables, or return None."""

    @abstractmethod
    def draft(self, y: Floats, metrics: Mapping[str, float]) -> Draft:
        """Return the limits that `init` writes, from truths [n] and metrics of a first model's hold-out."""

    @abstractmethod
    def show(self, title: str, card: "Card", holdout: HoldOut, out: Path) -> Shown:
        """Draw the evaluation of a model.

        Args:
            title: title of the page.
            card: the model's card.
            holdout: the rows that it is measured on.
            out: folder for figures that the page does not contain.
        """

    def scored(self, answers: Floats) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of a scored batch by name, [n] each."""
        columns = answers.T if answers.ndim == 2 else answers[None]
        names = [tensor.name for tensor in self.task.tensors for _ in range(tensor.width)]
        return {name: column.astype(np.float32) for name, column in zip(names, columns, strict=True)}


def of(loop: Loop) -> Maker:
    """Return the maker of a loop's task."""
    return make(loop.task, loop.training, loop.gates.metric)


def make(kind: str, training: Training, metric: str) -> Maker:
    """Return the maker of a kind of task, given its settings and the headline metric."""
    found: Maker = kinds.module(kind, "maker").of(training, metric)
    return found

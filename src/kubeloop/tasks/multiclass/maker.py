"""Make models of tables that predict which of several classes a row belongs to."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kubeloop.config import loop
from kubeloop.tasks.multiclass import evaluation, page
from kubeloop.tasks.multiclass.settings import Training
from kubeloop.tasks.multiclass.task import Multiclass
from kubeloop.tasks.port import Floats
from kubeloop.tasks.tabular import algorithms, leaks
from kubeloop.tasks.tabular.graph import Graph, Output
from kubeloop.tasks.tabular.maker import Draft, Fit, Heads, HoldOut, Maker, Rows, Shown

if TYPE_CHECKING:
    import pandas as pd

    from kubeloop.tasks.tabular.model_folder import Card

OUTPUT, CLASS = "probabilities", "class"
_MOST_TARGETS = 10
"""Most classes whose shares encode a category's values: the most frequent ones."""
_TOO_GOOD = 0.99
_POOR = 0.98


class MulticlassMaker(Maker):
    """A classifier; the probability of every class and the likeliest class are served.

    A class of `training.classes` that does not occur in the training rows gets the probability 0.
    """

    task: Multiclass

    def __init__(self, task: Multiclass) -> None:
        self.task = task

    def targets(self, y: Floats) -> Floats:
        """See `Maker`: for each of the most frequent classes, whether a row belongs to it."""
        codes, counts = np.unique(y, return_counts=True)
        often = np.sort(codes[np.argsort(-counts, kind="stable")[:_MOST_TARGETS]])
        return np.asarray((y[:, None] == often).astype(np.float64))

    def fit(
        self,
        rows: Rows,
        y: Floats,
        training: loop.Training,
        parameters: algorithms.Parameters,
        fit: Fit,
        *,
        draft: bool,  # noqa: ARG002 - there is one estimator in any case
    ) -> Heads:
        """See `Maker`."""
        bare = algorithms.build(training.algorithm, parameters, seed=training.seed, threads=training.threads)
        return Heads((fit(bare, rows, y.astype(np.int64)),), {})

    def answer(self, heads: Heads, rows: Rows) -> Floats:
        """See `Maker`."""
        (estimator,) = heads.estimators
        found = np.zeros((len(rows), len(self.task.classes)))
        found[:, _known(estimator)] = estimator.predict_proba(rows)
        return found

    def outputs(self, graph: Graph, matrix: str, algorithm: str, heads: Heads) -> list[Output]:
        """See `Maker`: `probabilities` [batch, K], and `class` [batch] as text."""
        (estimator,) = heads.estimators
        known, width = _known(estimator), len(self.task.classes)
        if algorithm == "logistic_regression":
            logits = graph.linear(matrix, estimator, "estimator")
            if len(known) == 2:
                other = graph.add("Neg", [logits], "estimator/other")
                pair = [graph.add("Sigmoid", [name], f"{name}/share") for name in (other, logits)]
                shares = graph.add("Concat", pair, "estimator/shares", axis=1)
            else:
                shares = graph.add("Softmax", [logits], "estimator/shares", axis=1)
            found = graph.add("Cast", [shares], "estimator/narrow", to=1)
        else:
            found = graph.trees(matrix, algorithm, estimator, "estimator")
        # A product with ones and zeros moves each column to its position and leaves the others 0.
        places = np.zeros((len(known), width))
        places[np.arange(len(known)), known] = 1
        graph.add("MatMul", [found, graph.constant("estimator/places", places, np.float32)], OUTPUT)
        best = graph.add("ArgMax", [OUTPUT], "estimator/best", axis=1, keepdims=0)
        names = graph.constant("estimator/names", np.array(self.task.classes, dtype=object), object)
        graph.add("Gather", [names, best], CLASS, axis=0)
        return [Output(OUTPUT, width=width), Output(CLASS, "text")]

    def giveaways(self, frame: "pd.DataFrame", y: Floats) -> dict[str, str]:
        """See `Maker`; each class is compared with all others.

        A column that identifies one class may be a legitimate feature; one that identifies most classes knows the
        label.
        """
        codes, counts = np.unique(y, return_counts=True)
        often = codes[np.argsort(-counts, kind="stable")[:_MOST_TARGETS]]
        found = {}
        for name in map(str, frame.columns):
            areas = [leaks.ranking(frame, name, (y == code).astype(np.int64)) for code in often]
            told = sum(area >= leaks.GIVEAWAY for area in areas)
            if 2 * told > len(often):
                found[name] = f"alone tells {told} of {len(often)} classes almost perfectly (AUC {max(areas):.3f})"
        return found

    def too_good(self, metrics: Mapping[str, float]) -> str | None:
        """See `Maker`."""
        share = metrics["balanced_accuracy"]
        return f"a balanced accuracy of {share:.3f}" if share >= _TOO_GOOD else None

    def draft(self, y: Floats, metrics: Mapping[str, float]) -> Draft:
        """See `Maker`."""
        shares = np.bincount(y.astype(np.intp), minlength=len(self.task.classes)) / len(y)
        chance = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
        loss, recall = metrics["log_loss"], metrics["balanced_accuracy"]
        even = 1 / int((shares > 0).sum())
        floor = math.floor((even + max(0.0, recall - even) / 2) * 100) / 100
        ceiling = math.ceil((loss + max(chance, loss)) / 2 * 100) / 100
        # The monitor watches the headline, and the loop may choose one that is neither of them.
        limits = {"log_loss": ceiling, "balanced_accuracy": floor}
        name = self.task.headline.name
        return Draft(
            {"balanced_accuracy": floor},
            {"log_loss": ceiling, "ece": max(0.15, math.ceil(200 * metrics["ece"]) / 100)},
            {"limit": limits[name]} if name in limits else {},
            f"a first model has a log loss of {loss:.3f} and a balanced accuracy of {recall:.3f} on its hold-out; the "
            f"limits are halfway to a model that knows only the frequencies of classes ({chance:.3f} and {even:.3f})",
            f"A first model is hardly better than the frequencies of classes (log loss {loss:.3f} against "
            f"{chance:.3f}), so the limits are loose"
            if loss > _POOR * chance
            else None,
        )

    def show(self, title: str, card: "Card", holdout: HoldOut, out: Path) -> Shown:  # noqa: ARG002 - no figures
        """See `Maker`."""
        counts = evaluation.confusion(holdout.y, holdout.answers)
        return Shown(page.html(self.task, title, card, holdout, counts), None, list(self.task.classes), counts.tolist())

    def scored(self, answers: Floats) -> dict[str, npt.NDArray[Any]]:
        """See `Maker`: the likeliest class, and one column per class."""
        best = np.array(self.task.classes, dtype=object)[np.argmax(answers, axis=1)]
        names = [f"probability_{name}" for name in self.task.classes]
        return {CLASS: best, **{name: column.astype(np.float32) for name, column in zip(names, answers.T, strict=True)}}


def of(training: Training, metric: str) -> MulticlassMaker:
    """Return the maker with a loop's settings."""
    return MulticlassMaker(Multiclass(training.classes, metric))


def _known(estimator: Any) -> npt.NDArray[np.intp]:
    return np.asarray(estimator.classes_, dtype=np.intp)

"""Make models of tables that predict whether something happens."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kubeloop.config import Training
from kubeloop.tasks.binary import curves, page
from kubeloop.tasks.binary.task import Binary
from kubeloop.tasks.port import Floats
from kubeloop.tasks.tabular import algorithms, leaks
from kubeloop.tasks.tabular.graph import Graph, Output
from kubeloop.tasks.tabular.maker import Draft, Fit, Heads, HoldOut, Maker, Rows, Shown

if TYPE_CHECKING:
    import pandas as pd

    from kubeloop.tasks.tabular.model_folder import Card

OUTPUT = "probability"
_CHANCE, _POOR = 0.52, 0.55


class BinaryMaker(Maker):
    """A classifier of two classes; the probability of class 1 is served."""

    task: Binary

    def __init__(self, task: Binary) -> None:
        self.task = task

    def targets(self, y: Floats) -> Floats:
        """See `Maker`: the label itself."""
        return y[:, None]

    def fit(
        self,
        rows: Rows,
        y: Floats,
        training: Training,
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
        return np.asarray(heads.estimators[0].predict_proba(rows)[:, 1])

    def outputs(self, graph: Graph, matrix: str, algorithm: str, heads: Heads) -> list[Output]:
        """See `Maker`: `probability` [batch]."""
        (estimator,) = heads.estimators
        if algorithm == "logistic_regression":
            share = graph.add("Sigmoid", [graph.linear(matrix, estimator, "estimator")], "estimator/sigmoid")
            narrow = graph.add("Cast", [share], "estimator/narrow", to=1)
            graph.flat(narrow, OUTPUT)
        else:
            found = graph.trees(matrix, algorithm, estimator, "estimator")
            column = graph.constant("estimator/positive", 1, np.int64)
            graph.add("Gather", [found, column], OUTPUT, axis=1)
        return [Output(OUTPUT)]

    def giveaways(self, frame: "pd.DataFrame", y: Floats) -> dict[str, str]:
        """See `Maker`."""
        found = leaks.find(frame, y.astype(np.int64))
        return {name: f"alone predicts the label almost perfectly (AUC {area:.3f})" for name, area in found.items()}

    def too_good(self, metrics: Mapping[str, float]) -> str | None:
        """See `Maker`."""
        auc = metrics["auc"]
        return f"an AUC of {auc:.3f}" if auc >= leaks.GIVEAWAY else None

    def draft(self, y: Floats, metrics: Mapping[str, float]) -> Draft:  # noqa: ARG002 - the metrics say it all
        """See `Maker`."""
        auc, ece = metrics["auc"], metrics["ece"]
        floor = math.floor((0.5 + max(0.0, auc - 0.5) / 2) * 100) / 100 if auc >= _CHANCE else 0.4
        most = max(0.15, math.ceil(200 * ece) / 100)
        return Draft(
            {"auc": floor},
            {"ece": most},
            {"min_auc": floor, "max_auc_drop": 0.05},
            f"a first model reaches an AUC of {auc:.3f} and a calibration error of {ece:.3f} on its hold-out; the "
            "floor is halfway from chance to that AUC",
            f"A first model ranks little better than chance (AUC {auc:.3f}), so the floors are low"
            if auc < _POOR
            else None,
        )

    def show(self, title: str, card: "Card", holdout: HoldOut, out: Path) -> Shown:
        """See `Maker`."""
        metrics = card.known_metrics()
        drawn = curves.draw(holdout.y, holdout.answers)
        for name, figure in curves.figures(drawn, metrics).items():
            figure.savefig(out / f"{name}.png", dpi=110)
        found = page.html(
            self.task,
            title,
            metrics,
            drawn,
            holdout.slices,
            importance=card.importance,
            facts=card.facts(),
            warnings=card.warnings,
        )
        roc = drawn.roc.x, drawn.roc.y, drawn.roc.threshold
        return Shown(found, roc, ["negative", "positive"], drawn.confusion.matrix)


def of(training: Training, metric: str) -> BinaryMaker:  # noqa: ARG001 - nothing of it matters here
    """Return the maker with a loop's settings."""
    return BinaryMaker(Binary(metric))

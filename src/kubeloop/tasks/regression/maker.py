"""Make models of tables that predict a number, with a prediction interval."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from kubeloop.config import loop
from kubeloop.tasks.port import Floats
from kubeloop.tasks.regression import page
from kubeloop.tasks.regression.settings import Interval, Training
from kubeloop.tasks.regression.task import Regression
from kubeloop.tasks.tabular import algorithms, encoding
from kubeloop.tasks.tabular.graph import Graph, Output
from kubeloop.tasks.tabular.maker import Draft, Fit, Heads, HoldOut, Maker, Rows, Shown

if TYPE_CHECKING:
    import pandas as pd

    from kubeloop.tasks.tabular.model_folder import Card

CALIBRATION_SHARE = 0.25
"""Share of the training rows, the newest ones, whose errors determine the width of the interval."""
GIVEAWAY = 0.99
"""From this rank correlation on, a single column seems to know the label; from this R² on, a model does."""
_LEAST_KNOWN = 30
_POOR, _MARGIN, _LEAST_COVERAGE = 0.98, 0.15, 0.5
_MIDDLE, _SPREAD, _LOW, _HIGH = "middle", "spread", "low", "high"


class RegressionMaker(Maker):
    """A regressor of the standardised label, and the interval around its value.

    Conformal: the interval's ends are quantiles of the errors that a model of the older three quarters of the training
    rows makes on the newest quarter (split conformal prediction, Papadopoulos et al. 2002, each end separately).
    Quantile: two more models estimate the ends, which are shifted by quantiles of their own errors there (conformalized
    quantile regression, Romano et al. 2019). Both keep their coverage only while the distribution of the rows does not
    change, so the coverage is measured on every hold-out and window.
    """

    task: Regression

    def __init__(self, task: Regression, interval: Interval) -> None:
        self.task, self.interval = task, interval

    def targets(self, y: Floats) -> Floats:
        """See `Maker`: the standardised label."""
        middle, spread = _scale(y)
        return ((y - middle) / spread)[:, None]

    def fit(
        self,
        rows: Rows,
        y: Floats,
        training: loop.Training,
        parameters: algorithms.Parameters,
        fit: Fit,
        *,
        draft: bool,
    ) -> Heads:
        """See `Maker`."""
        middle, spread = _scale(y)
        z = (y - middle) / spread
        tail = (1 - self.interval.coverage) / 2
        quantiles = (None, tail, 1 - tail) if self.interval.method == "quantile" else (None,)

        def every(rows: Rows, z: Floats) -> tuple[Any, ...]:
            return tuple(
                fit(
                    algorithms.regressor(
                        training.algorithm,
                        parameters,
                        seed=training.seed,
                        threads=training.threads,
                        quantile=quantile,
                    ),
                    rows,
                    z,
                )
                for quantile in (quantiles[:1] if draft else quantiles)
            )

        known = {_MIDDLE: middle, _SPREAD: spread}
        if draft:
            return Heads(every(rows, z), known | {_LOW: 0.0, _HIGH: 0.0})
        cut = int(len(z) * (1 - CALIBRATION_SHARE))
        low, high = _ends(every(rows[:cut], z[:cut]), rows[cut:])
        known |= {_LOW: _quantile(z[cut:] - low, tail), _HIGH: _quantile(z[cut:] - high, 1 - tail)}
        return Heads(every(rows, z), known)

    def answer(self, heads: Heads, rows: Rows) -> Floats:
        """See `Maker`: value, low, high [n, 3]."""
        numbers = heads.numbers
        low, high = _ends(heads.estimators, rows)
        found = np.stack([heads.estimators[0].predict(rows), low + numbers[_LOW], high + numbers[_HIGH]], axis=1)
        return np.asarray(found * numbers[_SPREAD] + numbers[_MIDDLE])

    def outputs(self, graph: Graph, matrix: str, algorithm: str, heads: Heads) -> list[Output]:
        """See `Maker`: `value`, `low` and `high`, each [batch]."""
        numbers = heads.numbers
        found = [
            self._head(graph, matrix, algorithm, estimator, f"estimator/{place}")
            for place, estimator in enumerate(heads.estimators)
        ]
        ends = {"value": (found[0], 0.0), "low": (found[0], numbers[_LOW]), "high": (found[0], numbers[_HIGH])}
        if len(found) > 1:
            ends |= {"low": (found[1], numbers[_LOW]), "high": (found[2], numbers[_HIGH])}
        for name, (head, offset) in ends.items():
            # As float64, since the mean may be large compared with the spread.
            scale = graph.constant(f"{name}/spread", [numbers[_SPREAD]], np.float64)
            middle = graph.constant(f"{name}/middle", [numbers[_MIDDLE] + offset * numbers[_SPREAD]], np.float64)
            scaled = graph.add("Mul", [head, scale], f"{name}/scaled")
            moved = graph.add("Add", [scaled, middle], f"{name}/moved")
            graph.flat(graph.add("Cast", [moved], f"{name}/narrow", to=1), name)
        return [Output(name) for name in ends]

    @staticmethod
    def _head(graph: Graph, matrix: str, algorithm: str, estimator: Any, name: str) -> str:
        if algorithm == "ridge":
            return graph.linear(matrix, estimator, name)
        return graph.add("Cast", [graph.trees(matrix, algorithm, estimator, name)], f"{name}/wide", to=11)

    def tolerance(self, answers: npt.NDArray[Any]) -> float:
        """See `Maker`; an ensemble sums in float32, and the answer is float32."""
        return 1e-4 * float(answers.std(axis=0).max()) + 1e-6 * float(np.abs(answers).max()) + 1e-12

    def giveaways(self, frame: "pd.DataFrame", y: Floats) -> dict[str, str]:
        """See `Maker`; it uses Spearman's rank correlation, and a text ranks by its mean among other rows."""
        found = {}
        for name in map(str, frame.columns):
            if encoding.is_text(frame[name]):
                texts = encoding.texts(frame, name)
                known, values = (texts != "").to_numpy(), encoding.out_of_fold(texts, y)
            else:
                values = encoding.numbers(frame, name)
                known = np.isfinite(values)
            if known.sum() < _LEAST_KNOWN or np.ptp(values[known]) == 0 or np.ptp(y[known]) == 0:
                continue
            rank = abs(float(spearmanr(values[known], y[known]).statistic))
            if rank >= GIVEAWAY:
                found[name] = f"alone orders the label almost perfectly (rank correlation {rank:.3f})"
        return found

    def too_good(self, metrics: Mapping[str, float]) -> str | None:
        """See `Maker`."""
        return f"an R² of {metrics['r2']:.3f}" if metrics["r2"] >= GIVEAWAY else None

    def draft(self, y: Floats, metrics: Mapping[str, float]) -> Draft:
        """See `Maker`."""
        name, title = self.task.headline.name, self.task.headline.title
        middle = np.full((len(y), 3), np.median(y) if name == "mae" else y.mean())
        error, chance = metrics[name], self.task.headline.value(y, middle)
        loss = self.task.headline.better < 0
        limit = float(f"{(error + (max if loss else min)(chance, error)) / 2:.3g}")
        hopeless = error > _POOR * chance if loss else error < chance + 1 - _POOR
        inside = metrics["coverage"]
        least = math.floor((min(inside, self.interval.coverage) - _MARGIN) * 100) / 100
        floors = {"coverage": least} if least >= _LEAST_COVERAGE else {}
        return Draft(
            floors if loss else floors | {name: limit},
            {name: limit} if loss else {},
            {"limit": limit},
            f"a first model has an {title} of {error:.4g} on its hold-out, where {inside:.0%} of the true values lie "
            f"in their intervals; the limit is halfway to always predicting the same number ({chance:.4g})",
            f"A first model is hardly better than always predicting the same number ({title} {error:.4g} against "
            f"{chance:.4g}), so the limit is loose"
            if hopeless
            else None,
        )

    def show(self, title: str, card: "Card", holdout: HoldOut, out: Path) -> Shown:  # noqa: ARG002 - no figures
        """See `Maker`."""
        return Shown(page.html(self.task, self.interval, title, card, holdout))


def of(training: Training, metric: str) -> RegressionMaker:
    """Return the maker with a loop's settings."""
    return RegressionMaker(Regression(training.interval.coverage, metric), training.interval)


def _scale(y: Floats) -> tuple[float, float]:
    return float(y.mean()), float(y.std()) or 1.0


def _ends(estimators: Sequence[Any], rows: Rows) -> tuple[Floats, Floats]:
    """Return the values to which the ends of the interval are relative, standardised [n] each."""
    if len(estimators) == 1:
        value = estimators[0].predict(rows)
        return value, value
    return estimators[1].predict(rows), estimators[2].predict(rows)


def _quantile(errors: Floats, share: float) -> float:
    """Return the quantile of errors that a new row's error exceeds in at most this share of cases, counting itself."""
    ordered = np.sort(errors)
    rank = np.ceil(share * (len(ordered) + 1)) if share > 0.5 else np.floor(share * (len(ordered) + 1))
    return float(ordered[int(np.clip(rank, 1, len(ordered))) - 1])

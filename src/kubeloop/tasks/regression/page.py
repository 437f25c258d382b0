"""Render the evaluation of a regression model: predictions and truths, residuals over time, and the interval."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kubeloop.tasks.port import Floats
from kubeloop.tasks.regression import evaluation
from kubeloop.tasks.regression.settings import Interval
from kubeloop.tasks.regression.task import Regression
from kubeloop.tasks.tabular import page
from kubeloop.tasks.tabular.maker import HoldOut
from kubeloop.tasks.tabular.page import Plot

if TYPE_CHECKING:
    from kubeloop.tasks.tabular.model_folder import Card

_PARTS = 20
_DOTS = 400
_METHODS = {"conformal": "conformal", "quantile": "conformalized quantile models"}


def html(task: Regression, interval: Interval, title: str, card: "Card", holdout: HoldOut) -> str:
    """Return a complete page.

    Args:
        task: the loop's.
        interval: how the prediction interval is made.
        title: title of the page.
        card: the model's card.
        holdout: the rows that it is measured on.
    """
    y, answers, moments = holdout.y, holdout.answers, holdout.moments
    value = answers[:, evaluation.VALUE]
    ends = _reach(np.concatenate([y, value]))
    chosen = np.linspace(0, len(y) - 1, min(len(y), _DOTS)).astype(np.intp)
    residual = y - value
    days, means = _over(moments, residual)
    _, inside = _over(moments, evaluation.inside(y, answers))
    limit = max(abs(min(means)), abs(max(means)), 1e-12) * 1.1
    span = (0.0, float(max(len(days) - 1, 1)))
    first, last = str(days[0])[:10], str(days[-1])[:10]
    plots = [
        Plot(
            "Prediction and truth",
            "predicted",
            "true",
            ends,
            ends,
            list(zip(value[chosen].tolist(), y[chosen].tolist(), strict=True)),
            dots=True,
            line=False,
            base=((ends[0], ends[0]), (ends[1], ends[1])),
        ),
        Plot(
            "Residuals over time",
            "event time",
            "mean of true less predicted",
            span,
            (-limit, limit),
            list(enumerate(means)),
            dots=True,
            base=((0.0, 0.0), (span[1], 0.0)),
            labels=(first, last),
        ),
        Plot(
            "Coverage over time",
            "event time",
            "share inside the interval",
            span,
            (0.0, 1.0),
            list(enumerate(inside)),
            dots=True,
            base=((0.0, task.coverage), (span[1], task.coverage)),
            labels=(first, last),
        ),
    ]
    wide = float(np.median(answers[:, evaluation.HIGH] - answers[:, evaluation.LOW]))
    facts = card.facts() | {
        "prediction interval": f"{interval.coverage:.0%}, {_METHODS[interval.method]}, {wide:,.4g} wide in the middle"
    }
    return page.html(
        task,
        title,
        f"{task.support(y)} of the hold-out",
        card.known_metrics(),
        plots,
        holdout.slices,
        importance=card.importance,
        facts=facts,
        warnings=card.warnings,
    )


def _reach(values: Floats) -> tuple[float, float]:
    """Return the ends of an axis that leaves out half a percent of the values at each end."""
    low, high = np.quantile(values, [0.005, 0.995])
    return float(low), float(high) if high > low else float(low) + 1.0


def _over(moments: npt.NDArray[np.datetime64], values: Floats) -> tuple[npt.NDArray[np.datetime64], list[float]]:
    """Return the mean of each of up to twenty parts of the rows in order of time, and its first moment."""
    order = np.argsort(moments, kind="stable")
    parts = [part for part in np.array_split(order, _PARTS) if len(part)]
    return moments[[part[0] for part in parts]], [float(values[part].mean()) for part in parts]

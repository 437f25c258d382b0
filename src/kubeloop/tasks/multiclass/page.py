"""Render the evaluation of a multiclass model: calibration, recall by class and confusion."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kubeloop.tasks.binary import curves
from kubeloop.tasks.multiclass.task import Multiclass
from kubeloop.tasks.tabular import page
from kubeloop.tasks.tabular.maker import HoldOut
from kubeloop.tasks.tabular.page import Matrix, Plot

if TYPE_CHECKING:
    from kubeloop.tasks.tabular.model_folder import Card

_WHOLE = (0.0, 1.0)
_MOST_NAMED = 12


def html(task: Multiclass, title: str, card: "Card", holdout: HoldOut, counts: npt.NDArray[np.int64]) -> str:
    """Return a complete page.

    Args:
        task: the loop's.
        title: title of the page.
        card: the model's card.
        holdout: the rows that it is measured on.
        counts: the confusion matrix [K, K].
    """
    right, sure = task.confidence(holdout.y, holdout.answers)
    line = curves.calibration(right, sure)
    rows = counts.sum(axis=1)
    recall = [(float(code), float(counts[code, code] / rows[code])) for code in np.flatnonzero(rows)]
    plots = [
        Plot(
            "Calibration",
            "mean probability of the likeliest class",
            "share in which it is true",
            _WHOLE,
            _WHOLE,
            list(zip(line.x, line.y, strict=True)),
            dots=True,
            base=((0, 0), (1, 1)),
        ),
        Plot(
            "Recall by class",
            "class",
            "share that was found",
            (0.0, float(len(rows) - 1)),
            _WHOLE,
            recall,
            dots=True,
            line=False,
            labels=task.classes if len(task.classes) <= _MOST_NAMED else None,
        ),
    ]
    return page.html(
        task,
        title,
        f"{task.support(holdout.y)}, on the hold-out",
        card.known_metrics(),
        plots,
        holdout.slices,
        matrix=Matrix(
            "Confusion",
            task.classes,
            counts.tolist(),
            "Columns are the predicted classes; shares are of the true class.",
        ),
        importance=card.importance,
        facts=card.facts(),
        warnings=card.warnings,
    )

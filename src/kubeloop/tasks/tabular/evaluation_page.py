"""Render the evaluation of one model as one HTML page that needs nothing beside itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kubeloop import pages
from kubeloop.tasks.tabular.curves import Curve, Curves
from kubeloop.tasks.tabular.evaluation import DIRECTION, Slice

_LEFT, _TOP, _WIDTH, _HEIGHT = 40.0, 10.0, 270.0, 240.0
_TILES = {"auc": "AUC", "pr_auc": "PR AUC", "log_loss": "Log loss", "brier": "Brier score", "ece": "Calibration error"}
_MOST_FEATURES = 20


def html(
    title: str,
    metrics: Mapping[str, float],
    curves: Curves,
    slices: Sequence[Slice] = (),
    *,
    importance: Mapping[str, float] | None = None,
    facts: Mapping[str, object] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """Return a complete page; it loads nothing, runs no script and follows the reader's light or dark scheme.

    Args:
        title: such as the model's name and version.
        metrics: of `evaluation.score`.
        curves: of `curves.draw`.
        slices: of `evaluation.slices`.
        importance: share by feature, largest first; the first 20 are shown.
        facts: more to say about the model, such as algorithm and training window.
        warnings: what to look at before the model is believed.
    """
    largest = max((importance or {}).values(), default=0.0) or 1.0
    return pages.render(
        "evaluation",
        title=title,
        subtitle=f"{metrics['rows']:,.0f} hold-out rows, {metrics['positives']:,.0f} of them "
        f"({curves.prevalence:.1%}) class 1",
        tiles=[
            (label, _number(metrics[name]), _between(metrics) if name == "auc" else "")
            for name, label in _TILES.items()
        ],
        ticks=[
            {"x": round(_x(tick / 4), 1), "y": round(_y(tick / 4), 1), "label": f"{tick / 4:g}"} for tick in range(5)
        ],
        charts=[
            _chart("ROC", curves.roc, (0, 1), "false positive rate", "true positive rate"),
            _chart("Precision and recall", curves.pr, (curves.prevalence,) * 2, "recall", "precision"),
            _chart("Calibration", curves.calibration, (0, 1), "mean prediction", "share of class 1", dots=True),
        ],
        threshold=f"{curves.confusion.threshold:.3f}",
        confusion=[
            [{"count": f"{n:,}", "share": f"{n / sum(row):.1%}", "tint": round(10 * n / sum(row))} for n in row]
            for row in curves.confusion.matrix
        ],
        precision=f"{curves.confusion.precision:.3f}",
        recall=f"{curves.confusion.recall:.3f}",
        importance=[
            (name, f"{share:.1%}", round(100 * share / largest, 1))
            for name, share in list((importance or {}).items())[:_MOST_FEATURES]
        ],
        metric_names=[_TILES[name] for name in DIRECTION],
        slices=[
            {
                "name": f"{part.column} = {part.value}",
                "rows": f"{part.rows:,}",
                "positives": f"{part.positives:,}",
                "share": f"{part.positives / part.rows:.1%}",
                "note": part.note,
                "metrics": [
                    (_number(part.metrics[name]), _reach(part.auc.low, part.auc.high) if name == "auc" else "")
                    for name in DIRECTION
                ],
            }
            for part in slices
        ],
        facts=list((facts or {}).items()),
        warnings=warnings,
    )


def _chart(
    title: str, curve: Curve, base: tuple[float, float], x: str, y: str, *, dots: bool = False
) -> dict[str, Any]:
    places = [(round(_x(left), 1), round(_y(up), 1)) for left, up in zip(curve.x, curve.y, strict=True)]
    return {
        "title": title,
        "x": x,
        "y": y,
        "points": " ".join(f"{left},{up}" for left, up in places),
        "base": f"{_x(0)},{_y(base[0])} {_x(1)},{_y(base[1])}",
        "dots": places if dots else [],
    }


def _x(share: float) -> float:
    return _LEFT + _WIDTH * share


def _y(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


def _between(metrics: Mapping[str, float]) -> str:
    """Return the interval of the AUC; models that were trained before it was measured have none."""
    return _reach(metrics["auc_low"], metrics["auc_high"]) if "auc_low" in metrics else ""


def _reach(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"

"""Render the evaluation of a model of any kind as one self-contained HTML page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubeloop import pages
from kubeloop.tasks.port import Task
from kubeloop.tasks.slices import Slice

__all__ = ["Matrix", "Plot", "html"]

_LEFT, _TOP, _WIDTH, _HEIGHT = 40.0, 10.0, 270.0, 240.0
_MOST_FEATURES = 20
_TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Plot:
    """One chart: a line or dots over a grid, with a line for a perfect model or for chance.

    Attributes:
        title: the title above it.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        across: ends of the horizontal axis.
        up: ends of the vertical axis.
        points: points of the line, or the dots.
        dots: whether every point is marked.
        line: whether the points are joined.
        base: ends of the dashed line.
        labels: names of the horizontal ticks, evenly spaced, instead of numbers.
    """

    title: str
    x: str
    y: str
    across: Point
    up: Point
    points: Sequence[Point]
    dots: bool = False
    line: bool = True
    base: tuple[Point, Point] | None = None
    labels: Sequence[str] | None = None

    def draw(self) -> dict[str, Any]:
        """Return what the template needs."""
        places = [self._place(point) for point in self.points]
        return {
            "title": self.title,
            "x": self.x,
            "y": self.y,
            "xticks": self._xticks(),
            "yticks": [(round(_TOP + _HEIGHT * (1 - share), 1), text) for share, text in _ticks(self.up)],
            "points": " ".join(f"{left},{up}" for left, up in places) if self.line else "",
            "base": " ".join("{},{}".format(*self._place(point)) for point in self.base or ()),
            "dots": places if self.dots else [],
        }

    def _xticks(self) -> list[tuple[float, str]]:
        if self.labels is None:
            return [(round(_LEFT + _WIDTH * share, 1), text) for share, text in _ticks(self.across)]
        last = max(len(self.labels) - 1, 1)
        return [(round(_LEFT + _WIDTH * place / last, 1), text) for place, text in enumerate(self.labels)]

    def _place(self, point: Point) -> Point:
        return (
            round(_LEFT + _WIDTH * _share(point[0], self.across), 1),
            round(_TOP + _HEIGHT * (1 - _share(point[1], self.up)), 1),
        )


@dataclass(frozen=True)
class Matrix:
    """Counts by true and by predicted class; rows are the true ones; `note` is shown below."""

    title: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str

    def draw(self) -> dict[str, Any]:
        """Return what the template needs."""
        small = len(self.names) <= 2
        return {
            "title": self.title,
            "small": small,
            "heads": [f"predicted {name}" if small else name for name in self.names],
            "note": self.note,
            "rows": [
                (f"true {name}", [_cell(count, sum(row)) for count in row])
                for name, row in zip(self.names, self.counts, strict=True)
            ],
        }


def html(
    task: Task,
    title: str,
    subtitle: str,
    metrics: Mapping[str, float],
    plots: Sequence[Plot],
    slices: Sequence[Slice] = (),
    *,
    matrix: Matrix | None = None,
    importance: Mapping[str, float] | None = None,
    facts: Mapping[str, object] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """Return a complete page; it loads nothing, runs no script and follows the reader's light or dark scheme.

    Args:
        task: the loop's.
        title: such as the model's name and version.
        subtitle: what the numbers are based on.
        metrics: of `Task.score`.
        plots: the charts.
        slices: of `slices.measure`.
        matrix: the confusion.
        importance: share by feature, largest first; the first 20 are shown.
        facts: more to say about the model, such as algorithm and training window.
        warnings: what to check before trusting the model.
    """
    largest = max((importance or {}).values(), default=0.0) or 1.0
    classed = any(part.positives is not None for part in slices)
    return pages.render(
        "evaluation",
        title=title,
        subtitle=subtitle,
        tiles=[
            (metric.title, number(metrics.get(name, math.nan)), _between(metrics, name))
            for name, metric in task.metrics.items()
        ],
        charts=[plot.draw() for plot in plots],
        matrix=matrix.draw() if matrix else None,
        importance=[
            (name, f"{share:.1%}", round(100 * share / largest, 1))
            for name, share in list((importance or {}).items())[:_MOST_FEATURES]
        ],
        metric_names=[metric.title for metric in task.metrics.values()],
        classed=classed,
        slices=[
            {
                "name": f"{part.column} = {part.value}",
                "rows": f"{part.rows:,}",
                "positives": "" if part.positives is None else f"{part.positives:,}",
                "share": "" if part.positives is None else f"{part.positives / part.rows:.1%}",
                "note": part.note,
                "metrics": [
                    (number(part.metrics[name]), reach(*part.sure[1:]) if name == task.headline.name else "")
                    for name in task.metrics
                ],
            }
            for part in slices
        ],
        facts=list((facts or {}).items()),
        warnings=warnings,
    )


def number(value: float) -> str:
    """Write a metric with four digits after the point, or with four significant digits if it is large."""
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def reach(low: float, high: float) -> str:
    """Write an interval; an empty text if it is unknown."""
    if math.isnan(low):
        return ""
    return f"{low:.3f} to {high:.3f}" if max(abs(low), abs(high)) < 100 else f"{low:,.1f} to {high:,.1f}"


def _between(metrics: Mapping[str, float], name: str) -> str:
    """Return the interval of the headline; models of older releases have none."""
    return reach(metrics[f"{name}_low"], metrics[f"{name}_high"]) if f"{name}_low" in metrics else ""


def _share(value: float, ends: Point) -> float:
    low, high = ends
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5


def _ticks(ends: Point) -> list[tuple[float, str]]:
    low, high = ends
    return [(tick / (_TICKS - 1), f"{low + (high - low) * tick / (_TICKS - 1):.4g}") for tick in range(_TICKS)]


def _cell(count: int, total: int) -> dict[str, object]:
    share = count / total if total else 0.0
    return {"count": f"{count:,}", "share": f"{share:.1%}", "tint": round(10 * share)}

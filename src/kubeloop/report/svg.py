"""Inline SVG from small parts: escaped elements, a time axis in percent, and value scales in pixels.

Horizontal positions are percentages and vertical ones are pixels, so that a chart follows the width of its card while
text, dots and strokes keep their size. No part needs a script.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from markupsafe import Markup, escape

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_STEPS = (_HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY)
_MOST_TICKS = 12


@dataclass(frozen=True)
class Chart:
    """A plot and the gutter of labels at its left, which stays visible when the plot scrolls on a narrow screen."""

    label: str
    height: int
    gutter: Markup
    plot: Markup


def element(name: str, /, *body: object, **attributes: object) -> Markup:
    """Return one element; values are escaped, None is left out, and `stroke_width` or `class_` lose their `_`."""
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    inside = "".join(escape(part) for part in body)
    return Markup(f"<{name}{''.join(parts)}>{inside}</{name}>")  # noqa: S704 - every part is escaped above


def join(parts: Iterable[Markup]) -> Markup:
    """Return parts in a row."""
    return Markup("").join(parts)


def text(x: object, y: float, content: object, class_: str = "", **attributes: object) -> Markup:
    """Return a text."""
    return element("text", content, x=x, y=y, class_=class_ or None, **attributes)


def line(x1: object, y1: float, x2: object, y2: float, class_: str) -> Markup:
    """Return a line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: object, y: float, width: object, height: float, class_: str, *body: object, **attributes: object) -> Markup:
    """Return a rectangle."""
    return element("rect", *body, x=x, y=y, width=width, height=height, class_=class_, **attributes)


def title(content: str) -> Markup:
    """Return the tooltip of the element that contains it."""
    return element("title", content)


def at(x: float, y: float, *body: object, class_: str | None = None) -> Markup:
    """Return a group at x in percent and y in pixels, whose content is drawn in pixels around that point."""
    return element("svg", *body, x=percent(x), y=y, overflow="visible", class_=class_)


def percent(value: float) -> str:
    """Return a percentage as SVG writes it."""
    return f"{_number(round(value, 3))}%"


def path(points: Sequence[tuple[float, float]], height: int, class_: str, *, closed: bool = False) -> Markup:
    """Return a line or an area through points, x in percent and y in pixels.

    The drawing is stretched horizontally, but its strokes are not.
    """
    places = " ".join(f"{_number(x * 10)},{_number(y)}" for x, y in points)
    shape = element(
        "polygon" if closed else "polyline", points=places, class_=class_, vector_effect="non-scaling-stroke"
    )
    return element(
        "svg", shape, x=0, y=0, width="100%", height=height, viewBox=f"0 0 1000 {height}", preserveAspectRatio="none"
    )


def runs(values: Iterable[tuple[float, float | None]]) -> Iterator[list[tuple[float, float]]]:
    """Split a series where a value is missing, since a line must not bridge a gap."""
    part: list[tuple[float, float]] = []
    for x, value in values:
        if value is None:
            if part:
                yield part
            part = []
        else:
            part.append((x, value))
    if part:
        yield part


@dataclass(frozen=True)
class Time:
    """The time axis that charts share."""

    start: datetime
    end: datetime

    def at(self, moment: datetime) -> float:
        """Return the position of a moment in percent, limited to the axis."""
        return min(100.0, max(0.0, 100 * ((moment - self.start) / (self.end - self.start))))

    def width(self, length: timedelta) -> float:
        """Return a length of time in percent."""
        return 100 * (length / (self.end - self.start))

    def ticks(self) -> list[tuple[float, str]]:
        """Return position and label of at most a dozen round moments."""
        span = self.end - self.start
        step = next((step for step in _STEPS if span / step <= _MOST_TICKS), None)
        moments = _months(self.start, self.end) if step is None else _regular(self.start, self.end, step)
        return [(self.at(moment), label) for moment, label in moments]


def _regular(start: datetime, end: datetime, step: timedelta) -> list[tuple[datetime, str]]:
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    first = midnight + math.ceil((start - midnight) / step) * step
    count = max(0, math.floor((end - first) / step) + 1)
    moments = [first + step * index for index in range(count)]
    form = "%H:%M" if step < _DAY else "%d %b"
    return [(m, f"{m:%d %b}" if step < _DAY and m.hour == 0 else f"{m:{form}}") for m in moments]


def _months(start: datetime, end: datetime) -> list[tuple[datetime, str]]:
    months = (end.year - start.year) * 12 + end.month - start.month + 1
    every = next((n for n in (1, 2, 3, 6, 12) if months / n <= _MOST_TICKS), 12 * math.ceil(months / 144))
    found: list[tuple[datetime, str]] = []
    for index in range(0, months + 1):
        year, month = divmod(start.month - 1 + index, 12)
        moment = start.replace(year=start.year + year, month=month + 1, day=1, hour=0, minute=0, second=0)
        if start <= moment <= end and month % min(every, 12) == 0:
            found.append((moment, f"{moment:%b ’%y}" if month == 0 or not found else f"{moment:%b}"))
    return found


@dataclass(frozen=True)
class Scale:
    """Values of one panel, with `top` and `height` in pixels."""

    low: float
    high: float
    top: float
    height: float

    def y(self, value: float) -> float:
        """Return the position of a value in pixels, limited to the panel."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.top + self.height * (1 - min(1.0, max(0.0, share))), 2)

    @classmethod
    def around(cls, values: Iterable[float], top: float, height: float, *, ticks: int = 4) -> "Scale":
        """Return the scale from a round number below all values to one above them."""
        known = list(values)
        low, high = min(known, default=0.0), max(known, default=1.0)
        # Values that hardly differ must look so.
        step = round_step(max(high - low, 1e-3 * max(abs(low), abs(high), 1.0)), ticks)
        first, last = math.floor(low / step), math.ceil(high / step)
        return cls(min(low, first * step), max(high, max(last, first + 1) * step), top, height)

    def ticks(self, most: int = 4) -> list[float]:
        """Return round values on the scale."""
        step = round_step(self.high - self.low, most)
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [index * step for index in range(first, last + 1)]


def round_step(span: float, parts: int) -> float:
    """Return the smallest of 1, 2 or 5 times a power of ten that divides a span into at most this many parts."""
    raw = span / parts
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9))


def _number(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value

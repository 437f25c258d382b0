"""The marks that every chart shares: version colours, episode numbers, decisions and version switches."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from markupsafe import Markup

from kubeloop.report.svg import Time, at, element, line, percent, text, title

_PAD = "-4"

_COLOURS = 7
_PLOT_PX = 700
"""Labels are laid out for the narrowest plot; in a wider one they have more room."""

_CHECK, _CROSS, _BANG = "M-3.4 .2 -1 2.7 3.4 -2.6", "M-2.6-2.6 2.6 2.6M-2.6 2.6 2.6-2.6", "M0-3.6V.8M0 3V3.4"
_SIGNS = {"promoted": _CHECK, "rejected": _CROSS, "failed": _BANG}


def colours(served: Sequence[str]) -> dict[str, str]:
    """Return the CSS class of each served version: grey for the first, then colours that everyone can distinguish."""
    return {name: f"v{1 + (place - 1) % _COLOURS if place else 0}" for place, name in enumerate(served)}


def gutter(y: float, content: object, class_: str = "") -> Markup:
    """Return a label of the gutter, written up to the plot."""
    return text("100%", y, content, f"end {class_}".strip(), dx=_PAD)


def heading(y: float, name: str, detail: str = "") -> list[Markup]:
    """Return a panel's name at the left of the gutter, and under it what it counts."""
    parts = [text(0, y, name, "strong")]
    return [*parts, text(0, y + 14, detail, "small")] if detail else parts


def episode(x: float, y: float, number: int, *, accepted: bool, tip: str) -> Markup:
    """Return an episode's number in a disc, which is hollow if the trigger did not start a run for it."""
    disc = element("circle", r=9, class_="episode" if accepted else "episode hollow")
    return at(x, y, element("g", title(tip), disc, text(0, 3.8, number, "mid")), class_="mark")


def decision(x: float, y: float, outcome: str | None, label: str, tip: str) -> Markup:
    """Return a sign for how a run ended, with the version's name next to it."""
    kind = outcome or "active"
    disc = element("circle", r=7, class_=f"decision {kind}")
    sign = element("path", d=_SIGNS[outcome], class_=f"sign {kind}") if outcome else Markup("")
    return at(x, y, element("g", title(tip), disc, sign, text(11, 4, label, "strong")), class_="mark")


def switches(time: Time, moments: Iterable[datetime], top: float, bottom: float) -> list[Markup]:
    """Return a vertical line at each moment at which a version took over the traffic."""
    return [line(percent(time.at(m)), top, percent(time.at(m)), bottom, "switch") for m in moments]


def axis(time: Time, top: float, bottom: float) -> list[Markup]:
    """Return the time axis: a faint line up to `top` and a label under `bottom` for each tick."""
    parts = []
    for place, label in time.ticks():
        x = percent(place)
        parts.append(line(x, top, x, bottom, "grid"))
        anchor = "start" if place < 2 else "end" if place > 98 else "mid"
        parts.append(text(x, bottom + 16, label, anchor))
    return parts


def lanes(places: Iterable[float], width_px: float) -> list[int]:
    """Return for each mark, from left to right, the first lane in which it does not hide another.

    Args:
        places: left end of each mark in percent.
        width_px: of a mark with its label.
    """
    ends: list[float] = []
    found = []
    width = 100 * width_px / _PLOT_PX
    for place in places:
        lane = next((index for index, end in enumerate(ends) if end <= place), len(ends))
        ends[lane : lane + 1] = [place + width]
        found.append(lane)
    return found

"""The gate's decisions as a forest plot: each run's gain with its interval against zero."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kubeloop.models.gates import Check, Verdict
from kubeloop.report.svg import Scale, element, join, line, percent, text, title

HEIGHT = 38
_MIDDLE = HEIGHT / 2


@dataclass(frozen=True)
class Forest:
    """One drawing per verdict (empty if there was no champion to compare with), and their common axis."""

    rows: list[Markup]
    axis: Markup


def draw(verdicts: Sequence[Verdict | None], min_gain: float) -> Forest:
    """Draw the verdicts on one scale that includes zero and `min_gain`."""
    ends = [end for verdict in verdicts if verdict and verdict.interval for end in verdict.interval]
    scale = Scale.around([0.0, min_gain, *ends], 0, 100, ticks=5)
    limits = [line(_x(scale, 0.0), 0, _x(scale, 0.0), HEIGHT, "zero")]
    if min_gain > 0:
        limits.append(line(_x(scale, min_gain), 0, _x(scale, min_gain), HEIGHT, "limit"))
    rows = [join([*limits, *_interval(verdict, scale)]) if verdict else Markup("") for verdict in verdicts]
    ticks = [
        text(_x(scale, value), 14, f"{value:+.2f}" if round(value, 9) else "0", _anchor(scale, value))
        for value in scale.ticks(5)
    ]
    return Forest(rows, join(ticks))


def failed(checks: Sequence[Check]) -> list[str]:
    """Return the checks that failed, one phrase each."""
    return [
        f"{check.name} {_number(check.value)} (limit {_number(check.limit)})" for check in checks if not check.passed
    ]


def _interval(verdict: Verdict, scale: Scale) -> list[Markup]:
    if verdict.interval is None or verdict.difference is None:
        return []
    low, high = verdict.interval
    kind = "promoted" if verdict.promote else "rejected"
    tip = title(f"{verdict.difference:+.4f}, {verdict.confidence:.0%} interval {low:+.4f} to {high:+.4f}")
    whisker = line(_x(scale, low), _MIDDLE, _x(scale, high), _MIDDLE, f"reach {kind}")
    ends = [line(_x(scale, end), _MIDDLE - 4, _x(scale, end), _MIDDLE + 4, f"reach {kind}") for end in (low, high)]
    dot = element("circle", cx=_x(scale, verdict.difference), cy=_MIDDLE, r=5, class_=f"estimate {kind}")
    return [element("g", tip, whisker, *ends, dot)]


def _x(scale: Scale, value: float) -> str:
    return percent(100 * (value - scale.low) / (scale.high - scale.low))


def _anchor(scale: Scale, value: float) -> str:
    return "start" if value <= scale.low + 1e-9 else "end" if value >= scale.high - 1e-9 else "mid"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"

"""The result of a backtest: how much better each policy is than the first, by how often it retrains."""

from collections.abc import Mapping
from typing import Any

from kubeloop.config import Settings
from kubeloop.report import tradeoff_words
from kubeloop.report.svg import Chart, Scale, at, element, join, line, percent, text, title
from kubeloop.stores import kept

HEIGHT = 260
_TOP, _BOTTOM, _APART = 14, 34, 16
"""Pixels above and below the panel, and between two policies that retrain equally often."""


def read(settings: Settings) -> dict[str, Any] | None:
    """Return the section's variables; None if there was no backtest.

    Raises:
        DamagedError: its result is not what was written.
    """
    path = settings.state / "backtest" / "result.json"
    return build(kept.loads(path)) if path.is_file() else None


def build(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section's variables for the result of a backtest."""
    return {
        "chart": draw(found),
        "sentences": tradeoff_words.sentences(found),
        "metric": found["metric"],
        "confidence": found["confidence"],
        "first": found["policies"][0]["policy"],
        "rows": [
            {"number": number, "cells": tradeoff_words.cells(row), "suggested": row["policy"] == found["suggested"]}
            for number, row in enumerate(found["policies"], 1)
        ],
    }


def draw(found: Mapping[str, Any]) -> Chart:
    """Draw each policy by its number of retrainings and its difference to the first, with the paired interval."""
    rows = [(number, row) for number, row in enumerate(found["policies"], 1) if row["difference"] is not None]
    ends = [end for _, row in rows for end in (row["difference"]["value"], *row["difference"]["interval"])]
    scale = Scale.around([0.0, *ends], _TOP, HEIGHT - _TOP - _BOTTOM, ticks=5)
    most = max((row["retrainings"] for _, row in rows), default=1) or 1
    across = Scale.around([0.0, float(most)], 0, 100, ticks=8)

    def x(value: float) -> float:
        return 4 + 92 * (value - across.low) / (across.high - across.low)

    ticks = scale.ticks(5)
    gutter = [text("100%", scale.y(value) + 4, f"{value:+.3f}" if round(value, 9) else "0", "end") for value in ticks]
    lines = [
        line("0%", scale.y(value), "100%", scale.y(value), "zero" if not round(value, 9) else "grid") for value in ticks
    ]
    below = [text(percent(x(value)), HEIGHT - 14, f"{value:g}", "mid") for value in across.ticks(8) if not value % 1]
    seen: dict[int, int] = {}
    points = []
    for number, row in rows:
        place = seen[row["retrainings"]] = seen.get(row["retrainings"], -1) + 1
        points.append(
            _point(number, row, scale, x(row["retrainings"]), place * _APART, row["policy"] == found["suggested"])
        )
    label = f"Difference of the live {found['metric']} to {found['policies'][0]['policy']}, by number of retrainings"
    return Chart(label, HEIGHT, join(gutter), join([*lines, *below, *points]))


def _point(number: int, row: Mapping[str, Any], scale: Scale, x: float, aside: float, suggested: bool) -> Any:
    difference = row["difference"]
    low, high = (scale.y(end) for end in difference["interval"])
    middle, kind = scale.y(difference["value"]), "promoted" if suggested else "rejected"
    tip = title(
        f"{number}. {row['policy']}\n{difference['value']:+.4f} ({difference['interval'][0]:+.4f} to "
        f"{difference['interval'][1]:+.4f}), {row['retrainings']} retrainings, {row['promotions']} promoted"
    )
    parts = [
        line(aside, low, aside, high, f"reach {kind}"),
        *(line(aside - 4, end, aside + 4, end, f"reach {kind}") for end in (low, high)),
        element("circle", cx=aside, cy=middle, r=5, class_=f"estimate {kind}"),
        text(aside + 8, middle + 4, number, "soft" if row["oracle"] else ""),
    ]
    return at(x, 0, element("g", tip, *parts))

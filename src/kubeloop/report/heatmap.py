"""The drift heat map: every feature in every window, on the time axis of the story."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from markupsafe import Markup

from kubeloop.config import Drift
from kubeloop.report import marks
from kubeloop.report.story import Mark, span
from kubeloop.report.svg import Chart, Scale, Time, element, join, line, percent, rect, text, title

Row = Mapping[str, Any]

MOST_WINDOWS = 160
_CELL, _BARS, _TOP, _AXIS = 20, 64, 34, 26
_NAME = 17


@dataclass(frozen=True)
class Heatmap:
    """The chart, with the effect at the dark end of its colours."""

    chart: Chart
    largest: float


def draw(
    windows: Sequence[Row],
    scores: Sequence[Row],
    time: Time,
    episodes: Sequence[Mark],
    taken_over: Mapping[str, datetime],
    drift: Drift,
) -> Heatmap:
    """Draw the newest windows of the live versions.

    Args:
        windows: rows of the monitor's `windows`.
        scores: rows of its `window_scores`.
        time: the axis.
        episodes: in order of time; an episode's number is its position.
        taken_over: when each version except the first took over the traffic.
        drift: the policy, for its limits.
    """
    chosen = _one_a_stretch(windows)[-MOST_WINDOWS:]
    cells = {(row["start"], row["version"], row["kind"] == "score", row["feature"]): row for row in scores}
    names = _by_importance(scores)
    effects = [row["effect"] for row in scores if row["effect"] is not None]
    largest = max(0.5, -(-max(effects, default=0.0) * 10 // 1) / 10)
    plot: list[Markup] = []
    gutter = [*marks.heading(16, "Episodes"), *marks.heading(_TOP + 11, "Drifted", "of importance")]
    _bars(plot, gutter, chosen, time, drift)
    y = _TOP + _BARS + 22.0
    answers = list(dict.fromkeys(row["feature"] for row in scores if row["kind"] == "score")) or ["score"]
    rows: list[tuple[str, bool, float | None]] = [(name, True, None) for name in answers]
    rows += [(name, False, importance) for name, importance in names.items()]
    begin = y
    for name, of_model, importance in rows:
        gutter += _label(y, name, importance)
        for window in chosen:
            key = (window["start"], window["version"], of_model, name)
            plot.append(_cell(window, cells.get(key), time, y, largest, drift, name))
        y += _CELL + (7 if name == answers[-1] and of_model else 0)
    border = begin + len(answers) * _CELL + 3
    plot.append(line(0, border, "100%", border, "grid"))
    behind = marks.axis(time, _TOP, y)
    for version, moment in taken_over.items():
        x = percent(time.at(moment))
        plot += [line(x, _TOP - 4, x, y, "switch front"), text(x, _TOP + 6, f"v{version}", "small strong", dx=4)]
    for number, mark in enumerate(episodes, 1):
        plot.append(marks.episode(time.at(mark.moment), 12, number, accepted=mark.accepted, tip=mark.tip))
    chart = Chart("Drift of each feature in each window", int(y + _AXIS), join(gutter), join([*behind, *plot]))
    return Heatmap(chart, largest)


def _one_a_stretch(windows: Sequence[Row]) -> list[Row]:
    """Return one row per window: that of the live version, or of the version with the most rows."""
    best: dict[datetime, Row] = {}
    for row in windows:
        rank = (row["status"] == "judged", bool(row["live"]), row["rows"])
        known = best.get(row["start"])
        if known is None or rank > (known["status"] == "judged", bool(known["live"]), known["rows"]):
            best[row["start"]] = row
    return [best[start] for start in sorted(best)]


def _by_importance(scores: Sequence[Row]) -> dict[str, float]:
    """Return each feature with its importance in the newest model that has it, the most important first."""
    found = {row["feature"]: float(row["importance"]) for row in scores if row["kind"] != "score"}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _label(y: float, name: str, importance: float | None) -> list[Markup]:
    short = name if len(name) <= _NAME + 2 else f"{name[:_NAME]}…"
    middle = y + _CELL / 2 + 4
    parts = [element("g", title(name), text("100%", middle, short, "end ink", dx="-36"))]
    if importance is not None:
        parts.append(marks.gutter(middle, f"{importance:.0%}", "small"))
    return parts


def _bars(plot: list[Markup], gutter: list[Markup], windows: Sequence[Row], time: Time, drift: Drift) -> None:
    """Draw how much of the model drifted in each window."""
    scale = Scale(0.0, 1.0, _TOP, _BARS)
    for value in (0.0, 1.0):
        plot.append(line(0, scale.y(value), "100%", scale.y(value), "grid"))
        gutter.append(marks.gutter(scale.y(value) + 4, f"{value:.0%}"))
    for row in windows:
        if row["importance"] is None:
            continue
        place, width = time.at(row["start"]), time.width(row["end"] - row["start"])
        y = scale.y(row["importance"])
        kind = "drifted" if row["drifted"] else "calm"
        tip = title(f"{_head(row)}\n{row['importance']:.0%} of the importance drifted: {_verdict(row)}")
        plot.append(
            rect(percent(place + width * 0.12), y, percent(width * 0.76), max(1.0, scale.y(0) - y), f"bar {kind}", tip)
        )
    plot.append(line(0, scale.y(drift.min_importance), "100%", scale.y(drift.min_importance), "limit"))


def _cell(window: Row, score: Row | None, time: Time, y: float, largest: float, drift: Drift, name: str) -> Markup:
    place, width = time.at(window["start"]), time.width(window["end"] - window["start"])
    x, wide = percent(place + width * 0.03), percent(width * 0.94)
    if score is None:
        why = window["note"] or {"small": f"fewer than {drift.min_rows} rows"}.get(window["status"], "not measured")
        return rect(x, y + 1, wide, _CELL - 2, "cell untested", title(f"{name}\n{_head(window)}\nnot tested: {why}"))
    effect = score["effect"] or 0.0
    words = [
        name,
        _head(window),
        f"effect {effect:.3f}{_between(score)}, adjusted p {_p(score['p_adjusted'])}, PSI {_number(score['psi'])}",
        "counted as drifted"
        if score["drifted"]
        else f"not drifted (needs effect {drift.min_effect:g} and p < {drift.alpha:g})",
    ]
    if score["missing_share"]:
        words.append(f"{score['missing_share']:.1%} missing")
    kind = "cell drifted" if score["drifted"] else "cell"
    strength = round(min(1.0, 0.03 + 0.97 * effect / largest), 3)
    inset = 1 if score["drifted"] else 0
    return rect(x, y + 1 + inset, wide, _CELL - 2 - 2 * inset, kind, title("\n".join(words)), fill_opacity=strength)


def _between(score: Row) -> str:
    """Return the effect's interval; windows of older releases have none."""
    low, high = score.get("effect_low"), score.get("effect_high")
    return "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"


def _head(row: Row) -> str:
    return f"{span(row['start'], row['end'])}, version {row['version']}, {row['rows']:,} rows"


def _verdict(row: Row) -> str:
    if row["prediction_drifted"]:
        return "the window drifted, the model's predictions too"
    return "the window drifted" if row["drifted"] else "not enough for a drifted window"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

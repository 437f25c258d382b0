"""The story over time: traffic by version, decisions, and the loop against its frozen first model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from markupsafe import Markup

from kubeloop.report import marks
from kubeloop.report.live import Bin, Live
from kubeloop.report.svg import Chart, Scale, Time, element, join, line, path, percent, rect, runs, text, title
from kubeloop.tasks.port import Task

_LANE, _GAP, _AXIS = 26, 26, 26
_TRAFFIC, _METRIC, _DIFFERENCE, _LEVEL = 72, 150, 96, 60


@dataclass(frozen=True)
class Mark:
    """An episode, or the decision about a run, at a moment of event time."""

    moment: datetime
    label: str
    tip: str
    outcome: str | None = None
    accepted: bool = True


@dataclass
class _Board:
    """The drawing so far, and `y`, where the next panel begins."""

    time: Time
    y: float
    gutter: list[Markup] = field(default_factory=list)
    plot: list[Markup] = field(default_factory=list)

    def panel(self, scale: Scale, name: str, detail: str, form: str, most: int = 4) -> None:
        """Draw a panel's name, its grid and the values of its grid."""
        self.gutter += marks.heading(scale.top + 11, name, detail)
        for value in scale.ticks(most):
            y = scale.y(value)
            self.plot.append(line(0, y, "100%", y, "grid"))
            self.gutter.append(marks.gutter(y + 4, f"{value:{form}}" if value else "0"))


def draw(
    task: Task,
    live: Live,
    time: Time,
    episodes: Sequence[Mark],
    decisions: Sequence[Mark],
    colours: Mapping[str, str],
    short: Mapping[datetime, str],
) -> Chart:
    """Draw the panels under one time axis.

    Args:
        task: the loop's.
        live: the result of `live.read`, not empty.
        time: the axis.
        episodes: in order of time; an episode's number is its position.
        decisions: of the runs, in order of time.
        colours: class of each version that served.
        short: windows whose metric counted as drifted, by start, with the monitor's words.
    """
    board = _Board(time, 6)
    _episodes(board, episodes)
    _decisions(board, decisions)
    _serving(board, live, colours)
    top = board.y - 14
    _traffic(board, live, colours)
    _metric(board, task, live, colours, short)
    if any(part.difference is not None for part in live.bins):
        _difference(board, task, live)
    _level(board, task, live)
    bottom = board.y - _GAP + 8
    taken_over = [begin for begin, _ in list(live.served.values())[1:]]
    behind = [*marks.axis(time, top, bottom), *marks.switches(time, taken_over, top, bottom)]
    hits = [_hit(task, part, time, top, bottom, short.get(part.start)) for part in live.bins]
    return Chart(
        f"Episodes, decisions, traffic and live {task.headline.title} over time",
        int(bottom + _AXIS),
        join(board.gutter),
        join([*behind, *board.plot, *hits]),
    )


def _episodes(board: _Board, episodes: Sequence[Mark]) -> None:
    places = [board.time.at(mark.moment) for mark in episodes]
    lanes = marks.lanes(places, 20)
    board.gutter += marks.heading(board.y + 14, "Episodes")
    for number, (mark, place, lane) in enumerate(zip(episodes, places, lanes, strict=True), 1):
        y = board.y + 10 + lane * _LANE
        board.plot.append(marks.episode(place, y, number, accepted=mark.accepted, tip=mark.tip))
    board.y += _LANE * (1 + max(lanes, default=0))


def _decisions(board: _Board, decisions: Sequence[Mark]) -> None:
    places = [board.time.at(mark.moment) for mark in decisions]
    lanes = marks.lanes(places, 46)
    board.gutter += marks.heading(board.y + 14, "Gate")
    for mark, place, lane in zip(decisions, places, lanes, strict=True):
        board.plot.append(marks.decision(place, board.y + 10 + lane * _LANE, mark.outcome, mark.label, mark.tip))
    board.y += _LANE * (1 + max(lanes, default=0))


def _serving(board: _Board, live: Live, colours: Mapping[str, str]) -> None:
    begins = [begin for begin, _ in live.served.values()]
    ends = [*begins[1:], max(end for _, end in live.served.values())]
    places = [board.time.at(begin) for begin in begins]
    board.gutter += marks.heading(board.y + 21, "Serving")
    for (name, (begin, _)), end, place, lane in zip(
        live.served.items(), ends, places, marks.lanes(places, 24), strict=True
    ):
        width = max(0.2, board.time.at(end) - place)
        tip = title(f"Version {name} served from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} (event time)")
        board.plot.append(rect(percent(place), board.y + 15, percent(width), 7, f"fill {colours[name]}", tip, rx=2))
        if not lane:
            board.plot.append(text(percent(place), board.y + 10, f"v{name}", "strong"))
    board.y += _LANE + _GAP + 6


def _traffic(board: _Board, live: Live, colours: Mapping[str, str]) -> None:
    scale = Scale.around([0, *(sum(rows.values()) for _, rows in live.days)], board.y, _TRAFFIC)
    board.panel(scale, "Predictions", "per day" if live.day.days == 1 else "per window", ",.0f")
    width = board.time.width(live.day)
    floor = scale.y(0)
    for name in reversed(list(live.served)):
        # Later versions are drawn behind: each area covers its own version and all earlier ones.
        below = list(live.served)[: list(live.served).index(name) + 1]
        points: list[tuple[float, float]] = []
        for start, rows in live.days:
            x, y = board.time.at(start), scale.y(sum(rows.get(part, 0) for part in below))
            if points and x - points[-1][0] > 1e-6:
                points += [(points[-1][0], floor), (x, floor)]
            points += [(x, y), (x + width, y)]
        around = [(points[0][0], floor), *points, (points[-1][0], floor)]
        board.plot.append(path(around, int(floor) + 1, f"fill {colours[name]}", closed=True))
    board.y += _TRAFFIC + _GAP


def _metric(board: _Board, task: Task, live: Live, colours: Mapping[str, str], short: Mapping[datetime, str]) -> None:
    known = [value for part in live.bins for value in (part.loop, part.frozen) if value is not None]
    known += [end for part in live.bins for end in part.loop_interval or ()]
    scale = Scale.around(known or [0.5, 1.0], board.y, _METRIC, ticks=8)
    board.panel(scale, f"Live {task.headline.title}", "95% interval", _form(scale))
    if not known:
        board.plot.append(text("50%", scale.top + scale.height / 2, "no window has enough labels yet", "mid"))
    _line(board, scale, ((_middle(part, board.time), part.frozen) for part in live.bins), "curve frozen")
    _line(board, scale, ((_middle(part, board.time), part.loop) for part in live.bins), "curve loop")
    for part in live.bins:
        x = _middle(part, board.time)
        if part.frozen is not None and part.difference is not None:
            board.plot.append(element("circle", cx=percent(x), cy=scale.y(part.frozen), r=2.6, class_="dot frozen"))
        if part.loop is not None:
            y, main = scale.y(part.loop), max(part.rows, key=lambda name: part.rows[name])
            if part.loop_interval is not None:
                low, high = part.loop_interval
                board.plot.append(line(percent(x), scale.y(low), percent(x), scale.y(high), "whisker open"))
            if part.start in short:
                board.plot.append(element("circle", cx=percent(x), cy=y, r=7.5, class_="ring"))
            board.plot.append(element("circle", cx=percent(x), cy=y, r=4, class_=f"dot {colours[main]}"))
    board.y += _METRIC + _GAP


def _difference(board: _Board, task: Task, live: Live) -> None:
    ends = [value for part in live.bins for value in (part.difference, *(part.interval or ())) if value is not None]
    scale = Scale.around([0, *ends], board.y, _DIFFERENCE, ticks=8)
    # In both cases, a value above zero is better.
    name = "Loop − frozen" if task.headline.better > 0 else "Frozen − loop"
    board.panel(scale, name, "95% interval", f"+{_form(scale)}")
    board.plot.append(line(0, scale.y(0), "100%", scale.y(0), "zero"))
    for part in live.bins:
        if part.difference is None:
            continue
        x, sign = percent(_middle(part, board.time)), "open"
        if part.interval is not None:
            low, high = part.interval
            sign = "better" if low > 0 else "worse" if high < 0 else "open"
            board.plot.append(line(x, scale.y(low), x, scale.y(high), f"whisker {sign}"))
        board.plot.append(element("circle", cx=x, cy=scale.y(part.difference), r=3.6, class_=f"gain {sign}"))
    board.y += _DIFFERENCE + _GAP


def _level(board: _Board, task: Task, live: Live) -> None:
    known = [value for part in live.bins for value in (part.share, part.score) if value is not None]
    scale = Scale.around([0, *known], board.y, _LEVEL, ticks=3)
    board.panel(scale, task.level.title, task.level.detail, task.level.form, 3)
    _line(board, scale, ((_middle(part, board.time), part.score) for part in live.bins), "curve predicted")
    _line(board, scale, ((_middle(part, board.time), part.share) for part in live.bins), "curve actual")
    board.y += _LEVEL + _GAP


def _form(scale: Scale) -> str:
    """Return how the values of a panel are written: with two digits after the point, if they suit."""
    largest = max(abs(scale.low), abs(scale.high))
    return ".2f" if 0.1 <= largest < 10 else ",.3g"


def _line(board: _Board, scale: Scale, values: Iterable[tuple[float, float | None]], class_: str) -> None:
    for points in runs(values):
        places = [(x, scale.y(y)) for x, y in points]
        board.plot.append(path(places, int(scale.top + scale.height) + 2, class_))


def _middle(part: Bin, time: Time) -> float:
    return time.at(part.start + (part.end - part.start) / 2)


def _hit(task: Task, part: Bin, time: Time, top: float, bottom: float, short: str | None) -> Markup:
    """Return an invisible column whose tooltip describes its window."""
    place = time.at(part.start)
    return rect(
        percent(place),
        top,
        percent(time.at(part.end) - place),
        bottom - top,
        "hit",
        title(_words(task, part, short)),
    )


def _words(task: Task, part: Bin, short: str | None) -> str:
    served = ", ".join(f"v{name} {count:,}" for name, count in part.rows.items())
    lines = [f"{span(part.start, part.end)}", f"{sum(part.rows.values()):,} predictions: {served}"]
    if part.loop is None:
        lines.append(
            f"{part.labelled:,} labels: too few, or all the same, to measure by" if part.labelled else "no labels yet"
        )
    else:
        within = f" ({part.loop_interval[0]:.3f} to {part.loop_interval[1]:.3f})" if part.loop_interval else ""
        lines.append(f"{task.headline.title} {part.loop:.3f}{within}, {part.support}")
        if part.few:
            lines.append("too few to judge alone")
    if part.difference is not None:
        within = f" ({part.interval[0]:+.3f} to {part.interval[1]:+.3f})" if part.interval else ""
        lines.append(f"frozen first model {part.frozen:.3f}, difference {part.difference:+.3f}{within}")
    if part.share is not None and part.score is not None:
        true, said = (format(value, task.level.form.replace(".0%", ".1%")) for value in (part.share, part.score))
        lines.append(f"{task.level.title.lower()}: {true}, predicted {said}")
    return "\n".join([*lines, *([f"Counted as drifted: {short}"] if short else [])])


def span(start: datetime, end: datetime) -> str:
    """Return a stretch of time in words, without hours at midnight."""
    return " to ".join(f"{moment:%Y-%m-%d %H:%M}".removesuffix(" 00:00") for moment in (start, end))

"""Choose the settings that depend on a table's time span, density and predictability, with pure functions."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kubeloop.models.gates import MIN_BLOCKS
from kubeloop.scaffold.table import ScaffoldError

if TYPE_CHECKING:
    from kubeloop.tasks.tabular.maker import Draft

TRAIN_SHARE = 0.4
FULL_MOMENTS, FULL_ROWS = 20_000, 400_000
"""Most moments, and most rows, that a full replay sends."""
FAST_MOMENTS, FAST_ROWS = 2_000, 40_000
"""The same for `--fast`: a minute or so."""
FAST_WINDOWS = 18
"""Most drift windows that `--fast` replays: a retraining takes half a minute, then the cooldown lasts three windows."""


_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_NICE = [_MINUTE * n for n in (1, 2, 5, 10, 20, 30)] + [_HOUR * n for n in (1, 2, 3, 6, 12)]
_NICE += [_DAY * n for n in (1, 2, 3, 7, 14, 28, 56, 84)]
_WINDOWS = 40
_LEAST_WINDOWS = 6
_WINDOW_ROWS = 300
_HOLDOUT_ROWS = 300
_TRAINED, _JUDGED = 30, 20
"""Rows of each class that a first model needs for training, and in its hold-out."""


@dataclass(frozen=True)
class Scale:
    """How often histories are counted, and over which spans, for tables that span at least `least`."""

    unit: str
    step: timedelta
    short: timedelta
    long: timedelta
    least: timedelta


SCALES = (
    Scale("day", _DAY, 7 * _DAY, 30 * _DAY, 90 * _DAY),
    Scale("hour", _HOUR, _DAY, 7 * _DAY, 14 * _DAY),
    Scale("minute", _MINUTE, _HOUR, 6 * _HOUR, 18 * _HOUR),
)


@dataclass(frozen=True)
class Activity:
    """The number of rows in each step of time that has any: all arrays [n], oldest first.

    Attributes:
        starts: datetime64[us] in UTC, whole steps.
        rows: rows with a moment in the step.
        positives: labelled rows on one side, see `Label.positives`.
        negatives: labelled rows on the other side.
        moments: different timestamps.
        largest: rows of the step's moment with the most rows.
        classed: whether a model can be judged only if both sides occur.
    """

    starts: npt.NDArray[np.datetime64]
    rows: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64]
    moments: npt.NDArray[np.int64]
    largest: npt.NDArray[np.int64]
    classed: bool = True

    def enough(self, start: datetime, end: datetime, rows: int, each: int) -> bool:
        """Return whether [start, end) has enough labelled rows, and enough on each side if that matters."""
        sides = self.total("positives", start, end), self.total("negatives", start, end)
        return sum(sides) >= rows and (not self.classed or min(sides) >= each)

    def between(self, start: datetime, end: datetime) -> npt.NDArray[np.bool_]:
        """Return which steps begin in [start, end)."""
        return np.asarray((self.starts >= _stamp(start)) & (self.starts < _stamp(end)))

    def total(self, name: str, start: datetime, end: datetime) -> int:
        """Return the sum of one of the counts over [start, end)."""
        return int(getattr(self, name)[self.between(start, end)].sum())

    def blocks(self, start: datetime, end: datetime, block: timedelta) -> int:
        """Return how many blocks of time in [start, end) have labelled rows."""
        chosen = self.between(start, end) & (self.positives + self.negatives > 0)
        return len(np.unique(self.starts[chosen].astype("datetime64[us]").astype(np.int64) // _micros(block)))


@dataclass(frozen=True)
class Timeline:
    """The settings that follow only from the table's span and density."""

    scale: Scale
    label_delay: timedelta
    history: timedelta
    train_from: datetime
    train_to: datetime
    until: datetime
    fast_until: datetime
    holdout: timedelta
    block: timedelta
    window: timedelta
    sample: float
    fast_sample: float
    min_rows: int
    slice_min_rows: int
    max_rows: int
    """Largest number of rows that are sent at one moment."""

    @property
    def training_window(self) -> timedelta:
        """What a run learns from."""
        return self.train_to - self.train_from


@dataclass(frozen=True)
class Quality:
    """How well a first model predicts: its headline metric, whether it is too good, and the limits that follow."""

    title: str
    value: float
    praise: str | None
    draft: "Draft"


def scale(start: datetime, end: datetime, path: Any) -> Scale:
    """Return the scale that suits a span.

    Raises:
        ScaffoldError: the span is too short to train, test and replay on.
    """
    for candidate in SCALES:
        if end - start >= candidate.least:
            return candidate
    raise ScaffoldError(
        f"{path} spans only {text(_round_up(end - start, _MINUTE))} ({start} to {end}); at least "
        f"{text(SCALES[-1].least)} are needed to train on the past and replay the rest. Is the timestamp right?"
    )


def default_delay(chosen: Scale) -> timedelta:
    """Return how long a label takes if the user does not say it."""
    return chosen.step


def whole_steps(span: timedelta, chosen: Scale) -> timedelta:
    """Round a span up to whole steps."""
    return _round_up(span, chosen.step)


def timeline(
    activity: Activity,
    start: datetime,
    end: datetime,
    chosen: Scale,
    delay: timedelta,
    *,
    longest: timedelta | None = None,
) -> Timeline:
    """Place training, replay, windows and samples on the table's time.

    Args:
        activity: rows per step of `chosen`.
        start: the oldest moment.
        end: the newest moment.
        chosen: the result of `scale`.
        delay: how long after its moment a row's label is usually known.
        longest: how long the last label takes, if that is longer.

    Raises:
        ScaffoldError: labels take too long, or the rows are too few or too unevenly spread for a hold-out.
    """
    begin, until = _floor(start, chosen.step), _floor(end, chosen.step) + chosen.step
    span = until - begin
    if delay > span / 5:
        raise ScaffoldError(
            f"labels that take {text(delay)} leave too little of a table that spans {about(span)}; "
            "use a longer table, or give a shorter --label-delay if they do not take as long"
        )
    train_to = _train_to(activity, begin, until, chosen, delay)
    # Until the oldest rows have filled the histories, features are emptier than they will be later.
    warm_up = min(chosen.long + delay, (train_to - begin) / 4)
    train_from = _floor(begin + warm_up, chosen.step)
    holdout, block = _holdout(activity, train_from, train_to, chosen, delay)
    replayed = until - train_to
    window = _window(activity, train_to, until, chosen)
    fast_until = min(until, train_to + min(max(math.ceil(0.75 * replayed / window), 8), FAST_WINDOWS) * window)
    sample = _sample(activity, train_to, until, FULL_MOMENTS, FULL_ROWS)
    fast_sample = _sample(activity, train_to, fast_until, FAST_MOMENTS, FAST_ROWS)
    windows = max(1, (fast_until - train_to) // window)
    typical = activity.total("rows", train_to, fast_until) * fast_sample / windows
    labelled = activity.total("positives", train_to - holdout, train_to)
    labelled += activity.total("negatives", train_to - holdout, train_to)
    return Timeline(
        scale=chosen,
        label_delay=delay,
        history=_round_up(chosen.long + max(delay, longest or delay) + 2 * chosen.step, chosen.step),
        train_from=train_from,
        train_to=train_to,
        until=until,
        fast_until=fast_until,
        holdout=holdout,
        block=block,
        window=window,
        sample=sample,
        fast_sample=fast_sample,
        min_rows=int(min(200, max(30, typical // 2))),
        slice_min_rows=int(min(300, max(50, labelled // 10))),
        max_rows=int(activity.largest.max()),
    )


def text(span: timedelta) -> str:
    """Write a duration as loop.yaml reads it, in days, hours, minutes or seconds."""
    for unit, size in (("d", _DAY), ("h", _HOUR), ("m", _MINUTE)):
        if span and not span % size:
            return f"{span // size}{unit}"
    return f"{math.ceil(span / timedelta(seconds=1))}s"


def _train_to(activity: Activity, begin: datetime, until: datetime, chosen: Scale, delay: timedelta) -> datetime:
    """Return the end of the first training data: 40 % of the time, or later if that has too few labels."""
    for share in (TRAIN_SHARE, 0.5, 0.6, 0.7):
        moment = _floor(begin + share * (until - begin), chosen.step)
        if activity.enough(begin, moment - delay, 2 * _HOLDOUT_ROWS, _TRAINED):
            return moment
    classes = f", or fewer than {_TRAINED} of a class" if activity.classed else ""
    raise ScaffoldError(
        f"the oldest 70 % of the time have fewer than {2 * _HOLDOUT_ROWS} labelled rows{classes}, so no first "
        "model can be trained; add rows, or remove the empty beginning of the table"
    )


def _holdout(
    activity: Activity, train_from: datetime, train_to: datetime, chosen: Scale, delay: timedelta
) -> tuple[timedelta, timedelta]:
    """Return the shortest hold-out of at least 15 % of the window that can judge a model, and its blocks.

    The newest labels of a run are `delay` old, so the hold-out ends there.
    """
    window, newest = train_to - train_from, train_to - delay
    blocks = [size for size in _NICE if chosen.step <= size <= _DAY] or [chosen.step]
    for share in (0.15, 0.2, 0.3, 0.4, 0.48):
        holdout = max(chosen.step, _floor_span(share * window, chosen.step))
        start = newest - holdout
        if not activity.enough(start, newest, _HOLDOUT_ROWS, _JUDGED):
            continue
        for block in reversed(blocks):
            if activity.blocks(start, newest, block) >= MIN_BLOCKS + 1:
                return holdout, block
    # `start` is the start of the longest hold-out.
    labelled = sum(activity.total(name, start, newest) for name in ("positives", "negatives"))
    raise ScaffoldError(
        f"no part of the first {about(window)} of training data can judge a model: the hold-out needs {_HOLDOUT_ROWS} "
        f"labelled rows{f', {_JUDGED} of each class,' if activity.classed else ''} in {MIN_BLOCKS + 1} different "
        f"{chosen.unit}s, and its newest half has {labelled:,.0f} in {activity.blocks(start, newest, chosen.step)}. "
        "Use a table that is longer or has more rows"
    )


def about(span: timedelta) -> str:
    """Write a span for a person: in the largest unit of which it has at least two."""
    for unit, size in (("years", 365.25 * _DAY), ("days", _DAY), ("hours", _HOUR), ("minutes", _MINUTE)):
        if span >= 2 * size:
            return f"{span / size:.0f} {unit}"
    return f"{math.ceil(span / timedelta(seconds=1))} seconds"


def _window(activity: Activity, start: datetime, until: datetime, chosen: Scale) -> timedelta:
    """Return the shortest round drift window that holds enough rows, but no more than fit six times into the replay."""
    span = until - start
    fitting = [size for size in _NICE if chosen.step <= size <= span / _LEAST_WINDOWS] or [chosen.step]
    # Weekly or daily patterns are not drift.
    cycle = 7 * _DAY if chosen.step == _DAY else _DAY
    fitting = [size for size in fitting if not size % cycle] or fitting
    rows = activity.total("rows", start, until) / (span / _HOUR)
    for size in fitting:
        if span / size <= _WINDOWS and rows * (size / _HOUR) >= _WINDOW_ROWS:
            return size
    return fitting[-1]


def _sample(activity: Activity, start: datetime, end: datetime, moments: int, rows: int) -> float:
    share = min(
        1.0,
        moments / max(1, activity.total("moments", start, end)),
        rows / max(1, activity.total("rows", start, end)),
    )
    # A replay draws whole moments, so a small number of moments must not be sampled.
    if activity.total("moments", start, end) * share < 200:
        return 1.0
    return max(0.0001, float(f"{share:.2g}"))


def _floor(moment: datetime, step: timedelta) -> datetime:
    origin = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return origin + (moment - origin) // step * step


def _floor_span(span: timedelta, step: timedelta) -> timedelta:
    return span // step * step


def _round_up(span: timedelta, step: timedelta) -> timedelta:
    return -(-span // step) * step


def _stamp(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.replace(tzinfo=None), "us")


def _micros(span: timedelta) -> int:
    return span // timedelta(microseconds=1)

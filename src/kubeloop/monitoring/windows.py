"""Tumbling windows in event time: which window a logged row belongs to, and when that window closes.

Everything here depends only on the order of the log, so the same log gives the same windows, no matter in which chunks
it is read. The watermark is the largest event time among the earlier predictions in the log; a row is late if the
watermark before it had already reached the end of its window.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

Micros = NDArray[np.int64]

NEVER = int(np.iinfo(np.int64).min)
"""The watermark of a service that has served nothing yet."""

MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
"""The default origin: windows of whole weeks start on a Monday, windows of whole days at midnight UTC."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Return microseconds since the Unix epoch."""
    return (moment - _EPOCH) // _MICRO


def moment(value: int) -> datetime:
    """Return the UTC time of microseconds since the Unix epoch."""
    return _EPOCH + timedelta(microseconds=int(value))


@dataclass(frozen=True)
class Grid:
    """Windows `[origin + k * length, origin + (k + 1) * length)` for every whole k, also before the origin."""

    length: timedelta
    origin: datetime = MONDAY

    def starts(self, times: Micros) -> Micros:
        """Return the start of each time's window, in microseconds since the epoch, shape [n]."""
        origin, length = micros(self.origin), self.length // _MICRO
        return (times - origin) // length * length + origin

    def start(self, time: datetime) -> datetime:
        """Return the start of the window that holds a time."""
        return moment(int(self.starts(np.array([micros(time)], np.int64))[0]))


@dataclass(frozen=True)
class Clock:
    """The watermark of a service along its log.

    Args:
        positions: position in the log of each prediction row, shape [n]; rows of one request share one position.
        times: event time of each row in microseconds, shape [n].
        watermark: the watermark before the first of these rows, or NEVER.
    """

    positions: Micros
    times: Micros
    watermark: int = NEVER
    _places: Micros = field(init=False, repr=False)
    _marks: Micros = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = np.argsort(self.positions, kind="stable")
        places, first = np.unique(self.positions[order], return_index=True)
        newest = np.maximum.reduceat(self.times[order], first) if len(places) else self.times[:0]
        marks = np.maximum.accumulate(np.concatenate([np.array([self.watermark], np.int64), newest]))
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "_marks", marks)

    def before(self, positions: Micros) -> Micros:
        """Return the watermark just before each position in the log, in microseconds, shape [n]."""
        return self._marks[np.searchsorted(self._places, positions, side="left")]

    @property
    def last(self) -> int:
        """Return the watermark after all rows."""
        return int(self._marks[-1])


def late(clock: Clock, grid: Grid) -> NDArray[np.bool_]:
    """Return which of the clock's rows came after their window had closed, shape [n]."""
    return grid.starts(clock.times) + grid.length // _MICRO <= clock.before(clock.positions)

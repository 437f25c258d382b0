from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from kubeloop.monitoring import windows
from kubeloop.monitoring.windows import NEVER, Clock, Grid, micros, moment

DAY = timedelta(days=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("length", "origin", "time", "start"),
    [
        (7 * DAY, windows.MONDAY, "2013-04-03T12:00", "2013-04-01"),
        (7 * DAY, windows.MONDAY, "2013-04-01T00:00", "2013-04-01"),
        (7 * DAY, windows.MONDAY, "2013-03-31T23:59:59.999999", "2013-03-25"),
        (DAY, windows.MONDAY, "2013-04-03T12:00", "2013-04-03"),
        (7 * DAY, at("2013-04-03"), "2013-04-03T00:00", "2013-04-03"),
        (7 * DAY, at("2013-04-03"), "2013-04-02T23:00", "2013-03-27"),
        (timedelta(minutes=5), windows.MONDAY, "2013-04-03T12:07:30", "2013-04-03T12:05"),
    ],
)
def test_a_time_belongs_to_the_window_that_the_origin_and_the_length_give(
    length: timedelta, origin: datetime, time: str, start: str
) -> None:
    assert Grid(length, origin).start(at(time)) == at(start)


def test_microseconds_survive_both_ways() -> None:
    time = at("2013-04-03T12:07:30.000001")
    assert moment(micros(time)) == time


def test_the_watermark_is_the_newest_time_at_earlier_places() -> None:
    clock = Clock(np.array([5, 1, 3, 3]), np.array([40, 10, 20, 30]), watermark=NEVER)
    assert clock.before(np.array([1, 2, 3, 4, 5, 6])).tolist() == [NEVER, 10, 10, 30, 30, 40]
    assert clock.last == 40


def test_the_watermark_goes_on_from_where_it_was_and_never_back() -> None:
    clock = Clock(np.array([1]), np.array([10]), watermark=25)
    assert (clock.before(np.array([1])).tolist(), clock.last) == ([25], 25)
    empty = np.array([], np.int64)
    assert Clock(empty, empty, 7).last == 7


@pytest.mark.parametrize(
    ("positions", "days", "watermark", "expected"),
    [
        ([1, 2], [0.5, 1.0], None, [False, False]),  # the row at the end of a window opens the next
        ([1, 2, 3], [0.5, 1.0, 0.9], None, [False, False, True]),  # the watermark has reached the end
        ([1, 2, 3], [0.5, 0.99, 0.1], None, [False, False, False]),  # out of order, but in an open window
        ([1, 1], [1.5, 0.5], None, [False, False]),  # one request cannot make its own rows late
        ([1], [0.5], 1.0, [True]),
        ([2, 1], [0.5, 1.5], None, [True, False]),  # the place counts, not the row
    ],
)
def test_a_row_is_late_when_its_window_was_over_before_it(
    positions: list[int], days: list[float], watermark: float | None, expected: list[bool]
) -> None:
    start = micros(at("2013-04-01"))

    def time(day: float) -> int:
        return start + int(day * 86_400_000_000)

    before = NEVER if watermark is None else time(watermark)
    clock = Clock(np.array(positions), np.array([time(d) for d in days]), before)
    assert windows.late(clock, Grid(DAY)).tolist() == expected

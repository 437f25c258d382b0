"""Moments as text: one reader for all of them, and the bound that keeps a wrong clock from moving time on for good."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

SKEW = timedelta(minutes=10)
"""How far another machine's clock may run ahead of this one's."""

MOST = timedelta(hours=1)
"""The largest skew that a loop may set, and so the bound for who does not know the loop."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def read(text: Any, zone: str = "UTC") -> datetime:
    """Read an ISO 8601 time; one without an offset is of a time zone.

    Raises:
        ValueError: the text is no time, or one that UTC has no year for.
    """
    try:
        value = datetime.fromisoformat(text)
        return local(value, zone) if value.tzinfo is None else value.astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{text!r:.80} is not an ISO 8601 time such as 2013-04-01T12:00:00Z") from error


def micros(text: Any) -> int:
    """Read an ISO 8601 time as microseconds since 1970; one without an offset is UTC.

    Raises:
        ValueError: the text is no time, or lies before 1970.
    """
    value = (read(text) - _EPOCH) // _MICROSECOND
    if value < 0:
        raise ValueError(f"{text} lies before 1970")
    return value


def local(value: datetime, zone: str) -> datetime:
    """Return the moment at which clocks of a zone show a time.

    A time that they skip, or show twice, is the later of its two readings: what DuckDB makes of the tables (see
    `reading.cells`).
    """
    place = UTC if zone == "UTC" else ZoneInfo(zone)
    return max(value.replace(tzinfo=place, fold=fold).astimezone(UTC) for fold in (0, 1))


def past(moment: datetime, skew: timedelta = SKEW) -> datetime:
    """Return a moment that has come, give or take the skew of clocks.

    Raises:
        ValueError: it lies ahead of that, or before 1970.
    """
    if moment < _EPOCH:
        raise ValueError(f"{moment.isoformat()} lies before 1970")
    if moment > datetime.now(UTC) + skew:
        raise ValueError(f"{moment.isoformat()} is in the future; name a moment whose data are there")
    return moment

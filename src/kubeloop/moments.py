"""Read moments from text, and refuse moments in the future, so that one wrong clock cannot move time forward."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

SKEW = timedelta(minutes=10)
"""How far another machine's clock may run ahead of this one's."""

MOST = timedelta(hours=1)
"""The largest skew that a loop may set; the bound where the loop is not known."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def read(text: Any, zone: str = "UTC") -> datetime:
    """Read an ISO 8601 time; one without an offset is in the given time zone.

    Raises:
        ValueError: the text is not a time, or its year in UTC is out of range.
    """
    try:
        value = datetime.fromisoformat(text)
        return local(value, zone) if value.tzinfo is None else value.astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{text!r:.80} is not an ISO 8601 time such as 2013-04-01T12:00:00Z") from error


def micros(text: Any) -> int:
    """Read an ISO 8601 time as microseconds since 1970; one without an offset is UTC.

    Raises:
        ValueError: the text is not a time, or is before 1970.
    """
    value = (read(text) - _EPOCH) // _MICROSECOND
    if value < 0:
        raise ValueError(f"{text} is before 1970")
    return value


def local(value: datetime, zone: str) -> datetime:
    """Return the moment at which clocks of a zone show a time.

    If the clocks skip the time or show it twice, it is the later of its two readings, as DuckDB reads the tables
    (see `reading.cells`).
    """
    place = UTC if zone == "UTC" else ZoneInfo(zone)
    return max(value.replace(tzinfo=place, fold=fold).astimezone(UTC) for fold in (0, 1))


def past(moment: datetime, skew: timedelta = SKEW) -> datetime:
    """Return a moment that is not in the future, apart from the skew of clocks.

    Raises:
        ValueError: it is later than that, or before 1970.
    """
    if moment < _EPOCH:
        raise ValueError(f"{moment.isoformat()} is before 1970")
    if moment > datetime.now(UTC) + skew:
        raise ValueError(f"{moment.isoformat()} is in the future; give a moment for which data exist")
    return moment

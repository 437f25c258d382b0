"""The types of the settings: durations, moments, names, image references, quantities."""

import re
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from kubeloop import moments
from kubeloop.errors import KubeloopError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class ConfigError(KubeloopError, ValueError):
    """A setting is missing, wrong or unknown; the message says which and what to write instead."""

    lasting = True


def duration(text: str | timedelta) -> timedelta:
    """Read a duration such as `90d`, `12h` or `30m`.

    Raises:
        ValueError: the text is not a whole number followed by one of s, m, h, d, w.
    """
    if isinstance(text, timedelta):
        return text
    match = re.fullmatch(r"\s*(\d+)\s*([smhdw])\s*", str(text))
    if not match:
        raise ValueError(f"{text!r} is not a duration; write a number and a unit, such as 7d, 12h or 30m")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def duration_text(value: timedelta) -> str:
    """Write a duration as `duration` reads it, in the largest unit that gives a whole number."""
    seconds = int(value.total_seconds())
    for unit, size in (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _utc(value: Any) -> Any:
    """Read a bare date or a naive time as UTC."""
    text = value.isoformat() if hasattr(value, "isoformat") else value
    return moments.read(text) if isinstance(text, str) else value


def instant(text: str) -> datetime:
    """Read an ISO 8601 moment; one without an offset is UTC.

    Raises:
        ConfigError: the text is not a moment.
    """
    try:
        value: datetime = _utc(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a moment; write one such as 2013-04-01 or 2013-04-01T12:00:00Z") from error
    return value


def past(text: str) -> datetime:
    """Read a moment that is not in the future, as `instant` does.

    Raises:
        ConfigError: the text is not a moment, or is in the future or before 1970.
    """
    try:
        return moments.past(instant(text))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def number(value: Any) -> Any:
    """Read `1e-5` as a number; YAML 1.1 wants `1.0e-5`."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


Duration = Annotated[
    timedelta,
    BeforeValidator(duration),
    PlainSerializer(duration_text, return_type=str),
]
Instant = Annotated[AwareDatetime, BeforeValidator(_utc)]
Share = Annotated[float, Field(ge=0, le=1)]


def _image(text: str) -> str:
    name, at, digest = text.partition("@")
    if at and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{text!r} has no digest such as sha256: and 64 hex digits after the @")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not at and (not tag or tag == "latest"):
        raise ValueError(f"{text!r} names no version; give a full tag, such as kubeloop-core:0.1.0, or a digest")
    return text


ImageRef = Annotated[str, Field(min_length=1, pattern=r"^[\w./:@-]+$"), AfterValidator(_image)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"), BeforeValidator(str)]
EnvName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
DnsName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$")]


class Model(BaseModel):
    """A section of the configuration: it cannot be changed, and an unknown setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

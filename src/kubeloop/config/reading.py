"""The settings of `source.tables` that say how a file and its columns are read."""

import re
import zoneinfo
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kubeloop.config.types import Model

WORDS = (
    "na",
    "n/a",
    "#n/a",
    "<na>",
    "null",
    "none",
    "nan",
    "nat",
    "nil",
    "\\n",
    "?",
    "-",
    "--",
    ".",
    "#null!",
    "#value!",
    "#div/0!",
    "#nv",
    "#n/d",
    "#wert!",
    "#valeur!",
    "#¡valor!",
    "#valor!",
    "(null)",
    "<null>",
    "(blank)",
    "(leer)",
    "n.a.",
    "k.a.",
    "k. a.",
    "n.v.",
    "n.d.",
    "s/d",
    "n/d",
)
"""Words for a missing value, in lower case; no number, time or truth value is written like that."""
EXACT = ("NA", "N/A", "#N/A", "<NA>", "NULL", "null", "None", "NaN", "nan", "NaT", "\\N", "?", "-", "--")
"""Words that `init` takes for a missing value in texts too: programs write them; `none` could be a person's answer."""

EPOCHS = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1, "epoch_ns": 0}
"""Formats of times that count from 1970: microseconds per unit, 0 for nanoseconds."""
NAMED = ("iso", "excel", "quarter", "week", *EPOCHS)
"""Formats of times that are not written with % signs."""


def _zone(text: str) -> str:
    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{text!r} is not a time zone; write one such as Europe/Berlin") from None
    return text


def _format(text: str) -> str:
    if text not in NAMED and not re.search(r"%[a-zA-Z]", text):
        raise ValueError(f"{text!r} is not a time format; write one such as %d/%m/%Y, or one of {', '.join(NAMED)}")
    return text


TimeZone = Annotated[str, AfterValidator(_zone)]
TimeFormat = Annotated[str, AfterValidator(_format)]


class Read(Model):
    """How to open a file; settings that are left out are found from the file."""

    encoding: str | None = Field(default=None, description="Encoding of a text file, such as cp1252; else UTF-8.")
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        default=None, description="Field separator of a CSV file."
    )
    skip: int | None = Field(default=None, ge=0, description="Lines before the one with the names of the columns.")
    sheet: str | None = Field(default=None, description="Sheet of a workbook.")
    timezone: TimeZone = Field(
        default="UTC",
        description="Time zone of times without an offset. A local time that the clock skipped or showed twice is read "
        "as the later of its two readings.",
    )


class Column(Model):
    """How to read the texts of a column."""

    kind: Literal["text", "integer", "number", "boolean", "time"]
    missing: tuple[str, ...] = Field(
        default=(), description="Words for a missing value; if left out, NA, NULL, ? and the like, except in text."
    )
    decimal: Literal[".", ","] = "."
    thousands: Literal["", ".", ",", " ", "'"] = ""
    sign: str = Field(default="", description="Currency or % before or after the number; it is removed.")
    format: TimeFormat = Field(
        default="iso",
        description="Of times: as strptime has it, or iso, excel, quarter, week, epoch_s, epoch_ms, "
        "epoch_us, epoch_ns.",
    )
    of: tuple[str, ...] = Field(
        default=(), description="The columns with the date and the time of day that make up this time, in this order."
    )

    @model_validator(mode="after")
    def _two_separators(self) -> "Column":
        if self.decimal == self.thousands:
            raise ValueError("decimal and thousands cannot be the same")
        return self

    def brief(self) -> str | dict[str, Any]:
        """Return the setting as loop.yaml holds it: only the kind if nothing else was given."""
        said = self.model_dump(mode="json", exclude_defaults=True)
        return self.kind if set(said) == {"kind"} else said


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Columns = dict[str, Annotated[Column, BeforeValidator(_kind_alone)]]

"""Find the one format of a column of times, from all of its values; where two fit, both are named."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubeloop.reading import cells
from kubeloop.reading.spec import EPOCHS

if TYPE_CHECKING:
    import duckdb

FITS = 0.99
"""Share of the values that a format must fit; the rest are strays, and their rows go into the quarantine."""
_HEAD = 10_000
_FIRST, _LAST = 1980, 2100
"""Years in which a number may be a time; with these no number of seconds is one of milliseconds as well."""

_DATE = re.compile(
    r"(?:(?P<day>[A-Za-z]{3,9})(?P<comma>,? ))?"
    r"(?P<a>\d{1,4}|[A-Za-z]{3,9})(?P<s>[-/. ])(?P<b>\d{1,2}|[A-Za-z]{3,9})(?P<t>[-/. ]|, )(?P<c>\d{4}|\d{1,2})"
)
_CTIME = re.compile(r"(?P<day>[A-Za-z]{3}) [A-Za-z]{3} +\d{1,2} \d{1,2}:\d{2}:\d{2} \d{4}")
_CLOCK = re.compile(
    r"(?P<sep>T| |, |:| at )(?P<h>\d{1,2})(?::\d{2}(?P<s>:\d{2}(?P<f>[.,]\d{1,9})?)?)?(?P<p> ?[AaPp][Mm])?"
    r"(?P<z> ?(?:[+-]\d{2}:?\d{2}|[A-Z]{1,4}))?"
)
_DIGITS = {
    "%Y%m%d": 8, "%d%m%Y": 8, "%m%d%Y": 8, "%y%m%d": 6, "%Y%m": 6, "%Y": 4,
    "%Y%m%d%H": 10, "%Y%m%d%H%M": 12, "%Y%m%d%H%M%S": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The formats that fit best, and what each makes of one value; several only where they disagree."""

    formats: tuple[str, ...]
    example: str
    moments: tuple[str, ...]
    fits: int
    stray: str | None


def candidates(text: str) -> list[str]:
    """Return the formats that could be meant by one text."""
    if _CTIME.fullmatch(text):
        return ["%a %b %d %H:%M:%S %Y"]
    found = _DATE.match(text)
    if not found:
        return []
    clock = _clock(text[found.end() :])
    if clock is None:
        return []
    a, b, c, first, second = found["a"], found["b"], found["c"], found["s"], found["t"]
    year = "%Y" if len(c) == 4 else "%y"
    orders = []
    if len(a) == 4 and a.isdigit():
        if len(c) < 4:
            orders = [("%Y", _month(b), "%d")]
    elif a.isalpha():
        orders = [(_month(a), "%d", year)] if b.isdigit() else []
    elif len(a) < 3:
        orders = [("%d", _month(b), year)]
        if b.isdigit():
            orders.append(("%m", "%d", year))
        if year == "%y" and first != ".":
            orders.append(("%y", _month(b), "%d"))
    weekday = "" if not found["day"] else ("%a" if len(found["day"]) == 3 else "%A") + found["comma"]
    return [f"{weekday}{x}{first}{y}{second}{z}{clock}" for x, y, z in orders]


def _month(part: str) -> str:
    return "%m" if part.isdigit() else "%b" if len(part) == 3 else "%B"


def _clock(rest: str) -> str | None:
    if not rest:
        return ""
    if digits := re.fullmatch(r" (\d{4}|\d{6})", rest):
        return " %H%M" if len(digits[1]) == 4 else " %H%M%S"
    found = _CLOCK.fullmatch(rest)
    if not found or not (":" in rest[len(found["sep"]) :] or found["p"]):
        return None
    hour = "%I" if found["p"] else "%H"
    minute = ":%M" if ":" in rest[len(found["sep"]) :] else ""
    second = ":%S" if found["s"] else ""
    part = "" if not found["f"] else found["f"][0] + ("%f" if len(found["f"]) <= 7 else "%n")
    half = "" if not found["p"] else " %p" if found["p"].startswith(" ") else "%p"
    zone = found["z"] or ""
    offset = "" if not zone else " " * zone.startswith(" ") + ("%z" if zone.strip()[0] in "+-" else "%Z")
    return f"{found['sep']}{hour}{minute}{second}{part}{half}{offset}"


def find(db: "duckdb.DuckDBPyConnection", rows: str, text: str, zone: str, filled: int) -> Found | None:
    """Find the format of a column of texts.

    Args:
        db: the database.
        rows: relation of the rows with a value.
        text: SQL for a value as text.
        zone: where clocks without an offset hang.
        filled: number of these rows.
    """
    # The form of a value: not which digits and letters, but where they stand. The longest has all digits of its year.
    # The beginning tells what forms there could be; whether one fits, all values tell.
    shape = rf"regexp_replace(regexp_replace({text}, '\d+', '9', 'g'), '[A-Za-z]+', 'a', 'g')"
    example = f"max_by({text}, length({text}))"
    head = f"(FROM {rows} LIMIT {_HEAD})"
    shapes = db.execute(
        f"SELECT {shape} AS shape, count(*), {example} FROM {head} GROUP BY 1 ORDER BY 2 DESC LIMIT 1"
    ).fetchall()
    if not shapes:
        return None
    return weigh(
        db, rows, text, zone, filled, {form: cells.time(text, form, zone) for form in candidates(shapes[0][2])}
    )


def find_number(db: "duckdb.DuckDBPyConnection", rows: str, text: str, zone: str, filled: int) -> Found | None:
    """Find the format of a column of numbers that are times: digits of a date, counts since 1970, days of Excel."""
    forms = {
        form: f"CASE WHEN length({text}) = {digits} THEN {_plausible(cells.time(text, form, zone))} END"
        for form, digits in _DIGITS.items()
    }
    forms |= {form: _plausible(cells.time(text, form, zone)) for form in ("excel", *EPOCHS)}
    return weigh(db, rows, text, zone, filled, forms)


def _plausible(moment: str) -> str:
    return f"CASE WHEN year({moment}) BETWEEN {_FIRST} AND {_LAST} THEN {moment} END"


def weigh(
    db: "duckdb.DuckDBPyConnection", rows: str, text: str, zone: str, filled: int, forms: dict[str, str]
) -> Found | None:
    """Return which formats fit best, of those that fit nearly all rows."""
    if not forms or not filled:
        return None
    moments = list(forms.values())
    (fits,) = db.execute(f"SELECT {', '.join(f'count({moment})' for moment in moments)} FROM {rows}").fetchall()
    best = max(fits)
    if best < FITS * filled:
        return None
    chosen = {form: moment for (form, moment), count in zip(forms.items(), fits, strict=True) if count == best}
    first, *others = chosen.values()
    differ = [f"({moment}) IS DISTINCT FROM ({first})" for moment in others]
    told = [f"strftime({moment} AT TIME ZONE {cells.literal(zone)}, '%Y-%m-%d %H:%M:%S')" for moment in chosen.values()]
    (row,) = db.execute(
        f"SELECT {', '.join([f'count_if({test})' for test in differ] or ['count_if(false)'])} FROM {rows}"
    ).fetchall()
    left = [next(iter(chosen)), *(form for form, count in zip(list(chosen)[1:], row, strict=False) if count)]
    where = " OR ".join(test for test, count in zip(differ, row, strict=False) if count) or f"({first}) IS NOT NULL"
    example, *values = db.execute(f"SELECT {text}, {', '.join(told)} FROM {rows} WHERE {where} LIMIT 1").fetchall()[0]
    shown = dict(zip(chosen, values, strict=True))
    stray = None
    if best < filled:
        ((stray,),) = db.execute(f"SELECT any_value({text}) FROM {rows} WHERE ({first}) IS NULL").fetchall()
    return Found(tuple(left), example, tuple(brief(shown[form]) for form in left), best, stray)


def brief(moment: str | None) -> str:
    """Leave midnight out of a time."""
    return "no time" if moment is None else moment.removesuffix(" 00:00:00").removesuffix(":00")

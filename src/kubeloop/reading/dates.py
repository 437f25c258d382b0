"""Find the format of a column of times from all of its values; if two formats fit, name both."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubeloop.config.reading import EPOCHS
from kubeloop.reading import cells, months, zones

if TYPE_CHECKING:
    import duckdb

FITS = 0.99
"""Share of the values that a format must fit. The rows of the other values go to the quarantine."""
_HEAD = 10_000
_SHAPES = 3
"""Forms of values whose formats are tried: with and without a time of day, with and without a fraction."""
_FIRST, _LAST = 1980, 2100
"""Years that a count of time may stand for; within them, a number of seconds is never also one of milliseconds."""
_FIRST_DATE = 1800
"""The first year that digits may stand for, as in 19500103."""

_DATE = re.compile(
    r"(?:(?P<day>[A-Za-z]{3,9})(?P<comma>,? ))?"
    r"(?P<a>\d{1,4}|[A-Za-z]{3,9})(?P<s>[-/. ])(?P<b>\d{1,2}|[A-Za-z]{3,9})(?P<t>[-/. ]|, )(?P<c>\d{4}|\d{1,2})"
)
_MONTH = re.compile(
    r"(?:(?P<year>\d{4})(?P<s>[-/. ])(?P<m>\d{1,2}|[A-Za-z]{3,9})|(?P<n>\d{1,2}|[A-Za-z]{3,9})(?P<t>[-/. ])\d{4})"
)
_BASIC = re.compile(r"\d{8}(?P<sep>[T ])(?P<clock>\d{4}|\d{6})(?P<z>Z|[+-]\d{2}:?\d{2})?")
_CTIME = re.compile(r"[A-Za-z]{3} [A-Za-z]{3} +\d{1,2} \d{1,2}:\d{2}:\d{2} (?:(?P<z>[+-]\d{4}|[A-Z]{2,5}) )?\d{4}")
_SCRIPT = re.compile(r"[A-Za-z]{3} [A-Za-z]{3} \d{2} \d{4} \d{2}:\d{2}:\d{2} GMT[+-]\d{4}( \(.*\))?")
_NAMED_MONTH = re.compile(
    r"(?:\d{1,2} (?P<m>0[1-9]|1[0-2])|(?P<first>0[1-9]|1[0-2]) \d{1,2},?) (?P<y>\d{4}|\d{2})(?P<rest>.*)"
)
_CLOCK = re.compile(
    r"(?P<sep>T| |, |:| at )(?P<h>\d{1,2})(?::\d{2}(?P<s>:\d{2}(?P<f>[.,]\d{1,9})?)?)?(?P<p> ?[AaPp](?:[Mm]|\.[Mm]\.))?"
    r"(?P<z> ?(?:[+-]\d{2}:?\d{2}|[A-Z]{1,5}))?"
)
_DIGITS = {
    "%Y%m%d": 8, "%d%m%Y": 8, "%m%d%Y": 8, "%y%m%d": 6, "%Y%m": 6, "%Y": 4,
    "%Y%m%d%H": 10, "%Y%m%d%H%M": 12, "%Y%m%d%H%M%S": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The formats that fit best, and how each reads one value; several only if they disagree."""

    formats: tuple[str, ...]
    example: str
    moments: tuple[str, ...]
    fits: int
    stray: str | None


def candidates(text: str) -> list[str]:
    """Return the formats that could be meant by one text."""
    if text.startswith("[") and text.endswith("]"):
        return [f"[{form}]" for form in candidates(text[1:-1])]
    if ctime := _CTIME.fullmatch(text):
        return [f"%a %b %d %H:%M:%S {_offset(ctime['z']) + ' ' if ctime['z'] else ''}%Y"]
    if _SCRIPT.fullmatch(text):
        return ["%a %b %d %Y %H:%M:%S GMT%z"]
    for name, shape in (("quarter", cells.QUARTER), ("week", cells.WEEK)):
        if re.fullmatch(shape, text):
            return [name]
    if month := _MONTH.fullmatch(text):
        form = f"%Y{month['s']}{_month(month['m'])}" if month["year"] else f"{_month(month['n'])}{month['t']}%Y"
        return [form]
    if basic := _BASIC.fullmatch(text):
        return [f"%Y%m%d{basic['sep']}%H%M{'%S' * (len(basic['clock']) > 4)}{_offset(basic['z'] or '')}"]
    found = _DATE.match(text)
    clock = _clock(text[found.end() :]) if found else None
    if not found or clock is None:
        return _by_name(text)
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
        # If the month is a word, the year comes last.
        if year == "%y" and first != "." and b.isdigit():
            orders.append(("%y", "%m", "%d"))
    weekday = "" if not found["day"] else ("%a" if len(found["day"]) == 3 else "%A") + found["comma"]
    return [f"{weekday}{x}{first}{y}{second}{z}{clock}" for x, y, z in orders]


def _by_name(text: str) -> list[str]:
    """Return the format of a date with a month's name that is not English, or is at an unusual position for English."""
    short = re.match(r"[^\W\d_]+[.,]* +", text)
    for weekday, whole in (("", text), ("%a, ", text[short.end() :] if short else "")):
        plain = months.plain(whole)
        found = _NAMED_MONTH.fullmatch(plain) if plain != whole else None
        clock = _clock(found["rest"]) if found else None
        if found and clock is not None:
            year = "%Y" if len(found["y"]) == 4 else "%y"
            comma = "," * ("," in plain[: found.start("y")])
            return [f"{weekday}{f'%B %d{comma}' if found['first'] else '%d %B'} {year}{clock}"]
    month = re.fullmatch(r"(0[1-9]|1[0-2]) \d{4}", months.plain(text))
    return ["%B %Y"] if month else []


def _month(part: str) -> str:
    return "%m" if part.isdigit() else "%b" if len(part) == 3 else "%B"


def _clock(rest: str) -> str | None:
    if not rest:
        return ""
    if digits := re.fullmatch(r" (\d{4}|\d{6})", rest):
        return " %H%M" if len(digits[1]) == 4 else " %H%M%S"
    if rest.endswith(" Uhr"):
        clock = _clock(rest.removesuffix(" Uhr"))
        return clock and f"{clock} Uhr"
    found = _CLOCK.fullmatch(rest)
    if not found or not (":" in rest[len(found["sep"]) :] or found["p"]):
        return None
    hour = "%I" if found["p"] else "%H"
    minute = ":%M" if ":" in rest[len(found["sep"]) :] else ""
    second = ":%S" if found["s"] else ""
    part = "" if not found["f"] else found["f"][0] + ("%f" if len(found["f"]) <= 7 else "%n")
    half = "" if not found["p"] else " %p" if found["p"].startswith(" ") else "%p"
    return f"{found['sep']}{hour}{minute}{second}{part}{half}{_offset(found['z'] or '')}"


def _offset(zone: str) -> str:
    return "" if not zone else " " * zone.startswith(" ") + ("%z" if zone.strip()[0] in "+-Z" else "%Z")


def find(db: "duckdb.DuckDBPyConnection", rows: str, text: str, zone: str, filled: int) -> Found | None:
    """Find the format of a column of texts.

    Args:
        db: the database.
        rows: relation of the rows with a value.
        text: SQL for a value as text.
        zone: the zone of times without an offset.
        filled: number of these rows.
    """
    # The form of a value is the positions of its digits and letters. The longest value has all digits of its year.
    # The beginning of the table shows the possible forms; all values show whether one fits. Offsets west of, at and
    # east of Greenwich have the same form.
    shape = rf"regexp_replace({text}, '([+-]\d{{2}}:?\d{{2}}|Z)(]?)$', '+9\2')"
    shape = rf"regexp_replace(regexp_replace({shape}, '\d+', '9', 'g'), '\pL+', 'a', 'g')"
    example = f"max_by({text}, length({text}))"
    head = f"(FROM {rows} LIMIT {_HEAD})"
    shapes = db.execute(
        f"SELECT {shape} AS shape, count(*), {example} FROM {head} GROUP BY 1 ORDER BY 2 DESC LIMIT {_SHAPES}"
    ).fetchall()
    forms = dict.fromkeys(form for _, _, longest in shapes for form in candidates(longest))
    return weigh(db, rows, text, zone, filled, {form: cells.time(text, form, zone) for form in forms})


def which_zone(db: "duckdb.DuckDBPyConnection", rows: str, text: str, filled: int) -> tuple[str, list[str]] | None:
    """Return an example of a column of times with a word that several zones share, and these zones."""
    words = "|".join(zones.SHARED)
    shared = rf"regexp_extract({text}, '\b({words})\b', 1)"
    found = db.execute(
        f"SELECT {shared}, any_value({text}) FROM (FROM {rows} LIMIT {_HEAD}) WHERE {shared} <> '' "
        "GROUP BY 1 ORDER BY 1"
    ).fetchall()
    if not found:
        return None
    word, example = found[0]
    fitting = [zone for zone in zones.SHARED[word] if find(db, rows, text, zone, filled)]
    return (example, fitting) if fitting else None


def find_number(db: "duckdb.DuckDBPyConnection", rows: str, text: str, zone: str, filled: int) -> Found | None:
    """Find the format of a column of numbers that are times: digits of a date, counts since 1970, Excel's days."""
    forms = {
        form: f"CASE WHEN length({text}) = {digits} THEN {_plausible(cells.time(text, form, zone), _FIRST_DATE)} END"
        for form, digits in _DIGITS.items()
    }
    forms |= {form: _plausible(cells.time(text, form, zone)) for form in ("excel", *EPOCHS)}
    return weigh(db, rows, text, zone, filled, forms)


def _plausible(moment: str, first: int = _FIRST) -> str:
    return f"CASE WHEN year({moment}) BETWEEN {first} AND {_LAST} THEN {moment} END"


def weigh(
    db: "duckdb.DuckDBPyConnection", rows: str, text: str, zone: str, filled: int, forms: dict[str, str]
) -> Found | None:
    """Return the formats that fit best among those that fit nearly all rows."""
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

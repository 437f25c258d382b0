"""SQL that reads a text as a number, a truth value or a time, as a `spec.Column` says; null if it does not fit.

If the clocks skip a local time or show it twice, the later of its two readings counts: DuckDB's ICU uses the offset
from before the gap, and the one from after the repeated hour. `moments.local` does the same for a request.
"""

import re

from kubeloop.config.reading import EPOCHS, WORDS, Column
from kubeloop.reading import months, zones

INTEGER = r"[+-]?\d+"
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?([iI][nN][fF]([iI][nN][iI][tT][yY])?)"
ISO = (
    r"\d{4}-\d{1,2}-\d{1,2}([T ]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?( ?(Z|z|UTC|[+-]\d{2}(:?\d{2})?)(\[[A-Za-z_/+-]+\])?)?"
    r"|\d{4}-\d{1,2}-\d{1,2}[T ]\d{1,2}(Z|z)"
)
_AWARE = r".*:\d{2}(\.\d+)? ?(Z|z|UTC|[+-]\d{2}(:?\d{2})?)(\[.*)?"
_MINUS = "[-−]"
QUARTER = r"\d{4}[-/ ]?[QqTt][1-4]|[QqTt][1-4][-/ ]?\d{4}|[1-4][QqTt][-/ ]?\d{4}"
WEEK = r"\d{4}[-/ ]?(?:[Ww]|KW|CW) ?(?:\d{1,2}|\d{2}-?[1-7])|(?:[Ww]|KW|CW) ?\d{1,2}[-/ ]\d{4}"
_CLOCK = re.compile(r"(?:T| |, |:| at )%[HI].*$")
_BLANK = r"[\s\x{00A0}\x{2009}\x{202F}]*"
_CLASSES = {"": "", ".": r"\.", ",": ",", " ": "[ \\x{00A0}\\x{2009}\\x{202F}]", "'": "['’]"}
WHAT = {
    "text": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "time": "a time",
}


def identifier(name: str) -> str:
    """Quote a column's name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """Quote a value as an SQL string."""
    return "'" + str(value).replace("'", "''") + "'"


def text(name: str, kind: str) -> str:
    """Return SQL for a column's values as texts without surrounding spaces; numbers in plain digits."""
    if kind == "VARCHAR":
        return f"trim({identifier(name)})"
    if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        return f"rtrim(rtrim(printf('%.6f', {identifier(name)}::DOUBLE), '0'), '.')"
    return f"{identifier(name)}::VARCHAR"


def missing(value: str, column: Column) -> str:
    """Return SQL that says whether a text stands for no value."""
    tests = [f"{value} IS NULL"]
    if column.kind != "text":
        tests.append(f"lower({value}) IN ({', '.join(map(literal, ('', *WORDS)))})")
    if column.kind == "time":
        tests.append(f"{value} LIKE '0000-00-00%'")
    if column.missing:
        tests.append(f"{value} IN ({', '.join(map(literal, column.missing))})")
    return f"({' OR '.join(tests)})"


def value(text: str, column: Column, zone: str) -> str:
    """Return SQL for the value that a text is read as; null if it is not a value of the column's kind."""
    if column.kind == "integer":
        return f"CASE WHEN regexp_full_match({text}, '{INTEGER}') THEN TRY_CAST({text} AS BIGINT) END"
    if column.kind == "number":
        return _number(text, column)
    if column.kind == "boolean":
        return f"CASE WHEN lower({text}) IN ('true', 'false') THEN {text}::BOOLEAN END"
    if column.kind == "time":
        return time(text, column.format, zone)
    return text


def _number(text: str, column: Column) -> str:
    if column.decimal == "." and not column.thousands and not column.sign:
        # Nearly all numbers are plain. The rest may be (1.5), 1.5- or −1.5, which is slower to test.
        return (
            f"CASE WHEN regexp_full_match({text}, '{NUMBER}') THEN TRY_CAST({text} AS DOUBLE) "
            f"ELSE {_local(text, column)} END"
        )
    return _local(text, column)


def _local(text: str, column: Column) -> str:
    between, point = _CLASSES[column.thousands], _CLASSES[column.decimal]
    # In lakhs and crores, groups have two digits.
    grouped = rf"\d{{1,3}}(?:{between}\d{{2,3}})*{between}\d{{3}}|" if column.thousands else ""
    body = rf"(?:(?:{grouped}\d+)(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?"
    sign = rf"(?:{re.escape(column.sign)})?" if column.sign else ""
    around = rf"(?:[+]|{_MINUS})?{_BLANK}{sign}{_BLANK}(?:[+]|{_MINUS})?{_BLANK}{body}{_BLANK}{sign}{_BLANK}{_MINUS}?"
    shape = rf"{around}|\({_BLANK}{sign}{_BLANK}{body}{_BLANK}{sign}{_BLANK}\)"
    plain = f"regexp_extract({text}, {literal(body)})"
    if column.thousands:
        plain = f"regexp_replace({plain}, {literal(between)}, '', 'g')"
    if column.decimal == ",":
        plain = f"replace({plain}, ',', '.')"
    negative = rf"^[^0-9]*({_MINUS}|\()|{_MINUS}\s*$"
    return (
        f"CASE WHEN regexp_full_match({text}, {literal(shape)}) THEN TRY_CAST({plain} AS DOUBLE) * "
        f"CASE WHEN regexp_matches({text}, {literal(negative)}) THEN -1 ELSE 1 END END"
    )


def time(text: str, form: str, zone: str) -> str:
    """Return SQL for the moment of a text; a time without an offset is in the given zone."""
    here = f"AT TIME ZONE {literal(zone)}"
    if form == "iso":
        return (
            f"CASE WHEN NOT regexp_full_match({text}, '{ISO}') THEN NULL "
            f"WHEN regexp_full_match({text}, '{_AWARE}') THEN TRY_CAST(split_part({text}, '[', 1) AS TIMESTAMPTZ) "
            f"ELSE TRY_CAST({text} AS TIMESTAMP) {here} END"
        )
    if form in EPOCHS:
        scale = EPOCHS[form]
        whole = f"TRY_CAST({text} AS DECIMAL(38, 6))"
        micros = f"TRY_CAST(floor({whole} * {scale}) AS BIGINT)" if scale else f"TRY_CAST({text} AS HUGEINT) // 1000"
        return f"TRY(make_timestamp(({micros})::BIGINT)) AT TIME ZONE 'UTC'"
    if form == "excel":
        # There, a day is a float with a precision of about a microsecond; times are written to the millisecond at most.
        millis = f"round(TRY_CAST(replace({text}, ',', '.') AS DOUBLE) * 86400000)::BIGINT"
        return f"TRY(TIMESTAMP '1899-12-30' + to_milliseconds({millis})) {here}"
    if form in ("quarter", "week"):
        return f"{_period(text, form)} {here}"
    if "%p" in form:
        text = rf"regexp_replace({text}, '([AaPp])\.[Mm]\.', '\1m')"
    if "GMT%z" in form:
        # JavaScript writes the zone's name in brackets.
        text = rf"regexp_replace({text}, ' \(.*\)$', '')"
    if "%z" in form:
        text = f"regexp_replace({text}, 'Z$', '+0000')"
    parsed = _zoned(text, form, zone) if "%Z" in form else _parsed(text, form)
    if re.search(r"%[zZ]", form):
        return f"CASE WHEN year({parsed}) >= 1000 THEN {parsed} END"
    return f"CASE WHEN year({parsed}) >= 1000 THEN {parsed} {here} END"


def _period(text: str, form: str) -> str:
    """Return SQL for the beginning of a quarter or of a week as ISO 8601 counts them."""
    shape = QUARTER if form == "quarter" else WEEK
    year = f"regexp_extract({text}, '[0-9]{{4}}')"
    part = f"regexp_extract(regexp_replace({text}, '[0-9]{{4}}', ''), '[0-9]{{1,2}}')"
    fits = f"regexp_full_match({text}, {literal(shape)})"
    if form == "quarter":
        return (
            f"CASE WHEN {fits} THEN try_strptime({year} || '-' || (TRY_CAST({part} AS INTEGER) * 3 - 2), '%Y-%m') END"
        )
    day = f"coalesce(nullif(regexp_extract({text}, '[Ww][0-9]{{2}}-?([1-7])$', 1), ''), '1')"
    return f"CASE WHEN {fits} THEN try_strptime(concat_ws('-', {year}, 'W' || {part}, {day}), '%G-W%V-%u') END"


def _parsed(text: str, form: str) -> str:
    """Return SQL for the moment of a text, even if a program left out midnight or the zero seconds."""
    shorter = [short for short in (form.replace(".%f", "").replace(",%f", ""), _CLOCK.sub("", form)) if short != form]
    if "%z" in form:
        # A text without an offset is another kind of time.
        shorter = []
    several = f"[{', '.join(map(literal, (form, *dict.fromkeys(shorter))))}]" if shorter else literal(form)
    if not re.search("%[bB]", form):
        return f"try_strptime({text}, {several})"
    other = f"strip_accents({text})"
    if form.startswith(("%a", "%A")):
        other = f"regexp_replace({other}, {literal(months.WEEKDAY)}, '')"
    for pattern, by in months.STEPS:
        other = f"regexp_replace({other}, {literal(pattern)}, {literal(by)}, 'g')"
    return f"coalesce(try_strptime({text}, {several}), try_strptime(trim({other}), {literal(months.numbered(form))}))"


def _zoned(text: str, form: str, zone: str) -> str:
    """Return SQL for the moment of a text that ends with a word for its zone."""
    known = zones.offsets(zone)
    word = rf"regexp_extract({text}, '\b({'|'.join(known)})\b', 1)"
    pairs = " ".join(f"WHEN {literal(name)} THEN {literal(offset)}" for name, offset in known.items())
    numeric = _parsed(f"replace({text}, {word}, CASE {word} {pairs} END)", form.replace("%Z", "%z"))
    # DuckDB reads a word that several zones share as one of them; a full name is unique.
    clear = f"regexp_matches({text}, '[A-Z][a-z]+/[A-Z][A-Za-z_]+')"
    return f"CASE WHEN {word} <> '' THEN {numeric} WHEN {clear} THEN try_strptime({text}, {literal(form)}) END"

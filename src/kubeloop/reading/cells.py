"""SQL that reads a text as a number, a truth value or a time, as a `spec.Column` says; null where it does not fit.

A local time that the clocks skip or show twice is the later of its two readings: DuckDB's ICU takes the offset before
the gap, and the one after the repeated hour. `moments.local` does the same for a request.
"""

import re

from kubeloop.reading.spec import EPOCHS, WORDS, Column

INTEGER = r"[+-]?\d+"
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?([iI][nN][fF]([iI][nN][iI][tT][yY])?)"
ISO = (
    r"\d{4}-\d{1,2}-\d{1,2}([T ]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?( ?(Z|z|UTC|[+-]\d{2}(:?\d{2})?))?"
    r"|\d{4}-\d{1,2}-\d{1,2}[T ]\d{1,2}(Z|z)"
)
_AWARE = r".*:\d{2}(\.\d+)? ?(Z|z|UTC|[+-]\d{2}(:?\d{2})?)"
_MINUS = "[-−]"
_CLASSES = {"": "", ".": r"\.", ",": ",", " ": "[ \\x{00A0}\\x{202F}]", "'": "['’]"}
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
    """Return SQL for a column's values as texts without spaces around; numbers in plain digits."""
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
    """Return SQL for the value that a text is read as; null where it is none of the column's kind."""
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
        # Nearly all are plain; what is not may be (1.5), 1.5- or −1.5, and costs more to find out.
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
    around = rf"(?:[+]|{_MINUS})?\s*{sign}\s*(?:[+]|{_MINUS})?\s*{body}\s*{sign}\s*{_MINUS}?"
    shape = rf"{around}|\(\s*{sign}\s*{body}\s*{sign}\s*\)"
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
    """Return SQL for the moment that a text is, where clocks without an offset hang in a zone."""
    here = f"AT TIME ZONE {literal(zone)}"
    if form == "iso":
        return (
            f"CASE WHEN NOT regexp_full_match({text}, '{ISO}') THEN NULL "
            f"WHEN regexp_full_match({text}, '{_AWARE}') THEN TRY_CAST({text} AS TIMESTAMPTZ) "
            f"ELSE TRY_CAST({text} AS TIMESTAMP) {here} END"
        )
    if form in EPOCHS:
        scale = EPOCHS[form]
        whole = f"TRY_CAST({text} AS DECIMAL(38, 6))"
        micros = f"TRY_CAST(floor({whole} * {scale}) AS BIGINT)" if scale else f"TRY_CAST({text} AS HUGEINT) // 1000"
        return f"TRY(make_timestamp(({micros})::BIGINT)) AT TIME ZONE 'UTC'"
    if form == "excel":
        # A day is a float there, good for about a microsecond; nobody writes less than a millisecond.
        millis = f"round(TRY_CAST({text} AS DOUBLE) * 86400000)::BIGINT"
        return f"TRY(TIMESTAMP '1899-12-30' + to_milliseconds({millis})) {here}"
    parsed = f"try_strptime({text}, {literal(form)})"
    if re.search(r"%[zZ]", form):
        return f"CASE WHEN year({parsed}) >= 1000 THEN {parsed} END"
    return f"CASE WHEN year({parsed}) >= 1000 THEN {parsed} {here} END"

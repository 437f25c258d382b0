"""Write the rows of an open file as Parquet: one file with the rows that fit their columns, and one with the others."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kubeloop.config.reading import Column
from kubeloop.reading import cells
from kubeloop.reading.cells import identifier, literal
from kubeloop.reading.files import Opened

if TYPE_CHECKING:
    import duckdb

REASONS = "reasons"
"""The column that says why a row is not used; the quarantine has the same."""
_TIMES = re.compile(r"DATE|TIMESTAMP\w*")
_MIDNIGHT = r"[T ]00:00(:00(\.0+)?)?$"


def write(
    db: "duckdb.DuckDBPyConnection",
    opened: Opened,
    columns: Mapping[str, Column],
    moment: str | None,
    target: Path,
    misfits: Path,
) -> dict[str, tuple[int, str]]:
    """Write the rows; every time is a moment in UTC.

    Args:
        db: the database.
        opened: the file.
        columns: how its texts are read; other columns do not change.
        moment: the column that every row needs a value in, if there is one.
        target: Parquet file of the rows that fit.
        misfits: Parquet file of the others, with a column `reasons`; it is not written if there are none.

    Returns:
        For each reason, how many rows it excludes, and its full text for one of them.
    """
    zone = opened.read.timezone
    values: dict[str, str] = {}
    why: list[str] = []
    for name, kind in opened.columns.items():
        column = columns.get(name)
        if column is None or not _is_read(kind, column):
            values[name] = _as_is(name, kind, zone)
        else:
            _add(values, why, name, cells.text(name, kind), column, zone, kind)
    relation = opened.relation
    for name, column in columns.items():
        if column.of:
            # A separate column, since its text occurs in many places.
            relation = f"(SELECT *, {joined(opened, column)} AS {identifier(name)} FROM {relation})"
            _add(values, why, name, identifier(name), column, zone, "VARCHAR")
    if moment in values:
        why.append(f"CASE WHEN {values[moment]} IS NULL AND NOT {_told(why, moment)} THEN 'missing({moment})' END")
    listed = ", ".join(f"{value} AS {identifier(name)}" for name, value in values.items())
    fits = f" WHERE coalesce({', '.join(why)}) IS NULL" if why else ""
    db.execute(f"COPY (SELECT {listed} FROM {relation}{fits}) TO {literal(target)} (FORMAT parquet)")
    misfits.unlink(missing_ok=True)
    if not opened.ragged and (not why or _rows(db, relation) == _rows(db, f"read_parquet({literal(target)})")):
        return {}
    found = f"list_filter([{', '.join(why) or 'NULL'}], lambda reason: reason IS NOT NULL)"
    apart = f"SELECT * FROM (SELECT {listed}, {found} AS {REASONS} FROM {relation}) WHERE len({REASONS}) > 0"
    for line, reason, text in opened.ragged:
        apart += f" UNION ALL BY NAME SELECT [{literal(f'fields(line {line}): it {reason}: {text}')}] AS {REASONS}"
    db.execute(f"COPY ({apart}) TO {literal(misfits)} (FORMAT parquet, COMPRESSION zstd)")
    return reasons(db, misfits)


def _rows(db: "duckdb.DuckDBPyConnection", relation: str) -> int:
    ((count,),) = db.execute(f"SELECT count(*) FROM {relation}").fetchall()
    return int(count)


def reasons(db: "duckdb.DuckDBPyConnection", misfits: Path) -> dict[str, tuple[int, str]]:
    """Count the reasons in a file of misfits, without their values."""
    query = (
        rf"SELECT regexp_extract(reason, '^(.*?\)): |^.*$', 1) AS short, count(*), min(reason) FROM "
        f"(SELECT unnest({REASONS}) AS reason FROM read_parquet({literal(misfits)})) GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return {short or whole: (rows, whole) for short, rows, whole in db.execute(query).fetchall()}


def joined(opened: Opened, column: Column) -> str:
    """Return SQL for the text of a time that consists of a date and a time of day."""
    day, *rest = (cells.text(name, opened.columns[name]) for name in column.of)
    gone = " OR ".join(cells.missing(part, column) for part in (day, *rest))
    if column.format.startswith("%Y %m"):
        return f"CASE WHEN NOT ({gone}) THEN concat_ws(' ', {', '.join((day, *rest))}) END"
    # A date in a column of times has a midnight, and a time of day in whole numbers has no leading zero.
    parts = [f"regexp_replace({day}, '{_MIDNIGHT}', '')"]
    parts += [
        f"CASE WHEN regexp_full_match({part}, '\\d{{1,4}}') THEN lpad({part}, 4, '0') ELSE {part} END" for part in rest
    ]
    return f"CASE WHEN NOT ({gone}) THEN concat_ws(' ', {', '.join(parts)}) END"


def _is_read(kind: str, column: Column) -> bool:
    """Return whether a setting applies to a column of this type: to texts, and to numbers that are times."""
    return kind == "VARCHAR" or (column.kind == "time" and not _TIMES.match(kind))


def _as_is(name: str, kind: str, zone: str) -> str:
    quoted = identifier(name)
    if kind.startswith("TIMESTAMPTZ"):
        return f"{quoted}::TIMESTAMPTZ"
    if _TIMES.fullmatch(kind):
        return f"{quoted}::TIMESTAMP AT TIME ZONE {literal(zone)}"
    return f"{quoted}::VARCHAR" if kind.startswith("ENUM") else quoted


def _add(values: dict[str, str], why: list[str], name: str, text: str, column: Column, zone: str, kind: str) -> None:
    gone = cells.missing(text, column)
    if column.kind == "text":
        values[name] = f"CASE WHEN NOT {gone} THEN {identifier(name)} END"
        return
    value = cells.value(text, column, zone)
    values[name] = f"CASE WHEN NOT {gone} THEN {value} END" if kind != "VARCHAR" or column.missing else value
    label = literal(f"read_as_{column.kind}({name}): ")
    # Nested, since otherwise DuckDB would look for words in every row.
    why.append(f"CASE WHEN ({values[name]}) IS NULL THEN CASE WHEN NOT {gone} THEN {label} || {text} END END")


def _told(why: list[str], moment: str) -> str:
    """Return SQL that says whether another reason is already about the moment."""
    label = literal(f"({moment}): ")[1:-1]
    about = [text for text in why if f"{label}'" in text]
    return f"({about[0]} IS NOT NULL)" if about else "false"

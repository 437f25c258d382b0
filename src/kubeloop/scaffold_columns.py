"""The part each column plays: label, timestamp, key, id, an input of the model, or none."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from kubeloop.scaffold_names import safe
from kubeloop.scaffold_table import TEXTS, Column, ScaffoldError, Table, quote, rewrite
from kubeloop.sources import MOMENT, identifier, literal

LEAST_ROWS = 1000
LEAST_OF_A_CLASS = 50
CATEGORIES = 200
"""Texts with more values than this are no categories; the same bound as in drafted expectations."""
ROWS_A_CATEGORY = 10
FEW = 20
"""Keys with fewer values share their ups and downs."""

_POSITIVE = ("1", "1.0", "true", "yes", "y", "t")
_NEGATIVE = ("0", "0.0", "false", "no", "n", "f")


@dataclass(frozen=True)
class Label:
    """The column to predict, how SQL reads it as 0, 1 or null, and its rows a class."""

    column: str
    sql: str
    meaning: str
    positives: int
    negatives: int
    unknown: int

    @property
    def is_zero_one(self) -> bool:
        """Whether the column holds 0 and 1, or false and true."""
        return self.sql == f"{quote(self.column)}::INTEGER"


@dataclass(frozen=True)
class Moment:
    """The timestamp: column, its name in requests, the oldest and the newest value."""

    column: str
    name: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Key:
    """A key: `name` everywhere but in the table; `categorical` where its value is a feature itself."""

    column: str
    name: str
    sql: str
    distinct: int
    categorical: bool

    @property
    def many(self) -> bool:
        """Whether there are enough values for shares over a long span to vary within a window of traffic.

        With a handful, they only follow the calendar, and every window would drift.
        """
        return self.distinct >= FEW


@dataclass(frozen=True)
class Input:
    """A column that a client sends with a request: `name` there, `feature` in the model."""

    column: str
    name: str
    kind: Literal["number", "category"]
    sql: str
    distinct: int

    @property
    def feature(self) -> str:
        """The feature's name; Feast wants another one than the request's."""
        return f"{self.name}_now"


@dataclass(frozen=True)
class LeftOut:
    """A column that becomes no feature, and why."""

    column: str
    why: str


def label(table: Table, name: str, positive: str | None) -> Label:
    """Check the label and find out how to read it.

    Raises:
        ScaffoldError: it is not binary, its positive value is not clear, or a class has too few rows.
    """
    column = table.column(name, "the label")
    value = identifier(column.name)
    listed = (
        f"SELECT {value}::VARCHAR, count(*) FROM {table.name} WHERE {value} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    counts: dict[str, int] = dict(table.query(f"{listed} LIMIT 6"))
    shown = ", ".join(f"{value!r} ({count:,} rows)" for value, count in counts.items())
    if len(counts) != 2:
        more = " and more" if len(counts) == 6 else ""
        raise ScaffoldError(
            f"the label {column.name!r} must have two values, but has {shown or 'none'}{more}. Add a column that is 1 "
            "where what you want to predict happened and 0 where it did not, and name that one"
        )
    if positive is None and not all(value.lower() in _POSITIVE + _NEGATIVE for value in counts):
        rarer = min(counts, key=lambda value: counts[value])
        raise ScaffoldError(
            f"the label {column.name!r} has the values {shown}; say which one is to be predicted, such as "
            f"--positive {rarer}"
        )
    chosen = positive if positive is not None else next((v for v in counts if v.lower() in _POSITIVE), "")
    if chosen not in counts:
        raise ScaffoldError(f"--positive {chosen!r} is no value of the label {column.name!r}; it has {shown}")
    (other,) = (value for value in counts if value != chosen)
    if sum(counts.values()) < LEAST_ROWS or min(counts.values()) < LEAST_OF_A_CLASS:
        raise ScaffoldError(
            f"the label {column.name!r} has {shown}: too few to train, test and replay on. At least {LEAST_ROWS:,} "
            f"labelled rows with {LEAST_OF_A_CLASS} of each class are needed; collect more"
        )
    as_number = chosen.lower() in ("1", "1.0", "true") and column.kind not in TEXTS
    plain, compared = f"{quote(column.name)}::INTEGER", f"({quote(column.name)}::VARCHAR = {literal(chosen)})::INTEGER"
    return Label(
        column=column.name,
        sql=plain if as_number and other.lower() in ("0", "0.0", "false") else compared,
        meaning=f"{column.name} is {chosen} (not {other})",
        positives=counts[chosen],
        negatives=counts[other],
        unknown=table.rows - sum(counts.values()),
    )


def moment(table: Table, name: str, taken: set[str]) -> Moment:
    """Check the timestamp; texts and numbers that are times are read as such from then on.

    Raises:
        ReadingError: it is no time, or could be read in two ways.
        ScaffoldError: it is the same everywhere, or has stray values.
    """
    column = table.column(table.take_moment(name), "the timestamp")
    value = identifier(column.name)
    ((start, early, late, end),) = table.query(
        f"SELECT min({value}), quantile_disc({value}, 0.005), quantile_disc({value}, 0.995), max({value}) "
        f"FROM {table.name}"
    )
    if start == end:
        raise ScaffoldError(
            f"every row has the same {column.name!r}, {start}; name the column that says when a prediction would have "
            "been asked for. Without one there is no past to learn from and no future to replay"
        )
    if end - start > 3 * (late - early) and early < late:
        raise ScaffoldError(
            f"99 % of the rows have a {column.name!r} from {early} to {late}, but it goes from {start} to {end}. Leave "
            "the strays out, " + rewrite(table.path, "*", f" WHERE {value} BETWEEN '{early}' AND '{late}'")
        )
    short = safe(column.name, taken)
    taken.add(short)
    return Moment(column.name, short, start.astimezone(UTC), end.astimezone(UTC))


def _some(rows: int) -> str:
    return f"{rows:,} rows have" if rows > 1 else "1 row has"


def keys(table: Table, names: Sequence[str], taken: set[str]) -> list[Key]:
    """Check the keys.

    Raises:
        ScaffoldError: a row has none, or there is only one value.
    """
    found = []
    for column in dict.fromkeys(table.column(name, "a key") for name in names):
        value = identifier(column.name)
        if column.filled < table.rows:
            raise ScaffoldError(
                f"{_some(table.rows - column.filled)} no {column.name!r}, but every prediction is about one. Give "
                "them a value, " + rewrite(table.path, f"* REPLACE (coalesce({value}::VARCHAR, 'unknown') AS {value})")
            )
        if column.distinct < 2:
            raise ScaffoldError(f"the key {column.name!r} has one value; name a column that tells the subjects apart")
        name = safe(column.name, taken)
        taken.add(name)
        cast = "" if column.kind == "VARCHAR" else "::VARCHAR"
        few = column.distinct <= 50 and column.distinct * 100 <= table.rows
        found.append(Key(column.name, name, f"{quote(column.name)}{cast}", column.distinct, few))
    return found


def event_id(table: Table, when: Moment, found: Sequence[Key], given: str | None) -> tuple[str, str | None]:
    """Return SQL for an id that stays with its row, and the column it is, if it is one.

    A column that is unique and named like an id, else keys and moment, else these and a number within them.

    Raises:
        ScaffoldError: the column that was named is not unique.
    """
    if given is not None:
        column = table.column(given, "the id")
        if not _unique(table, f"{identifier(column.name)}::VARCHAR"):
            raise ScaffoldError(f"--id {column.name!r} is not unique, or missing in some rows; leave --id out")
        return f"{quote(column.name)}::VARCHAR", column.name
    roles = {when.column, *(key.column for key in found)}
    for column in table.columns.values():
        likely = column.like_id and (column.is_integer or column.kind in TEXTS) and column.distinct > 0.9 * table.rows
        if likely and column.name not in roles and _unique(table, f"{identifier(column.name)}::VARCHAR"):
            return f"{quote(column.name)}::VARCHAR", column.name
    for style in ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ"):
        parts = ", ".join([*(key.sql for key in found), f"strftime({quote(when.column)}, '{style}')"])
        together = f"concat_ws('@', {parts})"
        if _unique(table, together):
            return together, None
    same = ", ".join([*(quote(key.column) for key in found), quote(when.column)])
    order = ", ".join(quote(name) for name in table.columns if name not in roles) or quote(when.column)
    return f"{together} || '#' || row_number() OVER (PARTITION BY {same} ORDER BY {order})", None


def _unique(table: Table, sql: str) -> bool:
    ((unique,),) = table.query(f"SELECT count(DISTINCT {sql}) = count(*) FROM {table.name}")
    return bool(unique)


def inputs(
    table: Table, when: Moment, roles: Collection[str], excluded: Collection[str], taken: set[str]
) -> tuple[list[Input], list[LeftOut]]:
    """Sort the columns without another role into those a client can send with a request, and those left out."""
    found: list[Input] = []
    left: list[LeftOut] = []
    for column in table.columns.values():
        if column.name in roles:
            continue
        judged = "left out with --exclude" if column.name in excluded else _judge(table, column, when)
        if isinstance(judged, str):
            left.append(LeftOut(column.name, judged))
            continue
        kind, sql, text = judged
        name = safe(text, taken)
        taken.add(name)
        found.append(Input(column.name, name, kind, sql, column.distinct))
    return found, left


def _judge(table: Table, column: Column, when: Moment) -> str | tuple[Literal["number", "category"], str, str]:
    """Return kind, SQL and what to name an input after, or why the column is none."""
    name = quote(column.name)
    many = column.distinct > CATEGORIES or column.distinct * ROWS_A_CATEGORY > column.filled
    if column.distinct <= 1:
        return "has one value" if column.filled else "is empty"
    if column.kind == "BOOLEAN":
        return "number", f"{name}::DOUBLE", column.name
    if column.is_integer and (column.like_id or column.distinct > 0.95 * table.rows > CATEGORIES):
        if many:
            return f"looks like an identifier ({column.distinct:,} values); --key gives it a history"
        return "category", f"{name}::VARCHAR", column.name
    if column.is_number:
        finite = f"CASE WHEN isfinite({name}) THEN {name}::DOUBLE END"
        return "number", f"{name}::DOUBLE" if column.finite else finite, column.name
    if column.kind in TEXTS:
        if many:
            return f"has {column.distinct:,} different texts, too many for categories"
        return "category", f"{name}::VARCHAR", column.name
    if column.kind == MOMENT:
        moment_sql = quote(when.column)
        ((later,),) = table.query(f"SELECT count_if({name} > {moment_sql}) FROM {table.name}")
        if later:
            return f"lies after the row's own moment in {later:,} rows, so it was not known then"
        return "number", f"date_diff('second', {name}, {moment_sql}) / 86400.0", f"{column.name} age"
    return f"has the type {column.kind}, which no feature is made of"

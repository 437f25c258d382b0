"""Assign a role to each column: timestamp, key, ID, input of the model, or none; `labels` handles the label."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from kubeloop.data.sources import MOMENT, identifier
from kubeloop.scaffold import advice
from kubeloop.scaffold.advice import option
from kubeloop.scaffold.labels import Label
from kubeloop.scaffold.names import safe
from kubeloop.scaffold.table import TEXTS, Column, ScaffoldError, Table, as_id, quote
from kubeloop.tasks.tabular.encoding import EXACT

ROWS_A_CATEGORY = 10
"""From this number of rows, the mean of a value is meaningful. A text or key is a category if half of its rows have
such a value, no matter how many values it has: encoded by their means, the AUC of simulated tables gained 0.05 to 0.07
if the text mattered and lost at most 0.01 if it was noise. Free texts and ids stay far below."""
FEW = 20
"""With fewer values than this, the histories of a key rise and fall together."""

_ANSWERS = frozenset({"high", "low", "probabilities", "probability", "score", "score_high", "score_low", "value"})
"""Names that models and the payload log use for the numbers of an answer; a key is a feature under its own name."""


@dataclass(frozen=True)
class Moment:
    """The timestamp: column, its name in requests, the oldest and the newest value."""

    column: str
    name: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Key:
    """A key: `name` is used everywhere except in the table; `categorical` if its value is itself a feature."""

    column: str
    name: str
    sql: str
    distinct: int
    categorical: bool

    @property
    def many(self) -> bool:
        """Whether there are enough values that shares over a long span vary within a window of traffic.

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
    offset: int = 0
    """What is subtracted for the feature, if float32 would lose digits of the number itself."""

    @property
    def feature(self) -> str:
        """The feature's name; Feast requires a different one than the request's."""
        return f"{self.name}_now"


@dataclass(frozen=True)
class LeftOut:
    """A column that does not become a feature, and why."""

    column: str
    why: str


@dataclass(frozen=True)
class Known:
    """The column that says when a label became known.

    Attributes:
        column: its name.
        sql: when the label was known, never before the row's own moment; null while it is unknown.
        usual: the longest time that 19 of 20 labels take.
        longest: the longest time of all labels.
        early: number of rows whose label was known before their moment.
    """

    column: str
    sql: str
    usual: timedelta
    longest: timedelta
    early: int


def known(table: Table, name: str, target: Label, when: Moment) -> Known:
    """Check the column that says when a label became known.

    Raises:
        ScaffoldError: it does not hold times, or no row with a label has one.
    """
    column = table.column(name, "--label-known-at")
    at = quote(column.name)
    if column.kind != MOMENT:
        raise ScaffoldError(
            f"--label-known-at {column.name!r} holds {column.kind}, but must hold times: name another column, or give "
            "the format with --date-format"
        )
    took = f"date_diff('second', {quote(when.column)}, {at})"
    ((labelled, early, usual, longest),) = table.query(
        f"SELECT count({at}), count_if({took} < 0), quantile_disc(greatest({took}, 0), 0.95), max({took}) "
        f"FROM {table.name} WHERE {target.sql} IS NOT NULL AND {at} IS NOT NULL"
    )
    if not labelled:
        raise ScaffoldError(f"--label-known-at {column.name!r} is empty wherever there is a label; leave it out")
    return Known(
        column=column.name,
        sql=f"if({at} < {quote(when.column)}, {quote(when.column)}, {at})",
        usual=timedelta(seconds=usual),
        longest=timedelta(seconds=max(0, longest)),
        early=early,
    )


def moment(table: Table, name: str, taken: set[str]) -> Moment:
    """Check the timestamp; from then on, texts and numbers that are times are read as times.

    Raises:
        ReadingError: it is not a time, or could be read in two ways.
        ScaffoldError: all its values are the same, or it has stray values.
    """
    column = table.column(table.take_moment(name), "the timestamp")
    value = identifier(column.name)
    ((start, early, late, end),) = table.query(
        f"SELECT min({value}), quantile_disc({value}, 0.005), quantile_disc({value}, 0.995), max({value}) "
        f"FROM {table.name}"
    )
    if start == end:
        raise ScaffoldError(
            f"every row has the same {column.name!r}, {start}; name the column with the moment of each prediction. "
            "Without one there is no past to learn from and no future to replay"
        )
    if end - start > 3 * (late - early) and early < late:
        raise ScaffoldError(
            f"99 % of the rows have a {column.name!r} from {early} to {late}, but it goes from {start} to {end}. "
            + advice.where(table, f"{value} BETWEEN '{early}' AND '{late}'")
        )
    short = safe(column.name, taken)
    taken.add(short)
    return Moment(column.name, short, start.astimezone(UTC), end.astimezone(UTC))


def _some(rows: int) -> str:
    return f"{rows:,} rows have" if rows > 1 else "1 row has"


def keys(table: Table, names: Sequence[str], taken: set[str]) -> list[Key]:
    """Check the keys; there may be none, and one may have a single value.

    Raises:
        ScaffoldError: a row lacks a key.
    """
    found = []
    for column in dict.fromkeys(table.column(name, "a key") for name in names):
        value = identifier(column.name)
        if column.filled < table.rows or not column.finite:
            without = f"{value} IS NOT NULL" + ("" if column.finite else f" AND isfinite({value})")
            ((kept,),) = table.query(f"SELECT count_if({without}) FROM {table.name}")
            raise ScaffoldError(
                f"{_some(table.rows - kept)} no {column.name!r}, but every prediction needs one. "
                + (advice.where(table, without) or "Give them a value")
            )
        name = safe(column.name, taken | _ANSWERS)
        taken.add(name)
        often = column.distinct > 1 and _repeats(table, column)
        found.append(Key(column.name, name, as_id(table, column), column.distinct, often))
    return found


def id_column(table: Table, roles: Collection[str], given: str | None) -> Column | None:
    """Return the column that identifies a row: the one that the user named, or one that is unique and named like an id.

    Raises:
        ScaffoldError: the named column is not unique.
    """
    if given is not None:
        column = table.column(given, "the id")
        if not _unique(table, f"{identifier(column.name)}::VARCHAR"):
            raise ScaffoldError(f"--id {column.name!r} is not unique, or missing in some rows; leave out --id")
        return column
    for column in table.columns.values():
        likely = column.like_id and column.filled == table.rows and column.distinct > 0.9 * table.rows
        if likely and column.name not in roles and _unique(table, f"{identifier(column.name)}::VARCHAR"):
            return column
    return None


@dataclass(frozen=True)
class EventId:
    """The id of a prediction.

    Attributes:
        sql: SQL of the id, which depends on its row only, not on the label or on other rows.
        column: its column, if the id is a column.
        numbered: whether several rows may have the same id and then get a number.
        doubles: number of rows that equal another one in key, moment and all inputs.
    """

    sql: str
    column: str | None = None
    numbered: bool = False
    doubles: int = 0


def named(column: Column) -> EventId:
    """Return the id that is a column."""
    return EventId(f"{quote(column.name)}::VARCHAR", column.name)


def event_id(table: Table, when: Moment, found: Sequence[Key], inputs: Sequence["Input"]) -> EventId:
    """Return an id that stays the same for its row, whatever labels and rows are added later.

    It consists of keys and moment and, if rows share both, of a digest of the inputs.
    """
    at = quote(when.column)
    ((whole,),) = table.query(f"SELECT bool_and({at} = date_trunc('second', {at})) FROM {table.name}")
    parts = [*(key.sql for key in found), f"strftime({at}, '%Y-%m-%dT%H:%M:%S{'' if whole else '.%f'}Z')"]
    together = f"concat_ws('@', {', '.join(parts)})" if found else parts[0]
    if _unique(table, together):
        return EventId(together)
    if inputs:
        values = ", ".join(f"coalesce(({item.sql})::VARCHAR, '')" for item in inputs)
        together = f"{together} || '#' || left(md5(concat_ws('|', {values})), 12)"
    ((different,),) = table.query(f"SELECT count(DISTINCT hash({together})) FROM {table.name}")
    return EventId(together, numbered=True, doubles=table.rows - different)


def _unique(table: Table, sql: str) -> bool:
    ((unique,),) = table.query(f"SELECT count(DISTINCT {sql}) = count(*) FROM {table.name}")
    return bool(unique)


def inputs(
    table: Table,
    when: Moment,
    roles: Collection[str],
    excluded: Collection[str],
    taken: set[str],
    *,
    known: bool = False,
) -> tuple[list[Input], list[LeftOut]]:
    """Divide the columns without another role into those that a client can send with a request and those left out."""
    found: list[Input] = []
    left: list[LeftOut] = []
    for column in table.columns.values():
        if column.name in roles:
            continue
        judged = "left out with --exclude" if column.name in excluded else _judge(table, column, when, known)
        if isinstance(judged, str):
            left.append(LeftOut(column.name, judged))
            continue
        kind, sql, text = judged
        name = safe(text, taken)
        taken.add(name)
        offset = 0
        if kind == "number" and column.is_number:
            offset, blurred = _precision(table, column)
            if blurred and _repeats(table, column):
                kind, sql = "category", f"{quote(column.name)}::VARCHAR"
        found.append(Input(column.name, name, kind, sql, column.distinct, offset))
    return found, left


def _judge(
    table: Table, column: Column, when: Moment, known: bool
) -> str | tuple[Literal["number", "category"], str, str]:
    """Return kind, SQL and the source of the name of an input, or why the column is not an input."""
    name = quote(column.name)
    if column.distinct <= 1:
        return "has one value" if column.filled else "is empty"
    if column.kind == "BOOLEAN":
        return "number", f"{name}::DOUBLE", column.name
    if (column.like_id and table.whole(column)) or (column.is_integer and _numbered(table, column)):
        if not _repeats(table, column):
            repeats = column.filled == table.rows and column.distinct <= table.rows / 3
            hint = f"; {option('key', column.name)} gives it a history" if repeats else ""
            return f"looks like an identifier ({column.distinct:,} values){hint}"
        return "category", as_id(table, column), column.name
    if column.is_number:
        finite = f"CASE WHEN isfinite({name}) THEN {name}::DOUBLE END"
        return "number", f"{name}::DOUBLE" if column.finite else finite, column.name
    if column.kind in TEXTS:
        if not _repeats(table, column):
            return f"has {column.distinct:,} different texts, most of them in fewer than {ROWS_A_CATEGORY} rows"
        return "category", f"{name}::VARCHAR", column.name
    if column.kind == MOMENT:
        moment_sql = quote(when.column)
        ((later,),) = table.query(f"SELECT count_if({name} > {moment_sql}) FROM {table.name}")
        if later:
            hint = f". Does it say when the label became known? Then {option('label-known-at', column.name)}"
            always = hint if later == column.filled and not known else ""
            return f"is later than the row's own moment in {later:,} rows, so it was not known then{always}"
        return "number", f"date_diff('second', {name}, {moment_sql}) / 86400.0", f"{column.name} age"
    return f"has the type {column.kind}, which cannot be a feature"


def _repeats(table: Table, column: Column) -> bool:
    """Return whether half of the rows with a value have one that is frequent enough for a category."""
    name = identifier(column.name)
    counts = f"SELECT count({name}) AS rows FROM {table.name} WHERE {name} IS NOT NULL GROUP BY {name}"
    ((often,),) = table.query(f"SELECT coalesce(sum(rows) FILTER (rows >= {ROWS_A_CATEGORY}), 0) FROM ({counts})")
    return bool(2 * often >= column.filled)


def _numbered(table: Table, column: Column) -> bool:
    """Return whether a whole number only counts the rows, with few gaps; amounts are spread more widely."""
    name = identifier(column.name)
    if column.distinct <= 0.95 * table.rows:
        return False
    ((span,),) = table.query(f"SELECT max({name})::DOUBLE - min({name})::DOUBLE FROM {table.name}")
    return bool(span < ROWS_A_CATEGORY * table.rows)


def _precision(table: Table, column: Column) -> tuple[int, bool]:
    """Return what to subtract so that float32 keeps a number, and whether different numbers still become equal.

    A date or a code of eight digits varies only in its last digits; for an amount, float32 is exact enough.
    """
    name = identifier(column.name)
    known = f"FROM {table.name} WHERE isfinite({name}::DOUBLE)"
    ((low, high),) = table.query(f"SELECT floor(min({name}))::DOUBLE, max({name})::DOUBLE {known}")
    if low is None or max(-low, high) <= EXACT:
        return 0, False
    offset = int(low) if high - low <= EXACT or 2 * (high - low) <= max(-low, high) else 0
    relative = f"count(DISTINCT ({name}::DOUBLE - {offset})::FLOAT)"
    ((blurred,),) = table.query(f"SELECT {relative} < count(DISTINCT {name}) {known}")
    return offset, bool(blurred and column.is_integer)

"""The part each column plays: label, timestamp, key, id, an input of the model, or none."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from kubeloop.data.sources import MOMENT, identifier, literal
from kubeloop.scaffold import advice
from kubeloop.scaffold.advice import option
from kubeloop.scaffold.names import safe
from kubeloop.scaffold.table import TEXTS, Column, ScaffoldError, Table, quote
from kubeloop.tasks.multiclass.settings import MOST_CLASSES
from kubeloop.tasks.tabular.encoding import EXACT

LEAST_ROWS = 1000
LEAST_OF_A_CLASS = 50
ROWS_A_CATEGORY = 10
"""Rows of a value from which on its mean says something. A text or key of which half the rows reach that is a category,
however many values it has: encoded by their means, the AUC of simulated tables gained 0.05 to 0.07 where the text
mattered and lost at most 0.01 where it was noise. Free texts and ids stay far below."""
MOST_NUMBERED = 10
"""Whole numbers of a label that are taken for classes; more are taken for amounts."""
FEW = 20
"""Keys with fewer values share their ups and downs."""

_ANSWERS = frozenset({"high", "low", "probabilities", "probability", "score", "score_high", "score_low", "value"})
"""What models and the payload log call the numbers of an answer; a key is a feature under its own name."""
_POSITIVE = (
    *("1", "1.0", "true", "yes", "y", "t", "ja", "wahr", "oui", "vrai", "sí", "si", "verdadero", "sì", "vero"),
    *("sim", "verdadeiro", "waar"),
)
_NEGATIVE = (
    "0",
    "0.0",
    "false",
    "no",
    "n",
    "f",
    "nein",
    "falsch",
    "non",
    "faux",
    "falso",
    "não",
    "nao",
    "nee",
    "onwaar",
)


@dataclass(frozen=True)
class Label:
    """The column to predict.

    Attributes:
        column: its name.
        sql: how SQL reads it: 0 or 1, the text of a class, or a number; null while it is unknown.
        meaning: what it says, within a sentence.
        positives: rows on one side of it: of class 1, outside of the most frequent class, or above the median.
        negatives: rows on the other side.
        unknown: rows without a label.
        task: kind of task that it makes.
        classes: of a multiclass task, the most frequent first.
        side: SQL that is 1 or 0 on either side, as `positives` and `negatives` count.
        level: SQL of the number that histories average, and
        levels: what that average is.
    """

    column: str
    sql: str
    meaning: str
    positives: int
    negatives: int
    unknown: int
    task: str = "binary"
    classes: tuple[str, ...] = ()
    side: str = ""
    level: str = ""
    levels: str = "share of class 1"

    def __post_init__(self) -> None:
        for name in ("side", "level"):
            object.__setattr__(self, name, getattr(self, name) or self.sql)

    @property
    def is_zero_one(self) -> bool:
        """Whether the column holds 0 and 1, or false and true."""
        return self.sql == f"{quote(self.column)}::INTEGER"

    @property
    def aim(self) -> str:
        """What is predicted, after "predicts"."""
        return {
            "multiclass": f"which of {len(self.classes)} classes {self.column} is",
            "regression": f"how much {self.column} is",
        }.get(self.task, f"whether {self.meaning}")


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
    offset: int = 0
    """What the feature is relative to, where float32 would blur the number itself."""

    @property
    def feature(self) -> str:
        """The feature's name; Feast wants another one than the request's."""
        return f"{self.name}_now"


@dataclass(frozen=True)
class LeftOut:
    """A column that becomes no feature, and why."""

    column: str
    why: str


def label(table: Table, name: str, positive: str | None, task: str | None = None) -> Label:
    """Check the label and find out how to read it.

    Args:
        table: the table.
        name: of the column.
        positive: its value to predict, where there are two or it is held against all others.
        task: kind of task; found out where it is left out.

    Raises:
        ScaffoldError: no kind of task fits it, its positive value is not clear, or a class has too few rows.
    """
    column = table.column(name, "the label")
    found = task or ("binary" if positive is not None else _kind(table, column))
    if found == "binary":
        return _binary(table, column, positive)
    if positive is not None:
        raise ScaffoldError(f"--positive says what a binary task predicts; leave it out with --task {found}")
    return _classes(table, column) if found == "multiclass" else _number(table, column)


def _kind(table: Table, column: Column) -> str:
    """Return the kind of task: two values, up to fifty texts or ten whole numbers, or other numbers."""
    whole = table.whole(column)
    if column.is_number and not whole and column.distinct > 2:
        return "regression"
    value = identifier(column.name)
    ((distinct,),) = table.query(f"SELECT count(DISTINCT {value}) FROM {table.name}")
    if distinct <= 2:
        return "binary"
    if column.is_number:
        return "multiclass" if distinct <= MOST_NUMBERED else "regression"
    return "multiclass" if distinct <= MOST_CLASSES and column.kind in TEXTS else "binary"


def _classes(table: Table, column: Column) -> Label:
    text = as_id(table, column)
    counts = _counted(table, column, text, MOST_CLASSES)
    shown = _shown(counts)
    if len(counts) < 2 or len(counts) > MOST_CLASSES:
        raise ScaffoldError(
            f"the label {column.name!r} has {shown or 'no value'}, but a multiclass task needs 2 to {MOST_CLASSES} "
            "classes. Join rare ones in a column of their own and name that one, or predict a number with "
            "--task regression"
        )
    most, *others = counts.values()
    if sum(counts.values()) < LEAST_ROWS or sum(others) < LEAST_OF_A_CLASS:
        raise ScaffoldError(_too_few(column, shown))
    names = tuple(counts)
    listed = ", ".join(literal(name) for name in names)
    # A class that comes up later is not known to the model.
    sql = f"CASE WHEN {text} IN ({listed}) THEN {text} END"
    return Label(
        column=column.name,
        sql=sql,
        meaning=f"{column.name}, one of {len(names)} classes",
        positives=sum(others),
        negatives=most,
        unknown=table.rows - most - sum(others),
        task="multiclass",
        classes=names,
        side=f"({sql} <> {literal(names[0])})::INTEGER",
        level=f"({sql} <> {literal(names[0])})::INTEGER",
        levels=f"share of other classes than {names[0]}",
    )


def _number(table: Table, column: Column) -> Label:
    if not column.is_number:
        raise ScaffoldError(
            f"the label {column.name!r} holds {column.kind}, but a regression task needs numbers; if its texts are "
            "numbers, say with --decimal or --missing how they are written"
        )
    value = quote(column.name)
    sql = f"{value}::DOUBLE" if column.finite else f"CASE WHEN isfinite({value}) THEN {value}::DOUBLE END"
    ((rows, distinct, middle),) = table.query(
        f"SELECT count({sql}), count(DISTINCT {sql}), quantile_disc({sql}, 0.5) FROM {table.name}"
    )
    if rows < LEAST_ROWS or distinct < 3:
        raise ScaffoldError(
            f"the label {column.name!r} has {rows:,} numbers, {distinct:,} of them different; a regression task needs "
            f"{LEAST_ROWS:,} rows and at least 3 different numbers"
        )
    ((above,),) = table.query(f"SELECT count_if({sql} > {middle!r}) FROM {table.name}")
    return Label(
        column=column.name,
        sql=sql,
        meaning=f"{column.name}, a number",
        positives=above,
        negatives=rows - above,
        unknown=table.rows - rows,
        task="regression",
        side=f"({sql} > {middle!r})::INTEGER",
        level=sql,
        levels="mean label",
    )


def _counted(table: Table, column: Column, text: str, most: int) -> dict[str, int]:
    """Return the values of the label with their rows, the most frequent first, one more than `most` at most."""
    value = identifier(column.name)
    listed = f"SELECT {text}, count(*) FROM {table.name} WHERE {value} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    counts: dict[str, int] = dict(table.query(f"{listed} LIMIT {most + 1}"))
    if twice := _alike(counts):
        raise ScaffoldError(
            f"the label {column.name!r} has {twice[0]!r} and {twice[1]!r}, which differ in case or spaces alone; write "
            "them the same way"
        )
    return counts


def _shown(counts: dict[str, int]) -> str:
    some = [f"{value!r} ({count:,} rows)" for value, count in counts.items()]
    return ", ".join(some[:5]) + (" and more" if len(some) > 5 else "")


def _too_few(column: Column, shown: str) -> str:
    return (
        f"the label {column.name!r} has {shown}: too few to train, test and replay on. At least {LEAST_ROWS:,} "
        f"labelled rows with {LEAST_OF_A_CLASS} of each class are needed; collect more"
    )


def _binary(table: Table, column: Column, positive: str | None) -> Label:
    text = as_id(table, column)
    counts = _counted(table, column, text, MOST_CLASSES)
    shown = _shown(counts)
    if len(counts) < 2 or len(counts) > MOST_CLASSES or (len(counts) > 2 and positive is None):
        raise ScaffoldError(_not_binary(column.name, counts, shown))
    few = _too_few(column, shown)
    if sum(counts.values()) < LEAST_ROWS or (len(counts) == 2 and min(counts.values()) < LEAST_OF_A_CLASS):
        raise ScaffoldError(few)
    yes = [value for value in counts if _word(value) in _POSITIVE]
    if positive is None and (
        len(yes) != 1 or not all(_word(value) in _NEGATIVE for value in counts if value not in yes)
    ):
        rarer = min(counts, key=lambda value: counts[value])
        raise ScaffoldError(
            f"the label {column.name!r} has the values {shown}; say which one is to be predicted, such as "
            + option("positive", rarer)
        )
    chosen = positive if positive is not None else yes[0]
    if chosen not in counts:
        raise ScaffoldError(f"--positive {chosen!r} is no value of the label {column.name!r}; it has {shown}")
    others = [value for value in counts if value != chosen]
    negatives = sum(counts[value] for value in others)
    if min(counts[chosen], negatives) < LEAST_OF_A_CLASS:
        raise ScaffoldError(few)
    as_number = chosen.lower() in ("1", "1.0", "true") and column.kind not in TEXTS
    if as_number and [other.lower() for other in others] in (["0"], ["0.0"], ["false"]):
        sql = f"{quote(column.name)}::INTEGER"
    elif len(others) == 1:
        # A third value that comes up later is not known to be either.
        sql = f"CASE {text} WHEN {literal(chosen)} THEN 1 WHEN {literal(others[0])} THEN 0 END"
    else:
        sql = f"({text} = {literal(chosen)})::INTEGER"
    return Label(
        column=column.name,
        sql=sql,
        meaning=f"{column.name} is {chosen} (not {others[0] if len(others) == 1 else 'another value'})",
        positives=counts[chosen],
        negatives=negatives,
        unknown=table.rows - counts[chosen] - negatives,
    )


def _word(value: str) -> str:
    """Return a value as the lists of words have it; an accent may be a sign of its own."""
    return unicodedata.normalize("NFC", value.strip().lower())


def _alike(values: Collection[str]) -> tuple[str, str] | None:
    """Return two values that a person takes for one."""
    seen: dict[str, str] = {}
    for value in sorted(values):
        other = seen.setdefault(" ".join(value.casefold().split()), value)
        if other != value:
            return other, value
    return None


def _not_binary(name: str, counts: dict[str, int], shown: str) -> str:
    begin = f"the label {name!r} must have two values, but has {shown or 'none'}. "
    rows = sum(counts.values())
    enough = [value for value, count in counts.items() if LEAST_OF_A_CLASS <= count <= rows - LEAST_OF_A_CLASS]
    if 2 < len(counts) <= MOST_CLASSES and enough and rows >= LEAST_ROWS:
        return (
            f"{begin}Predict one of them against all others, such as {option('positive', enough[-1])}, or which of "
            "them it is with --task multiclass"
        )
    return (
        f"{begin}Add a column that is 1 where what you want to predict happened and 0 where it did not, and name that "
        "one"
    )


@dataclass(frozen=True)
class Known:
    """The column that says when a label became known.

    Attributes:
        column: its name.
        sql: when the label was known, never before the row's own moment; null while it is not.
        usual: how long 19 of 20 labels take at most.
        longest: how long the last one takes.
        early: rows whose label was known before their moment.
    """

    column: str
    sql: str
    usual: timedelta
    longest: timedelta
    early: int


def known(table: Table, name: str, target: Label, when: Moment) -> Known:
    """Check the column that says when a label became known.

    Raises:
        ScaffoldError: it holds no times, or no row with a label has one.
    """
    column = table.column(name, "--label-known-at")
    at = quote(column.name)
    if column.kind != MOMENT:
        raise ScaffoldError(
            f"--label-known-at {column.name!r} holds {column.kind}, but must say when: name a time, or say with "
            "--date-format how it is written"
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
        ScaffoldError: a row has none.
    """
    found = []
    for column in dict.fromkeys(table.column(name, "a key") for name in names):
        value = identifier(column.name)
        if column.filled < table.rows or not column.finite:
            without = f"{value} IS NOT NULL" + ("" if column.finite else f" AND isfinite({value})")
            ((kept,),) = table.query(f"SELECT count_if({without}) FROM {table.name}")
            raise ScaffoldError(
                f"{_some(table.rows - kept)} no {column.name!r}, but every prediction is about one. "
                + (advice.where(table, without) or "Give them a value")
            )
        name = safe(column.name, taken | _ANSWERS)
        taken.add(name)
        often = column.distinct > 1 and _repeats(table, column)
        found.append(Key(column.name, name, as_id(table, column), column.distinct, often))
    return found


def as_id(table: Table, column: Column) -> str:
    """Return SQL for an identifier as text; 7 and 7.0 are the same one, since pandas makes floats of ids with gaps."""
    if table.whole(column) and column.kind not in ("HUGEINT", "UHUGEINT", "UBIGINT"):
        return f"{quote(column.name)}::BIGINT::VARCHAR"
    return quote(column.name) if column.kind == "VARCHAR" else f"{quote(column.name)}::VARCHAR"


def id_column(table: Table, roles: Collection[str], given: str | None) -> Column | None:
    """Return the column that names a row: the one that was named, else one that is unique and named like an id.

    Raises:
        ScaffoldError: the column that was named is not unique.
    """
    if given is not None:
        column = table.column(given, "the id")
        if not _unique(table, f"{identifier(column.name)}::VARCHAR"):
            raise ScaffoldError(f"--id {column.name!r} is not unique, or missing in some rows; leave --id out")
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
        sql: of the id, from one row alone: no label and no other row has a part in it.
        column: the column that it is, if it is one.
        numbered: whether rows may have one id, and then get a number.
        doubles: rows that equal another one in key, moment and all inputs.
    """

    sql: str
    column: str | None = None
    numbered: bool = False
    doubles: int = 0


def named(column: Column) -> EventId:
    """Return the id that is a column."""
    return EventId(f"{quote(column.name)}::VARCHAR", column.name)


def event_id(table: Table, when: Moment, found: Sequence[Key], inputs: Sequence["Input"]) -> EventId:
    """Return an id that stays with its row, whatever labels and rows come later.

    It is made of keys and moment; where rows share both, of a digest of the inputs as well.
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
    """Sort the columns without another role into those a client can send with a request, and those left out."""
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
    """Return kind, SQL and what to name an input after, or why the column is none."""
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
            return f"lies after the row's own moment in {later:,} rows, so it was not known then{always}"
        return "number", f"date_diff('second', {name}, {moment_sql}) / 86400.0", f"{column.name} age"
    return f"has the type {column.kind}, which no feature is made of"


def _repeats(table: Table, column: Column) -> bool:
    """Return whether half of the rows with a value have one that is frequent enough for a category."""
    name = identifier(column.name)
    counts = f"SELECT count({name}) AS rows FROM {table.name} WHERE {name} IS NOT NULL GROUP BY {name}"
    ((often,),) = table.query(f"SELECT coalesce(sum(rows) FILTER (rows >= {ROWS_A_CATEGORY}), 0) FROM ({counts})")
    return bool(2 * often >= column.filled)


def _numbered(table: Table, column: Column) -> bool:
    """Return whether a whole number just counts the rows, with few gaps; amounts are spread further."""
    name = identifier(column.name)
    if column.distinct <= 0.95 * table.rows:
        return False
    ((span,),) = table.query(f"SELECT max({name})::DOUBLE - min({name})::DOUBLE FROM {table.name}")
    return bool(span < ROWS_A_CATEGORY * table.rows)


def _precision(table: Table, column: Column) -> tuple[int, bool]:
    """Return what to subtract from a number so that float32 keeps it, and whether it takes different ones as one still.

    A date or a code of eight digits varies in its last ones only; what is left of an amount is exact enough.
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

"""The label: which kind of task it implies, and how SQL reads it."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

from kubeloop.data.sources import identifier, literal
from kubeloop.scaffold.advice import option
from kubeloop.scaffold.table import TEXTS, Column, ScaffoldError, Table, as_id, quote
from kubeloop.tasks.multiclass.settings import MOST_CLASSES

LEAST_ROWS = 1000
LEAST_OF_A_CLASS = 50
MOST_NUMBERED = 10
"""A label with at most this many distinct whole numbers has classes; one with more is an amount."""
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
        meaning: what it means, as part of a sentence.
        positives: rows on one side: of class 1, outside the most frequent class, or above the median.
        negatives: rows on the other side.
        unknown: rows without a label.
        task: kind of task that it implies.
        classes: the classes of a multiclass task, the most frequent first.
        side: SQL that is 1 for the rows that `positives` counts, and 0 for those of `negatives`.
        level: SQL of the number that histories average.
        levels: what that average means.
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


def label(table: Table, name: str, positive: str | None, task: str | None = None) -> Label:
    """Check the label and find how to read it.

    Args:
        table: the table.
        name: of the column.
        positive: its value to predict, if there are two or if it is compared with all others.
        task: kind of task; determined from the label if left out.

    Raises:
        ScaffoldError: no kind of task fits it, its positive value is not clear, or a class has too few rows.
    """
    column = table.column(name, "the label")
    found = task or ("binary" if positive is not None else _kind(table, column))
    if found == "binary":
        return _binary(table, column, positive)
    if positive is not None:
        raise ScaffoldError(f"--positive is for a binary task; leave it out with --task {found}")
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
            "classes. Join rare ones in a new column and name that one, or predict a number with "
            "--task regression"
        )
    most, *others = counts.values()
    if sum(counts.values()) < LEAST_ROWS or sum(others) < LEAST_OF_A_CLASS:
        raise ScaffoldError(_too_few(column, shown))
    names = tuple(counts)
    listed = ", ".join(literal(name) for name in names)
    # The model does not know a class that appears later.
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
    """Return the values of the label with their numbers of rows, the most frequent first, at most `most` + 1."""
    value = identifier(column.name)
    listed = f"SELECT {text}, count(*) FROM {table.name} WHERE {value} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    counts: dict[str, int] = dict(table.query(f"{listed} LIMIT {most + 1}"))
    if twice := _alike(counts):
        raise ScaffoldError(
            f"the label {column.name!r} has {twice[0]!r} and {twice[1]!r}, which differ only in case or spaces; write "
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
            f"the label {column.name!r} has the values {shown}; choose the one to predict, such as "
            + option("positive", rarer)
        )
    chosen = positive if positive is not None else yes[0]
    if chosen not in counts:
        raise ScaffoldError(f"--positive {chosen!r} is not a value of the label {column.name!r}; it has {shown}")
    others = [value for value in counts if value != chosen]
    negatives = sum(counts[value] for value in others)
    if min(counts[chosen], negatives) < LEAST_OF_A_CLASS:
        raise ScaffoldError(few)
    as_number = chosen.lower() in ("1", "1.0", "true") and column.kind not in TEXTS
    if as_number and [other.lower() for other in others] in (["0"], ["0.0"], ["false"]):
        sql = f"{quote(column.name)}::INTEGER"
    elif len(others) == 1:
        # It is unknown which of the two a third value would be that appears later.
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
    """Return a value in the form of the lists of words; an accent may be a separate character."""
    return unicodedata.normalize("NFC", value.strip().lower())


def _alike(values: Collection[str]) -> tuple[str, str] | None:
    """Return two values that a person would read as the same."""
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
            f"{begin}Predict one of them against all others, such as with {option('positive', enough[-1])}, or "
            "predict all of them with --task multiclass"
        )
    return (
        f"{begin}Add a column that is 1 where what you want to predict happened and 0 where it did not, and name that "
        "one"
    )

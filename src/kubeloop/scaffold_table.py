"""What a table holds: its columns, and which of them could be label, timestamp and key."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kubeloop import scaffold_advice, sources
from kubeloop.config import ConfigError
from kubeloop.scaffold_names import safe
from kubeloop.sources import MOMENT, identifier

TEXTS = ("VARCHAR", "UUID")
LIKE_ID = re.compile(r"(^|_)(id|ids|uuid|guid|key|nr|no|number|code|zip|postcode|index|row)(_column)?$")

_INTEGER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?$")
_FLOAT = re.compile(r"FLOAT$|DOUBLE$|DECIMAL")
_ENDINGS = re.compile(r"(\.(csv|tsv|txt|parquet|gz|zst))+$", re.IGNORECASE)
_LIKE_LABEL = re.compile(
    r"(^|_)(label|target|outcome|class|y|churn\w*|fraud\w*|default\w*|fail\w*|cancel\w*|convert\w*|click\w*|late)(_|$)"
    r"|^(is|has|was|did)_"
)


class ScaffoldError(ConfigError):
    """A table cannot become a use case as it is; the message says what to do."""


@dataclass(frozen=True)
class Column:
    """One column as it was taken in.

    Attributes:
        name: as the file has it.
        kind: DuckDB type.
        filled: rows with a value.
        distinct: different values, approximately.
        finite: whether no number is infinite or not a number.
    """

    name: str
    kind: str
    filled: int
    distinct: int
    finite: bool

    @property
    def is_integer(self) -> bool:
        """Whether it holds whole numbers."""
        return bool(_INTEGER.match(self.kind))

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return self.is_integer or bool(_FLOAT.match(self.kind))

    @property
    def like_id(self) -> bool:
        """Whether it is named like an identifier."""
        return bool(LIKE_ID.search(safe(self.name)))


class Table:
    """A user's table, taken in as `<folder>/<name>.parquet` exactly as a run would.

    Raises:
        ScaffoldError: there is no such file, or no table in it.
    """

    def __init__(self, path: Path, folder: Path, where: str = "") -> None:
        _check_file(path)
        self.path = path
        self.where = where
        self.name = safe(_ENDINGS.sub("", path.name), fallback="data", ascii_only=True)
        self.parquet = folder / f"{self.name}.parquet"
        self.take_in()
        found = self.query(f"DESCRIBE {self.name}")
        if len(found) < 3:
            raise ScaffoldError(
                f"{path} has the columns {quoted([row[0] for row in found])} alone, but a use case needs a label, a "
                "timestamp and what to predict from. If the file has more, its separator was not found: write it with "
                "commas"
            )
        measures = ", ".join(_measures(name, kind) for name, kind, *_ in found)
        counts = self.query(f"SELECT count(*), {measures} FROM {self.name}")[0]
        self.rows: int = counts[0]
        if not self.rows:
            raise ScaffoldError(f"{path} has columns but no rows; name a table with data")
        self.columns = {}
        for place, (name, kind, *_) in enumerate(found):
            filled, distinct, odd = counts[3 * place + 1 : 3 * place + 4]
            self.columns[name] = Column(name, kind, filled, distinct, finite=not odd)
        clash = [name for name in self.columns if name.lower() == "reasons"]
        if clash:
            raise ScaffoldError(f"the column {clash[0]!r} has a name that the quarantine needs; rename it in {path}")

    def take_in(self, moment: str | None = None) -> None:
        """Write the Parquet copy, reading a column of texts as moments where one is named.

        Raises:
            ScaffoldError: DuckDB cannot read the file.
        """
        try:
            sources.copy(self.path, self.parquet, moment)
            sources.choose(self.parquet, self.where, "--where")
        except sources.SourceError as error:
            raise ScaffoldError(f"{str(error).strip()}\nWrite it anew, best as Parquet, and try again") from error
        if moment is not None:
            self.columns[moment] = replace(self.columns[moment], kind=MOMENT)

    def query(self, text: str) -> list[Any]:
        """Run a query in which the table goes by its name."""
        with sources.connect({self.name: self.parquet}) as db:
            return db.execute(text).fetchall()

    def whole(self, column: Column) -> bool:
        """Return whether a column holds whole numbers, also as floats; infinite ones are none."""
        if column.is_integer or not column.is_number or not column.filled:
            return column.is_integer
        value = identifier(column.name)
        good: bool
        ((good,),) = self.query(f"SELECT bool_and({value} = trunc({value}) AND abs({value}) < 1e15) FROM {self.name}")
        return good

    def column(self, name: str, role: str) -> Column:
        """Find a column by the name the user gave; case does not matter where it is clear.

        Raises:
            ScaffoldError: there is none.
        """
        if name in self.columns:
            return self.columns[name]
        alike = [column for column in self.columns.values() if column.name.lower() == name.lower()]
        if len(alike) == 1:
            return alike[0]
        raise ScaffoldError(f"{self.path} has no column {name!r} ({role}); it has {quoted(self.columns)}")

    def possible_labels(self) -> list[str]:
        """Return the columns that could be the label, the likeliest first."""
        found = [
            column
            for column in self.columns.values()
            if column.distinct == 2 and (column.is_number or column.kind in ("BOOLEAN", *TEXTS))
        ]
        return [column.name for column in sorted(found, key=lambda column: not _like_label(column))]

    def likely_label(self) -> str | None:
        """Return the label where there is little doubt: the only candidate, or the only one with such a name."""
        found = self.possible_labels()
        named = [name for name in found if _like_label(self.columns[name])]
        return _only(named) or _only(found)

    def possible_moments(self) -> list[str]:
        """Return the columns that could be the timestamp, the likeliest first: complete ones, moments before texts."""
        found = [column.name for column in self.columns.values() if column.kind == MOMENT and column.distinct > 1]
        for column in self.columns.values():
            if column.kind == "VARCHAR" and column.distinct > 2 and self.reads_as_moment(column.name):
                found.append(column.name)
        return sorted(found, key=lambda name: self.columns[name].filled < self.rows)

    def likely_moment(self) -> str | None:
        """Return the timestamp where there is no doubt: the only candidate, or the only complete one."""
        found = self.possible_moments()
        return _only([name for name in found if self.columns[name].filled == self.rows]) or _only(found)

    def reads_as_moment(self, name: str) -> bool:
        """Return whether the first thousand texts of a column are ISO 8601 times."""
        column = identifier(name)
        tried = f"SELECT {column} FROM {self.name} WHERE {column} IS NOT NULL LIMIT 1000"
        good: bool | None
        ((good,),) = self.query(f"SELECT bool_and(TRY_CAST({column} AS TIMESTAMPTZ) IS NOT NULL) FROM ({tried})")
        return bool(good)

    def possible_keys(self) -> list[str]:
        """Return the columns that could be keys, the likeliest first: complete, and with values that repeat."""
        found = [
            column
            for column in self.columns.values()
            if (column.kind in TEXTS or self.whole(column))
            and column.filled == self.rows
            and 2 <= column.distinct <= self.rows / 3
            and (column.like_id or column.kind in TEXTS)
        ]
        return [column.name for column in sorted(found, key=lambda column: (not column.like_id, -column.distinct))]

    def likely_key(self, others: Collection[str]) -> str | None:
        """Return the likeliest key that has no other role, where it is named like an id or has many values."""
        found = [self.columns[name] for name in self.possible_keys() if name not in others]
        return found[0].name if found and (found[0].like_id or found[0].distinct > 20) else None


def quote(name: str) -> str:
    """Quote a column for SQL where it must be."""
    return name if re.fullmatch(r"[a-z][a-z0-9_]*", name) and safe(name) == name else identifier(name)


def quoted(names: Collection[str]) -> str:
    """List names for a message, the first thirty of them."""
    shown = [repr(name) for name in names][:30]
    return ", ".join(shown) + (f" and {len(names) - 30} more" if len(names) > 30 else "")


def _like_label(column: Column) -> bool:
    return bool(_LIKE_LABEL.search(safe(column.name)))


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _measures(name: str, kind: str) -> str:
    column = identifier(name)
    odd = f"count_if(NOT isfinite({column}))" if kind in ("FLOAT", "DOUBLE") else "0"
    return f"count({column}), approx_count_distinct({column}), {odd}"


def _check_file(path: Path) -> None:
    if path.is_dir():
        command = scaffold_advice.join_files(path)
        many = f". Its files become one table with:\n  {command}" if command else ""
        raise ScaffoldError(f"{path} is a folder; name one Parquet or CSV file{many}")
    if not path.is_file():
        raise ScaffoldError(f"{path} does not exist; name a Parquet or CSV file")
    if not path.stat().st_size:
        raise ScaffoldError(f"{path} is empty; name a table with data")
    with path.open("rb") as file:
        if file.read(4) == b"PAR1" and path.suffix != ".parquet":
            raise ScaffoldError(f"{path} is a Parquet file by its content; give it the ending .parquet")

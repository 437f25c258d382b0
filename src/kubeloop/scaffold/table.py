"""Read a user's table: its columns, and which of them could be label, timestamp and key."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_asked
from pathlib import Path
from typing import Any

import duckdb

from kubeloop import config
from kubeloop.config import ConfigError
from kubeloop.config.reading import Read
from kubeloop.data import sources
from kubeloop.data.sources import MOMENT, identifier
from kubeloop.reading import files, infer, rows
from kubeloop.scaffold import advice
from kubeloop.scaffold.names import safe
from kubeloop.stores import whole

TEXTS = ("VARCHAR", "UUID")
LIKE_ID = re.compile(r"(^|_)(id|ids|uuid|guid|key|nr|no|number|code|zip|postcode|index|row)(_column)?$")

_INTEGER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?$")
_FLOAT = re.compile(r"FLOAT$|DOUBLE$|DECIMAL")
_ENDINGS = re.compile(r"(\.(csv|tsv|txt|parquet|feather|arrow|json|jsonl|ndjson|xlsx|xls|zip|gz|bz2|zst))+$", re.I)
_LIKE_MOMENT = re.compile(r"(^|_)(ts|time|timestamp|datetime|date|day|epoch|at|moment)(_|$)")
_MOST_LOST = 0.05
"""From this share of rows that do not fit, the table is not read in this way."""
_LIKE_LABEL = re.compile(
    r"(^|_)(label|target|outcome|class|y|churn\w*|fraud\w*|default\w*|fail\w*|cancel\w*|convert\w*|click\w*|late)(_|$)"
    r"|^(is|has|was|did)_"
)


class ScaffoldError(ConfigError):
    """A table cannot become a use case; the message says what to change."""


@dataclass(frozen=True)
class Column:
    """One column as it was taken in.

    Attributes:
        name: as the file has it.
        kind: its DuckDB type.
        filled: rows with a value.
        distinct: approximate number of distinct values.
        finite: whether all numbers are finite.
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
    """A user's table, imported as `<folder>/<name>.parquet` exactly as a run would import it.

    Attributes:
        source: the settings of loop.yaml for reading the file.
        said: sentences about what was decided.
        look: what the user should check.
        parts: the columns that make up the timestamp.

    Raises:
        ScaffoldError: the file does not exist, or does not contain a table.
        FileError: it cannot be read; the message names the option that helps.
        SourceError: the condition `where` fails on the table.
        ReadingError: a column can be read in two ways.
    """

    def __init__(self, path: Path, folder: Path, where: str = "", asked: infer.Asked | None = None) -> None:
        _check_file(path)
        self.path = path
        self.where = where
        self.name = safe(_ENDINGS.sub("", path.name), fallback="data", ascii_only=True)
        self.parquet = folder / f"{self.name}.parquet"
        self._asked = asked or infer.Asked()
        self.source = config.Table(available_at="")
        self.said: list[str] = []
        self.look: list[str] = []
        self.parts: tuple[str, ...] = ()
        self._joined: dict[str, str] = {}
        self._take_in()

    def take_moment(self, name: str) -> str:
        """Read a column as the timestamp, and the table again if that changes it; return the column.

        Raises:
            ReadingError: it can be read in two ways, or in no way.
        """
        made = self._joined.get(name, name)
        found = self.columns.get(made)
        if self.source.available_at != made and (found is None or found.kind != MOMENT or found.filled < self.rows):
            self._asked = replace_asked(self._asked, timestamp=name)
            self._take_in()
            made = self._joined.get(name, name)
        if made in self._joined.values():
            self.parts = self.source.columns[made].of
        return made

    def _take_in(self) -> None:
        asked = self._asked
        with (
            sources.connect() as db,
            files.opened(db, self.path, asked.read, self.parquet.parent, first=True) as opened,
        ):
            if clash := [name for name in opened.columns if name.lower() == rows.REASONS]:
                raise ScaffoldError(
                    f"the column {clash[0]!r} has a name that the quarantine needs; rename it in {self.path}"
                )
            if not opened.ragged and not db.execute(f"FROM {opened.relation} LIMIT 1").fetchall():
                raise ScaffoldError(f"{self.path} has columns but no rows; name a table with data")
            decided = infer.columns(db, opened, asked)
            moment = self._moment(db, opened, decided)
            unclear = {name: why for name, why in decided.unclear.items() if name not in asked.exclude}
            if unclear:
                raise infer.ReadingError("; ".join(unclear.values()))
            try:
                with whole.file(self.parquet) as part:
                    found = rows.write(db, opened, decided.columns, moment, part, self.parquet.with_suffix(".misfits"))
            except duckdb.OutOfMemoryException:
                raise
            except duckdb.Error as error:
                raise files.FileError(f"{self.path} cannot be read: it is damaged, or cut off") from error
        sources.choose(self.parquet, self.where, "--where")
        self.said = [*opened.said, *decided.said]
        self.look = [*decided.look, *_left_out(self.path, opened, found, moment)]
        plain = {"delimiter": ",", "skip": 0, "encoding": "utf-8-sig"}
        kept = {
            name: value
            for name, value in opened.read.model_dump(exclude_defaults=True).items()
            if value != plain.get(name)
        }
        if "sheet" in kept:
            kept.pop("delimiter", None)
        self.source = config.Table(available_at=moment or "", read=Read(**kept), columns=decided.columns)
        self._measure(found, moment)

    def _moment(self, db: duckdb.DuckDBPyConnection, opened: files.Opened, decided: infer.Decided) -> str | None:
        """Decide how the timestamp is read, if it is known, and which columns of date and time of day form one."""
        asked, name = self._asked, self._asked.timestamp
        parts = name.split("+") if name and name not in opened.columns and "+" in name else []
        if lost := [part for part in parts if part not in opened.columns]:
            raise ScaffoldError(
                f"{self.path} has no column {lost[0]!r} (the timestamp); it has {quoted(opened.columns)}"
            )
        parts = parts or infer.halves(db, opened, decided, name) or infer.pieces(opened, decided, name)
        if parts:
            made = infer.together(db, opened, parts, asked, decided)
            self._joined = {parts[0]: made, **({name: made} if name else {})}
            return made if name else None
        alike = [column for column in opened.columns if name and column.lower() == name.lower()]
        name = name if name in opened.columns else alike[0] if len(alike) == 1 else None
        if name is None or name in decided.unclear:
            return name
        known = decided.columns[name].kind if name in decided.columns else opened.columns[name]
        if known != "time" and not known.startswith(("DATE", "TIMESTAMP")):
            infer.timestamp(db, opened, name, asked, decided)
        return name

    def _measure(self, misfits: Mapping[str, tuple[int, str]], moment: str | None) -> None:
        found = self.query(f"DESCRIBE {self.name}")
        if len(found) < 3:
            raise ScaffoldError(
                f"{self.path} has only the columns {quoted([row[0] for row in found])}, but a use case needs a label, "
                "a timestamp and inputs; if the file has more, give its field separator with --delimiter"
            )
        measures = ", ".join(_measures(name, kind) for name, kind, *_ in found)
        counts = self.query(f"SELECT count(*), {measures} FROM {self.name}")[0]
        self.rows: int = counts[0]
        lost = sum(count for count, _ in misfits.values())
        if lost > max(5, _MOST_LOST * self.rows):
            example = next(iter(misfits.values()))[1]
            raise ScaffoldError(
                f"{lost:,} of {self.rows + lost:,} rows cannot be used, such as {example:.200}"
                + (f"; name another column with --timestamp than {moment!r}" if moment else "")
            )
        self.columns: dict[str, Column] = {}
        for place, (name, kind, *_) in enumerate(found):
            filled, distinct, odd = counts[3 * place + 1 : 3 * place + 4]
            self.columns[name] = Column(name, kind, filled, distinct, finite=not odd)

    def query(self, text: str) -> list[Any]:
        """Run a query that refers to the table by its name."""
        with sources.connect({self.name: self.parquet}) as db:
            return db.execute(text).fetchall()

    def whole(self, column: Column) -> bool:
        """Return whether a column holds only whole numbers, possibly as floats; infinite ones are not whole."""
        if column.is_integer or not column.is_number or not column.filled:
            return column.is_integer
        value = identifier(column.name)
        good: bool
        ((good,),) = self.query(f"SELECT bool_and({value} = trunc({value}) AND abs({value}) < 1e15) FROM {self.name}")
        return good

    def column(self, name: str, role: str) -> Column:
        """Find a column by the name that the user gave; case does not matter if the column is unambiguous.

        Raises:
            ScaffoldError: there is no such column.
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
        named = [
            column
            for column in self.columns.values()
            if column.distinct > 2 and _like_label(column) and (column.is_number or column.kind in TEXTS)
        ]
        return [column.name for column in [*sorted(found, key=lambda column: not _like_label(column)), *named]]

    def likely_label(self) -> str | None:
        """Return the label if there is little doubt: the only candidate, or the only one with a typical name."""
        found = self.possible_labels()
        two = [name for name in found if self.columns[name].distinct == 2]
        return _only([name for name in two if _like_label(self.columns[name])]) or _only(two) or _only(found)

    def possible_moments(self) -> list[str]:
        """Return the columns that could be the timestamp, complete ones first; or else numbers with a typical name."""
        parts = self._joined.keys()
        found = [
            column.name
            for column in self.columns.values()
            if column.kind == MOMENT and column.distinct > 1 and column.name not in parts
        ]
        if not found:
            found = [
                name for name, column in self.columns.items() if column.is_number and _LIKE_MOMENT.search(safe(name))
            ]
        return sorted(found, key=lambda name: self.columns[name].filled < self.rows)

    def likely_moment(self) -> str | None:
        """Return the timestamp if there is no doubt: the only candidate, or the only complete one."""
        found = self.possible_moments()
        return _only([name for name in found if self.columns[name].filled == self.rows]) or _only(found)

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
        """Return the likeliest key without another role, if it is named like an id or has many values."""
        found = [self.columns[name] for name in self.possible_keys() if name not in others]
        return found[0].name if found and (found[0].like_id or found[0].distinct > 20) else None


def as_id(table: Table, column: Column) -> str:
    """Return SQL for an identifier as text; 7 and 7.0 are the same, since pandas makes floats of ids with gaps."""
    if table.whole(column) and column.kind not in ("HUGEINT", "UHUGEINT", "UBIGINT"):
        return f"{quote(column.name)}::BIGINT::VARCHAR"
    return quote(column.name) if column.kind == "VARCHAR" else f"{quote(column.name)}::VARCHAR"


def quote(name: str) -> str:
    """Quote a column for SQL if necessary."""
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


def _left_out(
    path: Path, opened: files.Opened, misfits: Mapping[str, tuple[int, str]], moment: str | None
) -> list[str]:
    """Report the rows that go to the quarantine for a reason other than a value; `infer` reports the values."""
    found = []
    if opened.ragged:
        line, why, text = opened.ragged[0]
        more = f", as {len(opened.ragged) - 1:,} more" if len(opened.ragged) > 1 else ""
        found.append(f"line {line} of {path.name} {why}{more}, and is left out: {text[:80]!r}")
    if gone := misfits.get(f"missing({moment})"):
        found.append(f"{gone[0]:,} row{'s have' if gone[0] > 1 else ' has'} no {moment!r} and are left out")
    return found


def _check_file(path: Path) -> None:
    if path.is_dir():
        command = advice.join_files(path)
        many = f". Its files become one table with:\n  {command}" if command else ""
        raise ScaffoldError(f"{path} is a folder; name one file{many}")
    if not path.is_file():
        raise ScaffoldError(f"{path} does not exist; name a Parquet, CSV, JSON or Excel file")
    if not path.stat().st_size:
        raise ScaffoldError(f"{path} is empty; name a table with data")

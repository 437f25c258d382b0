"""Expectation suites as data: one YAML file per table, read and resolved without Great Expectations.

A file is a list; each entry is the name of a native expectation with its arguments:

    - expect_column_values_to_be_between: {column: distance, min_value: 1, max_value: 6000, mostly: 0.999}
    - expect_column_values_to_be_in_set: {column: tailnum, value_set: {from: planes.tailnum}, mostly: 0.8}
    - expect_column_max_to_be_between: {column: published_at, min_value: {as_of: -2d}}

Two kinds of references are replaced by values that only a run knows: `{from: table.column}` by the set of a column's
values, `{as_of: -2d}` by the run's moment plus an offset. Two native keys say what a miss means: `severity`
(critical, the default, fails the run; warning and info are only reported) and `meta: {rows: keep}`, which keeps rows
that miss within the `mostly` tolerance in the table. Without it they go to the quarantine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from kubeloop.config import ConfigError, duration

__all__ = ["dump"]

REFERENCES = ("from", "as_of")
_COLUMN_ARGUMENTS = ("column", "column_A", "column_B")
_MEMBER = "expect_column_values_to_be_in_set"
_NO_STRANGER = "expect_column_values_to_not_be_in_set"


class SuiteError(ConfigError):
    """A suite is missing or wrong; the message names the file and the entry, and says what to write instead."""


@dataclass(frozen=True)
class Entry:
    """One expectation of a suite.

    Attributes:
        name: native name, such as `expect_column_values_to_be_unique`.
        arguments: its keyword arguments; `resolve` replaces the references in them.
        shown: the arguments as reports show them: a set taken from another table by its name and size.
        origin: file and position, for messages.
        runs_as: native name that runs in place of `name` and means the same, with `arguments`; see `resolve`.
    """

    name: str
    arguments: dict[str, Any]
    shown: dict[str, Any]
    origin: str
    runs_as: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are checked; empty if the expectation is about the whole table."""
        if self.name.startswith("expect_table_"):
            return ()
        single = [self.arguments[key] for key in _COLUMN_ARGUMENTS if key in self.arguments]
        return tuple(str(column) for column in (*single, *self.arguments.get("column_list", ())))

    @property
    def label(self) -> str:
        """Name and columns: the reason that is written with a quarantined row."""
        return f"{self.name}({', '.join(self.columns)})"

    @property
    def keeps_rows(self) -> bool:
        """Whether rows that miss within the tolerance stay in the table."""
        return bool(self.arguments.get("meta", {}).get("rows") == "keep")


def load(folder: Path, tables: Sequence[str]) -> dict[str, tuple[Entry, ...]]:
    """Read the suites of these tables from `<folder>/<table>.yaml`.

    Raises:
        SuiteError: a table has no suite, or a file is not a list of expectations.
    """
    return {table: _read(folder / f"{table}.yaml", table) for table in tables}


def dump(suite: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Write a suite, one expectation per line, as `load` reads it."""
    lines = []
    for item in suite:
        ((name, arguments),) = item.items()
        flow = yaml.safe_dump(
            dict(arguments), default_flow_style=True, sort_keys=False, width=2**31, allow_unicode=True
        )
        lines.append(f"- {name}: {flow}")
    return "".join(lines)


def resolve(
    suites: Mapping[str, Sequence[Entry]], tables: Mapping[str, Path], as_of: datetime
) -> dict[str, list[Entry]]:
    """Replace every reference by its values.

    "Every value is in the other table's column" runs as "no value is among those that the column lacks". This is the
    same check, but the library copies a value set about a hundred times, and the lacking values are few.

    Args:
        suites: the entries of each table.
        tables: the Parquet file of each table, for `from` references.
        as_of: the run's moment, for `as_of` references; timezone-aware.

    Raises:
        SuiteError: a reference names an unknown table or column, or its offset is not a duration.
        ValueError: `as_of` has no time zone.
    """
    if as_of.tzinfo is None:
        raise ValueError(f"as_of {as_of.isoformat()} has no time zone; pass a UTC datetime")
    values = _Values(tables, as_of)
    return {table: [values.fill(table, entry) for entry in entries] for table, entries in suites.items()}


def _read(path: Path, table: str) -> tuple[Entry, ...]:
    if not path.is_file():
        raise SuiteError(
            f"table {table} has no suite: write {path}, or draft it from data with kubeloop.data.profiling.profile"
        )
    try:
        items = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise SuiteError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(items, list) or not items:
        raise SuiteError(f"{path} must be a list with at least one expectation, `- expect_...: {{column: ...}}`")
    return tuple(_entry(item, f"{path}, entry {position}") for position, item in enumerate(items, start=1))


def _entry(item: Any, origin: str) -> Entry:
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, dict) or len(item) != 1:
        raise SuiteError(f"{origin}: an entry is one expectation with its arguments, `- expect_...: {{column: ...}}`")
    ((name, arguments),) = item.items()
    origin = f"{origin} ({name})"
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise SuiteError(f"{origin}: the arguments must be a mapping, such as {{column: distance, min_value: 1}}")
    meta = arguments.get("meta", {})
    if not isinstance(meta, dict) or meta.get("rows", "quarantine") not in ("keep", "quarantine"):
        raise SuiteError(f"{origin}: meta must be a mapping, and its `rows` either keep or quarantine, not {meta!r}")
    return Entry(name, arguments, arguments, origin, runs_as=name)


def _is_reference(value: Any, kind: str) -> bool:
    return isinstance(value, dict) and kind in value


class _Values:
    """The values behind references; a column is read once."""

    def __init__(self, tables: Mapping[str, Path], as_of: datetime) -> None:
        self._tables = tables
        self._as_of = as_of
        self._columns: dict[str, list[Any]] = {}

    def fill(self, table: str, entry: Entry) -> Entry:
        filled = {key: self._value(value, entry.origin) for key, value in entry.arguments.items()}
        arguments = {key: value for key, (value, _) in filled.items()}
        entry = replace(entry, shown={key: shown for key, (_, shown) in filled.items()})
        if entry.name != _MEMBER or not _is_reference(entry.arguments.get("value_set"), "from"):
            return replace(entry, arguments=arguments)
        column = arguments.get("column")
        present = self._column(f"{table}.{column}") if column in self._names(table) else []
        strangers = sorted(set(present) - set(arguments["value_set"]), key=str)
        return replace(entry, arguments=arguments | {"value_set": strangers}, runs_as=_NO_STRANGER)

    def _value(self, value: Any, origin: str) -> tuple[Any, Any]:
        if not any(_is_reference(value, kind) for kind in REFERENCES):
            return value, value
        if len(value) != 1:
            raise SuiteError(
                f"{origin}: {value} is not a reference; write only {{from: table.column}} or only {{as_of: -2d}}"
            )
        ((kind, text),) = value.items()
        if kind == "as_of":
            moment = self._moment(str(text), origin)
            return moment, moment
        table, _, column = str(text).partition(".")
        if table not in self._tables:
            known = ", ".join(sorted(self._tables))
            raise SuiteError(f"{origin}: from: {text}: no table {table!r} in this run; it has {known}")
        if column not in self._names(table):
            known = ", ".join(self._names(table))
            raise SuiteError(f"{origin}: from: {text}: table {table} has no column {column!r}; it has {known}")
        values = self._column(f"{table}.{column}")
        return values, [f"{len(values)} values of {text}"]

    def _moment(self, text: str, origin: str) -> datetime:
        offset = text.strip()
        try:
            span = duration(offset.removeprefix("-").removeprefix("+"))
        except ValueError as error:
            raise SuiteError(f"{origin}: as_of: {error}; -2d is two days before the run's moment") from error
        return self._as_of + (-span if offset.startswith("-") else span)

    def _names(self, table: str) -> list[str]:
        return list(pq.read_schema(self._tables[table]).names)

    def _column(self, name: str) -> list[Any]:
        if name not in self._columns:
            table, _, column = name.partition(".")
            values = pq.read_table(self._tables[table], columns=[column]).column(0)
            self._columns[name] = pc.unique(values.drop_null()).to_pylist()
        return self._columns[name]

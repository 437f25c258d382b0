"""Raw tables: take them in, again when their source changed, and show only what was known at a given moment."""

import contextlib
import hashlib
import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop import kept
from kubeloop.config import ConfigError, Loop, Settings
from kubeloop.errors import KubeloopError

MOMENT = "TIMESTAMP WITH TIME ZONE"
"""DuckDB's type of a moment, in microseconds; every other kind of time is made one when it is taken in."""
RECORD = "taken.json"
"""Beside the raw tables: what each was taken from."""
_OTHER_TIMES = re.compile(r"DATE|TIMESTAMP\w*")


class SourceError(KubeloopError):
    """Raw data cannot be read; the message names the table and what to change."""

    lasting = True


def connect(tables: dict[str, Path] | None = None) -> duckdb.DuckDBPyConnection:
    """Open an in-memory database in UTC with one view a Parquet file."""
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    db.execute("SET enable_progress_bar = false")
    for name, path in (tables or {}).items():
        db.execute(f"CREATE VIEW {identifier(name)} AS FROM read_parquet({literal(path)})")
    return db


def identifier(name: str) -> str:
    """Quote a table or column name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """Quote a value as an SQL string."""
    return "'" + str(value).replace("'", "''") + "'"


def tables(folder: Path) -> dict[str, Path]:
    """Return the Parquet files of a folder by table name."""
    return {path.stem: path for path in sorted(folder.glob("*.parquet"))}


def take_in(
    loop: Loop, settings: Settings, *, keep: bool = False, say: Callable[[str], None] = lambda _: None
) -> dict[str, int]:
    """Write the raw tables to `settings.raw` and return their row counts.

    A table that is there already is taken in again when its file has another size or time than when it was, or when
    the module of `source.entry` changed. A half-written table is never left behind.

    Args:
        loop: the use case.
        settings: where the raw tables go.
        keep: leave every table that is there as it is, for the steps of a run that share them.
        say: is told which tables changed.

    Raises:
        ConfigError: `source` names neither an entry nor a path for a table.
        SourceError: a file or a column is missing.
    """
    settings.raw.mkdir(parents=True, exist_ok=True)
    record = settings.raw / RECORD
    broken = kept.changed(settings.raw)
    if broken and keep:
        raise SourceError(f"{settings.raw / broken[0]} is damaged or missing; `kubeloop run` takes it in again")
    known = {} if RECORD in broken or not record.is_file() else kept.loads(record)
    before = {name: rows for name, path in tables(settings.raw).items() if (rows := _rows(path)) is not None}
    # Looked at before anything is read: what changes meanwhile is taken in the next time.
    origins = _origins(loop, settings)
    wanted = {
        name
        for name, table in loop.source.tables.items()
        if name not in before
        or {f"{name}.parquet", RECORD, kept.MADE} & set(broken)
        # Tables that are there without a note, put there by hand, are nothing that an entry wrote.
        or (not keep and origins[name] and known.get(name, None if table.path else origins[name]) != origins[name])
    }
    if loop.source.entry and any(not loop.source.tables[name].path for name in wanted):
        _call(settings.home / loop.features.repo, "source.entry", loop.source.entry, settings.raw)
        wanted = set(loop.source.tables)
    for name in sorted(wanted):
        table = loop.source.tables[name]
        if table.path:
            copy(settings.home / table.path, settings.raw / f"{name}.parquet", table.available_at)
            choose(settings.raw / f"{name}.parquet", table.where)
        elif not loop.source.entry:
            raise ConfigError(f"source.tables.{name} needs a path, or source.entry a function that writes it")
    counts = _checked(loop, settings.raw, loop.source.entry)
    if wanted:
        kept.replace(record, kept.dumps({**known, **{name: origins[name] for name in wanted}}))
        kept.remember(settings.raw, [record, *tables(settings.raw).values()])
    for name in broken:
        say(f"Raw data: {settings.raw / name} was damaged or missing and is made again.")
    if news := [f"{name} changed, {_change(counts[name] - before[name])}" for name in sorted(wanted & set(before))]:
        say(f"Raw data: {'; '.join(news)}.")
    return counts


def _rows(path: Path) -> int | None:
    """Return a table's row count, None where the file is no Parquet."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowException:
        return None


@contextlib.contextmanager
def of_run(loop: Loop, settings: Settings, *, since: datetime, as_of: datetime) -> Iterator[Path]:
    """Yield the folder of the raw tables that a run at `as_of` reads.

    Those of `source.live` are written for this run alone and go with it: they are as many as there are moments.

    Raises:
        ConfigError: `source` names neither an entry nor a path for a table.
        SourceError: a file or a column is missing.
    """
    live = loop.source.live
    if live is None or (loop.replay and as_of <= loop.replay.until):
        take_in(loop, settings, keep=True)
        yield settings.raw
        return
    settings.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="raw-", dir=settings.state) as scratch:
        folder = Path(scratch)
        _call(settings.home / loop.features.repo, "source.live", live, folder, since=since, until=as_of)
        for name, table in loop.source.tables.items():
            if table.path:
                copy(settings.home / table.path, folder / f"{name}.parquet", table.available_at)
                choose(folder / f"{name}.parquet", table.where)
        _checked(loop, folder, live)
        yield folder


def _origins(loop: Loop, settings: Settings) -> dict[str, str]:
    """Return by table what tells whether its source is still the one that was taken in; empty where there is none."""
    found = {}
    for name, table in loop.source.tables.items():
        if table.path:
            path = settings.home / table.path
            status = path.stat() if path.is_file() else None
            found[name] = f"{path} {status.st_size} {status.st_mtime_ns} {table.available_at}" if status else ""
            if status and table.where:
                found[name] += f" where {table.where}"
        else:
            module = _module(settings.home / loop.features.repo, loop.source.entry or "")
            digest = hashlib.sha256(module.read_bytes()).hexdigest() if module.is_file() else ""
            found[name] = f"{loop.source.entry} {digest}" if digest else ""
    return found


def _change(rows: int) -> str:
    return f"{rows:,} new rows" if rows > 0 else f"{-rows:,} rows fewer" if rows else "as many rows as before"


def _checked(loop: Loop, raw: Path, writer: str | None) -> dict[str, int]:
    """Return the row count of every table of the use case; each must say when its rows were known."""
    found = tables(raw)
    counts = {}
    with connect(found) as db:
        for name, table in loop.source.tables.items():
            if name not in found:
                raise SourceError(f"{writer} wrote no {name}.parquet")
            columns = {row[0]: row[1] for row in db.execute(f"DESCRIBE {identifier(name)}").fetchall()}
            if table.available_at not in columns:
                raise SourceError(
                    f"table {name} has no column {table.available_at!r} (source.tables.{name}.available_at); "
                    f"its columns are {', '.join(columns)}"
                )
            if not columns[table.available_at].startswith("TIMESTAMP"):
                raise SourceError(
                    f"table {name}: {table.available_at!r} holds {columns[table.available_at]}, but "
                    f"source.tables.{name}.available_at must name a column of times"
                )
            counts[name] = _count(db, f"FROM {identifier(name)}")
    return counts


def cut(loop: Loop, raw: Path, out: Path, *, since: datetime, as_of: datetime) -> dict[str, int]:
    """Write what was known at `as_of`, from `since` on, to `out`; return the row counts.

    A static table (no history of its own) keeps every row known at `as_of`.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    found = tables(raw)
    with connect(found) as db:
        for name, table in loop.source.tables.items():
            when = identifier(table.available_at)
            bounds = f"{when} <= {literal(as_of.isoformat())}::TIMESTAMPTZ"
            if not table.static:
                bounds += f" AND {when} >= {literal(since.isoformat())}::TIMESTAMPTZ"
            query = f"FROM {identifier(name)} WHERE {bounds} ORDER BY {when}"
            db.execute(f"COPY ({query}) TO {literal(out / f'{name}.parquet')} (FORMAT parquet, COMPRESSION zstd)")
            counts[name] = _count(db, query)
    return counts


def _count(db: duckdb.DuckDBPyConnection, query: str) -> int:
    row = db.execute(f"SELECT count(*) FROM ({query})").fetchone()
    return int(row[0]) if row else 0


def copy(path: Path, target: Path, moment: str | None = None) -> None:
    """Write a Parquet or CSV file as Parquet, with every time as a moment in UTC; one without an offset is UTC.

    Args:
        path: the file; anything not named `*.parquet` is read as CSV.
        target: the Parquet file; never half-written.
        moment: a column that is a moment even where the file holds it as text.

    Raises:
        SourceError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist; set source.tables.{target.stem}.path in loop.yaml")
    reader = "read_parquet" if path.suffix == ".parquet" else "read_csv"
    part = target.with_suffix(".part")
    with connect() as db:
        try:
            described = db.execute(f"DESCRIBE FROM {reader}({literal(path)})").fetchall()
            columns = ", ".join(
                f"{identifier(name)}::TIMESTAMPTZ AS {identifier(name)}"
                if _OTHER_TIMES.fullmatch(kind) or (name == moment and kind == "VARCHAR")
                else identifier(name)
                for name, kind, *_ in described
            )
            db.execute(f"COPY (SELECT {columns} FROM {reader}({literal(path)})) TO {literal(part)} (FORMAT parquet)")
        except duckdb.Error as error:
            # DuckDB ends with our own query, which says nothing about the file.
            raise SourceError(f"{path} cannot be read: {str(error).partition('LINE 1:')[0].strip()}") from error
    part.replace(target)


def choose(target: Path, where: str, setting: str = "") -> None:
    """Leave out of a Parquet file the rows for which a condition in SQL does not hold.

    Raises:
        SourceError: the condition fails on the table.
    """
    if not where:
        return
    part = target.with_suffix(".part")
    query = f"FROM read_parquet({literal(target)}) WHERE {where}"
    try:
        with connect() as db:
            db.execute(f"COPY ({query}\n) TO {literal(part)} (FORMAT parquet)")
    except duckdb.Error as error:
        setting = setting or f"source.tables.{target.stem}.where"
        raise SourceError(f"{setting} {where!r} fails: {str(error).partition('LINE 1:')[0].strip()}") from error
    part.replace(target)


def _module(repo: Path, entry: str) -> Path:
    return repo / f"{entry.partition(':')[0].replace('.', '/')}.py"


def _call(repo: Path, setting: str, entry: str, folder: Path, **moments: datetime) -> None:
    module_name, function = entry.split(":")
    path = _module(repo, entry)
    spec = importlib.util.spec_from_file_location(f"kubeloop_source_{module_name}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SourceError(f"{setting} names {path}, which does not exist")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise SourceError(f"{path} has no function {function!r}, which {setting} names")
    getattr(module, function)(folder, **moments)

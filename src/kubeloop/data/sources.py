"""Read raw tables, again if their source changed, and show only what was known at a given moment."""

import contextlib
import hashlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop.config import ConfigError, Loop, Settings, Table
from kubeloop.config.reading import Column
from kubeloop.errors import KubeloopError
from kubeloop.reading import files, infer, rows
from kubeloop.reading.cells import identifier as identifier
from kubeloop.reading.cells import literal as literal
from kubeloop.stores import kept, whole

MOMENT = "TIMESTAMP WITH TIME ZONE"
"""DuckDB's type of a moment, in microseconds; other types of time are converted to it on reading."""
RECORD = "taken.json"
"""File next to the raw tables that records the source of each."""
MISFITS = "misfits"
"""Folder next to the raw tables, or next to a cut of them, with the rows that do not fit and the reasons."""
_MEMORY = "50%"
"""Share of the memory of the machine or the pod; what does not fit is written to disk."""


class SourceError(KubeloopError):
    """Raw data cannot be read; the message names the table and what to change."""

    lasting = True


@contextlib.contextmanager
def connect(tables: dict[str, Path] | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory database in UTC with one view per Parquet file.

    Raises:
        SourceError: a query needs more memory than there is.
    """
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.execute("SET enable_progress_bar = false")
        # By default, each of several processes takes four fifths of the memory, and what does not fit is written to a
        # folder in the current one, which is read-only in a pod.
        db.execute(f"SET memory_limit = {literal(_MEMORY)}")
        db.execute(f"SET temp_directory = {literal(Path(tempfile.gettempdir()) / f'kubeloop-duckdb-{uuid4().hex}')}")
        for name, path in (tables or {}).items():
            db.execute(f"CREATE VIEW {identifier(name)} AS FROM read_parquet({literal(path)})")
        try:
            yield db
        except duckdb.OutOfMemoryException as error:
            reason = str(error).partition("\n")[0]
            raise SourceError(
                f"the tables need more memory than there is ({reason}); give it more, take fewer rows "
                "(source.tables.NAME.where, training.window), or make the queries in sql/ smaller"
            ) from error


def tables(folder: Path) -> dict[str, Path]:
    """Return the Parquet files of a folder by table name."""
    return {path.stem: path for path in sorted(folder.glob("*.parquet"))}


def take_in(
    loop: Loop, settings: Settings, *, keep: bool = False, say: Callable[[str], None] = lambda _: None
) -> dict[str, int]:
    """Write the raw tables to `settings.raw` and return their row counts.

    An existing table is read again if the size or time of its file has changed, or if the module of `source.entry`
    has changed. A half-written table is never left behind.

    Args:
        loop: the use case.
        settings: where the raw tables go.
        keep: do not read existing tables again, for the steps of a run that share them.
        say: called with a sentence on the tables that changed.

    Raises:
        ConfigError: `source` names neither an entry nor a path for a table.
        SourceError: a file or a column is missing.
    """
    settings.raw.mkdir(parents=True, exist_ok=True)
    record = settings.raw / RECORD
    broken = kept.changed(settings.raw)
    if broken and keep:
        raise SourceError(
            f"{settings.raw / broken[0]} is damaged or missing; `kubeloop run` reads it again from its source"
        )
    known = {} if RECORD in broken or not record.is_file() else kept.loads(record)
    before = {name: rows for name, path in tables(settings.raw).items() if (rows := _rows(path)) is not None}
    # Taken before anything is read, so that a later change is read the next time.
    origins = _origins(loop, settings)
    wanted = {
        name
        for name, table in loop.source.tables.items()
        if name not in before
        or {f"{name}.parquet", RECORD, kept.MADE} & set(broken)
        # Existing tables without a record were put there by hand, not written by an entry.
        or (not keep and origins[name] and known.get(name, None if table.path else origins[name]) != origins[name])
    }
    if loop.source.entry and any(not loop.source.tables[name].path for name in wanted):
        _call(settings.home / loop.features.repo, "source.entry", loop.source.entry, settings.raw)
        _read_again(loop, settings.raw)
        wanted = set(loop.source.tables)
    for name in sorted(wanted):
        table = loop.source.tables[name]
        if table.path:
            misfits = copy(settings.home / table.path, settings.raw / f"{name}.parquet", table)
            choose(settings.raw / f"{name}.parquet", table.where)
            for line in told(name, misfits):
                say(line)
        elif not loop.source.entry:
            raise ConfigError(f"source.tables.{name} needs a path, or source.entry a function that writes it")
    counts = _checked(loop, settings.raw, loop.source.entry)
    if wanted:
        whole.write(record, kept.dumps({**known, **{name: origins[name] for name in wanted}}))
        kept.remember(settings.raw, [record, *tables(settings.raw).values()])
    for name in broken:
        say(f"Raw data: {settings.raw / name} was damaged or missing and was read again.")
    if news := [f"{name} changed, {_change(counts[name] - before[name])}" for name in sorted(wanted & set(before))]:
        say(f"Raw data: {'; '.join(news)}.")
    return counts


def _rows(path: Path) -> int | None:
    """Return a table's row count; None if the file is not Parquet."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowException:
        return None


@contextlib.contextmanager
def of_run(loop: Loop, settings: Settings, *, since: datetime, as_of: datetime) -> Iterator[Path]:
    """Yield the folder of the raw tables that a run at `as_of` reads.

    The tables of `source.live` are written only for this run and are removed after it, since each run has its own.

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
        _read_again(loop, folder)
        for name, table in loop.source.tables.items():
            if table.path:
                copy(settings.home / table.path, folder / f"{name}.parquet", table)
                choose(folder / f"{name}.parquet", table.where)
        _checked(loop, folder, live)
        yield folder


def _origins(loop: Loop, settings: Settings) -> dict[str, str]:
    """Return a fingerprint of each table's source, to see whether it has changed; empty if there is no source."""
    found = {}
    for name, table in loop.source.tables.items():
        if table.path:
            path = settings.home / table.path
            status = path.stat() if path.is_file() else None
            found[name] = f"{path} {status.st_size} {status.st_mtime_ns} {table.available_at}" if status else ""
            if status and (said := table.model_dump_json(include={"read", "columns"}, exclude_defaults=True)) != "{}":
                found[name] += f" {said}"
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
    """Return the row count of every table of the use case; each must have a column of times for `available_at`."""
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
    """Write to `out` what was known at `as_of`, since `since`; return the row counts.

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
            misfits = raw / MISFITS / f"{name}.parquet"
            if misfits.is_file():
                # It is unknown when a row without a moment became known, so every run quarantines it.
                (out / MISFITS).mkdir(exist_ok=True)
                query = f"FROM read_parquet({literal(misfits)}) WHERE {when} IS NULL OR ({bounds})"
                db.execute(f"COPY ({query}) TO {literal(out / MISFITS / misfits.name)} (FORMAT parquet)")
    return counts


def _count(db: duckdb.DuckDBPyConnection, query: str) -> int:
    row = db.execute(f"SELECT count(*) FROM ({query})").fetchone()
    return int(row[0]) if row else 0


def copy(path: Path, target: Path, table: Table) -> dict[str, tuple[int, str]]:
    """Write a table's file as Parquet, read as loop.yaml says, with every time as a moment in UTC.

    Rows that do not fit are written to a file with the target's name in the folder `MISFITS`.

    Args:
        path: the file.
        target: the Parquet file; never half-written.
        table: how it is read.

    Returns:
        The number of rows that do not fit and an example, by reason.

    Raises:
        SourceError: the file is missing or cannot be read, or no row of it fits.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist; set source.tables.{target.stem}.path in loop.yaml")
    setting = f"source.tables.{target.stem}"
    misfits = target.parent / MISFITS / target.name
    misfits.parent.mkdir(exist_ok=True)
    # If `init` wrote the settings of the columns, it left out the defaults: a comma, and names in the first line.
    plain = {"delimiter": table.read.delimiter or ",", "skip": table.read.skip or 0}
    read = table.read.model_copy(update=plain) if table.columns else table.read
    try:
        with whole.file(target) as part, connect() as db, files.opened(db, path, read, target.parent) as opened:
            columns = dict(table.columns)
            named = {part for name, column in columns.items() for part in column.of or (name,)}
            if lost := named - set(opened.columns):
                raise SourceError(f"{path} has no column {min(lost)!r}, which {setting}.columns names")
            if not columns:
                columns = _columns(db, opened, table, path, setting)
            found = rows.write(db, opened, columns, table.available_at, part, misfits)
            if found and not _count(db, f"FROM read_parquet({literal(part)})"):
                example = next(iter(found.values()))[1]
                raise SourceError(f"{path} cannot be read: no row fits {setting}.columns, such as {example:.200}")
    except infer.ReadingError as error:
        raise SourceError(str(error)) from error
    except files.FileError as error:
        raise SourceError(f"{error} ({setting}.read in loop.yaml)") from error
    except duckdb.Error as error:
        raise SourceError(f"{path} cannot be read: it is damaged, or cut off") from error
    return found


def _columns(
    db: duckdb.DuckDBPyConnection, opened: files.Opened, table: Table, path: Path, setting: str
) -> dict[str, Column]:
    """Return how the columns are read if loop.yaml does not say.

    Raises:
        SourceError: the moment is not written as a time, or can be read as two different times.
    """
    moment = table.available_at
    if not opened.texts:
        return {moment: Column(kind="time")} if opened.columns.get(moment) == "VARCHAR" else {}
    decided = infer.columns(db, opened, infer.Asked(read=table.read))
    if moment in opened.columns and moment not in decided.columns:
        ((example,),) = db.execute(f"SELECT min({identifier(moment)}) FROM {opened.relation}").fetchall()
        why = decided.unclear.get(moment, f"{example!r} in {moment!r} is not a known time format").partition(": say")[0]
        raise SourceError(f"{path} cannot be read: {why}; name its format in {setting}.columns")
    return decided.columns


def told(name: str, misfits: Mapping[str, tuple[int, str]]) -> list[str]:
    """Say which rows of a table do not fit."""
    found = []
    for count, example in misfits.values():
        many = f"{count:,} rows" if count > 1 else "1 row"
        found.append(f"Raw data: {many} of {name} went to the quarantine, {example:.200}")
    return found


def _read_again(loop: Loop, folder: Path) -> None:
    """Convert the columns of tables that a function wrote, if loop.yaml says how to read them."""
    for name, table in loop.source.tables.items():
        path = folder / f"{name}.parquet"
        if table.columns and not table.path and path.is_file():
            copy(path, path, table)


def choose(target: Path, where: str, setting: str = "") -> None:
    """Remove from a Parquet file the rows that do not meet an SQL condition.

    Raises:
        SourceError: the condition fails on the table, or leaves no row.
    """
    if not where:
        return
    setting = setting or f"source.tables.{target.stem}.where"
    query = f"FROM read_parquet({literal(target)}) WHERE {where}"
    try:
        with whole.file(target) as part, connect() as db:
            db.execute(f"COPY ({query}\n) TO {literal(part)} (FORMAT parquet)")
            if not pq.read_metadata(part).num_rows:
                raise SourceError(f"{setting} {where!r} leaves no row")
    except duckdb.Error as error:
        raise SourceError(f"{setting} {where!r} fails: {str(error).partition('LINE 1:')[0].strip()}") from error


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

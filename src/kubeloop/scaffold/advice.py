"""The commands that init advises: quoted for a shell, and tried on the data before they are printed."""
# ruff: noqa: S608 - the conditions are ours; they are quoted by sources.identifier.

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from kubeloop.data import sources

if TYPE_CHECKING:
    from kubeloop.scaffold.table import Table

_READ = {
    ".parquet": "read_parquet",
    ".csv": "read_csv",
    ".tsv": "read_csv",
    ".jsonl": "read_json",
    ".json": "read_json",
}


def option(name: str, value: str) -> str:
    """Write an option of `kubeloop init` with its value for a shell."""
    return f"--{name}{'=' if value.startswith('-') else ' '}{shlex.quote(value)}"


def where(table: "Table", condition: str) -> str:
    """Return the advice to leave rows out, or nothing if the condition fails on the table or leaves no row."""
    whole = f"({table.where}) AND {condition}" if table.where else condition
    try:
        ((kept,),) = table.query(f"SELECT count(*) FROM {table.name} WHERE {condition}")
    except duckdb.Error:
        return ""
    return f"Leave them out with {option('where', whole)}" if kept else ""


def join_files(folder: Path) -> str:
    """Return the command that combines a folder's files into one table, or nothing if they do not fit together."""
    counts = Counter(path.suffix for path in folder.iterdir() if path.is_file() and path.suffix in _READ)
    if not counts:
        return ""
    ending = counts.most_common(1)[0][0]
    # DuckDB reads these as patterns.
    pattern = "".join(f"[{sign}]" if sign in "*?[" else sign for sign in str(folder))
    read = f"{_READ[ending]}({sources.literal(f'{pattern}/*{ending}')}, union_by_name = true)"
    try:
        with sources.connect() as db:
            db.execute(f"COPY (FROM {read}) TO '/dev/null' (FORMAT parquet)")
    except duckdb.Error:
        return ""
    code = f"import duckdb; duckdb.sql({f'COPY (FROM {read}) TO ' + repr('table.parquet')!r})"
    return f"python -c {shlex.quote(code)}"

"""Rows of open windows, kept in the monitor's state as compressed Arrow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import sqlalchemy as sa

from kubeloop.monitoring.schema import held as _table

Kind = Literal["features", "scored", "labels"]

MERGE = 16
"""Pieces of one level that are merged into one of the next, so that a million polls leave a few dozen pieces."""

LARGEST = 64 * 2**20
"""Pieces larger than this (bytes) are not merged, since databases limit the size of a value."""


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one window of one version: whole predictions (`features`), or event ids and scores (`scored`).

    A label does not name its window, so labels are kept under the window in which they arrived, with version "".
    `newest` is the latest event time of ordinary traffic among the rows, or None.
    """

    kind: Kind
    version: str
    start: datetime
    end: datetime
    table: pa.Table
    newest: datetime | None = None


def pack(table: pa.Table) -> bytes:
    """Write a table as a compressed Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def unpack(body: bytes) -> pa.Table:
    """Read what `pack` wrote."""
    return pa.ipc.open_stream(body).read_all()


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate tables; a column that one of them lacks is null there.

    A column that is text in one table and numbers in another becomes text: the reference decides how to read it, and
    a client that changes a type must not stop the monitor.
    """
    types: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            types.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, found in types.items() if pa.string() in found and found - {pa.string(), pa.null()}}

    def aligned(table: pa.Table) -> pa.Table:
        for name in mixed & set(table.column_names):
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
        return table

    return pa.concat_tables([aligned(t) for t in tables], promote_options="permissive")


def add(connection: sa.Connection, service: str, part: Part, level: int = 0) -> None:
    """Store a piece, and merge it with similar ones if there are many."""
    values = {
        "service": service,
        "kind": part.kind,
        "version": part.version,
        "start": part.start,
        "end": part.end,
        "level": level,
        "rows": len(part.table),
        "newest": part.newest,
        "body": pack(part.table),
    }
    connection.execute(sa.insert(_table), values)
    like = {name: values[name] for name in ("service", "kind", "version", "start", "end", "level")}
    query = sa.select(_table.c.id, sa.func.length(_table.c.body)).filter_by(**like)
    found = connection.execute(query).all()
    if len(found) >= MERGE and sum(size for _, size in found) <= LARGEST:
        ids = _table.c.id.in_([key for key, _ in found])
        merged = merge(load(connection, ids))
        connection.execute(sa.delete(_table).where(ids))
        add(connection, service, merged, level + 1)


def load(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> list[Part]:
    """Return the pieces that fulfil every condition, oldest first."""
    found = connection.execute(sa.select(_table).where(*where).order_by(_table.c.id)).mappings()
    return [_part(row) for row in found]


def merge(group: Sequence[Part]) -> Part:
    """Join the pieces of one kind, window and version."""
    newest = max((s.newest for s in group if s.newest is not None), default=None)
    return replace(group[0], table=concat([s.table for s in group]), newest=newest)


def _part(row: sa.RowMapping) -> Part:
    values: dict[str, Any] = {name: row[name] for name in ("kind", "version", "start", "end", "newest")}
    return Part(table=unpack(row["body"]), **values)

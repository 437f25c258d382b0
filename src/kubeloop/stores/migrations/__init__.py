"""Migrate the ledger's and the monitor's database to the schema of this kubeloop, with Alembic.

`database.prepare` makes a new database with all its tables. An older one is migrated: on SQLite by the program that
opens it, on PostgreSQL by `kubeloop run` or `kubeloop migrate` on a laptop, and on a cluster by the chart's Job before
an upgrade (`python -m kubeloop.session.migration`). A migration only adds, since the old release's pods run until the
new ones are up.
"""

import contextlib
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from kubeloop.stores import database, whole
from kubeloop.stores.database import Schema

_HERE = Path(__file__).parent


def upgrade(engine: sa.Engine, schema: Schema) -> str:
    """Migrate a database in one transaction, under a lock, and return a sentence about it.

    A SQLite file is copied first, to `<file>.before-<revision>` next to it.

    Raises:
        SchemaError: the database is newer than this kubeloop, or lacks a table or column.
    """
    with database.exclusive(engine) as connection:
        found = database.version(connection, schema)
        if found is None:
            database.create(connection, schema)
            return f"{schema.name}: made with schema {schema.revision}"
        if found > schema.revision:
            raise database.SchemaError(schema, found)
        if not database.stamped(connection, schema):
            database.stamp(connection, schema, found)
        if found == schema.revision:
            return f"{schema.name}: has schema {found} already"
        kept = _backup(engine, schema)
        _run(connection, schema)
        _complete(connection, schema)
        return f"{schema.name}: schema {found} is now {schema.revision}{kept}"


def _run(connection: sa.Connection, schema: Schema) -> None:
    from alembic import command
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    settings.set_main_option("version_locations", str(_HERE / schema.name).replace("%", "%%"))
    settings.set_main_option("path_separator", "newline")
    settings.attributes |= {"connection": connection, "version_table": schema.table.name}
    command.upgrade(settings, schema.revision)


def _complete(connection: sa.Connection, schema: Schema) -> None:
    """Refuse tables that lack something, such as those of a kubeloop before the first version."""
    inspector = sa.inspect(connection)
    for table in schema.metadata.sorted_tables:
        has = {item["name"] for item in inspector.get_columns(table.name)} if inspector.has_table(table.name) else set()
        if lost := [column.name for column in table.columns if column.name not in has]:
            raise database.BrokenSchemaError(
                f"the {schema.name}'s table {table.name} lacks {', '.join(lost)}, so nothing was changed; restore the "
                "database, or start over with an empty one"
            )


def _backup(engine: sa.Engine, schema: Schema) -> str:
    place = engine.url.database if engine.dialect.name == "sqlite" else None
    if not place or place == ":memory:":
        return ""
    copy = Path(f"{place}.before-{schema.revision}")
    with (
        whole.file(copy) as part,
        contextlib.closing(sqlite3.connect(place)) as source,
        contextlib.closing(sqlite3.connect(part)) as target,
    ):
        source.backup(target)
    return f"; {copy} is what it was"

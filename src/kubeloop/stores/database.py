"""Common parts of the SQLAlchemy stores: moments in UTC, creating tables from several replicas, schema versions."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kubeloop.errors import KubeloopError

_log = logging.getLogger(__name__)

FIRST = "0001"
"""The revision of tables that do not record one: the first revision did not store its number."""
_CREATING = 7_305_428_310
"""Key of the advisory lock under which tables are made and migrated: any number that no other program uses."""


class Utc(sa.TypeDecorator[datetime]):
    """A moment in UTC, even if the database stores no time zone or answers in another one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        """Convert a moment to UTC for the database."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        """Mark a moment from the database as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def connect(url: str, **options: Any) -> sa.Engine:
    """Return an engine that tests connections before use, so that no request fails after a server's restart."""
    return sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"), **options)


class AwayError(KubeloopError):
    """A database does not answer."""

    lasting = False


@contextmanager
def answering(whose: str, variable: str) -> Iterator[None]:
    """Explain in one sentence that a database does not answer, with its service and the variable that names it."""
    try:
        yield
    except OperationalError as error:
        raise AwayError(f"{whose} database does not answer ({variable}): {error.orig}") from error


def unavailable(_request: Request, error: Exception) -> Response:
    """Answer 503 if the database did not answer a handler; the client should try again."""
    reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
    return JSONResponse({"error": f"the database does not answer: {reason}"}, 503, {"retry-after": "1"})


@dataclass(frozen=True)
class Schema:
    """The tables of a store, with the revision that this kubeloop uses: that of its newest migration."""

    name: str
    variable: str
    metadata: sa.MetaData
    revision: str

    @cached_property
    def table(self) -> sa.Table:
        """Alembic's table with the revision of a database."""
        return sa.Table(
            f"{self.name}_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True)
        )


class BrokenSchemaError(KubeloopError):
    """A database's tables are not as expected."""

    lasting = True


class SchemaError(BrokenSchemaError):
    """A database has a different schema than this kubeloop."""

    def __init__(self, schema: Schema, found: str) -> None:
        advice = (
            "migrate it with `kubeloop migrate`; on a cluster `helm upgrade` does, by a Job of the chart"
            if found < schema.revision
            else "start the newer kubeloop, or restore the database from before its upgrade"
        )
        super().__init__(
            f"the {schema.name}'s database ({schema.variable}) has schema {found}, this kubeloop has "
            f"{schema.revision}: {advice}"
        )


def prepare(engine: sa.Engine, schema: Schema) -> None:
    """Make the tables of a new database; for an existing one, check that its schema is the one of this kubeloop.

    An older SQLite file is migrated here, since no other program does it.

    Raises:
        SchemaError: the database is older and on a server, or newer.
    """
    with engine.execution_options(reads_only=True).connect() as connection:
        found = version(connection, schema)
    if found is None or (found < schema.revision and engine.dialect.name == "sqlite"):
        # Alembic is imported there and only for a migration, so that services do not spend memory on it.
        from kubeloop.stores import migrations

        _log.info(migrations.upgrade(engine, schema))
    elif found != schema.revision:
        raise SchemaError(schema, found)


def version(connection: sa.Connection, schema: Schema) -> str | None:
    """Return a database's revision; None if it has no table of the store."""
    if stamped(connection, schema):
        return str(connection.execute(sa.select(schema.table.c.version_num)).scalar_one())
    inspector = sa.inspect(connection)
    return FIRST if any(inspector.has_table(table.name) for table in schema.metadata.sorted_tables) else None


def stamped(connection: sa.Connection, schema: Schema) -> bool:
    """Return whether a database records its revision."""
    return sa.inspect(connection).has_table(schema.table.name)


def create(connection: sa.Connection, schema: Schema) -> None:
    """Make all tables as they are today."""
    schema.metadata.create_all(connection)
    stamp(connection, schema, schema.revision)


def stamp(connection: sa.Connection, schema: Schema, revision: str) -> None:
    """Record the revision of a database, if it does not record one yet."""
    schema.table.create(connection)
    connection.execute(schema.table.insert().values(version_num=revision))


@contextmanager
def exclusive(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Begin a transaction that makes or migrates tables; a lock makes concurrent processes do it one after another."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # If a client reads a table for minutes, the migration must not block all other clients meanwhile.
            connection.execute(sa.text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATING)))
        elif not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection

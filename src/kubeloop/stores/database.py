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
"""The revision of tables that do not say theirs: databases were without one before there was a second."""
_CREATING = 7_305_428_310
"""Key of the advisory lock under which tables are made and migrated; any number that nobody else uses."""


class Utc(sa.TypeDecorator[datetime]):
    """A moment in UTC, also where the database keeps no time zone or answers in another one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        """Hand the database UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        """Say that what comes back is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def connect(url: str, **options: Any) -> sa.Engine:
    """Return an engine whose connections are looked at before use, so that a server's restart costs no request."""
    return sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"), **options)


class AwayError(KubeloopError):
    """A database does not answer."""

    lasting = False


@contextmanager
def answering(whose: str, variable: str) -> Iterator[None]:
    """Explain in one sentence that a database does not answer, with its owner and the variable that names it."""
    try:
        yield
    except OperationalError as error:
        raise AwayError(f"{whose} database does not answer ({variable}): {error.orig}") from error


def unavailable(_request: Request, error: Exception) -> Response:
    """Answer 503 for a handler that the database did not answer; the client should try again."""
    reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
    return JSONResponse({"error": f"the database does not answer: {reason}"}, 503, {"retry-after": "1"})


@dataclass(frozen=True)
class Schema:
    """The tables of a store, with the revision that this kubeloop knows: that of its newest migration."""

    name: str
    variable: str
    metadata: sa.MetaData
    revision: str

    @cached_property
    def table(self) -> sa.Table:
        """Where a database keeps its revision, as Alembic has it."""
        return sa.Table(
            f"{self.name}_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True)
        )


class BrokenSchemaError(KubeloopError):
    """A database's tables are not what they should be."""

    lasting = True


class SchemaError(BrokenSchemaError):
    """A database has another schema than this kubeloop knows."""

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
    """Make the tables of a new database, and see that those of another are the ones that this kubeloop knows.

    An older SQLite file is migrated here, since nobody else is there to do it.

    Raises:
        SchemaError: the database is older and on a server, or newer.
    """
    with engine.execution_options(reads_only=True).connect() as connection:
        found = version(connection, schema)
    if found is None or (found < schema.revision and engine.dialect.name == "sqlite"):
        # Alembic is imported there, and only to migrate: what stays up does not carry it.
        from kubeloop.stores import migrations

        _log.info(migrations.upgrade(engine, schema))
    elif found != schema.revision:
        raise SchemaError(schema, found)


def version(connection: sa.Connection, schema: Schema) -> str | None:
    """Return a database's revision; None when it has no table of the store."""
    if stamped(connection, schema):
        return str(connection.execute(sa.select(schema.table.c.version_num)).scalar_one())
    inspector = sa.inspect(connection)
    return FIRST if any(inspector.has_table(table.name) for table in schema.metadata.sorted_tables) else None


def stamped(connection: sa.Connection, schema: Schema) -> bool:
    """Return whether a database says which revision it has."""
    return sa.inspect(connection).has_table(schema.table.name)


def create(connection: sa.Connection, schema: Schema) -> None:
    """Make all tables as they are today."""
    schema.metadata.create_all(connection)
    stamp(connection, schema, schema.revision)


def stamp(connection: sa.Connection, schema: Schema, revision: str) -> None:
    """Note which revision a database has, where it does not say so yet."""
    schema.table.create(connection)
    connection.execute(schema.table.insert().values(version_num=revision))


@contextmanager
def exclusive(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Begin a transaction that makes or migrates tables; processes that want to at once do it one after another."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # A table that somebody reads for minutes must not stop everybody else behind the migration.
            connection.execute(sa.text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATING)))
        elif not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection

"""What the stores on SQLAlchemy share: moments in UTC, and tables that replicas make together."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_CREATING = 7_305_428_310
"""Key of the advisory lock under which tables are made; any number that nobody else uses."""


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


def unavailable(_request: Request, error: Exception) -> Response:
    """Answer 503 for a handler that the database did not answer; the client should try again."""
    reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
    return JSONResponse({"error": f"the database does not answer: {reason}"}, 503, {"retry-after": "1"})


def create(engine: sa.Engine, metadata: sa.MetaData) -> None:
    """Make the tables that are missing; processes that start at once do not trip over each other."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATING)))
        for table in metadata.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))

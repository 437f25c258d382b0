"""The ledger's tables and rows; only this module knows their database."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from kubeloop.stores import database
from kubeloop.stores.database import Schema, Utc
from kubeloop.trigger.event import Kind

Status = Literal["requested", "starting", "running", "succeeded", "failed", "abandoned"]
Outcome = Literal["promoted", "rejected", "failed"]
ACTIVE: tuple[Status, ...] = ("requested", "starting", "running", "failed")


@dataclass(frozen=True)
class Received:
    """An event with its decision and how often it came."""

    service: str
    episode: str
    kind: Kind
    opened_at: datetime
    as_of: datetime
    features: list[str]
    reason: str
    accepted: bool
    run_name: str | None
    decision: str
    received: int
    first_received: datetime
    last_received: datetime


@dataclass(frozen=True)
class Run:
    """A pipeline run as it was read; `revision` fences writes, so that only the newest reader's count.

    `failed` waits for its next attempt; only `succeeded` and `abandoned` are final and have an outcome. `attempts` were
    started, and `failures` of them failed (a stopped trigger interrupts an attempt without a failure). `lasting` says
    whether the newest failure would occur again; None if there was no failure.
    """

    name: str
    service: str
    episode: str
    status: Status
    outcome: Outcome | None
    detail: str | None
    result: dict[str, Any] | None
    attempts: int
    failures: int
    not_before: datetime | None
    holder: str | None
    lease_until: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    revision: int
    lasting: bool | None
    kind: Kind
    as_of: datetime
    features: list[str]
    reason: str


@dataclass(frozen=True)
class Cooldown:
    """The cooldown of a service: `until` is event time, `length` is the duration of the newest cooldown."""

    service: str
    until: datetime
    length: timedelta


METADATA = sa.MetaData()
EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("service", sa.String(63), primary_key=True),
    sa.Column("episode", sa.String(200), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("opened_at", Utc, nullable=False),
    sa.Column("as_of", Utc, nullable=False),
    sa.Column("features", sa.JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("accepted", sa.Boolean, nullable=False),
    sa.Column("run_name", sa.String(63)),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("received", sa.Integer, nullable=False),
    sa.Column("first_received", Utc, nullable=False),
    sa.Column("last_received", Utc, nullable=False),
)
RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("service", sa.String(63), nullable=False),
    sa.Column("episode", sa.String(200), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("outcome", sa.String(16)),
    sa.Column("detail", sa.Text),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("not_before", Utc),
    sa.Column("holder", sa.String(200)),
    sa.Column("lease_until", Utc),
    sa.Column("created_at", Utc, nullable=False),
    sa.Column("started_at", Utc),
    sa.Column("finished_at", Utc),
    sa.Column("revision", sa.Integer, nullable=False, default=0),
    sa.Column("lasting", sa.Boolean),
    sa.ForeignKeyConstraint(["service", "episode"], ["events.service", "events.episode"]),
    sa.UniqueConstraint("service", "episode"),
)
IS_ACTIVE = RUNS.c.status.in_(ACTIVE)
sa.Index("one_active_run", RUNS.c.service, unique=True, sqlite_where=IS_ACTIVE, postgresql_where=IS_ACTIVE)
COOLDOWNS = sa.Table(
    "cooldowns",
    METADATA,
    sa.Column("service", sa.String(63), primary_key=True),
    sa.Column("until", Utc, nullable=False),
    sa.Column("length", sa.Interval, nullable=False),
)
LEDGER = Schema("ledger", "KUBELOOP_LEDGER_DB", METADATA, "0002")


def open_engine(url: str) -> sa.Engine:
    """Connect to the database, and make its tables if it is new.

    SQLite gets a write-ahead log, and a writer takes the write lock when it begins: one that took it later could not
    wait for another writer and would fail. It also gets a single connection per process: threads that wait for it
    continue at once, while writers that collide in the file sleep and try again.
    """
    place = sa.make_url(url)
    is_sqlite = place.get_backend_name() == "sqlite"
    engine = database.connect(url, **({"pool_size": 1, "max_overflow": 0} if is_sqlite else {}))
    if is_sqlite:
        if place.database:
            Path(place.database).parent.mkdir(parents=True, exist_ok=True)

        @sa.event.listens_for(engine, "connect")
        def _connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None
            connection.execute("PRAGMA busy_timeout = 30000")
            connection.execute("PRAGMA journal_mode = WAL")

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            reads_only = connection.get_execution_options().get("reads_only")
            connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    database.prepare(engine, LEDGER)
    return engine

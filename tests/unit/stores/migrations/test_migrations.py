"""Databases of older kubeloop versions, migrated to the current schema completely, once, and with all data.

`sqlite.sql` and `postgresql.sql` are dumps of databases from the last kubeloop without migrations. They hold a promoted
run, a failed run that waits, and a window that is filling.
"""

import multiprocessing
import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from kubeloop import config, errors
from kubeloop.config import Drift
from kubeloop.monitoring.schema import MONITOR
from kubeloop.monitoring.store import Due, Store
from kubeloop.session import migration
from kubeloop.stores import database, migrations
from kubeloop.stores.database import Schema
from kubeloop.trigger.ledger import Ledger
from kubeloop.trigger.store import LEDGER

HERE = Path(__file__).parent
SCHEMAS = pytest.mark.parametrize("schema", [LEDGER, MONITOR], ids=lambda schema: schema.name)
START = datetime(2013, 4, 1, tzinfo=UTC)


def fill(url: str, script: str) -> None:
    """Load a dump into a database."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as file:
            file.executescript(script)
        return
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(script)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path / 'old.db'}"


@pytest.fixture
def old(empty: str) -> str:
    """The URL of a database from the last kubeloop without migrations."""
    fill(empty, dump(empty))
    return empty


def dump(url: str) -> str:
    return (HERE / f"{url.partition(':')[0].partition('+')[0]}.sql").read_text()


def migrate(url: str) -> list[str]:
    settings = config.settings(Path()).model_copy(update={"ledger_db": url, "monitor_db": url})
    return list(migration.upgrade_all(settings))


def ledger(url: str) -> Ledger:
    return Ledger(url, Drift(cooldown=timedelta(days=14), max_cooldown=timedelta(days=56)))


def differences(url: str, schema: Schema) -> list[Any]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        ours = {table.name for table in schema.metadata.sorted_tables}
        options = {"include_name": lambda name, kind, _: kind != "table" or name in ours, "compare_type": True}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)
    engine.dispose()
    return found


@SCHEMAS
def test_the_revision_is_that_of_the_newest_migration(schema: Schema) -> None:
    folder = Path(migrations.__file__).parent
    script = ScriptDirectory(str(folder), version_locations=[str(folder / schema.name)])
    assert script.get_current_head() == schema.revision
    assert script.get_base() == database.FIRST


def test_an_old_database_keeps_its_data_and_goes_on(old: str) -> None:
    assert [line.partition(";")[0] for line in migrate(old)] == [
        "ledger: schema 0001 is now 0002",
        "monitor: schema 0001 is now 0003",
    ]
    assert migrate(old) == ["ledger: has schema 0002 already", "monitor: has schema 0003 already"]
    found = ledger(old)
    first, second = found.runs("flights")
    assert (first.outcome, first.result, first.lasting) == ("promoted", {"promote": True, "version": "2"}, None)
    assert (second.status, second.detail, second.lasting) == ("failed", "no labels", None)
    assert len(found.events("flights")) == 3
    run = found.claim("flights", "b", timedelta(minutes=1))
    assert run is not None
    closed = found.finish(found.mark_started(run), "failed", "one class", lasting=True)
    assert found.run(closed.name) == closed
    assert (closed.status, closed.lasting) == ("abandoned", True)
    found.close()
    store = Store(old)
    assert store.progress("flights").cursor == 7
    (part,) = store.parts("flights", Due("features", START, START + timedelta(days=1)))
    assert part.table["n"].to_pylist() == [1, 2, 3]
    store.close()


@SCHEMAS
def test_a_migrated_database_is_like_a_new_one(old: str, schema: Schema) -> None:
    migrate(old)
    assert differences(old, schema) == []


@SCHEMAS
def test_a_new_database_is_like_its_tables(empty: str, schema: Schema) -> None:
    migrate(empty)
    assert differences(empty, schema) == []
    with sa.create_engine(empty).connect() as connection:
        assert database.version(connection, schema) == schema.revision


def test_a_file_is_migrated_by_who_opens_it_and_copied_first(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    fill(f"sqlite:///{path}", (HERE / "sqlite.sql").read_text())
    found = ledger(f"sqlite:///{path}")
    assert len(found.runs("flights")) == 2
    found.close()
    copy = tmp_path / "old.db.before-0002"
    with sqlite3.connect(copy) as kept:
        assert kept.execute("SELECT count(*) FROM runs").fetchone() == (2,)
        assert "lasting" not in [row[1] for row in kept.execute("PRAGMA table_info(runs)")]
    assert sorted(file.name for file in tmp_path.iterdir() if ".part" in file.name) == []


def test_nobody_works_on_a_server_that_is_older(postgres: str) -> None:
    fill(postgres, (HERE / "postgresql.sql").read_text())
    with pytest.raises(
        database.SchemaError, match=r"ledger's database \(KUBELOOP_LEDGER_DB\) has schema 0001, .* 0002"
    ):
        ledger(postgres)
    migrate(postgres)
    ledger(postgres).close()


def test_nobody_works_on_a_database_that_is_newer(empty: str) -> None:
    ledger(empty).close()
    fill(empty, "UPDATE ledger_version SET version_num = '9999'")
    for attempt in (ledger, migrate):
        with pytest.raises(database.SchemaError, match=r"has schema 9999, .*start the newer kubeloop, or restore"):
            attempt(empty)


def test_tables_that_lost_something_are_left_as_they_are(old: str) -> None:
    fill(old, "ALTER TABLE runs DROP COLUMN detail")
    with pytest.raises(database.BrokenSchemaError, match="table runs lacks detail, so nothing was changed"):
        migrate(old)
    with sa.create_engine(old).connect() as connection:
        assert not database.stamped(connection, LEDGER)
        assert "lasting" not in {item["name"] for item in sa.inspect(connection).get_columns("runs")}


def _race(url: str, start: Any, told: Any) -> None:
    start.wait()
    try:
        told.put(migrate(url)[0].partition(";")[0])
    except Exception as error:  # noqa: BLE001 - the parent fails with it
        told.put(repr(error))


@pytest.mark.parametrize("before", ["old", "empty"])
def test_of_several_that_start_at_once_one_migrates(empty: str, before: str) -> None:
    if before == "old":
        fill(empty, dump(empty))
    spawn = multiprocessing.get_context("spawn")
    start, told = spawn.Barrier(3), spawn.Queue()
    racers = [spawn.Process(target=_race, args=(empty, start, told)) for _ in range(3)]
    for racer in racers:
        racer.start()
    said = sorted(told.get(timeout=120) for _ in racers)
    for racer in racers:
        racer.join()
    won = "ledger: schema 0001 is now 0002" if before == "old" else "ledger: made with schema 0002"
    assert said == sorted(["ledger: has schema 0002 already"] * 2 + [won])


def command(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    given = {"KUBELOOP_LEDGER_DB": url, "KUBELOOP_MONITOR_DB": url}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=False)


def test_the_job_says_what_it_did_and_what_it_waits_for(old: str) -> None:
    done = command(old, "kubeloop.session.migration")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ledger: schema 0001 is now 0002")
    away = command("postgresql+psycopg://ledger:secret@127.0.0.1:1/ledger", "kubeloop.session.migration")
    assert away.returncode == errors.PASSING
    assert away.stderr.startswith("the ledger's database does not answer (KUBELOOP_LEDGER_DB): connection")


def test_what_stays_up_does_not_carry_alembic(empty: str) -> None:
    program = (
        "import sys; from kubeloop.trigger import server; from kubeloop.monitoring import store; "
        "from kubeloop.trigger.store import open_engine; url = sys.argv[1]; open_engine(url); store.Store(url); "
        "print('alembic' in sys.modules)"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program, empty], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


def test_what_an_auc_was_is_what_the_metric_is(old: str) -> None:
    """Before migration 0003, performance had columns only for an AUC."""
    engine = sa.create_engine(old)
    row = {"service": "flights", "start": START, "version": "1", "end": START + timedelta(days=1), "rows": 70}
    row |= {"labelled": 60, "status": "judged", "live": True, "auc": 0.7, "log_loss": 0.4, "reference_auc": 0.75}
    if engine.dialect.name == "sqlite":
        row |= {name: row[name].strftime("%Y-%m-%d %H:%M:%S.%f") for name in ("start", "end")}
    columns, values = (", ".join(f"{mark}{name}{mark if mark != ':' else ''}" for name in row) for mark in ('"', ":"))
    with engine.begin() as connection:
        connection.execute(sa.text(f"INSERT INTO performance ({columns}) VALUES ({values})"), row)  # noqa: S608
    engine.dispose()
    migrate(old)
    store = Store(old)
    (found,) = store.performance("flights")
    store.close()
    assert (found["metric"], found["value"], found["low"], found["reference"]) == ("auc", 0.7, None, 0.75)
    assert found["metrics"] == {"auc": 0.7, "log_loss": 0.4}
    assert (found["labelled"], found["scarce"]) == (60, None)

# ruff: noqa: S608
"""A planted future value cannot leak: what becomes known after a moment does not change what was known then."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kubeloop import features
from kubeloop.config import Loop
from kubeloop.data import sources

START = datetime(2013, 5, 14, tzinfo=UTC)
HOURS = 4 * 24
VIEWS = ("aircraft", "carrier_daily", "destination_daily", "origin_hourly", "weather_hourly")
KEYS = ("flight_id", "tailnum", "origin", "carrier", "dest")


@pytest.fixture(scope="module")
def days(weeks: Path, demo: Loop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw tables of four days."""
    folder = tmp_path_factory.mktemp("days")
    sources.cut(demo, weeks, folder, since=START, as_of=START + timedelta(hours=HOURS))
    return folder


def plant(loop: Loop, raw: Path, out: Path, moment: datetime, seed: int, shift: int) -> int:
    """Write absurd values into every row that became known after a moment, and add such rows; return how many."""
    planted = 0
    with sources.connect(sources.tables(raw)) as db:
        for name, table in loop.source.tables.items():
            when, now = table.available_at, f"TIMESTAMPTZ '{moment.isoformat()}'"
            columns = {row[0]: row[1] for row in db.execute(f"DESCRIBE {name}").fetchall() if row[0] != when}
            absurd = ", ".join(f"{_absurd(column, kind, seed, shift)} AS {column}" for column, kind in columns.items())
            later = f"SELECT * REPLACE ({absurd}) FROM {name} WHERE {when} > {now}"
            # Rows of known keys and of unknown ones, available just after the moment.
            soon = f"{now} + to_microseconds(1 + (hash({when}, {seed}) % 100_000_000)::BIGINT) AS {when}"
            first = next(iter(columns))
            again = f"SELECT * REPLACE ({absurd}, {soon}) FROM {name} WHERE hash({first}, {seed}) % 3 = 0"
            unheard = ", ".join(f"'new-' || {column} AS {column}" for column in columns if column in KEYS)
            new = f"SELECT * REPLACE ({unheard}, {soon}) FROM ({again})"
            query = f"FROM {name} WHERE {when} <= {now} UNION ALL {later} UNION ALL {again} UNION ALL {new}"
            db.execute(f"COPY ({query}) TO '{out}/{name}.parquet' (FORMAT parquet)")
            planted += pq.read_table(out / f"{name}.parquet", filters=pc.field(when) > moment).num_rows
    return planted


def _absurd(column: str, kind: str, seed: int, shift: int) -> str:
    chance = f"hash({column}, '{column}', {seed}) % 4"
    if column in KEYS:
        return column
    if column == "sched_local":
        return f"CASE WHEN {chance} < 2 THEN {column} ELSE '2013-05-1' || hash({column}) % 10 || 'T10:00' END"
    if kind.startswith("TIMESTAMP"):
        return f"CASE WHEN {chance} = 0 THEN {column} ELSE {column} + to_hours({shift}) END"
    if kind == "BOOLEAN":
        return f"CASE WHEN {chance} = 0 THEN NULL ELSE NOT {column} END"
    if kind == "VARCHAR":
        return f"CASE WHEN {chance} = 0 THEN NULL ELSE 'absurd' END"
    return f"CASE {chance} WHEN 0 THEN NULL WHEN 1 THEN 1e9 WHEN 2 THEN -1e9 ELSE 'NaN'::DOUBLE END"


def known(repo: Path, raw: Path, moment: datetime) -> dict[str, pa.Table]:
    """Return each view's rows up to a moment, and the events whose label was known by then."""
    found = {}
    with sources.connect(sources.tables(raw)) as db:
        for view in VIEWS:
            query = (repo / "sql" / f"{view}.sql").read_text()
            found[view] = db.sql(
                f"FROM ({query}) WHERE event_timestamp <= TIMESTAMPTZ '{moment.isoformat()}' ORDER BY ALL"
            ).to_arrow_table()
    found["events"] = features.events(
        repo, raw, start=START - timedelta(days=1), end=moment + timedelta(microseconds=1), labelled_by=moment
    )
    return found


def assert_same(one: dict[str, pa.Table], other: dict[str, pa.Table]) -> None:
    for name, table in one.items():
        assert table.equals(other[name]), f"{name}: {_difference(table, other[name])}"


def _difference(one: pa.Table, other: pa.Table) -> str:
    return str(duckdb.sql("(FROM one EXCEPT FROM other) UNION ALL (FROM other EXCEPT FROM one) ORDER BY ALL LIMIT 8"))


@settings(
    max_examples=12,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    minutes=st.integers(36 * 60, HOURS * 60) | st.integers(36, HOURS).map(lambda hour: hour * 60),
    seed=st.integers(0, 2**31),
    shift=st.integers(-60, 60),
)
def test_what_is_learned_later_changes_nothing_known(
    days: Path,
    repo: Path,
    demo: Loop,
    tmp_path_factory: pytest.TempPathFactory,
    minutes: int,
    seed: int,
    shift: int,
) -> None:
    """Queries over all data, over the data cut at the moment, and over data with a planted future agree."""
    moment = START + timedelta(minutes=minutes)
    folder = tmp_path_factory.mktemp("planted")
    (folder / "cut").mkdir()
    assert plant(demo, days, folder, moment, seed, shift) > 1000
    sources.cut(demo, days, folder / "cut", since=START, as_of=moment)
    truth = known(repo, days, moment)
    assert all(table.num_rows for table in truth.values())
    assert_same(truth, known(repo, folder / "cut", moment))
    assert_same(truth, known(repo, folder, moment))


@pytest.mark.parametrize(("hours", "seed", "shift"), [(70, 1, -30), (80, 2, 5)])
def test_a_planted_future_leaves_the_training_set_as_it_is(
    days: Path, repo: Path, demo: Loop, tmp_path: Path, hours: int, seed: int, shift: int
) -> None:
    moment = START + timedelta(hours=hours, minutes=20)
    planted = tmp_path / "planted"
    planted.mkdir()
    plant(demo, days, planted, moment, seed, shift)
    tables = []
    for raw in (days, planted):
        out = tmp_path / f"features-{raw.name}"
        features.build(repo, raw, out)
        rows = features.events(repo, raw, start=START, end=moment, labelled_by=moment)
        tables.append(features.training_set(out, demo.features.service, rows))
    assert tables[0].num_rows > 1500
    assert tables[0].equals(tables[1])


def test_the_timetable_names_no_aircraft_that_tells_the_future(year: Path) -> None:
    """The data name no aircraft for flights that were cancelled early; a timetable could not know that."""
    found = duckdb.sql(
        f"SELECT s.tailnum IS NULL, avg(d.cancelled::DOUBLE), count(*) FROM '{year}/schedule.parquet' s "
        f"JOIN '{year}/departures.parquet' d USING (flight_id) GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert [row[0] for row in found] == [False, True]
    assert all(share < 0.05 for _, share, _ in found)
    assert found[1][2] < 0.01 * found[0][2]

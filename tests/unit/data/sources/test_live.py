# ruff: noqa: S608
"""The demo in the present: every year repeats 2013, and the runs that docs/install.md submits work at today's date."""

import importlib.util
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeloop import config
from kubeloop.config import Loop, Settings
from kubeloop.data import sources
from kubeloop.features.online import OnlineFeatures
from kubeloop.steps import batch, stages

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def flights(repo: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("flights_live", repo / "flights.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return config.settings(project, tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def clean(demo: Loop, place: Settings, now: datetime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a present-day run reads, validated: every pipeline begins with this."""
    folder = tmp_path_factory.mktemp("now")
    begun = stages.begin(place, demo.dump(), now.isoformat(), "now", "job")
    stages.extract(demo, place, now, folder / "raw", begun.snapshot)
    stages.validate_raw(demo, place, folder / "raw", now, begun.run, folder / "clean", folder / "page.html")
    return folder / "clean"


def test_submit_materialize_passes_and_fills_the_store_with_what_is_fresh_now(
    demo: Loop, place: Settings, clean: Path, now: datetime
) -> None:
    rows = batch.materialize(demo, place, clean, now)
    assert rows["online"] > 1000
    online = OnlineFeatures.open(place.features, demo.features.service)
    keys = {
        "origin": ["EWR"],
        "carrier": ["UA"],
        "dest": ["IAH"],
        "tailnum": ["N14228"],
        "sched_dep": [(now + HOUR).isoformat()],
    }
    found = online.read({**keys, "distance": [1400.0], "sched_minutes": [227.0]}, at=now)
    # At night nothing has departed for hours, and the weather station sometimes leaves the pressure out.
    hours = {"origin_late_1h", "origin_late_3h", "origin_cancelled_3h"}
    assert {name for name, value in found.items() if value[0] is None} <= hours | {"pressure"}


@pytest.mark.timeout(900)  # the whole of the demo's window
def test_submit_passes_validation_and_trains_what_the_gate_lets_through(
    demo: Loop, place: Settings, clean: Path, now: datetime, tmp_path: Path
) -> None:
    table, checked, model = (tmp_path / name for name in ("table.parquet", "checked.parquet", "model"))
    rows = stages.build_features(demo, place, clean, now, table)
    assert rows > 100_000
    stages.validate_training_set(demo, place, table, now, "now", checked, tmp_path / "page.html")
    newest = pc.max(pq.read_table(checked)["event_timestamp"]).as_py()
    assert now - timedelta(days=2) < newest < now
    card = stages.train(demo, checked, model)
    assert card["metrics"]["auc"] > demo.gates.floors["auc"]
    assert card["metrics"]["ece"] < demo.gates.ceilings["ece"]


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2014, 1, 1, 1, tzinfo=UTC),  # the first hour after the recorded year
        datetime(2027, 1, 1, 12, tzinfo=UTC),  # in a 53rd week
        datetime(2027, 1, 6, tzinfo=UTC),  # just after it
        datetime(2028, 2, 29, 23, 5, tzinfo=UTC),
    ],
)
def test_the_hourly_run_passes_at_any_date(demo: Loop, place: Settings, moment: datetime, tmp_path: Path) -> None:
    # Over the demo's whole window: within nine days, a single gap in the weather records is too much.
    stages.extract(demo, place, moment, tmp_path / "raw")
    stages.validate_raw(
        demo, place, tmp_path / "raw", moment, "x", tmp_path / "clean", tmp_path / "page.html"
    )  # raises what it finds


def test_an_hour_later_there_are_the_same_rows_and_more(loop: Loop, place: Settings, tmp_path: Path) -> None:
    first = datetime(2027, 1, 5, 17, 5, tzinfo=UTC)
    for name, moment in (("a", first), ("b", first + HOUR), ("again", first)):
        stages.extract(loop, place, moment, tmp_path / name)
    assert stages.digest(tmp_path / "a") == stages.digest(tmp_path / "again")
    since = first + HOUR - loop.training.window - loop.features.history
    for name, table in loop.source.tables.items():
        before, after = (pq.read_table(tmp_path / folder / f"{name}.parquet") for folder in ("a", "b"))
        key = "tailnum" if table.static else table.available_at
        if not table.static:
            assert after.num_rows > 0
            before = before.filter(pc.field(key) >= since)
            after = after.filter(pc.field(key) <= first)
        assert _ordered(before).equals(_ordered(after)), name


def test_weekday_and_hour_of_a_flight_stay_and_its_id_moves_with_it(
    flights: ModuleType, year: Path, tmp_path: Path
) -> None:
    moment = datetime(2026, 7, 1, tzinfo=UTC)
    flights.repeat(tmp_path, moment - timedelta(days=30), moment)
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        (wrong,) = db.execute(
            f"""SELECT count(*) FROM '{tmp_path}/schedule.parquet' WHERE flight_id[:8] !=
                strftime(strptime(sched_local[:10], '%Y-%m-%d'), '%Y%m%d')
                OR abs(epoch(sched_dep - strptime(sched_local, '%Y-%m-%dT%H:%M') AT TIME ZONE 'UTC')) > 6 * 3600"""
        ).fetchone() or (None,)
        query = "SELECT weekday(sched_dep) AS day, count(*) FROM '{}' WHERE sched_dep BETWEEN ? AND ? GROUP BY day"
        spans = (tmp_path, date(2026, 6, 8)), (year, date(2013, 6, 10))
        days = [
            dict(db.execute(query.format(path / "schedule.parquet"), [start, start + timedelta(weeks=2)]).fetchall())
            for path, start in spans
        ]
    assert wrong == 0
    assert days[0] == days[1]


@given(st.dates(date(2013, 6, 1), date(2090, 1, 1)), st.integers(1, 800))
def test_every_day_is_there_once_with_its_weekday(flights: ModuleType, until: date, days: int) -> None:
    since = max(until - timedelta(days=days), flights.RECORDED)
    seen = []
    for piece in flights.pieces(since, until):
        assert piece.shift.days % 7 == 0
        assert flights.RECORDED <= piece.first < piece.end <= flights.RECORDED_UNTIL
        length = (piece.end - piece.first).days
        seen += [piece.first + piece.shift + timedelta(days=n) for n in range(length)]
        for n in (0, length - 1):
            there, here = piece.first + timedelta(days=n), piece.first + piece.shift + timedelta(days=n)
            weeks = abs(there.isocalendar().week - here.isocalendar().week) % 52
            assert weeks <= 1, "a season stays"
    assert seen == [since + timedelta(days=n) for n in range((until - since).days + 1)]


def test_a_replay_reads_what_was_recorded(demo: Loop, place: Settings, year: Path, tmp_path: Path) -> None:
    assert demo.replay
    since = demo.replay.until - timedelta(days=30)
    with sources.of_run(demo, place, since=since, as_of=demo.replay.until) as raw:
        assert raw == place.raw
        assert stages.digest(raw) == stages.digest(year)


def test_what_is_written_for_one_run_goes_with_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "feature_repo").mkdir(parents=True)
    (home / "feature_repo" / "mine.py").write_text(
        "import duckdb\ndef span(folder, since, until):\n"
        "    duckdb.execute(f\"COPY (SELECT '{since}'::TIMESTAMPTZ AS at UNION ALL SELECT '{until}'::TIMESTAMPTZ) \"\n"
        "                   f\"TO '{folder}/t.parquet'\")\n"
    )
    source = {"live": "mine:span", "tables": {"t": {"available_at": "at"}}}
    loop = Loop.model_validate({"name": "x", "source": source, "features": {"service": "v1"}})
    settings = config.settings(home, home / "state")
    as_of = datetime(2030, 5, 1, tzinfo=UTC)
    found = stages.extract(loop, settings, as_of, tmp_path / "out", "digest of other tables")
    assert found.rows == {"t": 2}
    assert found.snapshot != "digest of other tables"
    assert list(settings.state.iterdir()) == []


def _ordered(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in table.column_names])

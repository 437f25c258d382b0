"""The flights' suites against the real year: every month passes, and the one absurd reading is quarantined."""

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kubeloop import config
from kubeloop.data import sources
from kubeloop.data.expectations import load
from kubeloop.data.validation import Report, ValidationFailed, require, validate

HOME = Path(__file__).parents[4]
LOOP = config.load(HOME / "loop.yaml")
SUITES = HOME / LOOP.features.repo / "expectations"
STATION_OUT = (pc.field("origin") == "EWR") & (pc.field("observed_at") > datetime(2013, 4, 17, tzinfo=UTC))


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("year")
    spec = importlib.util.spec_from_file_location("flights", HOME / LOOP.features.repo / "flights.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(folder)
    return folder


def run(year: Path, tmp_path: Path, as_of: datetime, days: int = 14, **broken: pc.Expression) -> Report:
    """Validate what was known at a moment; `broken` maps a table to a condition on the rows that are dropped."""
    raw = tmp_path / "raw"
    sources.cut(LOOP, year, raw, since=as_of - timedelta(days=days), as_of=as_of)
    for table, lost in broken.items():
        data = pq.read_table(raw / f"{table}.parquet")
        pq.write_table(data.filter(~lost), raw / f"{table}.parquet")
    return validate(
        sources.tables(raw),
        SUITES,
        as_of=as_of,
        docs=tmp_path / "docs",
        quarantine=tmp_path / "quarantine",
        clean=tmp_path / "clean",
    )


def test_every_table_of_the_source_has_a_suite() -> None:
    assert all(load(SUITES, [*LOOP.source.tables, "training"]).values())


@pytest.mark.parametrize("month", [2, 7, 12])
def test_the_year_passes(year: Path, tmp_path: Path, month: int) -> None:
    report = run(year, tmp_path, datetime(2013, month, 1, tzinfo=UTC))
    require(report)
    assert {name: table.quarantined for name, table in report.tables.items()} == dict.fromkeys(LOOP.source.tables, 0)


def test_the_reading_of_a_thousand_miles_an_hour_is_set_aside(year: Path, tmp_path: Path) -> None:
    require(run(year, tmp_path, datetime(2013, 2, 20, tzinfo=UTC)))
    (row,) = pq.read_table(tmp_path / "quarantine" / "weather.parquet").to_pylist()
    assert row["wind_speed"] > 1000
    assert row["observed_at"] == datetime(2013, 2, 12, 8, tzinfo=UTC)
    assert row["reasons"] == ["expect_column_values_to_be_between(wind_speed)"]
    clean = pq.read_table(tmp_path / "clean" / "weather.parquet")
    assert pc.max(clean["wind_speed"]).as_py() < 150
    assert sorted(path.name for path in (tmp_path / "quarantine").iterdir()) == ["weather.parquet"]


@pytest.mark.parametrize(
    ("table", "lost", "caught"),
    [
        ("weather", pc.field("observed_at") > datetime(2013, 4, 28, tzinfo=UTC), ("weather", "observed_at")),
        ("planes", pc.field("seats") > 100, ("schedule", "tailnum")),
        ("weather", pc.field("origin") == "JFK", ("departures", "weather_hour")),
        # The station of one airport stopped for two of five weeks; the others report to the end.
        ("weather", STATION_OUT, ("departures", "weather_hour")),
        ("arrivals", ~pc.field("late"), ("arrivals", "late")),
        ("schedule", pc.field("origin") == "EWR", ("departures", "flight_id")),
    ],
)
def test_a_broken_source_fails(
    year: Path, tmp_path: Path, table: str, lost: pc.Expression, caught: tuple[str, str]
) -> None:
    report = run(year, tmp_path, datetime(2013, 5, 1, tzinfo=UTC), 35, **{table: lost})
    assert caught in [(failure.table, failure.column) for failure in report.failures]
    with pytest.raises(ValidationFailed, match=rf"{caught[0]}.*{caught[1]}"):
        require(report)


def test_every_run_of_the_demo_knows_the_weather_of_its_departures(year: Path) -> None:
    """Checked for every day on which a run may end. Great Expectations would take seconds for each."""
    (bound,) = [
        entry.arguments["mostly"]
        for entry in load(SUITES, ["departures"])["departures"]
        if entry.columns == ("weather_hour",) and "value_set" in entry.arguments
    ]
    assert LOOP.replay
    days = (LOOP.training.window + LOOP.features.history).days
    with sources.connect(sources.tables(year)) as db:
        shares = db.execute(
            """
            WITH days AS (
                SELECT date_trunc('day', d.available_at) AS day, count(*) AS flown,
                       count(w.observed_at) AS known
                FROM departures d LEFT JOIN weather w USING (weather_hour) GROUP BY ALL
            )
            SELECT as_of, sum(known) / sum(flown)
            FROM generate_series(?::TIMESTAMPTZ, ?::TIMESTAMPTZ, INTERVAL 1 DAY) AS runs(as_of)
            JOIN days ON day < as_of AND day >= as_of - to_days(?::INTEGER)
            GROUP BY ALL
            """,
            [LOOP.replay.train_to, LOOP.replay.until, days],
        ).fetchall()
    assert len(shares) == (LOOP.replay.until - LOOP.replay.train_to).days + 1
    assert min(share for _, share in shares) > bound

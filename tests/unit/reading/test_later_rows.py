"""Later rows are read as the first ones were: a row that does not fit is quarantined, and the run continues."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kubeloop import config
from kubeloop.config import Loop, Settings
from kubeloop.data import sources
from kubeloop.steps import stages

HEADER = "ts;who;amount;channel\n"
GOOD = "31/01/2024;a;1.234,50;web\n01/02/2024;b;NA;NULL\n"
AS_OF = datetime(2024, 3, 1, tzinfo=UTC)
COLUMNS = {
    "ts": {"kind": "time", "format": "%d/%m/%Y"},
    "amount": {"kind": "number", "decimal": ",", "thousands": "."},
    "channel": {"kind": "text", "missing": ["NULL"]},
}


@pytest.fixture
def place(tmp_path: Path) -> tuple[Loop, Settings, Path]:
    table = {"path": "t.csv", "available_at": "ts", "read": {"delimiter": ";"}, "columns": COLUMNS}
    loop = Loop.model_validate({"name": "x", "source": {"tables": {"t": table}}, "features": {"service": "v1"}})
    suites = tmp_path / "feature_repo" / "expectations"
    suites.mkdir(parents=True)
    (suites / "t.yaml").write_text("- expect_column_values_to_not_be_null: {column: who, mostly: 0.5}\n")
    return loop, config.settings(tmp_path, tmp_path / "state"), tmp_path / "t.csv"


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def test_a_row_that_does_not_fit_is_in_the_quarantine_of_the_run(place: tuple[Loop, Settings, Path]) -> None:
    loop, settings, file = place
    file.write_text(HEADER + GOOD)
    assert sources.take_in(loop, settings) == {"t": 2}
    assert [row["amount"] for row in rows(settings.raw / "t.parquet")] == [1234.5, None]
    assert [row["channel"] for row in rows(settings.raw / "t.parquet")] == ["web", None]
    assert not (settings.raw / "misfits" / "t.parquet").exists()

    file.write_text(
        HEADER + GOOD + "13/02/2024;c;12.5x;web\n02/13/2024;d;1,0;web\n;e;1,0;web\n14/02/2024;f;2,0;web;more\n"
        "15/02/2024;;3,0;web\n09/09/2024;late;y;web\n"
    )
    said: list[str] = []
    assert sources.take_in(loop, settings, say=said.append) == {"t": 3}
    assert "Raw data: 2 rows of t went to the quarantine, read_as_number(amount): 12.5x" in said
    assert "Raw data: 1 row of t went to the quarantine, missing(ts)" in said

    raw, clean = settings.home / "raw", settings.home / "clean"
    stages.extract(loop, settings, AS_OF, raw)
    report = stages.validate_raw(loop, settings, raw, AS_OF, "run", clean, settings.home / "page.html")
    found = report["tables"]["t"]
    assert (found["rows"], found["quarantined"]) == (7, 5), "the row of September is not yet known"
    assert found["reasons"] == {
        "expect_column_values_to_not_be_null(who)": 1,
        "read_as_number(amount)": 1,
        "read_as_time(ts)": 1,
        "missing(ts)": 1,
        "fields(line 7)": 1,
    }
    apart = {row["who"]: row["reasons"] for row in rows(settings.state / "quarantine" / "run" / "t.parquet")}
    assert apart["c"] == ["read_as_number(amount): 12.5x"]
    assert apart["d"] == ["read_as_time(ts): 02/13/2024"]
    assert len(rows(clean / "t.parquet")) == 2

    file.write_text(HEADER + GOOD)
    sources.take_in(loop, settings)
    assert not (settings.raw / "misfits" / "t.parquet").exists(), "the corrected row is no longer quarantined"


def test_a_column_that_was_a_number_stays_one(place: tuple[Loop, Settings, Path]) -> None:
    loop, settings, file = place
    file.write_text(HEADER + "31/01/2024;a;1,5;web\n" + "01/02/2024;b;x;web\n" * 5)
    assert sources.take_in(loop, settings) == {"t": 1}
    assert str(pq.read_schema(settings.raw / "t.parquet").field("amount").type) == "double"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            HEADER + "2024-01-31;a;1,5;web\n",
            r"t\.csv cannot be read: no row fits source\.tables\.t\.columns, such as read_as_ti",
        ),
        (
            "ts;who;channel\n31/01/2024;a;web\n",
            r"t\.csv has no column 'amount', which source\.tables\.t\.columns names",
        ),
    ],
)
def test_a_file_of_which_nothing_fits_is_refused_and_what_was_read_stays(
    place: tuple[Loop, Settings, Path], content: str, message: str
) -> None:
    loop, settings, file = place
    file.write_text(HEADER + GOOD)
    sources.take_in(loop, settings)
    file.write_text(content)
    with pytest.raises(sources.SourceError, match=message):
        sources.take_in(loop, settings)
    assert len(rows(settings.raw / "t.parquet")) == 2


def test_columns_of_a_table_that_a_function_writes_are_read_as_well(tmp_path: Path) -> None:
    table = {"available_at": "ts", "columns": {"ts": {"kind": "time", "format": "epoch_ms"}}}
    source = {"entry": "mine:write", "live": "mine:live", "tables": {"t": table}}
    loop = Loop.model_validate({"name": "x", "source": source, "features": {"service": "v1"}})
    settings = config.settings(tmp_path, tmp_path / "state")
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "feature_repo" / "mine.py").write_text(
        "import duckdb\n"
        "def write(folder):\n"
        "    duckdb.execute(f\"COPY (SELECT 1706659200000 AS ts) TO '{folder}/t.parquet' (FORMAT parquet)\")\n"
        "def live(folder, since, until):\n"
        "    write(folder)\n"
    )
    moment = datetime(2024, 1, 31, tzinfo=UTC)
    assert sources.take_in(loop, settings) == {"t": 1}
    assert rows(settings.raw / "t.parquet") == [{"ts": moment}]
    with sources.of_run(loop, settings, since=moment, as_of=moment + timedelta(days=1)) as raw:
        assert rows(raw / "t.parquet") == [{"ts": moment}]


@pytest.mark.parametrize(
    ("cell", "moment"),
    [
        ("2024-01-15 12:00:00", datetime(2024, 1, 15, 11, tzinfo=UTC)),
        ("2024-07-15 12:00:00", datetime(2024, 7, 15, 10, tzinfo=UTC)),
        ("2024-07-15 12:00:00Z", datetime(2024, 7, 15, 12, tzinfo=UTC)),
        ("2024-03-31 02:30:00", datetime(2024, 3, 31, 1, 30, tzinfo=UTC)),  # skipped
        ("2024-10-27 02:30:00", datetime(2024, 10, 27, 1, 30, tzinfo=UTC)),  # twice
        ("2024-10-27 02:30:00+02:00", datetime(2024, 10, 27, 0, 30, tzinfo=UTC)),
    ],
)
def test_local_times_are_the_same_moments_in_tables_and_requests(tmp_path: Path, cell: str, moment: datetime) -> None:
    from kubeloop import moments
    from kubeloop.config import Table

    (tmp_path / "t.csv").write_text(f"ts,day\n{cell},2024-07-15\n")
    table = Table.model_validate({"available_at": "ts", "read": {"timezone": "Europe/Berlin"}})
    sources.copy(tmp_path / "t.csv", tmp_path / "t.parquet", table)
    (row,) = rows(tmp_path / "t.parquet")
    assert row == {"ts": moment, "day": datetime(2024, 7, 14, 22, tzinfo=UTC)}
    assert moments.read(cell, "Europe/Berlin") == moment

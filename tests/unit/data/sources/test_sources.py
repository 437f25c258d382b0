# ruff: noqa: S608
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeloop import config
from kubeloop.config import ConfigError, Loop, Settings
from kubeloop.data import sources
from kubeloop.steps import stages

NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
Place = Callable[..., tuple[Loop, Settings]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Make a loop over tables, and the settings of an empty installation."""

    def make(tables: dict[str, Any], entry: str | None = None) -> tuple[Loop, Settings]:
        loop = Loop.model_validate(
            {"name": "x", "source": {"tables": tables, "entry": entry}, "features": {"service": "v1"}}
        )
        return loop, config.settings(tmp_path, tmp_path / "state")

    return make


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def test_csv_is_taken_in_with_its_times_as_utc(place: Place, tmp_path: Path) -> None:
    loop, settings = place({"t": {"path": "data/t.csv", "available_at": "at"}})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t.csv").write_text("id,at,day\na,2013-04-01 12:00:00,2013-04-01\nb,,\n")
    assert sources.take_in(loop, settings) == {"t": 1}
    assert rows(settings.raw / "t.parquet") == [{"id": "a", "at": NOON, "day": NOON - timedelta(hours=12)}]
    (apart,) = rows(settings.raw / "misfits" / "t.parquet")
    assert apart == {"id": "b", "at": None, "day": None, "reasons": ["missing(at)"]}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("TIMESTAMP '2013-04-01 12:00:00'", "naive"),
        ("TIMESTAMPTZ '2013-04-01 08:00:00-04'", "aware"),
        ("TIMESTAMP_NS '2013-04-01 12:00:00'", "naive nanoseconds"),
        ("TIMESTAMP_MS '2013-04-01 12:00:00'", "naive milliseconds"),
        ("TIMESTAMP_S '2013-04-01 12:00:00'", "naive seconds"),
    ],
)
def test_parquet_is_taken_in_with_its_times_as_utc(place: Place, tmp_path: Path, value: str, kind: str) -> None:
    loop, settings = place({"t": {"path": "t.parquet", "available_at": "at"}})
    duckdb.execute(f'COPY (SELECT {value} AS at, 1 AS "odd ""name") TO \'{tmp_path}/t.parquet\' (FORMAT parquet)')
    assert sources.take_in(loop, settings) == {"t": 1}
    (row,) = rows(settings.raw / "t.parquet")
    assert row == {"at": NOON, 'odd "name': 1}
    assert str(pq.read_schema(settings.raw / "t.parquet").field("at").type) == "timestamp[us, tz=UTC]"


def test_an_entry_writes_the_tables(place: Place, tmp_path: Path) -> None:
    loop, settings = place({"t": {"available_at": "at"}, "u": {"path": "u.csv", "available_at": "at"}}, "mine:make")
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "feature_repo" / "mine.py").write_text(
        "import duckdb\n"
        "def make(folder):\n"
        "    duckdb.execute(f\"COPY (SELECT now() AS at FROM range(3)) TO '{folder}/t.parquet' (FORMAT parquet)\")\n"
    )
    (tmp_path / "u.csv").write_text("at\n2013-04-01\n")
    assert sources.take_in(loop, settings) == {"t": 3, "u": 1}


def test_a_file_that_changed_is_taken_in_again_and_said(place: Place, tmp_path: Path) -> None:
    path = {"available_at": "at"}
    loop, settings = place({"t": {**path, "path": "t.csv"}, "u": {**path, "path": "u.csv"}})
    for name in ("t", "u"):
        (tmp_path / f"{name}.csv").write_text("at\n2013-04-01\n")
    said: list[str] = []
    assert sources.take_in(loop, settings, say=said.append) == {"t": 1, "u": 1}
    assert said == [], "nothing was read before, so nothing changed"
    kept = (settings.raw / "u.parquet").stat().st_mtime_ns
    (tmp_path / "t.csv").write_text("at\n2013-04-01\n2013-04-02\n2013-04-03\n")
    assert sources.take_in(loop, settings, keep=True, say=said.append) == {"t": 1, "u": 1}
    assert sources.take_in(loop, settings, say=said.append) == {"t": 3, "u": 1}
    assert said == ["Raw data: t changed, 2 new rows."]
    assert (settings.raw / "u.parquet").stat().st_mtime_ns == kept
    assert sources.take_in(loop, settings, say=said.append) == {"t": 3, "u": 1}
    assert len(said) == 1


def test_a_condition_keeps_rows_out_now_and_later(place: Place, tmp_path: Path) -> None:
    table = {"path": "t.csv", "available_at": "at"}
    (tmp_path / "t.csv").write_text("at,n\n2013-04-01,1\n2013-04-02,2\n1970-01-01,3\n")
    condition = "\"at\" > '2000-01-01' -- no strays"
    loop, settings = place({"t": table})
    assert sources.take_in(loop, settings) == {"t": 3}
    loop, settings = place({"t": {**table, "where": condition}})
    assert sources.take_in(loop, settings) == {"t": 2}
    (tmp_path / "t.csv").write_text("at,n\n2013-04-01,1\n2013-04-02,2\n2013-04-03,4\n1970-01-01,3\n1970-01-02,3\n")
    assert sources.take_in(loop, settings) == {"t": 3}
    for wrong, message in (("n >", "source.tables.t.where 'n >' fails"), ("n > 9", "leaves no row")):
        loop, settings = place({"t": {**table, "where": wrong}})
        with pytest.raises(sources.SourceError, match=message):
            sources.take_in(loop, settings)


def test_a_file_of_the_same_size_is_told_by_its_time_and_one_that_is_gone_is_kept(place: Place, tmp_path: Path) -> None:
    loop, settings = place({"t": {"path": "t.csv", "available_at": "at"}})
    file, said = tmp_path / "t.csv", list[str]()
    file.write_text("at\n2013-04-01\n")
    sources.take_in(loop, settings)
    file.write_text("at\n2013-04-02\n")
    os.utime(file, ns=(1, 1))
    sources.take_in(loop, settings, say=said.append)
    assert said == ["Raw data: t changed, as many rows as before."]
    assert rows(settings.raw / "t.parquet") == [{"at": NOON + timedelta(hours=12)}]
    file.unlink()
    assert sources.take_in(loop, settings, say=said.append) == {"t": 1}
    assert len(said) == 1


def test_a_run_reads_what_was_taken_in_when_it_was_asked_for(place: Place, tmp_path: Path) -> None:
    loop, settings = place({"t": {"path": "t.csv", "available_at": "at"}})
    (tmp_path / "t.csv").write_text("at\n2013-04-01\n")
    sources.take_in(loop, settings)
    (tmp_path / "t.csv").write_text("at\n2013-04-01\n2013-04-01\n")
    found = stages.extract(loop, settings, NOON, tmp_path / "out")
    assert found == stages.Extract({"t": 1}, stages.digest(settings.raw))


def test_an_interrupted_intake_is_repeated(place: Place, tmp_path: Path) -> None:
    loop, settings = place({"t": {"path": "t.csv", "available_at": "at"}})
    (tmp_path / "t.csv").write_text("at\n2013-04-01\n")
    sources.take_in(loop, settings)
    (tmp_path / "t.csv").write_text("seen\n2013-04-01\n")
    for _ in range(2):
        with pytest.raises(sources.SourceError, match="no column 'at'"):
            sources.take_in(loop, settings)
    (tmp_path / "t.csv").write_text("at\n2013-04-01\n2013-04-02\n")
    assert sources.take_in(loop, settings) == {"t": 2}


def test_an_entry_is_called_again_when_its_module_changed(place: Place, tmp_path: Path) -> None:
    loop, settings = place({"t": {"available_at": "at"}}, "mine:make")
    module = tmp_path / "feature_repo" / "mine.py"
    module.parent.mkdir()

    def write(count: int) -> None:
        module.write_text(
            "import duckdb\n"
            "def make(folder):\n"
            f"    query = 'SELECT now() AS at FROM range({count})'\n"
            "    duckdb.execute(f\"COPY ({query}) TO '{folder}/t.parquet' (FORMAT parquet)\")\n"
        )

    write(30)
    said: list[str] = []
    assert sources.take_in(loop, settings) == {"t": 30}
    before = (settings.raw / "t.parquet").stat().st_mtime_ns
    assert sources.take_in(loop, settings, say=said.append) == {"t": 30}
    assert (settings.raw / "t.parquet").stat().st_mtime_ns == before
    write(10)
    assert sources.take_in(loop, settings, keep=True) == {"t": 30}
    assert sources.take_in(loop, settings, say=said.append) == {"t": 10}
    assert said == ["Raw data: t changed, 20 rows fewer."]


def test_an_entry_does_not_replace_tables_that_were_put_there(place: Place, tmp_path: Path) -> None:
    loop, settings = place({"t": {"available_at": "at"}}, "mine:make")
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "feature_repo" / "mine.py").write_text("def make(folder):\n    raise RuntimeError\n")
    settings.raw.mkdir(parents=True)
    duckdb.execute(f"COPY (SELECT now() AS at) TO '{settings.raw}/t.parquet' (FORMAT parquet)")
    assert sources.take_in(loop, settings) == {"t": 1}


def test_a_table_that_cannot_be_read_leaves_nothing_behind(place: Place, tmp_path: Path) -> None:
    loop, settings = place({"t": {"path": "t.parquet", "available_at": "at"}})
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(sources.SourceError, match=r"t\.parquet cannot be read"):
        sources.take_in(loop, settings)
    assert sources.tables(settings.raw) == {}


@pytest.mark.parametrize(
    ("table", "entry", "message"),
    [
        ({"path": "away.csv", "available_at": "at"}, None, r"away\.csv does not exist; set source\.tables\.t\.path"),
        ({"path": "t.csv", "available_at": "seen"}, None, r"no column 'seen' \(source\.tables\.t\.available_at\).*at"),
        ({"available_at": "at"}, "away:make", r"source\.entry names .*away\.py, which does not exist"),
        ({"available_at": "at"}, "mine:away", r"mine\.py has no function 'away', which source\.entry names"),
        ({"available_at": "at"}, "mine:make", r"mine:make wrote no t\.parquet"),
    ],
)
def test_what_is_missing_is_named(
    place: Place, tmp_path: Path, table: dict[str, Any], entry: str | None, message: str
) -> None:
    loop, settings = place({"t": table}, entry)
    (tmp_path / "t.csv").write_text("at\n2013-04-01\n")
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "feature_repo" / "mine.py").write_text("def make(folder):\n    pass\n")
    with pytest.raises(sources.SourceError, match=message):
        sources.take_in(loop, settings)


def test_a_table_needs_a_path_or_an_entry(place: Place) -> None:
    loop, settings = place({"t": {"available_at": "at"}})
    with pytest.raises(ConfigError, match=r"source\.tables\.t needs a path, or source\.entry a function"):
        sources.take_in(loop, settings)


@pytest.mark.parametrize(
    ("cell", "message"), [("yesterday", r"t\.csv cannot be read.*yesterday"), ("7", "holds BIGINT.*column of times")]
)
def test_an_invalid_time_is_refused(place: Place, tmp_path: Path, cell: str, message: str) -> None:
    loop, settings = place({"t": {"path": "t.csv", "available_at": "at"}})
    (tmp_path / "t.csv").write_text(f"at\n{cell}\n")
    with pytest.raises(sources.SourceError, match=f"(?s){message}"):
        sources.take_in(loop, settings)


@given(
    moments=st.lists(st.integers(-50, 50), max_size=30),
    start=st.integers(-50, 50),
    end=st.integers(-50, 50),
)
def test_a_cut_shows_what_was_known(
    tmp_path_factory: pytest.TempPathFactory, moments: list[int], start: int, end: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    loop = Loop.model_validate(
        {
            "name": "x",
            "source": {"tables": {"moving": {"available_at": "at"}, "fixed": {"available_at": "at", "static": True}}},
            "features": {"service": "v1"},
        }
    )
    (folder / "raw").mkdir()
    values = ", ".join(f"({number})" for number in moments) or "(NULL)"
    for name in ("moving", "fixed"):
        duckdb.execute(
            f"COPY (SELECT i, TIMESTAMPTZ '{NOON.isoformat()}' + to_seconds(i) AS at FROM (VALUES {values}) v(i)) "
            f"TO '{folder}/raw/{name}.parquet' (FORMAT parquet)"
        )
    counts = sources.cut(
        loop,
        folder / "raw",
        folder / "out",
        since=NOON + timedelta(seconds=start),
        as_of=NOON + timedelta(seconds=end),
    )
    moving = [row["i"] for row in rows(folder / "out" / "moving.parquet")]
    fixed = [row["i"] for row in rows(folder / "out" / "fixed.parquet")]
    assert moving == sorted(number for number in moments if start <= number <= end)
    assert fixed == sorted(number for number in moments if number <= end)
    assert counts == {"moving": len(moving), "fixed": len(fixed)}


def test_the_demos_tables_are_cut_by_when_they_were_known(demo: Loop, year: Path, tmp_path: Path) -> None:
    as_of = datetime(2013, 4, 1, 12, tzinfo=UTC)
    counts = sources.cut(demo, year, tmp_path, since=as_of - timedelta(days=1), as_of=as_of)
    assert counts["planes"] == 3322
    for name, table in demo.source.tables.items():
        (found,) = duckdb.execute(
            f"SELECT min({table.available_at}), max({table.available_at}), count(*) FROM '{tmp_path}/{name}.parquet'"
        ).fetchall()
        assert found[1] <= as_of
        assert table.static or found[0] >= as_of - timedelta(days=1)
        assert found[2] == counts[name] > 60
    # The timetable reaches one day further than the last event.
    ((last,),) = duckdb.execute(f"SELECT max(sched_dep) FROM '{tmp_path}/schedule.parquet'").fetchall()
    assert as_of + timedelta(hours=23) < last <= as_of + timedelta(hours=24)


def test_what_does_not_fit_into_memory_goes_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MEMORY", "100MB")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with sources.connect() as db:
        db.execute("CREATE TABLE sorted AS FROM range(10_000_000) t(i) ORDER BY hash(i)")
        assert db.execute("SELECT count(*) FROM sorted").fetchall() == [(10_000_000,)]
        assert [path.name[:16] for path in tmp_path.iterdir()] == ["kubeloop-duckdb-"]
    assert not list(tmp_path.iterdir())


def test_a_query_that_cannot_go_to_disk_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MEMORY", "40MB")
    with (
        pytest.raises(sources.SourceError, match=r"need more memory .*source.tables.NAME.where"),
        sources.connect() as db,
    ):
        db.execute("SELECT list(i) FROM range(20_000_000) t(i)").fetchall()

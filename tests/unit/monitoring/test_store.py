from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa

from kubeloop.monitoring import held, schema
from kubeloop.monitoring.held import Part
from kubeloop.monitoring.store import Due, Progress, Store, StoreConflictError

START = datetime(2013, 4, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path / 'monitor.db'}"


@pytest.fixture
def store(url: str) -> Store:
    found = Store(url)
    yield found
    found.close()


def part(day: int = 0, version: str = "1", rows: int = 1, kind: held.Kind = "features", hour: int = 1) -> Part:
    start = START + day * DAY
    table = pa.table({"n": list(range(rows))})
    return Part(kind, version, start, start + DAY, table, start + timedelta(hours=hour))


def pieces(store: Store) -> int:
    with store.engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(schema.held)).scalar_one())


def test_progress_comes_back_with_its_time_zone(store: Store) -> None:
    assert store.progress("flights") == Progress("flights")
    now = replace(store.progress("flights"), cursor=7, watermark=START, late_rows=3)
    assert store.ingest(now, [], {}) == store.progress("flights") == replace(now, revision=1)


def test_many_small_readings_become_few_pieces_and_lose_nothing(store: Store) -> None:
    now = store.progress("flights")
    readings = held.MERGE**2 + 5
    for n in range(readings):
        one = replace(part(), table=pa.table({"n": [n]}), newest=START + timedelta(minutes=n))
        now = store.ingest(now, [one], {})
    assert pieces(store) == 6
    (found,) = store.parts("flights", Due("features", START, START + DAY))
    assert sorted(found.table["n"].to_pylist()) == list(range(readings))
    assert found.newest == START + timedelta(minutes=readings - 1)


def test_pieces_that_would_be_too_large_together_stay_apart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "LARGEST", 100)
    now = store.progress("flights")
    for _ in range(held.MERGE + 1):
        now = store.ingest(now, [part()], {})
    assert pieces(store) == held.MERGE + 1


def test_a_column_that_changes_its_type_or_comes_late_can_be_put_together() -> None:
    tables = [
        pa.table({"a": pa.array([1.5], pa.float32())}),
        pa.table({"a": ["x"], "b": [2.0]}),
        pa.table({"a": pa.nulls(1), "b": pa.nulls(1)}),
    ]
    found = held.concat(tables)
    assert found["a"].to_pylist() == ["1.5", "x", None]
    assert found["b"].to_pylist() == [None, 2.0, None]


def test_of_two_monitors_the_second_to_write_is_refused_and_changes_nothing(store: Store) -> None:
    first = second = store.progress("flights")
    first = store.ingest(replace(first, cursor=1), [part()], {})
    with pytest.raises(StoreConflictError, match="another monitor of flights"):
        store.ingest(replace(second, cursor=9), [part()], {"1": START})
    store.ingest(replace(first, cursor=2), [], {})
    with pytest.raises(StoreConflictError):
        store.close_window(first, Due("features", START, START + DAY), [], [], [], None)
    assert (store.progress("flights").cursor, pieces(store), store.versions("flights")) == (2, 1, {})


def test_windows_fall_due_by_their_deadlines(store: Store) -> None:
    scored = [part(0, kind="scored"), part(1, kind="scored")]
    store.ingest(store.progress("flights"), [part(2), part(2, "2"), part(1), *scored, part(3)], {})
    found = store.due("flights", START + 3 * DAY, label_wait=DAY)
    days = [(due.kind, (due.start - START).days) for due in found]
    assert days == [("scored", 0), ("features", 1), ("scored", 1), ("features", 2)]


def test_labels_stay_as_long_as_a_window_can_need_them(store: Store) -> None:
    labels = [part(day, "", kind="labels") for day in range(4)]
    now = store.ingest(store.progress("flights"), [*labels, part(1, kind="scored"), part(3)], {})
    store.close_performance(now, Due("scored", START + DAY, START + 2 * DAY), [], None, slack=DAY)
    assert len(store.labels("flights", START)) == 2
    assert len(store.labels("flights", START + 3 * DAY)) == 1


def test_a_version_keeps_the_first_time_it_was_live(store: Store) -> None:
    now = store.ingest(store.progress("flights"), [], {"1": START})
    store.remember("flights", "2", "file:///models/2")
    now = store.ingest(now, [], {"1": START + DAY, "2": START + DAY})
    store.remember("flights", "1", "file:///models/1")
    found = store.versions("flights")
    assert {v: (row["uri"], row["live_since"]) for v, row in found.items()} == {
        "1": ("file:///models/1", START),
        "2": ("file:///models/2", START + DAY),
    }

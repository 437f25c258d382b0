from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubeloop import features
from kubeloop.data import sources

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
Write = Callable[[str, dict[str, Any]], Path]


@pytest.fixture
def raw(write: Write) -> Path:
    write(
        "prices",
        {"shop": ["a", "b"], "sku": ["1", "1"], "seen": [NOON, NOON], "price": [1.5, 2.5], "kind": ["x", None]},
    )
    write("stock", {"sku": ["1"], "seen": [NOON], "units": [3]})
    return write(
        "orders",
        {
            "id": ["o2", "o1", "o3"],
            "seen": [NOON + timedelta(minutes=5), NOON + timedelta(minutes=5), NOON + timedelta(hours=5)],
            "label": pa.array([1, 0, None], pa.int32()),
            "known": [NOON + timedelta(days=1), NOON + timedelta(hours=2), None],
            "shop": ["a", "b", "a"],
            "sku": ["1", "1", "2"],
            "count": [2.0, 1.0, 1.0],
            "opened": [NOON, NOON, NOON],
        },
    )


def test_every_view_gets_its_table_and_is_registered(shop: Path, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert features.build(shop, raw, out) == {"prices": 2, "stock": 1}
    table = pq.read_table(out / "prices.parquet")
    assert table.column_names == ["shop", "sku", "event_timestamp", "price", "kind"]
    assert not list(out.glob("*.part"))
    store = features.open_store(out)
    fields = features.features(store, "shop_v1")
    assert [(field.name, field.datatype, field.kind) for field in fields] == [
        ("shop", "BYTES", "categorical"),
        ("price", "FP32", "numeric"),
        ("kind", "BYTES", "categorical"),
        ("units", "FP32", "numeric"),
        ("total", "FP32", "numeric"),
        ("minute", "FP32", "numeric"),
        ("cents", "FP32", "numeric"),
    ]
    asked = features.requests(store, "shop_v1")
    assert [(field.name, field.datatype) for field in asked] == [
        ("sku", "BYTES"), ("shop", "BYTES"), ("count", "FP64"), ("opened", "BYTES"),
    ]  # fmt: skip
    # Views that are only sources of derived views still need their keys.
    assert features.requests(store, "derived_v1") == asked


def test_a_second_build_replaces_the_tables(shop: Path, raw: Path, write: Write, tmp_path: Path) -> None:
    features.build(shop, raw, tmp_path / "out")
    write("stock", {"sku": ["1", "2"], "seen": [NOON, NOON], "units": [3, 4]})
    assert features.build(shop, raw, tmp_path / "out")["stock"] == 2
    rows = features.events(shop, raw, start=NOON, end=NOON + timedelta(days=1))
    table = features.training_set(tmp_path / "out", "shop_v1", rows)
    assert dict(zip(table["event_id"].to_pylist(), table["units"].to_pylist(), strict=True)) == {
        "o1": 3, "o2": 3, "o3": 4,
    }  # fmt: skip


def test_a_whole_number_that_float32_cannot_hold_is_rounded(
    shop: Path, raw: Path, write: Write, tmp_path: Path
) -> None:
    """Training warns about it; the step before must not end in a traceback."""
    write("stock", {"sku": ["1", "2"], "seen": [NOON, NOON], "units": [20_240_101, 20_240_103]})
    features.build(shop, raw, tmp_path / "out")
    rows = features.events(shop, raw, start=NOON, end=NOON + timedelta(days=1))
    units = features.training_set(tmp_path / "out", "shop_v1", rows)["units"]
    assert str(units.type) == "float"
    assert set(units.to_pylist()) == {20_240_100, 20_240_104}


def test_two_repos_with_modules_of_one_name_do_not_mix(shop: Path, repo: Path) -> None:
    names = [[getattr(item, "name", "") for item in features.definitions(folder)] for folder in (shop, repo, shop)]
    assert names[0] == names[2] != names[1]
    assert "carrier_daily" in names[1]
    assert "carrier_daily" not in names[2]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("feature_store.yaml", None, "is not a feature repo: it has no feature_store.yaml"),
        ("sql/stock.sql", None, r"stock has no query: .*sql/stock\.sql"),
        ("sql/stock.sql", "SELECT sku, seen AS event_timestamp FROM stock", "does not return the columns.*units"),
        ("sql/stock.sql", "SELECT FROM", r"stock\.sql does not return the columns"),
        ("sql/stock.sql", "FROM away", r"stock\.sql does not return .*away"),
    ],
)
def test_what_is_missing_is_named(
    shop: Path, raw: Path, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    (shop / file).unlink()
    if content:
        (shop / file).write_text(content)
    with pytest.raises(features.FeatureError, match=f"(?s){message}"):
        features.build(shop, raw, tmp_path / "out")


def test_an_empty_folder_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(features.FeatureError, match="holds no feature tables yet"):
        features.open_store(tmp_path)


@pytest.mark.parametrize(
    ("start", "end", "labelled_by", "expected"),
    [
        (0, 24, None, ["o1", "o2", "o3"]),
        (0, 5, None, ["o1", "o2"]),
        (5, 6, None, ["o3"]),
        (0, 24, 48, ["o1", "o2"]),
        (0, 24, 24, ["o1", "o2"]),
        (0, 24, 23, ["o1"]),
        (0, 24, 1, []),
        (6, 24, None, []),
    ],
)
def test_events_are_of_a_span_and_labelled_by_a_moment(
    shop: Path, raw: Path, start: int, end: int, labelled_by: int | None, expected: list[str]
) -> None:
    found = features.events(
        shop,
        raw,
        start=NOON + timedelta(hours=start),
        end=NOON + timedelta(hours=end),
        labelled_by=None if labelled_by is None else NOON + timedelta(hours=labelled_by),
    )
    assert found["event_id"].to_pylist() == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (None, r"events\.sql is missing"),
        (
            "SELECT id AS event_id, label FROM orders",
            r"events\.sql must also return event_timestamp, label_available_at",
        ),
        ("FROM away", r"events\.sql fails: .*away"),
    ],
)
def test_events_need_a_whole_query(shop: Path, raw: Path, query: str | None, message: str) -> None:
    (shop / "sql" / "events.sql").unlink()
    if query:
        (shop / "sql" / "events.sql").write_text(query)
    with pytest.raises(features.FeatureError, match=message):
        features.events(shop, raw, start=NOON, end=NOON)


@pytest.mark.parametrize("query", ["events", "prices"])
def test_too_little_memory_is_not_a_fault_of_the_query(
    shop: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    file = shop / "sql" / f"{query}.sql"
    columns = file.read_text().replace(";", "")
    file.write_text(f"SELECT * FROM ({columns}) WHERE (SELECT len(list(i)) FROM range(20_000_000) t(i)) > 0")  # noqa: S608
    monkeypatch.setattr(sources, "_MEMORY", "40MB")
    expected = pytest.raises(sources.SourceError, match=r"need more memory .*source.tables.NAME.where")
    if query == "events":
        with expected:
            features.events(shop, raw, start=NOON, end=NOON + timedelta(days=1))
    else:
        with expected:
            features.build(shop, raw, tmp_path / "out")


def test_an_even_sample_is_taken_of_many_labelled_events(shop: Path, write: Write) -> None:
    moments = [NOON + timedelta(minutes=minute) for minute in range(10)]
    columns: dict[str, Any] = {name: [1] * 10 for name in ("shop", "sku", "count")}
    labels = [None, *[1] * 8, None]
    raw = write("orders", {"id": list("abcdefghij"), "seen": moments, "label": labels, "known": moments,
                           "opened": moments, **columns})  # fmt: skip

    def ids(most: int | None) -> str:
        rows = features.events(shop, raw, start=NOON, end=NOON + timedelta(hours=1), most=most)
        return "".join(rows["event_id"].to_pylist())

    assert {most: ids(most) for most in (None, 8, 7, 4, 3, 1)} == {
        None: "abcdefghij", 8: "bcdefghi", 7: "bdfh", 4: "bdfh", 3: "beh", 1: "b"
    }  # fmt: skip


def test_events_of_some_moments(shop: Path, write: Write) -> None:
    stamps = [NOON + timedelta(microseconds=place // 2) for place in range(10)]
    columns: dict[str, Any] = {name: [1] * 10 for name in ("shop", "sku", "count", "label")}
    raw = write("orders", {"id": list("abcdefghij"), "seen": stamps, "known": stamps, "opened": stamps, **columns})
    span = {"start": NOON, "end": NOON + timedelta(microseconds=4)}
    moments = features.moments(shop, raw, **span)
    assert [moment.item().microsecond for moment in moments] == [0, 1, 2, 3]
    assert features.events(shop, raw, **span, at=moments[1::2])["event_id"].to_pylist() == list("cdgh")
    assert features.events(shop, raw, **span, at=moments[:0]).num_rows == 0


def test_the_newest_label(shop: Path, raw: Path, write: Write) -> None:
    assert features.newest_label(shop, raw) == NOON + timedelta(days=1)
    orders = pq.read_table(raw / "orders.parquet")
    query = shop / "sql" / "events.sql"
    text = query.read_text()
    later = "SELECT * REPLACE (label_available_at + INTERVAL 100 YEAR AS label_available_at)"
    query.write_text(f"{later} FROM ({text})")
    assert features.newest_label(shop, raw) is None, "it is not known yet"
    query.write_text(text)
    write("orders", {name: orders[name].slice(0, 0) for name in orders.column_names})
    assert features.newest_label(shop, raw) is None


def test_the_demos_features(built: Path) -> None:
    store = features.open_store(built)
    assert [field.name for field in features.requests(store, "flight_delay_v1")] == [
        "tailnum", "carrier", "dest", "origin", "sched_dep", "distance", "sched_minutes",
    ]  # fmt: skip
    fields = features.features(store, "flight_delay_v1")
    assert [field.name for field in fields if field.kind == "categorical"] == ["carrier", "dest", "origin"]
    assert len(fields) == 22
    assert set(sources.tables(built)) == {
        "aircraft", "carrier_daily", "destination_daily", "origin_hourly", "weather_hourly",
    }  # fmt: skip


def test_a_view_without_an_entity_is_told_how_to_get_one(shop: Path, raw: Path, tmp_path: Path) -> None:
    views = shop / "views.py"
    views.write_text(views.read_text().replace('name="stock", entities=[item],', 'name="stock", entities=[],'))
    with pytest.raises(features.FeatureError, match="view stock has no entity"):
        features.build(shop, raw, tmp_path / "out")

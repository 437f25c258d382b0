# ruff: noqa: S608
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeloop import features
from kubeloop.data import sources

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
TTL = timedelta(hours=1)
Write = Callable[[str, dict[str, Any]], Path]
Order = tuple[str, str, str, float]
Price = tuple[str, str, float, float]


def times(minutes: Iterable[float]) -> pa.Array:
    """Return moments, in minutes after noon."""
    return pa.array([NOON + timedelta(minutes=number) for number in minutes], pa.timestamp("us", "UTC"))


@pytest.fixture
def join(shop: Path, write: Write, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Join orders (id, shop, sku, minutes after noon) with prices (shop, sku, minutes, price)."""

    def join(
        orders: list[tuple[str, str, str, float]], prices: list[tuple[str, str, float, float]]
    ) -> list[dict[str, Any]]:
        write("stock", {"sku": ["1"], "seen": [NOON - timedelta(days=400)], "units": [7]})
        raw = write(
            "prices",
            {
                "shop": pa.array([row[0] for row in prices], pa.string()),
                "sku": pa.array([row[1] for row in prices], pa.string()),
                "seen": times(row[2] for row in prices),
                "price": pa.array([row[3] for row in prices], pa.float64()),
                "kind": pa.array(["k"] * len(prices), pa.string()),
            },
        )
        features.build(shop, raw, tmp_path / "out")
        rows = pa.table(
            {
                "event_id": [row[0] for row in orders],
                "event_timestamp": pa.array(
                    [NOON + timedelta(minutes=row[3]) for row in orders], pa.timestamp("us", "UTC")
                ),
                "label": pa.array([1] * len(orders), pa.int32()),
                "label_available_at": times([0] * len(orders)),
                "shop": [row[1] for row in orders],
                "sku": [row[2] for row in orders],
                "count": [2.0] * len(orders),
                "opened": times([0] * len(orders)),
            }
        )
        found: list[dict[str, Any]] = features.training_set(tmp_path / "out", "shop_v1", rows).to_pylist()
        return found

    return join


def test_each_event_gets_the_newest_value_within_the_ttl(join: Callable[..., list[dict[str, Any]]]) -> None:
    prices = [("a", "1", 0, 1.0), ("a", "1", 30, 2.0), ("b", "1", 0, 9.0)]
    moments = {-1: None, 0: 1.0, 29: 1.0, 30: 2.0, 89: 2.0, 90: 2.0, 90.01: None, 500: None}
    orders = [(f"o{position}", "a", "1", minute) for position, minute in enumerate(moments)]
    found = join(orders, prices)
    assert [row["price"] for row in found] == list(moments.values())
    assert [row["total"] for row in found] == [None if price is None else 2 * price for price in moments.values()]
    assert [row["cents"] for row in found] == [None if price is None else 100 * price for price in moments.values()]
    # A view with a TTL of zero never expires.
    assert {row["units"] for row in found} == {7.0}


@pytest.mark.parametrize("ttl", ["hours=36", "days=7, hours=3", "seconds=90", "days=2, microseconds=1", "days=30"])
def test_any_ttl_is_taken(join: Callable[..., list[dict[str, Any]]], shop: Path, ttl: str) -> None:
    views = shop / "views.py"
    views.write_text(views.read_text().replace("hours=1)", f"{ttl})"))
    names, values = zip(*(part.split("=") for part in ttl.split(", ")), strict=True)
    span = timedelta(**dict(zip(names, map(int, values), strict=True))) / timedelta(minutes=1)
    found = join([("in", "a", "1", span), ("out", "a", "1", span + 2e-8 * 60)], [("a", "1", 0, 1.0)])
    assert [row["price"] for row in found] == [1.0, None]


def test_rows_keep_their_number_and_order(join: Callable[..., list[dict[str, Any]]]) -> None:
    """Duplicate keys at one moment, events without any feature, and unknown keys."""
    orders = [
        ("z", "a", "1", 5), ("y", "a", "1", 5), ("x", "a", "1", 5), ("y", "a", "1", 5),
        ("late", "a", "1", 60), ("early", "a", "1", -60), ("unknown", "nobody", "?", 5), ("w", "a", "1", 0),
    ]  # fmt: skip
    found = join(orders, [("a", "1", 0, 1.0), ("a", "1", 0, 1.0)])
    assert [row["event_id"] for row in found] == ["early", "w", "unknown", "x", "y", "y", "z", "late"]
    assert [row["price"] for row in found] == [None, 1.0, None, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [row["shop"] for row in found] == ["a", "a", "nobody", "a", "a", "a", "a", "a"]


def test_no_feature_at_all(join: Callable[..., list[dict[str, Any]]]) -> None:
    (row,) = join([("o", "a", "1", 0)], [])
    assert (row["price"], row["kind"], row["units"], row["minute"]) == (None, None, 7.0, 0.0)


def test_where_feasts_own_store_cannot_read_a_ttl_it_is_said_what_to_write(
    join: Callable[..., list[dict[str, Any]]], shop: Path
) -> None:
    for name, old, new in (
        ("feature_store.yaml", features.OFFLINE_STORE, "duckdb"),
        ("views.py", "hours=1)", "hours=36)"),
    ):
        path = shop / name
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(features.FeatureError, match=features.OFFLINE_STORE):
        join([("1", "a", "1", 0.0)], [("a", "1", -60.0, 1.0)])


# Few keys, and moments that meet: at the same time, one microsecond apart, and at the edge of the TTL.
KEY = st.sampled_from("aab"), st.just("1") | st.sampled_from("12")
MINUTE = st.builds(
    lambda half_hours, micros: 30 * half_hours + micros / 60e6,
    st.integers(0, 8),
    st.sampled_from([0, 0, 0, -1, 1]),
)
PRICES = st.lists(
    st.tuples(*KEY, MINUTE, st.integers(1, 99).map(float)),
    max_size=12,
    # Of two values of one key and moment, which one is the newest would be arbitrary.
    unique_by=lambda price: (price[0], price[1], round(price[2] * 60e6)),
)
ORDERS = st.lists(st.tuples(st.sampled_from("abc"), KEY[1], MINUTE), min_size=12, max_size=25)


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


def known(order: Order, prices: list[Price]) -> float | None:
    """Return the join by its definition: the newest value that was known at the moment and is not too old."""
    moment = at(order[3])
    values = [(at(seen), price) for *key, seen, price in prices if tuple(key) == order[1:3] and at(seen) <= moment]
    newest = max(values, default=None)
    return newest[1] if newest and moment - newest[0] <= TTL else None


# The folder and the definitions are the same for every example; each example writes its own tables.
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prices=PRICES, bare=ORDERS, now=MINUTE)
def test_it_is_the_join_of_the_definition(
    join: Callable[..., list[dict[str, Any]]], prices: list[Price], bare: list[tuple[str, str, float]], now: float
) -> None:
    """Any tables compared with a loop over all values, also after the values that become known later are spoilt."""
    orders: list[Order] = [(f"o{number:03}", *order) for number, order in enumerate(bare)]
    found = join(orders, prices)
    assert len(found) == len(orders)
    assert {row["event_id"]: row["price"] for row in found} == {order[0]: known(order, prices) for order in orders}

    later = [price for price in prices if at(price[2]) > at(now)]
    spoilt = [(shop, sku, seen, -1.0) for shop, sku, seen, _ in later]
    planted = [(shop, sku, now + 1e-4, -2.0) for shop in "abc" for sku in "12"]
    again = join(orders, [price for price in prices if price not in later] + spoilt + planted)
    then = [row for row in found if row["event_timestamp"] <= at(now)]
    assert [row for row in again if row["event_timestamp"] <= at(now)] == then


TTLS = {"weather_hourly": 6, "origin_hourly": 2, "carrier_daily": 72, "destination_daily": 72, "aircraft": 87600}
KEYS = {"weather_hourly": "origin", "origin_hourly": "origin", "carrier_daily": "carrier", "destination_daily": "dest"}


def test_the_flights_are_joined_as_duckdb_joins_them(repo: Path, weeks: Path, built: Path, as_of: datetime) -> None:
    rows = features.events(repo, weeks, start=as_of - timedelta(days=7), end=as_of)
    table = features.training_set(built, "flight_delay_v1", rows)
    assert table.num_rows == rows.num_rows > 5000
    assert table["event_id"].to_pylist() == rows["event_id"].to_pylist()
    assert pc.min(table["event_timestamp"]).as_py() >= as_of - timedelta(days=7)
    with sources.connect(sources.tables(built)) as db:
        db.register("events", rows)
        for view, ttl in TTLS.items():
            key = KEYS.get(view, "tailnum")
            columns = set(pq.read_schema(built / f"{view}.parquet").names) & set(table.column_names)
            columns -= {key, "event_timestamp"}
            assert columns
            for column in columns:
                expected = db.sql(
                    f"SELECT CASE WHEN v.event_timestamp >= e.event_timestamp - INTERVAL {ttl} HOUR "
                    f"THEN v.{column}::FLOAT END AS value FROM events e ASOF LEFT JOIN {view} v "
                    f"ON e.{key} = v.{key} AND e.event_timestamp >= v.event_timestamp "
                    "ORDER BY e.event_timestamp, e.event_id"
                ).to_arrow_table()["value"]
                assert expected.null_count < rows.num_rows
                assert table[column].to_pylist() == expected.to_pylist(), column


def test_what_follows_from_a_flight_alone(repo: Path, weeks: Path, built: Path, as_of: datetime) -> None:
    rows = features.events(repo, weeks, start=as_of - timedelta(hours=6), end=as_of)
    table = features.training_set(built, "flight_delay_v1", rows)
    expected = duckdb.sql(
        "SELECT (hour(t) + minute(t) / 60)::FLOAT, (isodow(t) - 1)::FLOAT, (year(t) - p.built)::FLOAT, distance::FLOAT "
        "FROM (SELECT *, sched_dep AT TIME ZONE 'America/New_York' AS t FROM rows) r "
        f"LEFT JOIN '{weeks}/planes.parquet' p USING (tailnum) ORDER BY r.event_timestamp, r.event_id"
    ).fetchall()
    names = ("hour", "weekday", "plane_age", "distance_miles")
    found = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    assert len(found) > 100
    assert any(row[2] is None for row in found)
    assert found == expected

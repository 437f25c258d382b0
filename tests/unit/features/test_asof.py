"""Our offline store compared with Feast's own store on DuckDB, over the same tables."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import DeltaFormat
from feast.errors import FeastEntityDFMissingColumnsError, SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Float64, Int64, String
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kubeloop.features import asof
from kubeloop.features.asof import AsofOfflineStore

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
shop = Entity(name="shop", value_type=ValueType.STRING)
item = Entity(name="item", value_type=ValueType.INT64, join_keys=["sku"])


def config(folder: Path, kind: str, **more: Any) -> RepoConfig:
    return RepoConfig(
        project="shop",
        provider="local",
        registry={"registry_type": "file", "path": str(folder / "registry.db")},
        offline_store={"type": kind, **more},
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )


OURS = "kubeloop.features.asof.AsofOfflineStore"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RepoConfig, RepoConfig, Any]:
    """A folder, our configuration and Feast's on the same folder, and an empty registry."""
    folder = tmp_path_factory.mktemp("asof")
    ours = config(folder, OURS)
    return folder, ours, config(folder, "duckdb"), FeatureStore(config=ours).registry


def view(
    name: str, path: Path, ttl: timedelta, *entities: Entity, created: str = "", mapping: dict[str, str] | None = None
) -> FeatureView:
    """Return a view of `value` (Float64) and `kind` (String)."""
    keys = {"shop": Field(name="shop", dtype=String), "item": Field(name="sku", dtype=Int64)}
    fields = [Field(name="value", dtype=Float64), Field(name="kind", dtype=String)]
    source = FileSource(
        name=name,
        path=str(path),
        timestamp_field="at",
        created_timestamp_column=created,
        field_mapping=mapping or {},
    )
    schema = [*(keys[entity.name] for entity in entities), *fields]
    return FeatureView(name=name, entities=list(entities), ttl=ttl, schema=schema, source=source)


def write(path: Path, columns: dict[str, Any], kinds: dict[str, pa.DataType]) -> None:
    table = {name: pa.array(values, kinds[name]) if name in kinds else values for name, values in columns.items()}
    pq.write_table(pa.table(table), path)


def rows(
    store: Any, kept: RepoConfig, views: list[FeatureView], refs: list[str], entities: Any, registry: Any,
    full_feature_names: bool = False, created: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the joined rows."""
    job = store.get_historical_features(
        kept, views, refs, entities, registry, "shop", full_feature_names, filter_by_created_timestamp=created
    )
    found: list[dict[str, Any]] = job.to_arrow().to_pylist()
    return found


SHOP = st.sampled_from(["a", "a", "b", "", None])
SKU = st.sampled_from([1, 1, 11, None])
STEP = st.builds(lambda half, micros: half * HOUR / 2 + timedelta(microseconds=micros), st.integers(-4, 8),
                 st.sampled_from([0, 0, 0, -1, 1]))  # fmt: skip
# Feast cannot turn a length with both days and hours into an interval.
TTLS = [0 * HOUR, timedelta(microseconds=1), HOUR / 2, 3 * HOUR, timedelta(days=3650)]
VALUE = st.none() | st.floats(-9, 9, width=16)
# Creation times distinguish two values of one key and moment; without them, the choice is arbitrary.
ONE = st.lists(st.tuples(SHOP, STEP, VALUE), min_size=15, max_size=30, unique_by=lambda row: row[:2])
TWO = st.lists(
    st.tuples(SHOP, SKU, STEP, st.none() | STEP, VALUE), min_size=20, max_size=40, unique_by=lambda row: row[:4]
)
EVENTS = st.lists(st.tuples(SHOP, SKU, STEP), min_size=40, max_size=80)
ZONE = st.sampled_from([None, "UTC", "Asia/Tokyo"])


@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
)
@given(one=ONE, two=TWO, events=EVENTS, zone=ZONE)
def test_the_result_is_feasts(
    place: tuple[Path, RepoConfig, RepoConfig, Any], one: list[Any], two: list[Any], events: list[Any], zone: str | None
) -> None:
    """TTLs, nulls in keys and values, ties, duplicate rows, a mapped field, moments in any time zone or in none."""
    folder, ours, theirs, registry = place

    def at(steps: list[timedelta | None]) -> pa.Array:
        moments = [None if step is None else NOON + step for step in steps]
        return pa.array(moments, pa.timestamp("us", "UTC")).cast(pa.timestamp("us", zone))

    first = {"shop": [row[0] for row in one], "at": at([row[1] for row in one]), "raw": [row[2] for row in one]}
    kinds = {"shop": pa.string(), "sku": pa.int64(), "at": pa.timestamp("us", zone), "made": pa.timestamp("us", zone)}
    write(folder / "one.parquet", first | {"kind": ["k"] * len(one)}, kinds | {"raw": pa.float64()})
    second = {"shop": [row[0] for row in two], "sku": [row[1] for row in two], "at": at([row[2] for row in two])}
    second |= {"made": at([row[3] for row in two]), "value": [row[4] for row in two], "kind": list(map(str, two))}
    write(folder / "two.parquet", second, kinds | {"value": pa.float64()})
    views = [
        each
        for number, ttl in enumerate(TTLS)
        for each in (
            view(f"one{number}", folder / "one.parquet", ttl, shop, mapping={"raw": "value"}),
            view(f"two{number}", folder / "two.parquet", ttl, shop, item, created="made"),
        )
    ]
    frame = pd.DataFrame(
        {
            "number": range(len(events)),
            "shop": pd.Series([row[0] for row in events], dtype=object),
            "sku": pd.Series([row[1] for row in events], dtype="Int64"),
            "event_timestamp": pd.Series([pd.Timestamp(NOON + row[2]) for row in events]),
        }
    )
    refs = [f"{each.name}:{field}" for each in views for field in ("value", "kind")]
    for created in (False, True):
        found, wanted = (
            rows(store, kept, views, refs, frame.copy(), registry, full_feature_names=True, created=created)
            for store, kept in ((AsofOfflineStore, ours), (DuckDBOfflineStore, theirs))
        )
        assert [row["number"] for row in found] == list(range(len(events)))
        # Feast returns the rows in another order.
        assert found == sorted(wanted, key=lambda row: int(row["number"]))


KINDS = {"shop": pa.string(), "at": pa.timestamp("us", "UTC"), "value": pa.float64()}
EVENTS_OF = pd.DataFrame(
    {"from": ["a", "b", "a"], "to": ["b", "a", None], "event_timestamp": [NOON, NOON + HOUR, NOON - HOUR]}
)


@pytest.fixture
def shops(place: tuple[Path, RepoConfig, RepoConfig, Any]) -> Path:
    """A table with hourly values of two shops: 1 and 2 for a, 10 and 20 for b."""
    path = place[0] / "shops.parquet"
    moments = [NOON - HOUR, NOON, NOON - HOUR, NOON]
    columns = {"shop": ["a", "a", "b", "b"], "at": moments, "value": [1.0, 2.0, 10.0, 20.0], "kind": list("wxyz")}
    write(path, columns, KINDS)
    return path


def test_one_view_is_joined_by_several_keys(place: tuple[Path, RepoConfig, RepoConfig, Any], shops: Path) -> None:
    """As Feast does it: from a frame, an Arrow table or SQL, with moments in UTC or without a zone."""
    _, ours, theirs, registry = place
    views = []
    for end in ("from", "to"):
        each = view(end, shops, 0 * HOUR, shop)
        each.projection = each.with_name(f"shop_{end}").with_join_key_map({"shop": end}).projection
        views.append(each)
    refs = ["shop_from:value", "shop_to:value", "shop_to:kind"]
    wanted = rows(DuckDBOfflineStore, theirs, views, refs, EVENTS_OF.copy(), registry, full_feature_names=True)
    found = rows(AsofOfflineStore, ours, views, refs, EVENTS_OF.copy(), registry, full_feature_names=True)
    assert [row["shop_from__value"] for row in found] == [2.0, 20.0, 1.0]
    assert [row["shop_to__value"] for row in found] == [20.0, 2.0, None]
    assert sorted(found, key=lambda row: row["event_timestamp"]) == sorted(
        wanted, key=lambda row: row["event_timestamp"]
    )
    table = pa.Table.from_pandas(EVENTS_OF, preserve_index=False)
    naive = table.set_column(2, "event_timestamp", table["event_timestamp"].cast(pa.timestamp("us")))
    pq.write_table(table, shops.with_name("events.parquet"))
    text = EVENTS_OF.assign(event_timestamp=["2024-03-01 13:00+01:00", "2024-03-01T13:00:00Z", "2024-03-01 11:00"])
    for events in (table, naive, f"FROM '{shops.with_name('events.parquet')}';", text):
        again = rows(AsofOfflineStore, ours, views, refs, events, registry, full_feature_names=True)
        assert [row["shop_from__value"] for row in again] == [row["shop_from__value"] for row in found]


def test_keys_are_those_of_a_span_where_no_rows_are_given(
    place: tuple[Path, RepoConfig, RepoConfig, Any], shops: Path
) -> None:
    _, ours, _, registry = place

    def between(start: datetime, end: datetime) -> list[tuple[Any, ...]]:
        job = AsofOfflineStore.get_historical_features(
            ours, [view("v", shops, HOUR, shop)], ["v:value"], None, registry, "shop", start_date=start, end_date=end
        )
        return [tuple(row.values()) for row in job.to_arrow().to_pylist()]

    assert between(NOON - 2 * HOUR, NOON - HOUR / 2) == [("a", NOON - HOUR / 2, 1.0), ("b", NOON - HOUR / 2, 10.0)]
    assert between(NOON, NOON + HOUR) == [("a", NOON + HOUR, 2.0), ("b", NOON + HOUR, 20.0)]
    assert between(NOON - 9 * HOUR, NOON - 8 * HOUR) == []


def test_a_view_without_keys_gives_every_row_its_newest_value(
    place: tuple[Path, RepoConfig, RepoConfig, Any], shops: Path
) -> None:
    """The table here is a folder of files, with a path relative to the repository."""
    folder, ours, _, registry = place
    (folder / "parts").mkdir(exist_ok=True)
    pq.write_table(pq.read_table(shops).slice(0, 1), folder / "parts" / "one.parquet")
    pq.write_table(pq.read_table(shops).slice(1, 1), folder / "parts" / "two.parquet")
    found = rows(AsofOfflineStore, ours, [view("v", Path("parts"), 0 * HOUR)], ["v:value"], EVENTS_OF, registry)
    assert [row["value"] for row in found] == [2.0, 2.0, 1.0]


def test_what_cannot_be_joined_is_named(place: tuple[Path, RepoConfig, RepoConfig, Any], shops: Path) -> None:
    _, ours, _, registry = place
    views = [view("v", shops, HOUR, shop)]
    with pytest.raises(FeastEntityDFMissingColumnsError, match="shop"):
        rows(AsofOfflineStore, ours, views, ["v:value"], EVENTS_OF, registry)
    known = EVENTS_OF.rename(columns={"from": "shop", "to": "value"})
    with pytest.raises(ValueError, match=r"value would .*full_feature_names=True"):
        rows(AsofOfflineStore, ours, views, ["v:value"], known, registry)
    assert rows(AsofOfflineStore, ours, views, ["v:value"], known, registry, full_feature_names=True)


def test_what_is_materialized_is_feasts(place: tuple[Path, RepoConfig, RepoConfig, Any], shops: Path) -> None:
    _, ours, theirs, _ = place
    source = FileSource(path=str(shops), timestamp_field="at")
    span = {"start_date": NOON - HOUR, "end_date": NOON - timedelta(microseconds=1)}
    for start, end in ((NOON - 9 * HOUR, NOON), (NOON - HOUR, NOON - HOUR), (NOON, NOON + HOUR), (NOON + HOUR,) * 2):
        span = {"start_date": start, "end_date": end}
        for method, more in (
            ("pull_latest_from_table_or_query", {"created_timestamp_column": None}),
            ("pull_all_from_table_or_query", {}),
        ):
            found, wanted = (
                getattr(store, method)(kept, source, ["shop"], ["value"], timestamp_field="at", **more, **span)
                for store, kept in ((AsofOfflineStore, ours), (DuckDBOfflineStore, theirs))
            )
            table = found.to_arrow()
            assert sorted(map(str, table.to_pylist())) == sorted(map(str, wanted.to_arrow().to_pylist()))


def test_a_result_is_kept_and_read_again(place: tuple[Path, RepoConfig, RepoConfig, Any], shops: Path) -> None:
    folder, ours, _, registry = place
    job = AsofOfflineStore.get_historical_features(
        ours, [view("v", shops, HOUR, shop)], ["v:value"], EVENTS_OF.rename(columns={"from": "shop"}), registry, "shop"
    )
    storage = SavedDatasetFileStorage(path=str(folder / "kept.parquet"))
    job.persist(storage)
    assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (NOON - HOUR, NOON + HOUR)
    assert job.metadata.keys == ["shop", "to"]
    assert pq.read_table(folder / "kept.parquet").equals(job.to_arrow())
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)


def test_other_sources_are_left_to_feast(place: tuple[Path, RepoConfig, RepoConfig, Any]) -> None:
    _, ours, _, _ = place
    for source in (
        FileSource(path="s3://bucket/a.parquet", timestamp_field="at"),
        FileSource(path="a", file_format=DeltaFormat(), timestamp_field="at"),
    ):
        assert asof._Source.of(source, ours) is None

"""A small feature repo with every kind of view, and the demo's feature tables of five weeks."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubeloop import features

STORE = """
    project: shop
    provider: local
    registry: {registry_type: file, path: registry.db}
    offline_store: {type: kubeloop.features.asof.AsofOfflineStore}
    online_store: {type: sqlite, path: online.db}
    entity_key_serialization_version: 3
"""

VIEWS = """
    from datetime import timedelta
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64, Int64, String, UnixTimestamp

    def source(name):
        return FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp")

    shop = Entity(name="shop", value_type=ValueType.STRING, tags={"feature": "categorical"})
    item = Entity(name="item", value_type=ValueType.STRING, join_keys=["sku"])
    prices = FeatureView(
        name="prices", entities=[shop, item], ttl=timedelta(hours=1), source=source("prices"),
        schema=[Field(name="price", dtype=Float64), Field(name="kind", dtype=String)],
    )
    stock = FeatureView(
        name="stock", entities=[item], ttl=timedelta(0), source=source("stock"),
        schema=[Field(name="units", dtype=Int64)],
    )
    basket = RequestSource(
        name="basket", schema=[Field(name="count", dtype=Float64), Field(name="opened", dtype=UnixTimestamp)]
    )

    @on_demand_feature_view(
        sources=[prices, stock, basket], mode="python",
        schema=[Field(name="total", dtype=Float64), Field(name="minute", dtype=Float64)],
    )
    def totals(inputs):
        return {
            "total": [None if p is None or p != p else p * n for p, n in zip(inputs["price"], inputs["count"])],
            "minute": [float(moment.minute) for moment in inputs["opened"]],
        }

    @on_demand_feature_view(sources=[prices], mode="pandas", schema=[Field(name="cents", dtype=Float64)])
    def cents(inputs):
        import pandas as pd
        return pd.DataFrame({"cents": inputs["price"] * 100})

    shop_v1 = FeatureService(name="shop_v1", features=[prices, stock, totals, cents])
    # Reads of the prices only what follows from them.
    derived_v1 = FeatureService(name="derived_v1", features=[stock, totals])
"""

QUERIES = {
    "prices": "SELECT shop, sku, seen AS event_timestamp, price, kind FROM prices",
    "stock": "SELECT sku, seen AS event_timestamp, units FROM stock;",
    "events": (
        "SELECT id AS event_id, seen AS event_timestamp, label, known AS label_available_at, shop, sku, count, opened "
        "FROM orders"
    ),
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A feature repo of prices and stock."""
    repo = tmp_path / "repo"
    (repo / "sql").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(textwrap.dedent(STORE))
    (repo / "views.py").write_text(textwrap.dedent(VIEWS))
    for name, query in QUERIES.items():
        (repo / "sql" / f"{name}.sql").write_text(query)
    return repo


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, dict[str, Any]], Path]:
    """Write a raw table and return the folder of raw tables."""

    def write(name: str, columns: dict[str, Any]) -> Path:
        folder = tmp_path / "raw"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        return folder

    return write


@pytest.fixture(scope="session")
def built(repo: Path, weeks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's feature tables of five weeks."""
    folder = tmp_path_factory.mktemp("features")
    features.build(repo, weeks, folder)
    return folder

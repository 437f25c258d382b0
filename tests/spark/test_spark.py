"""A store and an engine for what one machine cannot hold, chosen by settings alone: PySpark in local mode."""

import json
import os
import random
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubeloop import features
from tests import outside

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
STORE = """
    project: shop
    provider: local
    registry: {registry_type: file, path: registry.db}
    offline_store: %s
    online_store: {type: sqlite, path: online.db}
    entity_key_serialization_version: 3
"""
OURS = "{type: kubeloop.features.asof.AsofOfflineStore}"
SPARK = """
      type: spark
      spark_conf:
        spark.master: local[1]
        spark.ui.enabled: "false"
        spark.sql.session.timeZone: UTC
        spark.sql.shuffle.partitions: "1"
        spark.sql.execution.arrow.pyspark.enabled: "true"
"""
VIEWS = """
    from datetime import timedelta
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, String

    def source(name):
        %s

    shop = Entity(name="shop", value_type=ValueType.STRING)
    prices = FeatureView(
        name="prices", entities=[shop], ttl=timedelta(hours=36), source=source("prices"),
        schema=[Field(name="price", dtype=Float64), Field(name="kind", dtype=String)],
    )
    shop_v1 = FeatureService(name="shop_v1", features=[prices])
"""
FILE = 'return FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp")'
SPARK_FILE = """from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
        return SparkSource(
            name=name, path=f"{name}.parquet", file_format="parquet", timestamp_field="event_timestamp"
        )"""
SUITE = """
- expect_column_values_to_not_be_null: {column: shop}
- expect_column_values_to_be_between: {column: price, min_value: 0, max_value: 50}
- expect_table_row_count_to_be_between: {min_value: 10}
"""


def tables(folder: Path) -> None:
    draw = random.Random(3)
    raw = folder / "raw"
    raw.mkdir()
    kind = pa.timestamp("us", "UTC")
    seen = sorted({NOON + timedelta(minutes=draw.randint(-9000, 9000)) for _ in range(60)})
    prices = {"shop": [draw.choice("abc") for _ in seen], "event_timestamp": pa.array(seen, kind)}
    prices |= {"price": [float(number) for number, _ in enumerate(seen)], "kind": [draw.choice("xy") for _ in seen]}
    pq.write_table(pa.table(prices), raw / "prices.parquet")
    asked = [NOON + timedelta(minutes=draw.randint(-9000, 9000)) for _ in range(40)]
    orders = {"event_id": [f"o{number:02}" for number in range(40)], "event_timestamp": pa.array(asked, kind)}
    orders |= {"label": [1] * 40, "label_available_at": pa.array(asked, kind), "shop": draw.choices("abcd", k=40)}
    pq.write_table(pa.table(orders), raw / "orders.parquet")


def repo(folder: Path, store: str, source: str) -> Path:
    (folder / "sql").mkdir(parents=True, exist_ok=True)
    (folder / "sql" / "prices.sql").write_text("FROM prices")
    (folder / "sql" / "events.sql").write_text("FROM orders")
    (folder / "feature_store.yaml").write_text(textwrap.dedent(STORE % store))
    (folder / "views.py").write_text(textwrap.dedent(VIEWS % source))
    return folder


@pytest.fixture
def spark() -> Path:
    """The folder to import PySpark from."""
    return outside.spark()


def test_spark_joins_what_duckdb_joins_and_runs_a_suite(spark: Path, tmp_path: Path) -> None:
    tables(tmp_path)
    ours = repo(tmp_path / "ours", OURS, FILE)
    features.build(ours, tmp_path / "raw", tmp_path / "duckdb")
    rows = features.events(ours, tmp_path / "raw", start=NOON - timedelta(days=60), end=NOON + timedelta(days=60))
    wanted = features.training_set(tmp_path / "duckdb", "shop_v1", rows).to_pylist()
    assert {None} < {row["price"] for row in wanted}

    repo(tmp_path / "repo", SPARK, SPARK_FILE)
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "prices.yaml").write_text(SUITE)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("work.py"), tmp_path],
        env=os.environ | {"PYTHONPATH": str(spark), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"] == json.loads(json.dumps(wanted, default=str))
    assert found["suite"] == {
        "expect_column_values_to_not_be_null": True,
        "expect_column_values_to_be_between": False,
        "expect_table_row_count_to_be_between": True,
    }

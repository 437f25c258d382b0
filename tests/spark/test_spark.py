"""A store and an engine for data that do not fit on one machine, chosen only by settings: PySpark in local mode."""

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
from kubeloop.data import validation
from tests import outside
from tests.spark import work

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
    from feast.types import Float64, String, UnixTimestamp

    def source(name):
        %s

    shop = Entity(name="shop", value_type=ValueType.STRING)
    prices = FeatureView(
        name="prices", entities=[shop], ttl=timedelta(hours=36), source=source("prices"),
        schema=[
            Field(name="price", dtype=Float64), Field(name="kind", dtype=String),
            Field(name="created", dtype=UnixTimestamp),
        ],
    )
    shop_v1 = FeatureService(name="shop_v1", features=[prices[["price", "kind"]]])
"""
TIMES = 'timestamp_field="event_timestamp", created_timestamp_column="created"'
FILE = f'return FileSource(name=name, path=f"{{name}}.parquet", {TIMES})'
SPARK_FILE = f"""from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
        return SparkSource(name=name, path=f"{{name}}.parquet", file_format="parquet", {TIMES})"""
SUITE = """
- expect_column_values_to_not_be_null: {column: shop}
- expect_column_values_to_be_between: {column: price, min_value: 0, max_value: 50}
- expect_column_values_to_be_in_set: {column: kind, value_set: [x], mostly: 0.2}
- expect_column_values_to_be_between: {column: event_timestamp, max_value: {as_of: -1d}}
- expect_table_row_count_to_be_between: {min_value: 1000}
"""


def tables(folder: Path) -> None:
    """Write prices, two per moment that differ in when they were created, and orders at random moments."""
    draw = random.Random(3)
    raw = folder / "raw"
    raw.mkdir()
    kind = pa.timestamp("us", "UTC")
    moments = sorted({NOON + timedelta(minutes=draw.randint(-9000, 9000)) for _ in range(60)})
    seen = [moment for moment in moments for _ in range(2)]
    created = [moment + timedelta(hours=hours) for moment in moments for hours in draw.sample((1, 2), 2)]
    shops = [shop for shop in draw.choices("abc", k=len(moments)) for _ in range(2)]
    prices = {"shop": shops, "event_timestamp": pa.array(seen, kind), "created": pa.array(created, kind)}
    prices |= {"price": [float(number) for number, _ in enumerate(seen)], "kind": draw.choices("xy", k=len(seen))}
    pq.write_table(pa.table(prices), raw / "prices.parquet")
    # Some at exactly the moment of a price, and some exactly as old as the TTL allows.
    asked = [NOON + timedelta(minutes=draw.randint(-9000, 9000)) for _ in range(30)]
    asked += [*moments[:5], *(moment + timedelta(hours=36) for moment in moments[5:10])]
    orders = {"event_id": [f"o{number:02}" for number in range(40)], "event_timestamp": pa.array(asked, kind)}
    orders |= {"label": [1] * 40, "label_available_at": pa.array(asked, kind)}
    orders |= {"shop": [*draw.choices("abcd", k=30), *(shops[2 * number] for number in range(10))]}
    pq.write_table(pa.table(orders), raw / "orders.parquet")


def repo(folder: Path, store: str, source: str) -> Path:
    (folder / "sql").mkdir(parents=True, exist_ok=True)
    (folder / "sql" / "prices.sql").write_text("FROM prices")
    (folder / "sql" / "events.sql").write_text("FROM orders")
    (folder / "feature_store.yaml").write_text(textwrap.dedent(STORE % store))
    (folder / "views.py").write_text(textwrap.dedent(VIEWS % source))
    return folder


@pytest.fixture(scope="module")
def spark() -> Path:
    """The folder from which PySpark can be imported."""
    return outside.spark()


@pytest.fixture(scope="module")
def folder(spark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw tables, our repo and Spark's repo, and Spark's results in found.json."""
    folder = tmp_path_factory.mktemp("spark")
    tables(folder)
    repo(folder / "ours", OURS, FILE)
    repo(folder / "repo", SPARK, SPARK_FILE)
    (folder / "suites").mkdir()
    (folder / "suites" / "prices.yaml").write_text(SUITE)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("work.py"), folder],
        env=os.environ | {"PYTHONPATH": str(spark), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_spark_joins_what_duckdb_joins(folder: Path) -> None:
    ours, raw = folder / "ours", folder / "raw"
    features.build(ours, raw, folder / "duckdb")
    rows = features.events(ours, raw, start=NOON - timedelta(days=60), end=NOON + timedelta(days=60))
    wanted = features.training_set(folder / "duckdb", "shop_v1", rows).to_pylist()
    prices = [row["price"] for row in wanted]
    assert len(prices) == 40
    assert 5 < prices.count(None) < 35
    found = json.loads((folder / "found.json").read_text())
    assert found["rows"] == json.loads(json.dumps(wanted, default=str))


def test_a_suite_finds_on_spark_what_it_finds_on_pandas(folder: Path) -> None:
    entries = work.entries(folder)
    table = pq.read_table(folder / "raw" / "prices.parquet")
    outcome = validation._run(validation._context(folder / "pandas"), validation._suite("prices", entries), table)
    wanted = work.counts(outcome)
    assert [each["success"] for each in wanted] == [True, False, True, False, False]
    assert json.loads((folder / "found.json").read_text())["suite"] == wanted

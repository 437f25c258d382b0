"""Two months of a small shop's history with one change in the data, and a model for the end of every window."""

import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubeloop import config
from kubeloop.backtest import history
from kubeloop.backtest.history import History, Span
from kubeloop.config import Loop, Settings
from kubeloop.monitoring.detector.builtin import BuiltinDetector

START = datetime(2024, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
DAYS, ROWS, CHANGE = 60, 60, 35
"""Days of history, rows per day, and the day of the change."""

LOOP = """
name: shop
source:
  tables:
    visits: {path: visits.parquet, available_at: seen}
    labels: {path: labels.parquet, available_at: known}
features: {service: shop_v1, history: 5d}
training: {window: 20d, holdout: 6d, threads: 1, parameters: {n_estimators: 20, min_child_samples: 5}}
gates: {floors: {}, ceilings: {}, slice_min_rows: 50, resamples: 200}
drift:   # as small as the shop
  engine: builtin
  window: 5d
  min_rows: 50
  votes: 1
  of: 1
  cooldown: 5d
  max_cooldown: 10d
  label_wait: 2d
replay: {train_from: 2024-03-01, train_to: 2024-03-21, until: 2024-04-30}
"""
STORE = """
project: shop
provider: local
registry: {registry_type: file, path: registry.db}
offline_store: {type: duckdb}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""
VIEWS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

shop = Entity(name="shop", value_type=ValueType.STRING)
visits = FeatureView(
    name="visits", entities=[shop], ttl=timedelta(days=3),
    source=FileSource(name="visits", path="visits.parquet", timestamp_field="event_timestamp"),
    schema=[Field(name="price", dtype=Float64), Field(name="size", dtype=Float64)],
)
shop_v1 = FeatureService(name="shop_v1", features=[visits])
"""
VISITS = "SELECT shop, seen AS event_timestamp, price, size FROM visits"
EVENTS = """
SELECT v.id AS event_id, v.seen AS event_timestamp, l.label, l.known AS label_available_at, v.shop
FROM visits v LEFT JOIN labels l USING (id)
"""


@dataclass(frozen=True)
class Home:
    """An installation with its use case."""

    loop: Loop
    settings: Settings
    span: Span

    def open(self) -> History:
        """Return the shop's history."""
        return history.open_history(self.loop, self.settings, self.span, lambda _: None)


class Tests:
    """Opens the built-in detector."""

    detector = BuiltinDetector()


def write(folder: Path, visits: str = VISITS, loop: str = LOOP) -> Home:
    """Write an installation whose labels follow `price` and, after the change, `size`; both have moved by then."""
    random = np.random.default_rng(3)
    count = DAYS * ROWS
    seen = [START + timedelta(minutes=24 * index) for index in range(count)]
    after = np.arange(count) >= CHANGE * ROWS
    price, size = random.normal(size=(2, count)) + np.where(after, 0.7, 0.0)
    label = (np.where(after, size, price) + random.normal(0, 0.5, count) > np.where(after, 0.7, 0)).astype(int)
    ids = [f"v{index:05d}" for index in range(count)]
    repo = folder / "feature_repo"
    (repo / "sql").mkdir(parents=True)
    pq.write_table(
        pa.table(
            {"id": ids, "seen": seen, "shop": [f"s{index:05d}" for index in range(count)], "price": price, "size": size}
        ),
        folder / "visits.parquet",
    )
    pq.write_table(pa.table({"id": ids, "known": [at + DAY for at in seen], "label": label}), folder / "labels.parquet")
    (repo / "feature_store.yaml").write_text(STORE)
    (repo / "views.py").write_text(textwrap.dedent(VIEWS))
    (repo / "sql" / "visits.sql").write_text(visits)
    (repo / "sql" / "events.sql").write_text(EVENTS)
    (folder / "loop.yaml").write_text(loop)
    settings = config.settings(folder, folder / ".kubeloop")
    settings.state.mkdir()
    found = config.load(folder / "loop.yaml")
    return Home(found, settings, history.plan(found, settings, None, None))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The shop."""
    return write(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def past(home: Home) -> History:
    """Its history, with a model for every window's end."""
    found = home.open()
    for moment in [home.span.start, *home.span.ends(home.loop.drift.window)[:-1]]:
        found.train(home.settings, home.loop, moment)
    return found

"""The point-in-time join of made-up events with five views: kubeloop's offline store, Feast's own and DuckDB's ASOF."""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kubeloop import features
from kubeloop.data import sources
from kubeloop.features.store import OFFLINE_STORE

if TYPE_CHECKING:
    import pyarrow as pa

START, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
VIEWS = {"account": "customer", "card": "customer", "store": "shop", "region": "shop", "article": "product"}
KEYS = {"customer": 20, "shop": 2000, "product": 200}
"""Events per key, by entity."""
PER_KEY = 10
"""Rows of a view per key: about one value per month."""
FEATURES = 3

STORE = """
    project: bench
    provider: local
    registry: {registry_type: file, path: registry.db}
    offline_store: {type: %s}
    online_store: {type: sqlite, path: online.db}
    entity_key_serialization_version: 3
"""
REPO = """
    from datetime import timedelta
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64

    entities = {name: Entity(name=name, value_type=ValueType.STRING) for name in %r}
    customer, shop, product = entities.values()
    stored = [
        FeatureView(
            name=view, entities=[entities[key]], ttl=timedelta(days=60),
            schema=[Field(name=f"{view}_{number}", dtype=Float64) for number in range(%d)],
            source=FileSource(name=view, path=f"{view}.parquet", timestamp_field="event_timestamp"),
        )
        for view, key in %r.items()
    ]
    account, card, store, region, article = stored
    basket = RequestSource(name="basket", schema=[Field(name="amount", dtype=Float64)])

    @on_demand_feature_view(sources=[account, basket], mode="python", schema=[Field(name="share", dtype=Float64)])
    def derived(inputs):
        pairs = zip(inputs["amount"], inputs["account_0"])
        return {"share": [None if known is None else amount / (1 + known) for amount, known in pairs]}

    stored_v1 = FeatureService(name="stored_v1", features=stored)
    derived_v1 = FeatureService(name="derived_v1", features=[*stored, derived])
"""


def make(folder: Path, rows: int, history: int | None = None, memory: str | None = None) -> None:
    """Write a feature repo, raw tables and feature tables, once for our store and once for Feast's.

    Args:
        folder: where they are written.
        rows: events.
        history: rows of all views together; by default ten per key.
        memory: memory of kubeloop's store for DuckDB; by default the store's default.
    """
    raw, repo = folder / "raw", folder / "repo"
    (repo / "sql").mkdir(parents=True)
    raw.mkdir()
    span = f"{START.timestamp():.0f} + random() * {(END - START).total_seconds():.0f}"
    with sources.connect() as db:
        db.execute("SELECT setseed(0.5)")
        keys = ", ".join(
            f"'{key}' || (random() * {max(1, rows // each)})::BIGINT AS {key}" for key, each in KEYS.items()
        )
        db.execute(
            f"COPY (SELECT 'e' || i AS event_id, to_timestamp({span}) AS event_timestamp, 1 AS label, "
            f"TIMESTAMPTZ '{END}' AS label_available_at, {keys}, random() AS amount FROM range({rows}) r(i) "
            f"ORDER BY event_timestamp, event_id) TO '{folder / 'events.parquet'}' (FORMAT parquet)"
        )
        for view, key in VIEWS.items():
            values = ", ".join(f"random() AS {view}_{number}" for number in range(FEATURES))
            distinct = max(1, rows // KEYS[key])
            total = history // len(VIEWS) if history else distinct * PER_KEY
            db.execute(
                f"COPY (SELECT '{key}' || (i % {distinct}) AS {key}, to_timestamp({span}) AS event_timestamp, {values} "
                f"FROM range({total}) r(i)) TO '{raw / view}.parquet' (FORMAT parquet)"
            )
            (repo / "sql" / f"{view}.sql").write_text(f"FROM {view}")
    (repo / "views.py").write_text(textwrap.dedent(REPO % (list(KEYS), FEATURES, VIEWS)))
    limited = f"{OFFLINE_STORE}, memory_limit: {memory}" if memory else OFFLINE_STORE
    for name, kind in (("ours", limited), ("feast", "duckdb")):
        (repo / "feature_store.yaml").write_text(textwrap.dedent(STORE % kind))
        features.build(repo, raw, folder / name)


def asof(folder: Path) -> "pa.Table":
    """Join each event with the newest row of every view by DuckDB's ASOF join."""
    joins = "\n".join(
        f"ASOF LEFT JOIN read_parquet('{folder / 'ours' / view}.parquet') {view} "
        f"ON e.{key} = {view}.{key} AND e.event_timestamp >= {view}.event_timestamp"
        for view, key in VIEWS.items()
    )
    columns = ", ".join(f"{view}.* EXCLUDE ({key}, event_timestamp)" for view, key in VIEWS.items())
    with sources.connect() as db:
        events = f"read_parquet('{folder / 'events.parquet'}')"
        return db.sql(f"SELECT e.*, {columns} FROM {events} e {joins}").to_arrow_table()


def with_function(folder: Path) -> "pa.Table":
    """Join in the same way, and pass the view's columns to its Python function as lists."""
    import pyarrow as pa

    table = asof(folder)
    pairs = zip(table["amount"].to_pylist(), table["account_0"].to_pylist(), strict=True)
    share = [None if known is None else amount / (1 + known) for amount, known in pairs]
    return table.append_column("share", pa.array(share, pa.float64()))


def retrieved(folder: Path, name: str) -> int:
    """Have Feast join with the store of a folder, and return the rows."""
    import pyarrow.parquet as pq

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = features.open_store(folder / name)
        events = pq.read_table(folder / "events.parquet")
        asked = events if name == "ours" else events.to_pandas()
        return int(store.get_historical_features(asked, store.get_feature_service("stored_v1")).to_arrow().num_rows)


def training_set(folder: Path, service: str) -> int:
    """Return the number of rows of a training set as a run makes it."""
    import pyarrow.parquet as pq

    return int(features.training_set(folder / "ours", service, pq.read_table(folder / "events.parquet")).num_rows)


CONTENDERS: dict[str, Callable[[Path], int]] = {
    "DuckDB ASOF": lambda folder: asof(folder).num_rows,
    "and the view's function": lambda folder: with_function(folder).num_rows,
    "Feast on kubeloop's store": lambda folder: retrieved(folder, "ours"),
    "Feast on its DuckDB store": lambda folder: retrieved(folder, "feast"),
    "training set": lambda folder: training_set(folder, "stored_v1"),
    "with a view in Python": lambda folder: training_set(folder, "derived_v1"),
}


def measured(work: tuple[str, Path]) -> tuple[float, float, float, int]:
    """Return the elapsed seconds, the CPU seconds, the peak memory in GiB, and the rows."""
    import feast  # noqa: F401

    import kubeloop.features.asof  # noqa: F401

    name, folder = work
    started, used = time.perf_counter(), time.process_time()
    rows = CONTENDERS[name](folder)
    high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return time.perf_counter() - started, time.process_time() - used, high, rows


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="events")
    parser.add_argument("--history", type=int, help="rows of all views together; else ten a key")
    parser.add_argument("--memory", help="for the work of kubeloop's store in DuckDB, such as 500MB; else half of all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", action="append", default=[], help="leave a contender out")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    names = [name for name in CONTENDERS if name not in options.without]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, options.rows, options.history, options.memory)
        # Each runs in a separate process, so that its memory is measured separately.
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for _ in range(options.rounds):
                for name in names:
                    took, used, high, rows = pool.apply(measured, ((name, folder),))
                    assert rows == options.rows, f"{name} returned {rows} of {options.rows} rows"
                    seconds[name].append(took)
                    processor[name].append(used)
                    memory[name] = max(high, memory.get(name, 0))
    figures = {
        name: {
            "seconds": statistics.median(values),
            "ratio": statistics.median(values) / statistics.median(seconds["DuckDB ASOF"]),
            "processor": statistics.median(processor[name]),
            "gib": memory[name],
        }
        for name, values in seconds.items()
    }
    history = f"{options.history:,} rows" if options.history else "ten rows a key"
    print(f"{options.rows:,} events, {history} in {len(VIEWS)} views, {options.memory or 'half of the memory'} for the")
    print(f"store's work; median of {options.rounds} interleaved rounds")
    for name, found in figures.items():
        print(
            f"  {name:26} {found['seconds']:7.2f} s  {found['ratio']:5.1f} x DuckDB ASOF  "
            f"{found['processor']:7.2f} s of the processor  {found['gib']:5.1f} GiB at most"
        )
    if options.json:
        content = {"rows": options.rows, "history": options.history, "views": len(VIEWS), "results": figures}
        options.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()

"""The point-in-time join: Feast on DuckDB, as kubeloop runs it, beside DuckDB's own ASOF join, on the flights."""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from kubeloop import config, features, sources

START, END = datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC)
SERVICE = "flight_delay_v1"
VIEWS = {
    "weather_hourly": "origin",
    "origin_hourly": "origin",
    "carrier_daily": "carrier",
    "destination_daily": "dest",
    "aircraft": "tailnum",
}


def asof(tables: Path, events: Path) -> int:
    """Join each event with the newest row of every view by DuckDB's ASOF join; return the rows."""
    joins = "\n".join(
        f"ASOF LEFT JOIN read_parquet('{tables / view}.parquet') {view} "
        f"ON e.{key} = {view}.{key} AND e.event_timestamp >= {view}.event_timestamp"
        for view, key in VIEWS.items()
    )
    columns = ", ".join(f"{view}.* EXCLUDE ({key}, event_timestamp)" for view, key in VIEWS.items())
    with sources.connect() as db:
        return db.sql(f"SELECT e.*, {columns} FROM read_parquet('{events}') e {joins}").to_arrow_table().num_rows


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Return the seconds that the work took, and what it returned."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    loop = config.load(root / "loop.yaml")
    with tempfile.TemporaryDirectory() as folder:
        place = config.settings(root, Path(folder))
        config.adopt(place)
        sources.take_in(loop, place)
        features.build(root / "feature_repo", place.raw, place.features)
        rows = features.events(root / "feature_repo", place.raw, start=START, end=END, labelled_by=END)
        import pyarrow.parquet as pq

        pq.write_table(rows, place.state / "events.parquet")
        contenders: dict[str, Callable[[], int]] = {
            "kubeloop (Feast on DuckDB)": lambda: features.training_set(place.features, SERVICE, rows).num_rows,
            "DuckDB ASOF": lambda: asof(place.features, place.state / "events.parquet"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, work in contenders.items():
                took, found = timed(work)
                assert found == rows.num_rows, f"{name} returned {found} of {rows.num_rows} rows"
                seconds[name].append(took)
    best = {name: statistics.median(values) for name, values in seconds.items()}
    base = best["DuckDB ASOF"]
    print(f"{rows.num_rows:,} events, {len(VIEWS)} views; median of {options.rounds} interleaved rounds")
    for name, value in best.items():
        print(f"  {name:28} {value:6.2f} s   {value / base:4.1f} x DuckDB ASOF")
    if options.json:
        figures = {name: {"seconds": value, "ratio": value / base} for name, value in best.items()}
        options.json.write_text(json.dumps({"rows": rows.num_rows, "views": len(VIEWS), "results": figures}, indent=2))


if __name__ == "__main__":
    main()

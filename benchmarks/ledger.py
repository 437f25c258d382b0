"""How many drift events a second the trigger ledger takes, next to bare durable inserts into the same database.

    python benchmarks/ledger.py --json ledger.json

Every event is a transaction that is on disk before the answer; the bare insert shows what the disk alone allows.
"""

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kubeloop.config import Drift
from kubeloop.trigger import Ledger
from kubeloop.trigger_event import DriftEvent


def event(service: str, number: int) -> DriftEvent:
    """Return the event of an episode that no other number has."""
    moment = datetime(2013, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    return DriftEvent(service, f"{service}-{moment.isoformat()}", moment, moment, "drift", ("dep_delay",), "drift")


def rate(step: Callable[[int], object], count: int) -> float:
    """Return how many times a second `step` runs."""
    begin = time.perf_counter()
    for number in range(count):
        step(number)
    return round(count / (time.perf_counter() - begin), 1)


def measure(folder: Path, count: int) -> dict[str, float]:
    """Return events a second by what becomes of the event."""
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("CREATE TABLE events (number INTEGER PRIMARY KEY, body TEXT)")
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}", Drift())
    rates = {
        "bare_insert": rate(lambda n: bare.execute("INSERT INTO events VALUES (?, 'drift')", (n,)), count),
        "new_accepted": rate(lambda n: ledger.record(event(f"service-{n}", n)), count),
        "new_absorbed": rate(lambda n: ledger.record(event("service-0", n + 1)), count),
        "duplicate": rate(lambda n: ledger.record(event("service-0", n % 10 + 1)), count),
    }
    ledger.close()
    bare.close()
    return rates


def main() -> None:
    """Measure and print, or write with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(Path(folder), args.events)
    for name, figure in rates.items():
        print(f"{name:14} {figure:>10,.1f} events/s")
    if args.json:
        args.json.write_text(json.dumps({"events": args.events, "per_second": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main()

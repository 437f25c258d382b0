"""Measure drift events per second of the trigger ledger, and of bare durable inserts into the same database.

    python benchmarks/ledger.py --json ledger.json
    python benchmarks/ledger.py --url postgresql+psycopg://user:password@127.0.0.1/empty

Every event is a transaction that is on disk before the answer; a bare insert shows the limit of database and disk.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from kubeloop.config import Drift
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.ledger import Ledger
from kubeloop.trigger.store import open_engine


def event(service: str, number: int) -> DriftEvent:
    """Return the event of an episode that is unique to this number."""
    moment = datetime(2013, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    return DriftEvent(service, f"{service}-{moment.isoformat()}", moment, moment, "drift", ("dep_delay",), "drift")


def rate(step: Callable[[int], object], count: int) -> float:
    """Return how many times per second `step` runs."""
    begin = time.perf_counter()
    for number in range(count):
        step(number)
    return round(count / (time.perf_counter() - begin), 1)


def measure(url: str, count: int) -> dict[str, float]:
    """Return events per second by the ledger's decision on them."""
    ledger = Ledger(url, Drift())
    engine = open_engine(url)
    table = sa.Table(
        "bare", sa.MetaData(), sa.Column("number", sa.Integer, primary_key=True), sa.Column("body", sa.Text)
    )
    table.create(engine)

    def insert(number: int) -> None:
        with engine.begin() as connection:
            connection.execute(table.insert().values(number=number, body="drift"))

    try:
        return {
            "bare_insert": rate(insert, count),
            "new_accepted": rate(lambda n: ledger.record(event(f"service-{n}", n)), count),
            "new_absorbed": rate(lambda n: ledger.record(event("service-0", n + 1)), count),
            "duplicate": rate(lambda n: ledger.record(event("service-0", n % 10 + 1)), count),
        }
    finally:
        ledger.close()
        table.drop(engine)
        engine.dispose()


def main() -> None:
    """Measure and print, or write with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--url", help="SQLAlchemy URL of an empty database (default: SQLite in a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(args.url or f"sqlite:///{folder}/ledger.db", args.events)
    for name, figure in rates.items():
        print(f"{name:14} {figure:>10,.1f} events/s")
    if args.json:
        args.json.write_text(json.dumps({"events": args.events, "per_second": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main()

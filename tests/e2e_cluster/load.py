"""Runs in a pod: asks for predictions over many kept-alive connections until a stop file exists, and counts answers.

Flags: --url base URL of the model, --connections, --rate total requests per second, --rows per request, --drifted,
--host for a gateway, --stop the stop file, --out file of the counts, written once a second and at the end.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

USUAL = [
    ("EWR", "UA", "IAH", "N14228", 227.0, 1400.0),
    ("LGA", "UA", "IAH", "N24211", 235.0, 1416.0),
    ("JFK", "AA", "MIA", "N619AA", 200.0, 1089.0),
    ("JFK", "B6", "BQN", "N804JB", 243.0, 1576.0),
    ("LGA", "DL", "ATL", "N668DN", 152.0, 762.0),
    ("EWR", "B6", "FLL", "N516JB", 183.0, 1065.0),
    ("LGA", "EV", "IAD", "N829AS", 75.0, 229.0),
    ("JFK", "B6", "MCO", "N593JB", 180.0, 944.0),
]
UNSEEN = [("JFK", "HA", "HNL", "N380HA", minutes, 4983.0) for minutes in (640.0, 655.0, 670.0)]


class Counts:
    """Counts of the answers."""

    def __init__(self) -> None:
        self.started = time.time()
        self.sent = 0
        self.failed: Counter[str] = Counter()
        self.failures: list[tuple[float, str]] = []
        self.versions: dict[str, dict[str, float]] = {}
        self.took: list[float] = []

    def answered(self, version: str, took: float) -> None:
        now = time.time()
        seen = self.versions.setdefault(version, {"first": now, "last": now, "answers": 0})
        seen["last"] = now
        seen["answers"] += 1
        self.took.append(took)

    def failure(self, what: str) -> None:
        self.failed[what] += 1
        if len(self.failures) < 200:
            self.failures.append((time.time(), what))

    def write(self, path: Path, over: bool = False) -> None:
        took = sorted(self.took) or [0.0]
        content = {
            "over": over,
            "seconds": time.time() - self.started,
            "sent": self.sent,
            "failed": sum(self.failed.values()),
            "kinds": dict(self.failed),
            "failures": self.failures,
            "versions": self.versions,
            "p50_ms": 1000 * took[len(took) // 2],
            "p99_ms": 1000 * took[int(0.99 * (len(took) - 1))],
            "max_ms": 1000 * took[-1],
        }
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        partial.replace(path)


def body(tensors: list[dict[str, Any]], rows: int, drifted: bool) -> dict[str, Any]:
    """Return a request for flights that leave now."""
    now = time.strftime("%Y-%m-%dT%H:%M:00Z", time.gmtime())
    flights = [random.choice(UNSEEN if drifted else USUAL) for _ in range(rows)]
    columns: dict[str, list[Any]] = dict(
        zip(
            ("origin", "carrier", "dest", "tailnum", "sched_minutes", "distance"),
            map(list, zip(*flights, strict=True)),
            strict=True,
        )
    )
    columns["sched_dep"] = [now] * rows
    # A predictor needs all features as inputs; their values may be missing.
    for item in tensors:
        columns.setdefault(item["name"], ["" if item["datatype"] == "BYTES" else None] * rows)
    return {"inputs": [item | {"shape": [rows], "data": columns[item["name"]]} for item in tensors]}


async def worker(args: argparse.Namespace, tensors: list[dict[str, Any]], counts: Counts, number: int) -> None:
    """Ask repeatedly over one connection, at an even pace."""
    pace = args.connections / args.rate
    due = time.monotonic() + pace * number / args.connections
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=300)
    head = {"host": args.host} if args.host else {}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=head) as session:
        while not args.stop.exists():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + pace, time.monotonic() - pace)
            counts.sent += 1
            begun = time.monotonic()
            try:
                async with session.post(f"{args.url}/infer", json=body(tensors, args.rows, args.drifted)) as answer:
                    text = await answer.text()
                    if answer.status == 200:
                        counts.answered(str(json.loads(text).get("model_version")), time.monotonic() - begun)
                    else:
                        counts.failure(f"{answer.status} {text[:120]}")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                counts.failure(f"{type(error).__name__} {str(error)[:120]}")


async def main() -> None:
    """Ask until the stop file exists."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--drifted", action="store_true")
    parser.add_argument("--host", default="")
    parser.add_argument("--stop", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    head = {"host": args.host} if args.host else {}
    async with aiohttp.ClientSession(headers=head) as session, session.get(args.url) as answer:
        tensors = (await answer.json())["inputs"]
    tensors = [{"name": item["name"], "datatype": item["datatype"]} for item in tensors]
    counts = Counts()

    async def write() -> None:
        while not args.stop.exists():
            counts.write(args.out)
            await asyncio.sleep(1)

    await asyncio.gather(write(), *(worker(args, tensors, counts, number) for number in range(args.connections)))
    counts.write(args.out, over=True)


if __name__ == "__main__":
    asyncio.run(main())

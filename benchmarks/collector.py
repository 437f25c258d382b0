"""Measure events per second and latency of the collector, and how fast a segment is written and decoded."""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson

from kubeloop.names import REQUEST_EVENT, RESPONSE_EVENT
from kubeloop.payloads import decode, segments
from kubeloop.tasks.binary.task import BINARY

FEATURES = 20


def bodies(rows: int) -> tuple[bytes, bytes]:
    """Make the request and the response of one inference."""
    random = np.random.default_rng(7)
    inputs = [
        {"name": f"f{i}", "shape": [rows, 1], "datatype": "FP32", "data": random.random(rows).round(4).tolist()}
        for i in range(FEATURES)
    ]
    ids = json.dumps([str(i) for i in range(rows)])
    scores = {"name": "probability", "shape": [rows], "datatype": "FP32", "data": [0.25] * rows}
    return (
        orjson.dumps({"inputs": inputs, "parameters": {"event_ids": ids, "event_time": "2026-01-01T00:00:00Z"}}),
        orjson.dumps({"model_name": "m", "model_version": "1", "outputs": [scores]}),
    )


@contextmanager
def collector(directory: Path) -> Iterator[str]:
    """Run a collector and yield its address."""
    command = [sys.executable, "-m", "kubeloop.payloads.collector", "--dir", str(directory), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
        process.terminate()


async def post(url: str, connections: int, seconds: float, body: bytes) -> tuple[list[float], float]:
    """Post events one after the other on each connection; return each one's latency, and the total time."""
    latencies: list[float] = []
    headers = {"ce-specversion": "1.0", "ce-source": "bench", "ce-type": REQUEST_EVENT, "ce-inferenceservicename": "m"}

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        sent = 0
        while (begun := time.perf_counter()) < end:
            async with session.post(url, data=body, headers=headers | {"ce-id": f"{number}-{sent}"}) as answer:
                assert answer.status == 202, await answer.text()
            latencies.append(time.perf_counter() - begun)
            sent += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        start = time.perf_counter()
        end = start + seconds
        await asyncio.gather(*(client(session, number) for number in range(connections)))
        return latencies, time.perf_counter() - start


def log(events: int, rows: int) -> list[segments.Row]:
    """Make events of pairs with some rows each."""
    request, response = bodies(rows)
    made: list[segments.Row] = []
    for pair in range(events // 2):
        for kind, body in ((REQUEST_EVENT, request), (RESPONSE_EVENT, response)):
            made.append((len(made) + 1, 0, 0, str(pair), kind, "bench", "m", "", "predictor", "default", body))
    return made


def measure(connections: int, seconds: float) -> dict[str, Any]:
    """Run everything once."""
    results: dict[str, Any] = {"connections": connections}
    body, _ = bodies(1)
    results["body_bytes"] = len(body)
    with tempfile.TemporaryDirectory() as folder, collector(Path(folder)) as url:
        asyncio.run(post(url, connections, min(1.0, seconds), body))
        latencies, took = asyncio.run(post(url, connections, seconds, body))
        results["acknowledged_per_s"] = round(len(latencies) / took)
        results["p50_ms"], results["p99_ms"] = (round(float(np.percentile(latencies, q)) * 1e3, 2) for q in (50, 99))
    with tempfile.TemporaryDirectory() as folder:
        rows = log(2000, 1)
        begun = time.perf_counter()
        for start in range(0, 20_000, 2000):
            shifted = [(seq + start, *rest) for seq, *rest in rows]
            segments.write(Path(folder), segments.table_of(shifted))
        results["segment_rows_per_s"] = round(20_000 / (time.perf_counter() - begun))
        begun = time.perf_counter()
        segments.read(Path(folder))
        results["read_rows_per_s"] = round(20_000 / (time.perf_counter() - begun))
    for batch in (1, 20):
        table = segments.table_of(log(40_000 // batch, batch))
        begun = time.perf_counter()
        decoded = decode.decode(BINARY, table)
        took = time.perf_counter() - begun
        results[f"decode_rows_per_s_batch_{batch}"] = round(decoded.predictions.num_rows / took)
    return results


def main() -> None:
    """Print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = measure(options.connections, options.seconds)
    for name, value in results.items():
        print(f"{name:<28}{value:>12}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

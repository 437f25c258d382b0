"""Measure the parts of a whole request: node, transformer with its online features, node again, predictor.

The demo's first model, served on one machine as `kubeloop run` serves it. Single requests are sent to each part of the
path in turn, and the features are also read in this process. So each line includes the one before. CPU time is counted
by process, over the requests that take the whole path.

    .venv/bin/python benchmarks/path.py --requests 300
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa

from kubeloop import config, features
from kubeloop.config import Loop, Settings
from kubeloop.features import online
from kubeloop.session import run
from kubeloop.session.services import Services

PROJECT = Path(__file__).parents[1]
ROWS = (1, 10)


def main() -> None:
    """Print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="to each part, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), options.requests, options.rounds)
    for rows, found in results.items():
        print(f"\n{rows} rows a request" if rows > 1 else "\none row a request")
        print(f"  {'what':44}{'p50 ms':>8}{'p99 ms':>8}")
        for part, row in found["parts"].items():
            print(f"  {part:44}{row['p50_ms']:>8.2f}{row['p99_ms']:>8.2f}")
        print("  CPU ms a whole request: " + ", ".join(f"{name} {ms:.2f}" for name, ms in found["cpu_ms"].items()))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(folder: Path, requests: int, rounds: int) -> dict[int, dict[str, Any]]:
    """Train the demo's first model, serve it and send requests."""
    home = folder / "home"
    shutil.copytree(PROJECT / "feature_repo", home / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "loop.yaml", home)
    loop, settings = config.load(home / "loop.yaml"), config.settings(home, home / ".kubeloop")
    assert loop.replay is not None
    settings.state.mkdir()
    run.prepare(loop, settings, lambda _: None)
    with Services(loop, settings, os.environ) as services:
        services.start("collector", ["kubeloop.payloads.collector", "--dir", str(settings.payloads)])
        collector = ["--collector-url", services.url("collector")]
        services.start("node", ["kubeloop.node.server", "--state", str(settings.state), *collector])
        train(settings, loop)
        online.Materializer(settings.features, loop.features.service).advance(loop.replay.train_to)
        return {rows: ask(loop, settings, services, rows, requests, rounds) for rows in ROWS}


def train(settings: Settings, loop: Loop) -> None:
    """Train and deploy through the pipeline."""
    assert loop.replay is not None
    command = [str(settings.core_python), "-m", "pipelines", "run", "training", "--run-name", "first"]
    command += ["--as-of", loop.replay.train_to.isoformat(), "--reason", "a benchmark"]
    command += ["--loop", str(settings.loop_file), "--state", str(settings.state)]
    done = subprocess.run(command, cwd=settings.home, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the training run failed: {done.stdout[-1500:]}{done.stderr[-1500:]}")


def ask(loop: Loop, settings: Settings, services: Services, rows: int, requests: int, rounds: int) -> dict[str, Any]:
    """Send the same request to every part of the path in turn."""
    node, path = services.url("node"), f"/v2/models/{loop.name}/infer"
    route = httpx.get(f"{node}/status").json()["routes"][loop.name]
    keys, columns, moment = flights(loop, settings, rows)
    source = online.OnlineFeatures.open(settings.features, loop.features.service)
    found = source.read(columns, moment)
    enriched = [tensor(feature.name, feature.datatype, found[feature.name]) for feature in source.features]
    asked = {"inputs": keys, "parameters": {"event_time": moment.isoformat()}}
    whole, ready = json.dumps(asked).encode(), json.dumps({"inputs": enriched}).encode()
    parts = {
        "predictor": (route["predictors"][0]["url"] + path, ready),
        "node and predictor": (f"{node}/_predictor{path}", ready),
        "transformer, node and predictor": (route["transformer"] + path, whole),
        "node, transformer, node and predictor": (node + path, whole),
    }
    processes = listening({"predictor": parts["predictor"][0], "transformer": route["transformer"], "node": node})
    times: dict[str, list[float]] = {"features, read in this process": [], **{part: [] for part in parts}}
    cpu: dict[str, list[float]] = {name: [] for name in processes}
    with contextlib.ExitStack() as stack:
        clients = {
            part: stack.enter_context(contextlib.closing(http.client.HTTPConnection(url.split("/")[2])))
            for part, (url, _) in parts.items()
        }
        for number in range(rounds + 1):
            for part, (url, body) in parts.items():
                before = {name: cpu_s(process) for name, process in processes.items()}
                taken = [one(clients[part], url, body) for _ in range(requests)]
                # The first round only fills the caches.
                times[part] += taken if number else []
                if number and part == list(parts)[-1]:
                    for name, process in processes.items():
                        cpu[name].append((cpu_s(process) - before[name]) / requests)
            begun = time.perf_counter()
            for _ in range(requests):
                source.read(columns, moment)
            times["features, read in this process"].append((time.perf_counter() - begun) / requests)
    return {
        "parts": {part: quantiles(taken) for part, taken in times.items()},
        "cpu_ms": {name: round(statistics.median(each) * 1e3, 2) for name, each in cpu.items()},
    }


def flights(loop: Loop, settings: Settings, rows: int) -> tuple[list[dict[str, Any]], dict[str, list[Any]], datetime]:
    """Return the request for some flights after the first model, as tensors and as columns, and the moment."""
    assert loop.replay is not None
    begin = loop.replay.train_to
    events = features.events(
        settings.home / loop.features.repo, settings.raw, start=begin, end=begin + timedelta(days=1)
    )
    chosen = events.slice(0, rows)
    fields = features.requests(features.open_store(settings.features), loop.features.service)
    columns = {field.name: plain(chosen[field.name]) for field in fields}
    return [tensor(field.name, field.datatype, columns[field.name]) for field in fields], columns, begin


def plain(column: pa.ChunkedArray) -> list[Any]:
    """Return values as JSON holds them."""
    return [value.isoformat() if isinstance(value, datetime) else value for value in column.to_pylist()]


def tensor(name: str, datatype: str, values: list[Any]) -> dict[str, Any]:
    """Return a V2 tensor of one dimension."""
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": values}


def one(client: http.client.HTTPConnection, url: str, body: bytes) -> float:
    """Send one request; return the seconds."""
    begun = time.perf_counter()
    client.request("POST", url, body, {"content-type": "application/json"})
    answer = client.getresponse()
    content = answer.read()
    taken = time.perf_counter() - begun
    if answer.status != 200:
        raise RuntimeError(f"{url} answered {answer.status}: {content[:500]!r}")
    return taken


def listening(urls: dict[str, str]) -> dict[str, psutil.Process]:
    """Return the process behind each address."""
    ports = {int(url.split(":")[2].partition("/")[0]): name for name, url in urls.items()}
    found = psutil.net_connections("tcp")
    return {
        ports[each.laddr.port]: psutil.Process(each.pid)
        for each in found
        if each.status == psutil.CONN_LISTEN and each.laddr.port in ports and each.pid
    }


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU time of a process."""
    used = process.cpu_times()
    return float(used.user + used.system)


def quantiles(taken: list[float]) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds."""
    return {f"p{q}_ms": round(float(np.percentile(taken, q)) * 1e3, 3) for q in (50, 99)}


if __name__ == "__main__":
    main()

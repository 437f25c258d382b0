"""Measure what the payload log costs a prediction: latency without it, with the collector, and with one that hangs.

One node serves one model four times. Requests are sent at a fixed rate, so that the times are those of a server with
spare capacity and not those of a queue. The services take turns in every round.

    .venv/bin/python benchmarks/logger.py --seconds 5
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from kubeloop import access, config
from kubeloop.config import settings
from kubeloop.delivery import local
from kubeloop.delivery.manifest import ModelRef, inference_service

FEATURES = 20
JSON = {"content-type": "application/json"}
LOGGERS = ("none", "collector", "hangs", "away")


def model(folder: Path) -> ModelRef:
    """Train and export a LightGBM of 200 trees."""
    import lightgbm
    import onnx
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    rng = np.random.default_rng(7)
    x = rng.normal(size=(5_000, FEATURES)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(int)
    fitted = lightgbm.LGBMClassifier(n_estimators=200, verbose=-1, n_jobs=1).fit(x, y)
    graph = convert_lightgbm(fitted, initial_types=[("input", FloatTensorType([None, FEATURES]))], zipmap=False)
    del graph.graph.output[0]
    content = graph.SerializeToString()
    onnx.save(graph, folder / "model.onnx")
    return ModelRef("1", folder.as_uri(), hashlib.sha256(content).hexdigest(), "bench")


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run one of our programs from the runtime environment; yield it and its address."""
    command = [str(settings().runtime_python), "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as program:
        try:
            assert program.stdout is not None
            yield program, program.stdout.readline().split()[1]
        finally:
            # A stopped process would not receive the signal to end.
            program.send_signal(signal.SIGCONT)
            program.terminate()


async def ask(url: str, name: str, rate: float, seconds: float) -> list[float]:
    """Send single rows at a fixed rate, however long the answers take; return the latencies in seconds."""
    tensor = {"name": "input", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}
    body = json.dumps({"inputs": [tensor]}).encode()
    latencies: list[float] = []

    async def one(session: aiohttp.ClientSession) -> None:
        begun = time.perf_counter()
        async with session.post(f"{url}/v2/models/{name}/infer", data=body, headers=JSON) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        latencies.append(time.perf_counter() - begun)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await one(session)
        latencies.clear()
        begin, tasks = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one(session)))
        await asyncio.gather(*tasks)
    return latencies


def measure(rate: float, seconds: float, rounds: int) -> dict[str, Any]:
    """Run everything once."""
    times: dict[str, list[list[float]]] = {kind: [] for kind in LOGGERS}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        version = model(folder)
        _, node = stack.enter_context(process("kubeloop.node.server", "--port", "0", "--state", str(folder / "node")))
        collector = ("kubeloop.payloads.collector", "--port", "0", "--dir")
        _, good = stack.enter_context(process(*collector, str(folder / "good")))
        stuck, hanging = stack.enter_context(process(*collector, str(folder / "stuck")))
        stuck.send_signal(signal.SIGSTOP)
        urls = {"collector": good, "hangs": hanging, "away": "http://127.0.0.1:9"}
        case = config.load(Path(__file__).parents[1] / "loop.yaml")
        for kind in LOGGERS:
            loop = case.model_copy(update={"name": f"bench-{kind}"})
            manifest = inference_service(loop, version, logger_url=urls.get(kind, ""), feature_dir=folder)
            del manifest["spec"]["transformer"]
            if kind == "none":
                del manifest["spec"]["predictor"]["logger"]
            local.apply(manifest, node, 60, access.read(folder / "node" / "token"))
        for number in range(rounds):
            for kind in LOGGERS if number % 2 == 0 else LOGGERS[::-1]:
                times[kind].append(asyncio.run(ask(node, f"bench-{kind}", rate, seconds)))
    return {"requests_per_s": rate, "loggers": {kind: _row(times[kind], times["none"]) for kind in LOGGERS}}


def _row(found: list[list[float]], base: list[list[float]]) -> dict[str, float]:
    row = {}
    for q in (50, 99):
        each = [(np.percentile(a, q), np.percentile(b, q)) for a, b in zip(found, base, strict=True)]
        row[f"p{q}_ms"] = round(statistics.median(a for a, _ in each) * 1e3, 2)
        row[f"p{q}_ratio"] = round(statistics.median(a / b for a, b in each), 2)
    return row


def main() -> None:
    """Print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = measure(options.rate, options.seconds, options.rounds)
    print(f"one row per request, {options.rate:g} requests a second\n")
    for kind, row in results["loggers"].items():
        print(f"logger: {kind:<12}" + "".join(f"{name:>12} {value:>6.2f}" for name, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

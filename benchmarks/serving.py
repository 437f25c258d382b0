"""Measure requests per second of our model server, stock KServe and MLServer, all with one model, in one run.

The model is a LightGBM of 200 trees and 30 features. Every server runs on one core and the load on another, with one
row per request over persistent connections. The servers take turns in every round, so that a busy machine slows all of
them. Ours is also measured with binary tensors and gRPC, relative to its own V2 in JSON. Two servers without checks
show the limits: one sends the body back, the other also runs the model. gRPC's client in Python costs more than the
server, so its requests per second show the client's limit, but the CPU time of a request is the server's. An
interpreter that was built without profile-guided optimization, as pyenv builds it, takes a quarter longer for Python
code than the one in our images; the last line says which kind was used.

    .venv/bin/python benchmarks/serving.py --seconds 5
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import uvloop

from kubeloop.serving.rpc_messages import INFERENCE

Array = np.ndarray[Any, np.dtype[np.float64]]

TREES, FEATURES, NAME = 200, 30, "bench"
PEERS = Path(__file__).parent / "serving_peers"
OWN_UV = Path(__file__).parents[1] / ".uv" / "bin" / "uv"
"""Where `make setup` puts uv if it is not installed."""
_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
GRANIAN = "granian==2.8.9"
LIMITS = {"echo": "echo", "echo and model": "model"}
"""The servers that show the limits, by their names in the table and in `serving_peers/limits.py`."""
MLSERVER = ["mlserver>=1.7", "mlserver-lightgbm", "onnxruntime"]


@dataclass
class Target:
    """One server and protocol under load, and by round: latencies (s), requests per second, CPU seconds per request."""

    server: str
    engine: str
    protocol: str
    port: int
    path: str
    body: bytes
    process: psutil.Process
    headers: str = "Content-Type: application/json\r\n"
    version: str = ""
    latencies: list[Array] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def base(self) -> str:
        """The protocol with which its rate is compared."""
        return "V1" if self.protocol == "V1" else "V2"

    def cpu_s(self) -> float:
        """Return the CPU time that the server has used, its child processes included."""
        times = [process.cpu_times() for process in (self.process, *self.process.children(recursive=True))]
        return float(sum(time.user + time.system for time in times))


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="load on each server and protocol in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--json", type=Path, help="write the results here as well")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        row, expected = _train(Path(folder))
        targets, missing = _start_all(stack, Path(folder), row, cores[0])
        os.sched_setaffinity(0, {cores[-1]})
        for target in targets:
            _check(target, expected)
            if not target.version:
                target.version = httpx.get(f"http://127.0.0.1:{target.port}/v2").json()["version"]
            uvloop.run(_load(target, args.connections, 0.5))
        for number in range(args.rounds):
            # In reverse in every other round, so that no server always follows the same one.
            for target in targets if number % 2 == 0 else reversed(targets):
                before = target.cpu_s()
                times = uvloop.run(_load(target, args.connections, args.seconds))
                target.latencies.append(times)
                target.rates.append(len(times) / args.seconds)
                target.cpu.append((target.cpu_s() - before) / len(times))
    results = _results(targets)
    _print(results, missing, args)
    if args.json:
        report = {"settings": vars(args) | {"json": None}, "machine": _machine(), "versions": _versions()}
        args.json.write_text(json.dumps(report | {"results": results, "not_available": missing}, indent=2) + "\n")


def _train(folder: Path) -> tuple[list[float], list[float]]:
    """Write model.onnx and model.bst; return a row and its two probabilities."""
    import lightgbm
    import onnx
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    rng = np.random.default_rng(7)
    x = rng.normal(size=(20_000, FEATURES)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=len(x)) > 0).astype(int)
    model = lightgbm.LGBMClassifier(n_estimators=TREES, verbose=-1, n_jobs=1).fit(x, y)
    graph = convert_lightgbm(model, initial_types=[("input", FloatTensorType([None, FEATURES]))], zipmap=False)
    # Probabilities only, so that every server writes the same answer.
    del graph.graph.output[0]
    onnx.save(graph, folder / "model.onnx")
    model.booster_.save_model(folder / "model.bst")
    row = x[:1].round(4)
    return [float(value) for value in row[0]], model.predict_proba(row)[0].tolist()


def _start_all(
    stack: contextlib.ExitStack, folder: Path, row: list[float], core: int
) -> tuple[list[Target], dict[str, str]]:
    v2_path, v1_path = f"/v2/models/{NAME}/infer", f"/v1/models/{NAME}:predict"
    tensor = {"name": "input", "shape": [1, len(row)], "datatype": "FP32", "data": row}
    # With an id, since KServe's server fails without one.
    v2, v1 = json.dumps({"id": "1", "inputs": [tensor]}).encode(), json.dumps({"instances": [row]}).encode()
    ports = iter(_free_ports(10))

    def both(server: str, port: int, process: psutil.Process) -> list[Target]:
        return [
            Target(server, "ONNX Runtime", "V2", port, v2_path, v2, process),
            Target(server, "ONNX Runtime", "V1", port, v1_path, v1, process),
        ]

    port, grpc_port = next(ports), next(ports)
    ours = [
        sys.executable,
        "-m",
        "kubeloop.serving.server",
        f"--model-dir={folder}",
        f"--name={NAME}",
        f"--port={port}",
        f"--grpc-port={grpc_port}",
    ]
    process = stack.enter_context(_server(ours, port, core, folder))
    targets = both("kubeloop", port, process)
    raw = np.float32(row).tobytes()
    described = {key: tensor[key] for key in ("name", "shape", "datatype")}
    head = {"id": "1", "parameters": {"binary_data_output": True}}
    head["inputs"] = [described | {"parameters": {"binary_data_size": len(raw)}}]
    text = json.dumps(head).encode()
    headers = f"Inference-Header-Content-Length: {len(text)}\r\n"
    targets.append(Target("kubeloop", "ONNX Runtime", "V2 binary", port, v2_path, text + raw, process, headers))
    message = INFERENCE["ModelInferRequest"](model_name=NAME, id="1", inputs=[described], raw_input_contents=[raw])
    targets.append(
        Target("kubeloop", "ONNX Runtime", "gRPC", port, str(grpc_port), message.SerializeToString(), process)
    )
    port = next(ports)
    kserve = [sys.executable, str(PEERS / "kserve_server.py"), str(folder / "model.onnx"), NAME, str(port)]
    targets += both("kserve", port, stack.enter_context(_server(kserve, port, core, folder)))
    missing = {}
    for server in ("uvicorn", "granian"):
        try:
            for engine in LIMITS:
                port = next(ports)
                process = stack.enter_context(_server(_limit(server, engine, port), port, core, folder))
                version = importlib.metadata.version("uvicorn") if server == "uvicorn" else GRANIAN.partition("==")[2]
                targets.append(Target(server, engine, "V2", port, v2_path, v2, process, version=version))
        except (OSError, RuntimeError) as error:
            missing[server] = str(error)
    try:
        port = next(ports)
        mlserver = _mlserver(folder / "mlserver", folder, [port, next(ports), next(ports)])
        process = stack.enter_context(_server(mlserver, port, core, folder / "mlserver"))
    except (OSError, RuntimeError) as error:
        missing["MLServer"] = str(error)
        _warn(missing)
        return targets, missing
    body = json.dumps({"id": "1", "inputs": [tensor | {"parameters": {"content_type": "np"}}]}).encode()
    for engine in ("ONNX Runtime", "LightGBM"):
        path = f"/v2/models/{engine.split()[0].lower()}/infer"
        targets.append(Target("MLServer", engine, "V2", port, path, body, process))
    _warn(missing)
    return targets, missing


def _limit(server: str, engine: str, port: int) -> list[str]:
    """Return the command of a server that only sends the body back, or only runs the model."""
    app = ["env", f"PYTHONPATH={PEERS}", "MODEL=model.onnx"]
    factory = ["--factory"] if LIMITS[engine] == "model" else []
    if server == "uvicorn":
        flags = ["--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "error"]
        return [
            *app,
            sys.executable,
            "-m",
            "uvicorn",
            f"limits:{LIMITS[engine]}",
            *flags,
            *factory,
            "--port",
            str(port),
        ]
    needs = [flag for package in (GRANIAN, "uvloop", "orjson", "numpy", "onnxruntime") for flag in ("--with", package)]
    flags = ["--interface", "asginl", "--loop", "uvloop", "--no-ws", "--no-log"]
    return [
        *app,
        *_isolated(),
        *needs,
        "--",
        "granian",
        f"limits:{LIMITS[engine]}",
        *flags,
        *factory,
        "--port",
        str(port),
    ]


def _isolated() -> list[str]:
    """Return the command that runs a program in a separate environment.

    Raises:
        RuntimeError: uv is not installed.
    """
    uv = shutil.which("uv") or shutil.which(str(OWN_UV))
    if uv is None:
        raise RuntimeError(
            "it runs in an environment of its own, which needs uv; install it: https://docs.astral.sh/uv"
        )
    return [uv, "run", "--isolated", "--no-project", "--python", "3.11"]


def _mlserver(folder: Path, models: Path, ports: list[int]) -> list[str]:
    """Write MLServer's settings and return its command; it cannot share our environment."""
    isolated = _isolated()
    # Inference in the server's own process, which is faster on one core.
    settings = {"host": "127.0.0.1", "http_port": ports[0], "grpc_port": ports[1], "metrics_port": ports[2]}
    settings |= {"parallel_workers": 0, "debug": False}
    runtimes = {
        "onnx": ("mlserver_runtime.OnnxRuntime", models / "model.onnx"),
        "lightgbm": ("mlserver_lightgbm.LightGBMModel", models / "model.bst"),
    }
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    for name, (implementation, uri) in runtimes.items():
        (folder / name).mkdir()
        shutil.copy(PEERS / "mlserver_runtime.py", folder / name)
        card = {"name": name, "implementation": implementation, "parameters": {"uri": str(uri)}}
        (folder / name / "model-settings.json").write_text(json.dumps(card))
    needs = [flag for package in MLSERVER for flag in ("--with", package)]
    return [*isolated, *needs, "--", "mlserver", "start", str(folder)]


@contextlib.contextmanager
def _server(command: list[str], port: int, core: int, folder: Path) -> Iterator[psutil.Process]:
    """Run a server on one core until the block ends.

    Raises:
        RuntimeError: it ended or was not ready within two minutes; the message ends with its log.
    """
    log = folder / f"{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=folder,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    try:
        deadline = time.monotonic() + 120
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command[:3])} did not start: {log.read_text()[-400:]}")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _check(target: Target, expected: list[float]) -> None:
    """Check that a server computes the same as the others before its speed counts."""
    if target.engine == "echo":
        return
    if target.protocol == "gRPC":
        with grpc.insecure_channel(f"127.0.0.1:{target.path}") as channel:
            body = channel.unary_unary(_MODEL_INFER)(target.body)
        (raw,) = INFERENCE["ModelInferResponse"].FromString(body).raw_output_contents
        np.testing.assert_allclose(np.frombuffer(raw, np.float32), expected, atol=1e-5, err_msg="gRPC")
        return
    url = f"http://127.0.0.1:{target.port}{target.path}"
    headers = dict(line.split(": ") for line in target.headers.splitlines())
    response = httpx.post(url, content=target.body, headers=headers)
    if response.status_code != 200:
        raise RuntimeError(f"{target.server} {target.protocol} answered {response.status_code}: {response.text}")
    if target.protocol == "V2 binary":
        raw = response.content[int(response.headers["inference-header-content-length"]) :]
        np.testing.assert_allclose(np.frombuffer(raw, np.float32), expected, atol=1e-5, err_msg="binary")
        return
    answer = response.json()
    if target.protocol == "V1":
        got = answer["predictions"][0]
    elif target.engine == "LightGBM":
        got, expected = answer["outputs"][0]["data"], expected[1:]
    else:
        got = answer["outputs"][0]["data"]
    np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=f"{target.server} {target.protocol}")


class _Client(asyncio.Protocol):
    """One connection that sends its next request as soon as the previous one is answered."""

    def __init__(self, request: bytes, stop: float, times: list[float]) -> None:
        self.request = request
        self.stop = stop
        self.times = times
        self.received = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.received = b""
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, gap, body = self.received.partition(b"\r\n\r\n")
        if not gap:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length):
            return
        now = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self.received.decode()))
            self.transport.close()
        elif now >= self.stop:
            self.done.set_result(None)
            self.transport.close()
        else:
            self.times.append(now - self.sent)
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed a connection under load"))


async def _load(target: Target, connections: int, seconds: float) -> Array:
    """Return the latencies in seconds."""
    if target.protocol == "gRPC":
        return await _load_grpc(target, connections, seconds)
    head = f"POST {target.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{target.headers}"
    request = f"{head}Content-Length: {len(target.body)}\r\n\r\n".encode() + target.body
    loop = asyncio.get_running_loop()
    times: list[float] = []
    begin = time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: _Client(request, begin + seconds, times), "127.0.0.1", target.port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(client.done for client in clients))
    return np.array(times)


async def _load_grpc(target: Target, connections: int, seconds: float) -> Array:
    times: list[float] = []
    stop = time.perf_counter() + seconds

    async def talk() -> None:
        # A separate connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{target.path}", options=options) as channel:
            infer = channel.unary_unary(_MODEL_INFER)
            while (sent := time.perf_counter()) < stop:
                await infer(target.body)
                times.append(time.perf_counter() - sent)

    await asyncio.gather(*(talk() for _ in range(connections)))
    return np.array(times)


def _results(targets: list[Target]) -> list[dict[str, Any]]:
    reference = {target.protocol: target for target in targets if target.server == "kserve"}
    json_rows = next(target for target in targets if target.server == "kubeloop" and target.protocol == "V2")
    results = []
    for target in targets:
        against = reference[target.base]
        ratios = [rate / base for rate, base in zip(target.rates, against.rates, strict=True)]
        milliseconds = np.concatenate(target.latencies) * 1000
        results.append(
            {
                "server": target.server,
                "version": target.version,
                "engine": target.engine,
                "protocol": target.protocol,
                "requests_per_s": round(statistics.median(target.rates)),
                "cpu_us_per_request": round(statistics.median(target.cpu) * 1e6),
                "requests_per_s_rounds": [round(rate) for rate in target.rates],
                "p50_ms": round(float(np.percentile(milliseconds, 50)), 2),
                "p99_ms": round(float(np.percentile(milliseconds, 99)), 2),
                "times_kserve": round(statistics.median(ratios), 2),
                "times_kserve_by_cpu": round(statistics.median(against.cpu) / statistics.median(target.cpu), 2),
                "times_own_json_by_cpu": round(statistics.median(json_rows.cpu) / statistics.median(target.cpu), 2),
                "times_kserve_rounds": [round(ratio, 2) for ratio in ratios],
            }
        )
    return results


def _print(results: list[dict[str, Any]], missing: dict[str, str], args: argparse.Namespace) -> None:
    print(
        f"LightGBM, {TREES} trees x {FEATURES} features, one row per request, {args.connections} connections, one "
        "core; "
        f"median of {args.rounds} rounds of {args.seconds:g} s\n"
    )
    columns = ("requests/s", "x kserve", "p50 ms", "p99 ms", "CPU us/req", "x kserve", "x own JSON")
    print(f"{'server':10} {'engine':15} {'API':9}" + "".join(f"{name:>11}" for name in columns))
    for result in results:
        print(
            f"{result['server']:10} {result['engine']:15} {result['protocol']:9}{result['requests_per_s']:>11}"
            f"{result['times_kserve']:>11.1f}{result['p50_ms']:>11.2f}{result['p99_ms']:>11.2f}"
            f"{result['cpu_us_per_request']:>11}{result['times_kserve_by_cpu']:>11.1f}"
            f"{result['times_own_json_by_cpu']:>11.2f}"
        )
    _warn(missing)
    servers = {result["server"]: result["version"] for result in results}
    print("\n" + ", ".join(f"{name} {version}" for name, version in (servers | _versions()).items()))
    print(", ".join(f"{key} {value}" for key, value in _machine().items()))


def _warn(missing: dict[str, str]) -> None:
    """Report which peers are missing, since the table is then not the whole comparison."""
    for server, reason in missing.items():
        print(f"\n{'!' * 20} {server.upper()} WAS NOT MEASURED {'!' * 20}\n{reason}\n", file=sys.stderr, flush=True)


def _versions() -> dict[str, str]:
    names = ("onnxruntime", "lightgbm", "uvicorn", "uvloop", "orjson", "numpy")
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def _machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    optimized = "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS"))
    built = "built with --enable-optimizations" if optimized else "built without --enable-optimizations"
    return {"CPU": cpu, "cores": str(os.cpu_count()), "load": load, "Python": built}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


if __name__ == "__main__":
    main()

"""A node in its own process, a payload collector, and clients that count."""

import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from kubeloop import access
from kubeloop.config import Loop
from kubeloop.delivery import Applied, DeliveryError, local
from kubeloop.delivery.manifest import ModelRef, inference_service
from kubeloop.names import EXPOSURE_EVENT

STAND_IN = Path(__file__).parent / "standins" / "node.py"
SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices"
# One client for all tests: making one reads the certificate store, which takes longer than a request.
HTTP = httpx.Client(timeout=20)
_NUMBERS = itertools.count()


def eventually(check: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until `check` returns something true, and return it."""
    end = time.monotonic() + seconds
    while not (result := check()):
        assert time.monotonic() < end, f"not within {seconds} s: {check}"
        time.sleep(0.02)
    return result


@dataclass
class Collector:
    """Accepts payload events; a test sets how it behaves."""

    status: int = 200
    sleep: float = 0.0
    events: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    def up(self) -> None:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                time.sleep(collector.sleep)
                status = collector.status
                if status == 200:
                    collector.events.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.wfile.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def pairs(self, service: str = "flights") -> dict[str, dict[str, tuple[dict[str, str], Any]]]:
        """Requests and responses of a service by id and by the last word of their type."""
        found: dict[str, dict[str, tuple[dict[str, str], Any]]] = {}
        for headers, body in list(self.events):
            if headers["ce-inferenceservicename"] != service or headers["ce-type"] == EXPOSURE_EVENT:
                continue
            found.setdefault(headers["ce-id"], {})[headers["ce-type"].rpartition(".")[2]] = headers, json.loads(body)
        return found


@dataclass
class NodeProcess:
    """One node; `start` may be called again after `stop` or `kill`."""

    state: Path
    flags: tuple[str, ...] = ()
    command: tuple[str, ...] = (sys.executable, str(STAND_IN))
    process: subprocess.Popen[str] | None = None
    url: str = ""

    def start(self) -> "NodeProcess":
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "node.log").open("a") as log:
            self.process = subprocess.Popen(
                [*self.command, "--state", str(self.state), *self.flags], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("ready "), (line, self.log())
        self.url = line.split()[1]
        return self

    def log(self) -> str:
        return (self.state / "node.log").read_text()

    def signal(self, number: int) -> int:
        """Send a signal and wait for the exit code."""
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(20)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise

    def get(self, path: str = "/status") -> Any:
        return HTTP.get(self.url + path).raise_for_status().json()

    def service(self, name: str = "flights") -> dict[str, Any]:
        return self.get(f"{SERVICES}/{name}")

    def conditions(self, name: str = "flights") -> dict[str, dict[str, str]]:
        return {condition["type"]: condition for condition in self.service(name)["status"]["conditions"]}

    def apply(self, manifest: dict[str, Any], timeout_s: float = 30.0) -> Applied:
        return local.apply(manifest, self.url, timeout_s, access.read(self.state / "token"))

    def login(self) -> dict[str, str]:
        """The header that a client needs for the node to accept a change."""
        return access.header(self.state / "token")

    def processes(self, component: str = "predictor", name: str = "flights") -> list[dict[str, Any]]:
        return [p for p in self.service(name)["status"]["processes"] if p["component"] == component]

    def infer(self, rows: int = 1, name: str = "flights", **kwargs: Any) -> httpx.Response:
        return HTTP.post(f"{self.url}/v2/models/{name}/infer", json=request(rows), **kwargs)


def request(rows: int = 1, mark: str = "") -> dict[str, Any]:
    data = [f"{mark}{row}" for row in range(rows)]
    return {"inputs": [{"name": "flight", "datatype": "BYTES", "shape": [rows], "data": data}]}


@dataclass
class Load:
    """Clients that each keep one connection busy, with the answers that they got."""

    url: str
    name: str
    clients: int
    answers: list[tuple[int, str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a request hangs"

    def _client(self, number: int) -> None:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        body = json.dumps(request(1, f"{number}-"))
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", f"/v2/models/{self.name}/infer", body, {"content-type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            self.answers.append((response.status, answer.get("model_version", ""), time.monotonic() - began))
            time.sleep(0.002)

    def codes(self) -> Counter[int]:
        return Counter(code for code, _, _ in self.answers)

    def versions(self) -> Counter[str]:
        return Counter(version for _, version, _ in self.answers)

    def wait(self, answers: int) -> None:
        """Wait for a number of further answers."""
        goal = len(self.answers) + answers
        eventually(lambda: len(self.answers) >= goal, 30)


class Background:
    """Runs a function in parallel with a test and keeps its error."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.error: DeliveryError | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._work()
        except DeliveryError as error:
            self.error = error

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


@dataclass
class Kit:
    """Makes models, manifests and nodes in a folder."""

    folder: Path
    collector: Collector
    nodes: list[NodeProcess] = field(default_factory=list)

    def node(self, *flags: str, command: tuple[str, ...] | None = None) -> NodeProcess:
        node = NodeProcess(self.folder / f"state-{len(self.nodes)}", flags)
        if command:
            node.command = command
        self.nodes.append(node)
        return node.start()

    def model(self, version: str, sha256: str = "0" * 64, **behaviour: Any) -> ModelRef:
        folder = self.folder / "models" / version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "behaviour.json").write_text(json.dumps(behaviour))
        return self.ref(version, sha256)

    def ref(self, version: str, sha256: str = "0" * 64) -> ModelRef:
        """A version and its folder, which may or may not exist."""
        return ModelRef(version.rpartition("/")[2], (self.folder / "models" / version).as_uri(), sha256, "run-1")

    def manifest(self, version: ModelRef, name: str = "flights", logger_url: str = "", **kwargs: Any) -> dict[str, Any]:
        settings = kwargs.pop("serving", {})
        loop = Loop.model_validate(
            {
                "name": name,
                "source": {"tables": {"events": {"available_at": "at"}}},
                "features": {"service": kwargs.pop("features", "v1")},
                "serving": settings,
                "delivery": {"drain_s": 5},
            }
        )
        kwargs.setdefault("feature_dir", "features")
        return inference_service(loop, version, logger_url=logger_url or self.collector.url, **kwargs)

    def load(self, node: NodeProcess, clients: int = 8, name: str = "flights") -> Load:
        return Load(node.url, name, clients)

    def eventually(self, check: Callable[[], Any], seconds: float = 10.0) -> Any:
        return eventually(check, seconds)

    def background(self, work: Callable[[], Any]) -> "Background":
        return Background(work)


@dataclass
class Service:
    """An inference service with a unique name, on a node that other tests use as well."""

    kit: Kit
    node: NodeProcess
    name: str

    def model(self, version: str, **behaviour: Any) -> ModelRef:
        return self.kit.model(f"{self.name}/{version}", **behaviour)

    def manifest(self, version: str, canary: str = "", **kwargs: Any) -> dict[str, Any]:
        if canary:
            kwargs["canary"] = self.kit.ref(f"{self.name}/{canary}")
        return self.kit.manifest(self.kit.ref(f"{self.name}/{version}"), name=self.name, **kwargs)

    def apply(self, version: str, canary: str = "", timeout_s: float = 30.0, **kwargs: Any) -> Applied:
        return self.node.apply(self.manifest(version, canary, **kwargs), timeout_s)

    def status(self) -> dict[str, Any]:
        return self.node.service(self.name)

    def conditions(self) -> dict[str, dict[str, str]]:
        return self.node.conditions(self.name)

    def processes(self, component: str = "predictor") -> list[dict[str, Any]]:
        return self.node.processes(component, self.name)

    def infer(self, rows: int = 1, **kwargs: Any) -> httpx.Response:
        return self.node.infer(rows, self.name, **kwargs)

    def load(self, clients: int) -> Load:
        return self.kit.load(self.node, clients, self.name)

    def pairs(self) -> dict[str, dict[str, tuple[dict[str, str], Any]]]:
        eventually(lambda: self.node.get()["queued"] == 0)
        return self.kit.collector.pairs(self.name)


def _kit(folder: Path) -> Iterator[Kit]:
    kit = Kit(folder, Collector())
    kit.collector.up()
    yield kit
    for node in kit.nodes:
        node.stop()
    kit.collector.down()


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    """Nodes of one test."""
    yield from _kit(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    """Nodes of a whole module."""
    yield from _kit(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def node(shared: Kit) -> NodeProcess:
    """A node for all tests of a module."""
    return shared.node("--ready-s", "2")


@pytest.fixture
def service(shared: Kit, node: NodeProcess) -> Iterator[Service]:
    """A service with the models v1 and v2, not yet applied."""
    service = Service(shared, node, f"flights-{next(_NUMBERS)}")
    for version in ("v1", "v2"):
        service.model(version)
    yield service
    HTTP.delete(f"{node.url}{SERVICES}/{service.name}", headers=node.login())


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """Return whether a process exists and is not a zombie."""

    def check(pid: int) -> bool:
        try:
            return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return False

    return check


@pytest.fixture
def kill() -> Callable[[int], None]:
    return lambda pid: os.kill(pid, signal.SIGKILL)

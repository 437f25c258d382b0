import contextlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kubeloop.monitoring.detector import port
from kubeloop.monitoring.outbox import Outbox
from kubeloop.monitoring.rounds import Monitor
from kubeloop.monitoring.store import Store
from kubeloop.monitoring.versions import Versions
from kubeloop.monitoring.windows import Grid


@pytest.fixture(scope="session")
def world() -> ModuleType:
    spec = importlib.util.spec_from_file_location("monitor_world", Path(__file__).with_name("world.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def references(world: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("references")
    for version in ("1", "2"):
        world.save_reference(folder, version)
    return folder


@pytest.fixture
def open_monitor(world: ModuleType, references: Path) -> Iterator[Callable[..., Monitor]]:
    """Open a monitor on a folder: its log in log/, its state in monitor.db, or in a database and with a worker."""
    with contextlib.ExitStack() as stack:

        def start(
            folder: Path,
            trigger_url: str | None = None,
            database: str = "",
            detector_url: str | None = None,
            **drift: Any,
        ) -> Monitor:
            loop = world.loop(**drift)
            store = Store(database or f"sqlite:///{folder / 'monitor.db'}")
            versions = Versions(store, loop.name, loop.delivery.namespace, references=references)
            outbox = Outbox(store, loop.name, trigger_url)
            engine = "alibi" if detector_url else "builtin"
            detector = port.open_detector(engine, Path("unused"), folder, url=detector_url)
            for part in (store, versions, outbox, detector):
                stack.callback(part.close)
            return Monitor(loop, folder / "log", store, detector, versions, Grid(loop.drift.window), outbox)

        yield start


class Server:
    """A small real HTTP server: it answers what `replies` holds for a path, and keeps what it was sent."""

    def __init__(self) -> None:
        self.replies: dict[str, tuple[int, Any]] = {}
        self.received: list[tuple[str, str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                self.answer(json.loads(body) if body else None)

            def answer(self, body: Any) -> None:
                outer.received.append((self.path, self.headers.get("content-type", ""), body))
                status, reply = outer.replies.get(self.path, (404, {"error": "no such path"}))
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def events(self) -> list[dict[str, Any]]:
        return [body for path, _, body in self.received if path == "/events"]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def trigger(server: Server) -> Server:
    server.replies["/events"] = (202, {"accepted": True, "run_name": "run-1", "reason": "starts run-1"})
    return server

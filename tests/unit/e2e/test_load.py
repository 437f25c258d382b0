"""The load generator of the cluster tests: how many connections it uses, and that it counts failures."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

LOAD = Path(__file__).parents[2] / "e2e_cluster" / "load.py"
TENSORS = [
    {"name": name, "datatype": "BYTES", "shape": [-1]}
    for name in ("origin", "carrier", "dest", "tailnum", "sched_dep", "sched_minutes", "distance")
]


class Model(BaseHTTPRequestHandler):
    """Answers with a version that the test sets; an empty version is an error."""

    protocol_version = "HTTP/1.1"
    version = "1"
    seen: ClassVar[set[Any]] = set()
    rows: ClassVar[set[int]] = set()

    def do_GET(self) -> None:
        self._say(200, {"inputs": TENSORS})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Model.seen.add(self.client_address)
        Model.rows |= {len(item["data"]) for item in body["inputs"]}
        self._say(200, {"model_version": Model.version}) if Model.version else self._say(503, {"error": "no predictor"})

    def _say(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Model.seen, Model.rows, Model.version = set(), set(), "1"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v2/models/m"
    server.shutdown()
    server.server_close()


def test_it_asks_over_every_connection_and_counts_by_version(url: str, tmp_path: Path) -> None:
    stop, out = tmp_path / "stop", tmp_path / "counts.json"
    command = [sys.executable, LOAD, "--url", url, "--connections", "12", "--rate", "60", "--rows", "3"]
    with subprocess.Popen([*command, "--stop", stop, "--out", out]) as process:
        wait(lambda: len(Model.seen) == 12)
        Model.version = "2"
        wait(lambda: "2" in json.loads(out.read_text())["versions"])
        Model.version = ""
        wait(lambda: json.loads(out.read_text())["failed"] > 5)
        stop.touch()
        assert process.wait(timeout=20) == 0
    found = json.loads(out.read_text())
    assert set(found["versions"]) == {"1", "2"}
    assert found["versions"]["1"]["last"] <= found["versions"]["2"]["first"] + 0.5
    assert found["sent"] == found["failed"] + sum(item["answers"] for item in found["versions"].values())
    assert list(found["kinds"]) == ['503 {"error": "no predictor"}']
    assert Model.rows == {3}
    assert len(Model.seen) == 12, "each was kept alive"


def wait(done: Any) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            if done():
                return
        except (OSError, ValueError):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)

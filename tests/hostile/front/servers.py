"""kubeloop's servers as separate processes, with short time limits, and raw connections to them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SHORT = {"HEAD_S": 2.0, "BODY_S": 2.0, "IDLE_S": 2.5, "STALL_S": 1.0}
"""Time limits that are short enough to wait for in a test."""

SECOND = ("collector", "monitor", "trigger", "predictor", "transformer")
"""The servers with a second port for metrics."""

_LAUNCH = """
import json, resource, runpy, sys
limits, files, module = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
from kubeloop.serving import bounds
for name, value in limits.items():
    assert hasattr(bounds, name), name
    setattr(bounds, name, value)
sys.argv = sys.argv[3:]
if module.endswith(".py"):
    runpy.run_path(module, run_name="__main__")
else:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@dataclass
class Server:
    """A running server, and a request with a body that it answers."""

    name: str
    process: subprocess.Popen[str]
    url: str
    log: Path
    method: str = "POST"
    path: str = "/"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    status: int = 200
    probe: str = "/healthz"
    metrics: int | None = None
    """The second port of a server that has one."""

    def head(self, *more: str, drop: str = "") -> bytes:
        """Return the head of the request without content-length and without the blank line at its end."""
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {"host": "127.0.0.1", **self.headers}.items() if name != drop]
        return "".join(f"{line}\r\n" for line in [*lines, *more]).encode()

    def whole(self, *more: str) -> bytes:
        """Return the complete request."""
        return self.head(*more, f"content-length: {len(self.body)}") + b"\r\n" + self.body

    def connect(self, timeout: float = 15, port: int | None = None) -> socket.socket:
        host, _, own = self.url.removeprefix("http://").partition(":")
        return socket.create_connection((host, port or int(own)), timeout=timeout)

    def ask(self, *pieces: bytes | float, half: bool = False, port: int | None = None) -> bytes:
        """Send pieces over one connection and return everything that comes back until it closes.

        Args:
            pieces: what to send; a number is a pause in seconds.
            half: whether to close this side after sending.
            port: another port than the server's first.
        """
        with self.connect(port=port) as connection:
            for piece in pieces:
                if isinstance(piece, bytes):
                    with contextlib.suppress(ConnectionError):
                        connection.sendall(piece)
                else:
                    time.sleep(piece)
            if half:
                connection.shutdown(socket.SHUT_WR)
            return rest(connection)

    def alive(self) -> bool:
        """Return whether a probe succeeds. It should take no time, but may take a while on a busy machine."""
        begun = time.monotonic()
        answers = self.ask(f"GET {self.probe} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
        return status(answers) == 200 and time.monotonic() - begun < 5

    def resident(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def rest(connection: socket.socket) -> bytes:
    """Return everything that arrives until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def statuses(answers: bytes) -> list[int]:
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


def contents(answers: bytes) -> list[bytes]:
    return [content(part) for part in answers.split(b"HTTP/1.1 ")[1:]]


def content(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


@contextlib.contextmanager
def serve(
    name: str,
    module: str | Path,
    *flags: object,
    folder: Path,
    limits: dict[str, Any] | None = None,
    files: int = 0,
    token: Path | None = None,
    **request: Any,
) -> Iterator[Server]:
    """Run a module or a script as a server, with limits of the HTTP front and a limit of file descriptors.

    If the server makes a token, `token` is its file, and the request carries it.
    """
    if metrics := free_port() if name in SECOND else None:
        flags = (*flags, f"--metrics-port={metrics}")
    command = [sys.executable, "-c", _LAUNCH, json.dumps(SHORT if limits is None else limits), str(files), str(module)]
    log = folder / f"{name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "KUBELOOP_STATE": str(folder / "state")},
        )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("ready http://"), log.read_text()
        if token:
            request["headers"] = request["headers"] | {"authorization": f"Bearer {token.read_text()}"}
        yield Server(name, process, line.split()[1], log, metrics=metrics, **request)
    finally:
        process.kill()
        process.communicate(timeout=20)

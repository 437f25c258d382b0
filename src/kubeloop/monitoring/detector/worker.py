"""The detector worker: Alibi Detect's tests over loopback HTTP, run by file path in the detector environment.

    <detector environment>/bin/python -I worker.py --port 0
    <detector environment>/bin/python -I worker.py --port 8090 --idle-seconds 300     frees memory while idle
    <detector environment>/bin/python -I worker.py --check --port 8090     does one answer there? (an exec probe)

It does not import kubeloop, decides nothing and stores nothing: a client that gets 404 sends its reference again.
Arrays are sent as .npz (`numeric` [rows, Fn] float32 with NaN where missing, `categorical` [rows, Fc] int32, `score`
[rows] float32):

    PUT  /detectors/{key}         hold a reference
    POST /detectors/{key}/score   {"statistic": [...], "p_value": [...], "seconds": s}, in the order numeric,
                                  categorical, score; 0 and 1 where either side of a feature has no values
    GET  /healthz                 {"status": "ok", "detectors": [...]}

Alibi takes 120 MiB and NumPy 10, and a window of hours is judged in seconds. With --idle-seconds, both are imported at
the first request, and the process replaces itself with a new one after that many seconds without a request.
"""

import argparse
import hmac
import http.client
import importlib
import io
import json
import math
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_KEPT = 8
"""Most references that are held. The least recently used one is dropped first, and its client sends it again."""
_CHECK_S = 5.0
_ARRAYS = {"numeric": ("float32", (2,)), "categorical": ("int32", (2,)), "score": ("float32", (1, 2))}
"""Type, and allowed numbers of axes; `score` has a second axis if an answer has several numbers."""

Arrays: TypeAlias = "dict[str, npt.NDArray[np.generic]]"


class RefusedError(Exception):
    """A request that gets an error status."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def read(body: bytes, limit: int) -> Arrays:
    """Read the three arrays of an .npz body.

    Raises:
        RefusedError: the body is not such an archive, unpacks to more than `limit` bytes, or holds other arrays.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > limit:
                raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the arrays exceed {limit} bytes")
        with np.load(io.BytesIO(body), allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in _ARRAYS}
    except (ValueError, KeyError, EOFError, OSError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, f"the body is not an .npz of {', '.join(_ARRAYS)}: {error}"
        ) from error
    for name, (dtype, axes) in _ARRAYS.items():
        array = arrays[name]
        if array.dtype != dtype or array.ndim not in axes:
            found = f"{array.dtype} with {array.ndim} axes"
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{name} must be {dtype} with {axes[0]} axes, not {found}")
    return arrays


def columns(arrays: Arrays) -> "list[tuple[npt.NDArray[np.generic], bool]]":
    """Return each feature's present values [rows, 1] and whether it is categorical, in the protocol's order.

    Alibi does not accept NaN, and dropping whole rows would remove values of other features. So each feature is tested
    separately, on its present values. -1, missing or unseen, is a category like any other.
    """
    numeric = [(column, False) for column in arrays["numeric"].T]
    categorical = [(column, True) for column in arrays["categorical"].T]
    answers = arrays["score"].reshape(len(arrays["score"]), -1)
    every = [*numeric, *categorical, *((column, False) for column in answers.T)]
    return [(column[column == column].reshape(-1, 1), kind) for column, kind in every]


class Reference:
    """One fitted detector per feature."""

    def __init__(self, arrays: Arrays) -> None:
        # Not at the top of the file: a probe runs it every few seconds, and this import takes seconds too.
        from alibi_detect.cd import TabularDrift  # type: ignore[import-not-found]

        self.widths = _widths(arrays)
        # `score` is read, never `predict`: p_val and correction decide nothing here. The categories are those of
        # the reference's rows, since chi-square is undefined for one that neither side has; Alibi adds the window's.
        self.detectors = [
            TabularDrift(values, categories_per_feature={0: None} if kind else {}) if len(values) else None
            for values, kind in columns(arrays)
        ]

    def score(self, arrays: Arrays) -> dict[str, object]:
        """Test every feature. Alibi computes in float32, and applies Yates' correction to two categories.

        Raises:
            RefusedError: the window has other features than the reference.
        """
        widths = _widths(arrays)
        if widths != self.widths:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"the window has {widths} columns, the reference {self.widths}")
        started = time.perf_counter()
        results = []
        for detector, (values, _) in zip(self.detectors, columns(arrays), strict=True):
            if detector is None or not len(values):
                results.append((0.0, 1.0))
                continue
            p_value, statistic = detector.score(values)
            # SciPy has no p-value for one row against one, which proves nothing.
            results.append((float(statistic[0]), 1.0 if math.isnan(p_value[0]) else float(p_value[0])))
        return {
            "statistic": [statistic for statistic, _ in results],
            "p_value": [p_value for _, p_value in results],
            "seconds": time.perf_counter() - started,
        }


def _widths(arrays: Arrays) -> tuple[tuple[int, ...], ...]:
    return tuple(arrays[name].shape[1:] for name in _ARRAYS)


class Worker(ThreadingHTTPServer):
    """The server and the references it holds.

    Args:
        port: port of loopback; 0 takes a free one.
        limit: largest body in bytes.
        listener: descriptor of a listening socket, instead of a port.
        token: what a caller must send; empty if every program may call.
    """

    daemon_threads = True

    def __init__(self, port: int, limit: int, listener: int | None = None, token: str = "") -> None:
        super().__init__(("127.0.0.1", port), Handler, bind_and_activate=listener is None)
        if listener is not None:
            self.socket.close()
            self.socket = socket.socket(fileno=listener)
            self.server_name, self.server_port = self.socket.getsockname()
        self.limit = limit
        self.token = token
        self._references: OrderedDict[str, Reference] = OrderedDict()
        self._lock = threading.Lock()
        self._working = 0
        self._rests_since: float | None = None

    @contextmanager
    def work(self) -> Iterator[None]:
        """Record that a request for Alibi is in progress."""
        with self._lock:
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1
                self._rests_since = time.monotonic()

    def rests(self) -> float:
        """Return the seconds since the last request for Alibi; 0 while there is one, and before the first."""
        with self._lock:
            return 0.0 if self._working or self._rests_since is None else time.monotonic() - self._rests_since

    def keys(self) -> list[str]:
        """Return the keys held."""
        with self._lock:
            return list(self._references)

    def hold(self, key: str, reference: Reference) -> None:
        """Keep a reference; drop the least recently used one over the limit."""
        with self._lock:
            self._references[key] = reference
            self._references.move_to_end(key)
            while len(self._references) > _KEPT:
                self._references.popitem(last=False)

    def find(self, key: str) -> Reference:
        """Return a held reference.

        Raises:
            RefusedError: the key is unknown.
        """
        with self._lock:
            if key not in self._references:
                raise RefusedError(HTTPStatus.NOT_FOUND, f"no reference is held for {key!r}; PUT it first")
            self._references.move_to_end(key)
            return self._references[key]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True
    server: Worker

    def do_GET(self) -> None:
        """Answer /healthz."""
        if urlsplit(self.path).path == "/healthz":
            self._reply(HTTPStatus.OK, {"status": "ok", "detectors": self.server.keys()})
        else:
            self._reply(HTTPStatus.NOT_FOUND, {"error": "GET knows /healthz"})

    def do_PUT(self) -> None:
        """Hold a reference."""
        self._answer(scoring=False)

    def do_POST(self) -> None:
        """Score a window."""
        self._answer(scoring=True)

    def _answer(self, *, scoring: bool) -> None:
        try:
            self._work(scoring=scoring)
        except RefusedError as refused:
            self._reply(refused.status, {"error": str(refused)})

    def _work(self, *, scoring: bool) -> None:
        with self.server.work():
            self._admit()
            body = self._body()
            match urlsplit(self.path).path.split("/"):
                case ["", "detectors", key] if key and not scoring:
                    reference = Reference(read(body, self.server.limit))
                    self.server.hold(unquote(key), reference)
                    self._reply(HTTPStatus.OK, {"key": unquote(key)})
                case ["", "detectors", key, "score"] if key and scoring:
                    reference = self.server.find(unquote(key))
                    self._reply(HTTPStatus.OK, reference.score(read(body, self.server.limit)))
                case _:
                    raise RefusedError(HTTPStatus.NOT_FOUND, "PUT /detectors/{key} or POST /detectors/{key}/score")

    def _admit(self) -> None:
        given = self.headers.get("Authorization", "").encode()
        if self.server.token and not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            self.close_connection = True
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "the token of the user who started the worker is needed")

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length", [])
        # Reset once the whole body was read: the rest of a body would be read as the next request.
        keep, self.close_connection = self.close_connection, True
        if "Transfer-Encoding" in self.headers or len(lengths) != 1 or not re.fullmatch("[0-9]{1,18}", lengths[0]):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "send one Content-Length")
        if int(lengths[0]) > self.server.limit:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body exceeds {self.server.limit} bytes")
        body = self.rfile.read(int(lengths[0]))
        if len(body) < int(lengths[0]):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"the body ended after {len(body)} of {lengths[0]} bytes")
        self.close_connection = keep
        return body

    def _reply(self, status: HTTPStatus, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Log only refusals; one line for every window would hide them."""
        if len(args) > 1 and str(args[1]) >= "400":
            super().log_message(format, *args)


def check(port: int) -> str | None:
    """Ask the worker on a port for its health; return what is wrong, if anything."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_CHECK_S)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        return f"no detector worker answers on port {port}: {error!r}"
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        return f"the service on port {port} is not a detector worker: GET /healthz gave {response.status}"
    return None


def start_over(server: Worker) -> None:
    """Replace this process with a new one of the same id and socket; new connections wait meanwhile.

    Existing connections are closed, so their clients send a request again.
    """
    command = [sys.executable, *sys.orig_argv[1:]]
    if "--listener" in command:
        del command[command.index("--listener") :]
    os.set_inheritable(server.fileno(), True)
    os.execv(sys.executable, [*command, "--listener", str(server.fileno())])  # noqa: S606 - this very process


def main() -> None:
    """Serve until SIGTERM, SIGINT or, with --until-eof, the end of standard input; or check a worker."""
    parser = argparse.ArgumentParser(description="Alibi Detect's drift tests over loopback HTTP.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; it is printed")
    parser.add_argument("--max-body-mb", type=int, default=256, help="largest body, packed and unpacked")
    parser.add_argument(
        "--until-eof",
        action="store_true",
        help="stop when standard input closes, so that a child does not outlive its parent",
    )
    parser.add_argument(
        "--idle-seconds",
        type=float,
        help="import Alibi at the first request, and unload it after this long without one",
    )
    parser.add_argument(
        "--listener", type=int, help="descriptor of the listening socket, from this process before it restarted itself"
    )
    parser.add_argument(
        "--token-file", help="file with the token that a caller must send; if left out, anyone may call"
    )
    parser.add_argument("--check", action="store_true", help="check the worker on --port, and exit")
    options = parser.parse_args()
    if options.check:
        sys.exit(check(options.port))
    if options.idle_seconds is None:
        importlib.import_module("alibi_detect.cd")
    token = ""
    if options.token_file:
        token = pathlib.Path(options.token_file).read_text().strip()
    server = Worker(options.port, options.max_body_mb * 2**20, options.listener, token)
    ending = threading.Event()

    def stop(*_: object) -> None:
        ending.set()
        threading.Thread(target=server.shutdown).start()

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        stop()

    def rest() -> None:
        while server.rests() < options.idle_seconds:
            time.sleep(options.idle_seconds / 10)
        server.shutdown()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if options.until_eof:
        threading.Thread(target=watch, daemon=True).start()
    if options.idle_seconds is not None:
        threading.Thread(target=rest, daemon=True).start()
    if options.listener is None:
        print(f"ready http://127.0.0.1:{server.server_port}", flush=True)
    # The parent stops reading here, so what a library prints later goes to the log.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    server.serve_forever()
    if not ending.is_set():
        start_over(server)
    server.server_close()


if __name__ == "__main__":
    main()

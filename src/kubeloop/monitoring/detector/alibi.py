"""The Alibi Detect engine: the client of the worker, and the worker as a child process.

The client can recover from any failure of the worker: it keeps the references and sends one again if the worker does
not know it.
"""

import contextlib
import io
import select
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from kubeloop import access
from kubeloop.monitoring.detector.builtin import Baseline
from kubeloop.monitoring.detector.port import DetectorError, Score, UntestableError, Window
from kubeloop.tasks.reference import Reference

WORKER = Path(__file__).with_name("worker.py")
_ATTEMPTS = 3
_START_S = 120.0
_REQUEST_S = 120.0
"""Timeout of a request; the first one after an idle period waits until Alibi is imported."""
_STOP_S = 5.0


class WorkerProcess:
    """The worker as a child process that ends with this one. It is started at once and awaited at its first use."""

    def __init__(self, python: Path, log_dir: Path, token_file: Path | None = None) -> None:
        if not python.is_file():
            raise DetectorError(
                f"{python} does not exist; `kubeloop doctor` says how to make the detector environment; or point "
                "KUBELOOP_DETECTOR_PYTHON at it, or set drift.engine to builtin"
            )
        log_dir.mkdir(parents=True, exist_ok=True)
        self._python = python
        self._token_file = token_file
        self.log = log_dir / "detector.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._start()

    @property
    def login(self) -> dict[str, str]:
        """The header that the worker requires."""
        return access.header(self._token_file) if self._token_file else {}

    @property
    def pid(self) -> int | None:
        """The worker's process id; None if it does not run."""
        return self._process.pid if self._process else None

    def url(self) -> str:
        """Return the worker's address, starting it first if it has died.

        Raises:
            DetectorError: it ends while starting, or takes too long.
        """
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        if not self._url:
            self._url = self._await(process)
        return self._url

    def stop(self) -> None:
        """End the worker; a later `url` starts a new one."""
        process, self._process, self._url = self._process, None, ""
        if process is None:
            return
        # A closed standard input asks the worker to end; one that hangs is killed.
        with process, contextlib.suppress(BrokenPipeError):
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        self.stop()
        flags = ["--token-file", str(self._token_file)] if self._token_file else []
        with self.log.open("ab") as log:
            # -I: Python must not search PYTHONPATH or this folder, where alibi.py would hide the package of that name.
            self._process = subprocess.Popen(
                [self._python, "-I", WORKER, "--port", "0", "--until-eof", *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        return self._process

    def _await(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None  # noqa: S101
        deadline = time.monotonic() + _START_S
        while select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            line = process.stdout.readline()
            if line.startswith(b"ready "):
                return line.split()[1].decode()
            if not line:
                self.stop()
                raise DetectorError(f"the detector worker ended while starting; see {self.log}")
        self.stop()
        raise DetectorError(f"the detector worker was not ready after {_START_S:g} s; see {self.log}")


class AlibiDetector:
    """The port on Alibi Detect, over HTTP.

    Args:
        worker: the child process to use, or the address of a worker that something else keeps running.
    """

    def __init__(self, worker: WorkerProcess | str) -> None:
        self._worker = worker
        login = worker.login if isinstance(worker, WorkerProcess) else {}
        self._client = httpx.Client(timeout=_REQUEST_S, trust_env=False, headers=login)
        self._baselines: dict[str, Baseline] = {}
        self._bodies: dict[str, bytes] = {}
        self.seconds = 0.0
        """Time that the worker spent in Alibi for the last window."""

    def fit(self, key: str, reference: Reference) -> None:
        """Send a reference to the worker; a known key does not change.

        Raises:
            UntestableError: the worker refuses the reference.
            DetectorError: it cannot be reached.
        """
        if key in self._baselines:
            return
        body = _pack(reference.numeric, reference.categorical, reference.score)
        self._send(key, body)
        self._bodies[key] = body
        self._baselines[key] = Baseline(reference)

    def score(self, key: str, window: Window) -> list[Score]:
        """Score a window, sending the reference again if the worker has lost it.

        Raises:
            UntestableError: the window has other features, or the worker refuses it.
            DetectorError: the key was never fitted, or the worker cannot be reached.
        """
        if key not in self._baselines:
            raise DetectorError(f"no reference was fitted for {key!r}; call fit first")
        baseline = self._baselines[key]
        sample = baseline.read(window)
        body = _pack(window.numeric, window.categorical, window.score)
        for _ in range(_ATTEMPTS):
            response = self._call("POST", f"{_path(key)}/score", body)
            if response.status_code != httpx.codes.NOT_FOUND:
                answer = _checked(response).json()
                self.seconds = float(answer["seconds"])
                return baseline.scores(sample, list(zip(answer["statistic"], answer["p_value"], strict=True)))
            self._send(key, self._bodies[key])
        raise DetectorError(f"the detector worker keeps losing its reference{self._log()}")

    def close(self) -> None:
        """Close the connection and end the child process."""
        self._client.close()
        if isinstance(self._worker, WorkerProcess):
            self._worker.stop()

    def _send(self, key: str, body: bytes) -> None:
        _checked(self._call("PUT", _path(key), body))

    def _call(self, method: str, path: str, body: bytes) -> httpx.Response:
        """Send a request; both are safe to repeat, so a broken connection is tried again with a new worker."""
        for attempt in range(1, _ATTEMPTS + 1):
            url = self._worker.url() if isinstance(self._worker, WorkerProcess) else self._worker
            try:
                return self._client.request(method, url + path, content=body)
            except httpx.TransportError as error:
                if isinstance(self._worker, WorkerProcess):
                    self._worker.stop()
                if attempt == _ATTEMPTS or isinstance(error, httpx.TimeoutException):
                    raise DetectorError(
                        f"the detector worker at {url} does not answer ({error}); check that it runs and that the "
                        f"window is of a usual size{self._log()}"
                    ) from error
        raise AssertionError("unreachable")

    def _log(self) -> str:
        return f"; see {self._worker.log}" if isinstance(self._worker, WorkerProcess) else ""


def _path(key: str) -> str:
    return f"/detectors/{quote(key, safe='')}"


def _pack(
    numeric: npt.NDArray[np.float32], categorical: npt.NDArray[np.int32], score: npt.NDArray[np.float32]
) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, numeric=numeric, categorical=categorical, score=score)
    return buffer.getvalue()


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        # The same bytes get the same refusal. Only 404 asks for the reference again, or comes from another program.
        final = response.is_client_error and response.status_code != httpx.codes.NOT_FOUND
        error = UntestableError if final else DetectorError
        raise error(f"the detector worker refused with {response.status_code}: {response.text}")
    return response

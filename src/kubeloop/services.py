"""The services of one machine: start them as processes, know their addresses, end them together."""

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Self

from kubeloop.config import QUIET, Loop, Settings
from kubeloop.delivery.processes import die_with_parent
from kubeloop.errors import KubeloopError

READY_S = 60.0
STOP_S = 20.0


class ServiceError(KubeloopError):
    """A service is not up or does not come up; the message says what to do."""

    lasting = False


def address(settings: Settings, name: str) -> str:
    """Return the base URL of a service that is up.

    Raises:
        ServiceError: no such service is up.
    """
    if known := {"collector": settings.collector_url, "monitor": settings.monitor_url}.get(name):
        return known
    try:
        return str(json.loads(settings.services_file.read_text())[name]["url"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServiceError(f"no {name} is up; start the services with `kubeloop serve`") from error


@dataclass
class _Service:
    process: subprocess.Popen[str]
    url: str
    log: Path


class Services:
    """Starts services one by one and ends them in the opposite order, also when the program is interrupted.

    A second `Services` on the same state folder is refused, since two of them would write the same files.
    """

    def __init__(self, loop: Loop, settings: Settings, environment: Mapping[str, str]) -> None:
        self._loop = loop
        self._settings = settings
        self._environment = {**environment, **settings.environ(), **QUIET, "PYTHONUNBUFFERED": "1"}
        self._running: dict[str, _Service] = {}
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self._settings.logs.mkdir(parents=True, exist_ok=True)
        self._lock = (self._settings.state / "services.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceError(
                f"another kubeloop uses {self._settings.state}; end it first, or set KUBELOOP_STATE to another folder"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        with _uninterrupted():
            # The collector started first and ends last: the node still sends it what waits in its queue.
            names = list(self._running)
            self._stop(names[1:])
            self._stop(names[:1])
            self._settings.services_file.unlink(missing_ok=True)
            if self._lock:
                self._lock.close()

    def _stop(self, names: Sequence[str]) -> None:
        ending = [self._running.pop(name) for name in names]
        for service in ending:
            service.process.terminate()
        deadline = time.monotonic() + STOP_S
        for service in ending:
            try:
                service.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                service.process.kill()
                service.process.wait()

    def start_all(self, origin: str) -> None:
        """Start collector, node, trigger and monitor; return once each answers.

        Args:
            origin: ISO 8601 moment that the monitor's windows are aligned to.
        """
        loop_file, state = str(self._settings.loop_file), str(self._settings.state)
        self.start("collector", ["kubeloop.monitoring.collector", "--dir", str(self._settings.payloads)])
        limits = self._loop.serving
        self.start(
            "node",
            [
                "kubeloop.delivery.node",
                *("--state", state, "--log-queue", str(limits.log_queue)),
                *("--max-body-bytes", str(limits.max_body_bytes)),
            ],
        )
        self.start("trigger", ["kubeloop.trigger_server", "--loop", loop_file])
        urls = {name: service.url for name, service in self._running.items()}
        self.start(
            "monitor",
            [
                "kubeloop.monitoring.monitor",
                *("--loop", loop_file, "--replay", "--origin", origin),
                *("--node-url", urls["node"], "--collector-url", urls["collector"], "--trigger-url", urls["trigger"]),
            ],
        )

    def start(self, name: str, arguments: Sequence[str]) -> str:
        """Start one module as a service on a free port and return its URL once it is ready.

        Raises:
            ServiceError: it ended or did not get ready; the message quotes the end of its log.
        """
        log = self._settings.logs / f"{name}.log"
        module, *flags = arguments
        command = [str(self._settings.runtime_python), "-m", module, *flags, "--port", "0"]
        try:
            with log.open("a") as errors:
                process = subprocess.Popen(
                    command,
                    env=self._environment,
                    cwd=self._settings.home,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    # A terminal's Ctrl-C reaches this program alone, which then ends the services in order.
                    start_new_session=True,
                    preexec_fn=partial(die_with_parent, os.getpid()),
                )
        except OSError as error:
            raise ServiceError(f"cannot start the {name} ({error}); run `kubeloop doctor`") from error
        url = _ready(process)
        if not url:
            process.kill()
            process.wait()
            raise ServiceError(f"the {name} did not start:\n{_tail(log)}\nThe whole log is {log}")
        self._running[name] = _Service(process, url, log)
        self._publish()
        return url

    def check(self) -> None:
        """Raise a ServiceError when a service has ended by itself."""
        for name, service in self._running.items():
            code = service.process.poll()
            if code is not None:
                raise ServiceError(
                    f"the {name} ended with code {code}:\n{_tail(service.log)}\nThe log is {service.log}"
                )

    def url(self, name: str) -> str:
        """Return the base URL of a service started here."""
        return self._running[name].url

    def _publish(self) -> None:
        content = {name: {"url": item.url, "pid": item.process.pid} for name, item in self._running.items()}
        part = self._settings.services_file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=2))
        part.replace(self._settings.services_file)


def _ready(process: subprocess.Popen[str]) -> str:
    """Return the URL of the line `ready URL`, or an empty text when the process ends or takes too long."""
    found: list[str] = []

    def read() -> None:
        for line in process.stdout or ():
            if line.startswith("ready ") and not found:
                found.append(line.split()[1])

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    deadline = time.monotonic() + READY_S
    while not found and process.poll() is None and time.monotonic() < deadline:
        reader.join(0.02)
    return found[0] if found else ""


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C wait until the services have ended in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

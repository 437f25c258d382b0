"""The services of one machine: start them as processes, record their addresses, and end them together."""

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

import httpx

from kubeloop import access
from kubeloop.addresses import ServiceError
from kubeloop.config import QUIET, Loop, Settings
from kubeloop.errors import LASTING, PASSING
from kubeloop.node.processes import die_with_parent
from kubeloop.stores import kept, whole

READY_S = 60.0
STOP_S = 40.0
"""Time for one service to end. The node takes the longest: open requests, its queue, then its programs one by one."""
_STEP_S = 0.02
_ASK_S = 30.0
_TAIL_LINES = 15
_LAST = ("node", "collector")
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _silent(_text: str) -> None:
    """Say nothing."""


@dataclass
class _Service:
    process: subprocess.Popen[str]
    url: str
    log: Path
    said: int
    """Size of the log before the service started."""


class Services:
    """Starts services one by one and ends them in order, even if the program is interrupted or told to end.

    SIGTERM and SIGHUP (a closed terminal) act like Ctrl-C: they raise KeyboardInterrupt, then each service drains. A
    second signal ends all services at once. A second `Services` on the same state folder is refused, since both would
    write the same files.

    Args:
        loop: the use case.
        settings: the place.
        environment: variables for the services, besides the settings.
        say: called with a sentence when the services drain.
    """

    def __init__(
        self, loop: Loop, settings: Settings, environment: Mapping[str, str], say: Callable[[str], None] = _silent
    ) -> None:
        self._loop = loop
        self._say = say
        self._signals = _Signals()
        self._settings = settings
        # Once this process has imported Feast, every service would keep its metrics in files of one folder.
        own = {name: value for name, value in environment.items() if not name.startswith("PROMETHEUS_MULTIPROC")}
        self._environment = {**own, **settings.environ(), **QUIET, "PYTHONUNBUFFERED": "1"}
        self._running: dict[str, _Service] = {}
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            access.private(self._settings.state)
        except access.AccessError as error:
            raise ServiceError(str(error)) from error
        self._settings.logs.mkdir(parents=True, exist_ok=True)
        self._lock = (self._settings.state / "services.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceError(
                f"another kubeloop uses {self._settings.state}; end it first, or set KUBELOOP_STATE to another folder"
            ) from error
        self._token = access.make(self._settings.token_file)
        self._signals.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._signals.hold()
        try:
            if kind is KeyboardInterrupt and self._running:
                # A closed terminal accepts no text.
                with contextlib.suppress(OSError):
                    self._say(
                        "Draining: open requests are answered and logged. Press Ctrl-C again to end everything at once."
                    )
            # Clients end before their servers: a run may call the node, and the node's queue goes to the collector.
            last = [name for name in _LAST if name in self._running]
            for names in ([name for name in self._running if name not in last], *([name] for name in last)):
                self._stop(names)
            self._settings.services_file.unlink(missing_ok=True)
            self._settings.token_file.unlink(missing_ok=True)
            if self._lock:
                self._lock.close()
        finally:
            self._signals.give_back()

    def _stop(self, names: Sequence[str]) -> None:
        ending = [self._running.pop(name).process for name in names]
        for process in ending:
            process.terminate()
        deadline = time.monotonic() + STOP_S
        while any(process.poll() is None for process in ending):
            if self._signals.again or time.monotonic() > deadline:
                for process in ending:
                    process.kill()
            time.sleep(_STEP_S)

    @property
    def login(self) -> dict[str, str]:
        """The header that a service requires for changes."""
        return access.bearer(self._token)

    def post(self, name: str, path: str, json: Any = None) -> None:
        """Send a command to a service that was started here.

        Raises:
            ServiceError: it does not answer, or refuses.
        """
        try:
            # A proxy from the environment must not see the token.
            httpx.post(
                f"{self.url(name)}{path}", json=json, headers=self.login, timeout=_ASK_S, trust_env=False
            ).raise_for_status()
        except httpx.HTTPError as error:
            raise ServiceError(
                f"the {name} did not carry out a request ({error}); its log is in the logs folder"
            ) from error

    def start_all(self, origin: str) -> None:
        """Start collector, node, trigger and monitor; return once each answers.

        Args:
            origin: ISO 8601 moment that the monitor's windows are aligned to.
        """
        loop_file, state = str(self._settings.loop_file), str(self._settings.state)
        self.start("collector", ["kubeloop.payloads.collector", "--dir", str(self._settings.payloads)])
        limits = self._loop.serving
        self.start(
            "node",
            [
                "kubeloop.node.server",
                *("--state", state, "--log-queue", str(limits.log_queue)),
                *("--max-body-bytes", str(limits.max_body_bytes)),
                *("--collector-url", self.url("collector")),
            ],
        )
        self.start("trigger", ["kubeloop.trigger.server", "--loop", loop_file])
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
            ServiceError: it ended or did not become ready; the message quotes the end of its log.
        """
        log = self._settings.logs / f"{name}.log"
        module, *flags = arguments
        command = [str(self._settings.runtime_python), "-m", module, *flags, "--port", "0"]
        command += ["--token-file", str(self._settings.token_file)]
        command += [f"--allow-host={name.strip()}" for name in self._settings.hosts.split(",") if name.strip()]
        try:
            with log.open("a") as errors:
                said = errors.tell()
                process = subprocess.Popen(
                    command,
                    env=self._environment,
                    cwd=self._settings.home,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    # A terminal's Ctrl-C must reach only this program, which then ends the services in order.
                    start_new_session=True,
                    preexec_fn=partial(die_with_parent, os.getpid()),
                )
        except OSError as error:
            raise ServiceError(f"cannot start the {name} ({error}); run `kubeloop doctor`") from error
        url = ""
        try:
            url = _ready(process)
        finally:
            if not url:
                process.kill()
                process.wait()
        if not url:
            raise _ended(name, "did not start", process.returncode, log, said)
        self._running[name] = _Service(process, url, log, said)
        self._publish()
        return url

    def check(self) -> None:
        """Raise a ServiceError if a service has ended by itself."""
        for name, service in self._running.items():
            code = service.process.poll()
            if code is not None:
                raise _ended(name, f"ended with code {code}", code, service.log, service.said)

    def url(self, name: str) -> str:
        """Return the base URL of a service that was started here."""
        return self._running[name].url

    def _publish(self) -> None:
        state = str(self._settings.state)
        content = {
            name: {"url": item.url, "pid": item.process.pid, "state": state} for name, item in self._running.items()
        }
        whole.write(self._settings.services_file, kept.dumps(content))


def _ready(process: subprocess.Popen[str]) -> str:
    """Return the URL of the line `ready URL`, or an empty text if the process ends or takes too long."""
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


def _ended(name: str, how: str, code: int, log: Path, said: int) -> ServiceError:
    """Return the error of a service that ended; its exit code says whether its last line is our own message."""
    lines = log.read_bytes()[said:].decode(errors="replace").splitlines()
    if lines and code in (LASTING, PASSING):
        error = ServiceError(f"the {name} {how}: {lines[-1]}")
        error.lasting = code == LASTING
        return error
    tail = "\n".join(lines[-_TAIL_LINES:])
    return ServiceError(f"the {name} {how}:\n{tail}\nThe whole log is {log}")


class _Signals:
    """What the ending signals do while a program has services; only the main thread receives them."""

    def __init__(self) -> None:
        self.again = False
        """Whether a signal arrived while the services were ending."""
        self._before: dict[signal.Signals, Any] = {}

    def take(self) -> None:
        """Make them raise KeyboardInterrupt; a signal that was ignored at the start, as with nohup, stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._before = {number: signal.getsignal(number) for number in _ENDING}
        for number in (signal.SIGTERM, signal.SIGHUP):
            if self._before[number] is not signal.SIG_IGN:
                signal.signal(number, _interrupt)

    def hold(self) -> None:
        """From now on, only record them."""
        for number, before in self._before.items():
            if before is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def give_back(self) -> None:
        """Restore their earlier handlers."""
        for number, before in self._before.items():
            # None means that the handler is not Python's.
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.again = True


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does at this moment: asyncio cancels its main task."""
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(number, frame)
    else:
        raise KeyboardInterrupt

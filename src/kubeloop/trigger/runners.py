"""Run pipelines: the interface that the trigger ledger uses, and the runner of one machine."""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from kubeloop import errors, moments, paths
from kubeloop.config import QUIET, Settings, duration_text
from kubeloop.stores import kept, whole


class Parameters(TypedDict):
    """What a runner needs to know about a run."""

    attempt: int
    as_of: str
    reason: str


@dataclass(frozen=True)
class RunState:
    """What a runner knows about the newest attempt of a run."""

    status: Literal["running", "succeeded", "failed", "interrupted"]
    attempt: int
    result: dict[str, Any] | None = None
    error: str | None = None
    lasting: bool = False
    """Whether another attempt would fail in the same way."""


class Runner(Protocol):
    """Starts pipeline runs and finds them again by name.

    Both methods raise OSError (for example TimeoutError or ConnectionError) if there is no answer. The run may or may
    not have started then; `find` shows it.
    """

    def find(self, run_name: str) -> RunState | None:
        """Return the state of the run's newest attempt; None if it was never started."""

    def start(self, run_name: str, parameters: Parameters) -> RunState:
        """Start an attempt, at most once.

        If the run is active, has succeeded, or has had this attempt or a later one, nothing starts, and its current
        state is returned.
        """


class LocalRunner:
    """Runs each pipeline as a process of this machine that outlives the caller.

    A run has the folder `settings.runs/<name>`: `run.json` (the pipeline's own report), `attempt.json` (number and
    process id), `log.txt`, and `alive`, a file that the pipeline process holds locked for as long as it lives. The
    kernel releases that lock when the process ends in any way. So a dead run can be distinguished from a live one
    without a process id, which another process may have by then.
    """

    def __init__(
        self,
        settings: Settings,
        loop_file: Path,
        environment: Mapping[str, str],
        deadline: timedelta = timedelta(hours=12),
    ) -> None:
        """Drive the runs of one installation.

        Args:
            settings: the place.
            loop_file: the use case.
            environment: variables of the pipelines, besides the settings.
            deadline: a run that takes longer is ended, since a pipeline that hangs would block every later one.
        """
        self._deadline = deadline
        self._settings = settings
        self._loop_file = loop_file
        self._environment = {**environment, **settings.environ(), **QUIET}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._followed: set[str] = set()

    def find(self, run_name: str) -> RunState | None:
        """Return the state of the run's newest attempt; a process that died without a report has failed."""
        with self._exclusive():
            state = self._state(run_name)
            if state and state.status == "running" and self._overdue(run_name):
                _signal(self._group(run_name), signal.SIGKILL)
                error = f"took longer than {duration_text(self._deadline)} (pipelines.deadline) and was ended"
                _write(self._folder(run_name) / "run.json", _report(run_name, "failed", error))
                return RunState("failed", state.attempt, error=error)
            return state

    def _overdue(self, name: str) -> bool:
        started = kept.loads(self._folder(name) / "attempt.json").get("started_at")
        return started is not None and datetime.now(UTC) - moments.read(started) > self._deadline

    def start(self, run_name: str, parameters: Parameters) -> RunState:
        """Start an attempt in a separate process group; see `Runner.start`."""
        attempt = parameters["attempt"]
        with self._exclusive():
            state = self._state(run_name)
            if state and (state.status in ("running", "succeeded") or state.attempt >= attempt):
                return state
            folder = self._folder(run_name)
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "run.json", _report(run_name, "starting"))
            _write(folder / "attempt.json", {"attempt": attempt, "pid": None})
            try:
                child = self._spawn(run_name, parameters)
            except OSError as error:
                advice = f"cannot start the pipeline ({error}); KUBELOOP_CORE_PYTHON must name the core interpreter"
                _write(folder / "run.json", _report(run_name, "failed", advice))
                return RunState("failed", attempt, error=advice)
            _write(folder / "attempt.json", {"attempt": attempt, "pid": child.pid, "started_at": _now()})
            self._children[run_name] = child
            self._followed.add(run_name)
            return RunState("running", attempt)

    def stop(self, grace_s: float = 10.0) -> list[str]:
        """End the runs that this runner started or found alive, and mark them interrupted.

        Each process group gets SIGTERM, and SIGKILL after `grace_s` seconds. Returns the names that were ended.
        """
        with self._exclusive():
            groups = {name: self._group(name) for name in sorted(self._followed) if self._alive(name)}
        for group in groups.values():
            _signal(group, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and any(map(self._alive, groups)):
            time.sleep(0.02)
        for name, group in groups.items():
            # Steps that outlived their pipeline are ended as well, since they would write into the next attempt.
            _signal(group, signal.SIGKILL)
            with self._exclusive():
                state = self._state(name)
                if state and state.status == "failed":
                    _write(self._folder(name) / "run.json", _report(name, "interrupted", "the trigger was stopped"))
        return list(groups)

    def _state(self, name: str) -> RunState | None:
        folder = self._folder(name)
        attempt_file = folder / "attempt.json"
        if not attempt_file.is_file():
            return None
        attempt = int(kept.loads(attempt_file)["attempt"])
        if self._alive(name):
            self._followed.add(name)
            return RunState("running", attempt)
        self._followed.discard(name)
        child = self._children.get(name)
        if child:
            child.wait()
        try:
            report = kept.loads(folder / "run.json")
        except ValueError as error:
            return RunState("failed", attempt, error=str(error))
        match report.get("status"):
            case "succeeded" | "interrupted" | "failed" as status:
                lasting = bool(report.get("lasting"))
                return RunState(status, attempt, report.get("result"), report.get("error"), lasting)
            case _:
                # It ended before it could report: its arguments are wrong, or it was killed.
                lasting = child is not None and child.returncode == errors.LASTING
                died = f"process died; the end of {folder / 'log.txt'} may say why"
                return RunState("failed", attempt, error=died, lasting=lasting)

    def _spawn(self, name: str, parameters: Parameters) -> subprocess.Popen[bytes]:
        folder = self._folder(name)
        command = [str(self._settings.core_python), "-m", "pipelines", "run", "training"]
        command += ["--run-name", name, "--as-of", parameters["as_of"]]
        # One word, since a reason that begins with a dash would be read as an option.
        command += [f"--reason={parameters['reason']}"]
        command += ["--loop", str(self._loop_file), "--state", str(self._settings.state)]
        with (folder / "alive").open("ab") as alive, (folder / "log.txt").open("ab") as log:
            fcntl.flock(alive, fcntl.LOCK_EX)
            log.write(f"--- {datetime.now(UTC).isoformat()} attempt {parameters['attempt']}\n".encode())
            log.flush()
            return subprocess.Popen(
                command,
                cwd=self._settings.home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(alive.fileno(),),
            )

    def _alive(self, name: str) -> bool:
        try:
            with (self._folder(name) / "alive").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _group(self, name: str) -> int | None:
        """Return the process group of a live run; if its starter was killed, the pipeline's own report has it."""
        folder = self._folder(name)
        pid = kept.loads(folder / "attempt.json")["pid"] or kept.loads(folder / "run.json").get("pid")
        return int(pid) if pid else None

    def _folder(self, name: str) -> Path:
        return paths.inside(self._settings.runs, name, what="the run")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Exclude every other runner on this state folder, in this process and in others."""
        self._settings.runs.mkdir(parents=True, exist_ok=True)
        with (self._settings.runs / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _report(name: str, status: str, error: str | None = None) -> dict[str, Any]:
    """Return the content of a run.json that the pipeline itself did not write."""
    now = _now()
    finished = None if status == "starting" else now
    return {
        "name": name,
        "status": status,
        "pid": None,
        "started_at": now,
        "finished_at": finished,
        "result": None,
        "error": error,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _signal(group: int | None, number: signal.Signals) -> None:
    if group is None:
        return
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _write(path: Path, content: dict[str, Any]) -> None:
    whole.write(path, kept.dumps(content))

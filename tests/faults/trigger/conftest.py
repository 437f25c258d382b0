import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop.config import QUIET, Settings

LOOP = """
name: flights
source: {tables: {flights: {available_at: seen_at, path: flights.parquet}}}
features: {service: flights_v1}
"""


class Home:
    """A folder with a loop.yaml and a stand-in for the pipelines, which Python imports before the real ones."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.loop_file = folder / "loop.yaml"
        self.loop_file.write_text(LOOP)
        shutil.copytree(Path(__file__).parent / "stand_in" / "pipelines", folder / "pipelines")
        self.settings = Settings(
            home=folder,
            state=folder / ".kubeloop",
            mlflow_uri="sqlite:///mlflow.db",
            core_python=Path(sys.executable),
            runtime_python=Path(sys.executable),
            detector_python=Path(sys.executable),
            **settings,
        )
        self.gate = folder / "gate"
        self.behave("promote")

    def behave(self, end: str, *, wait: bool = False) -> None:
        """Set how the pipelines end, and whether they first wait for `gate` to appear."""
        behaviour = {"end": end, **({"wait_for": str(self.gate)} if wait else {})}
        part = self.folder / "behaviour.part"
        part.write_text(json.dumps(behaviour))
        part.replace(self.folder / "behaviour.json")

    def starts(self) -> list[dict[str, Any]]:
        file = self.folder / "starts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def report(self, name: str) -> dict[str, Any]:
        return json.loads((self.settings.runs / name / "run.json").read_text())


class Trigger:
    """A trigger server in its own process."""

    def __init__(self, home: Home, *flags: str) -> None:
        command = [sys.executable, "-m", "kubeloop.trigger.server", "--port", "0", "--loop", str(home.loop_file)]
        command += ["--poll-seconds", "0.05", "--lease-seconds", "0.6", "--backoff-seconds", "0.1", *flags]
        self.log = (home.folder / "trigger.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=home.folder, env={**home.settings.environ(), **QUIET}, stdout=subprocess.PIPE, stderr=self.log
        )
        assert self.process.stdout
        line = self.process.stdout.readline().decode()
        assert line.startswith("ready http://127.0.0.1:"), (home.folder / "trigger.log").read_text()
        self.url = line.split()[1]
        self.client = httpx.Client(base_url=self.url)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        self.client.close()
        assert self.process.stdout
        self.process.stdout.close()
        self.log.close()
        return code

    def post(self, event: dict[str, Any]) -> httpx.Response:
        headers = {"content-type": "application/cloudevents+json"}
        return self.client.post("/events", content=json.dumps(event), headers=headers)

    def status(self) -> dict[str, Any]:
        return self.client.get("/status").raise_for_status().json()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """An installation with its ledger on SQLite."""
    home = Home(tmp_path)
    yield home
    _end(home)


@pytest.fixture
def home_on_postgres(tmp_path: Path, postgres: str) -> Iterator[Home]:
    """An installation with its ledger on PostgreSQL."""
    home = Home(tmp_path, ledger_db=postgres)
    yield home
    _end(home)


def _end(home: Home) -> None:
    for start in home.starts():
        if _command_line(start["pid"]).find(start["run_name"]) >= 0:
            os.kill(start["pid"], signal.SIGKILL)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[..., Trigger]]:
    started: list[Trigger] = []
    kind = "home_on_postgres" if "home_on_postgres" in request.fixturenames else "home"

    def start(*flags: str) -> Trigger:
        started.append(Trigger(request.getfixturevalue(kind), *flags))
        return started[-1]

    yield start
    for trigger in started:
        if trigger.process.poll() is None:
            trigger.kill()


@pytest.fixture
def event() -> Callable[..., dict[str, Any]]:
    def make(day: int = 1, **changes: Any) -> dict[str, Any]:
        moment = f"2013-07-{day:02}T00:00:00+00:00"
        episode = f"flights-{moment}"
        data = {
            "service": "flights",
            "episode": episode,
            "opened_at": moment,
            "as_of": moment,
            "kind": "drift",
            "features": ["dep_delay"],
            "reason": "--dep_delay: D = 0.31 'over' 0.2",
        }
        return {
            "specversion": "1.0",
            "id": episode,
            "subject": episode,
            "source": "/kubeloop/monitor",
            "type": "io.kubeloop.drift",
            "data": {**data, **changes},
        }

    return make


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition returns something true, and return it."""

    def wait(condition: Callable[[], Any], *, seconds: float = 15) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "the condition stayed false"
            time.sleep(0.02)
        return found

    return wait

"""A real collector process, and events to send to it."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop.payloads import segments


class Running:
    """One collector process."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.directory = directory
        command = [
            sys.executable,
            "-m",
            "kubeloop.payloads.collector",
            "--dir",
            str(directory),
            "--port",
            "0",
            *flags,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready http://127.0.0.1:"), self.process.communicate(timeout=10)
        self.url = line.split()[1]
        self.client = httpx.Client(base_url=self.url, timeout=15)

    def post(self, event: int | str, body: bytes = b"{}", **headers: str) -> httpx.Response:
        named = {f"ce-{name}": value for name, value in headers.items()}
        return self.client.post("/", content=body, headers=self.headers(str(event)) | named)

    def flush(self) -> int:
        answer = self.client.post("/flush")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["last_seq"])

    def status(self) -> dict[str, Any]:
        return dict(self.client.get("/status").json())

    def ids(self) -> list[str]:
        """Flush, and return the ids in the log."""
        self.flush()
        table, last = segments.read(self.directory)
        assert table["seq"].to_pylist() == list(range(1, last + 1))
        return list(table["id"].to_pylist())

    @staticmethod
    def wait_for(condition: Callable[[], bool]) -> None:
        for _ in range(200):
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError("it did not happen within ten seconds")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.client.close()

    def stop(self) -> tuple[int, str]:
        """Stop it; return the exit status and its log."""
        self.client.close()
        self.process.terminate()
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log

    @staticmethod
    def headers(event: str) -> dict[str, str]:
        return {
            "ce-specversion": "1.0",
            "ce-id": event,
            "ce-source": "test",
            "ce-type": "org.kubeflow.serving.inference.request",
            "ce-inferenceservicename": "flights",
        }


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a collector with some flags on the test's folder; at the end, kill it if it still runs."""
    started: list[Running] = []

    def begin(*flags: str) -> Running:
        started.append(Running(tmp_path / "log", *flags))
        return started[-1]

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.kill()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One collector for all tests of a module that only look at answers."""
    collector = Running(tmp_path_factory.mktemp("log"), "--max-body-bytes", "50000")
    yield collector
    collector.kill()

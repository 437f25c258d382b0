"""A run whose process group is killed in the middle of each step, once resumed, ends like an undisturbed run."""

import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop.config import Loop, Settings
from kubeloop.models import registry
from kubeloop.stores import kept
from kubeloop.tasks.tabular import model_folder

_STARTED = re.compile(r"Executing task \S*'([\w-]+)'")
_LIMIT_S = 120.0

pytestmark = pytest.mark.timeout(600)


def _output(settings: Settings, step: str) -> Callable[[], bool]:
    """Return whether the step of the newest attempt has begun to write."""

    def written() -> bool:
        attempts = sorted((settings.state / "pipeline").glob("*"))
        return bool(attempts) and any(path.is_file() for path in (attempts[-1] / step).rglob("*"))

    return written


def _registered(settings: Settings) -> Callable[[], bool]:
    """Return whether a model version is in the registry; its alias is set later."""

    def registered() -> bool:
        with sqlite3.connect(f"file:{settings.state / 'mlflow.db'}?mode=ro", uri=True, timeout=10) as db:
            (count,) = db.execute("SELECT count(*) FROM model_versions").fetchone()
        return bool(count)

    return registered


def _applied(settings: Settings, node: str) -> Callable[[], bool]:
    """Return whether the node got the manifest; the alias moves only once the model serves."""

    def applied() -> bool:
        path = "/apis/serving.kserve.io/v1beta1/inferenceservices"
        return bool(httpx.get(f"{node}{path}", trust_env=False).json()["items"])

    return applied


def _kill(installation: Any, as_of: datetime, step: str, moment: Callable[[], bool]) -> None:
    """Start the run, wait until a step has started and a condition holds, and kill the process group."""
    log = installation.log("first")
    length = log.stat().st_size if log.is_file() else 0
    process = installation.start("first", as_of)
    deadline = time.monotonic() + _LIMIT_S
    try:
        while step not in _started(log, length) or not moment():
            assert time.monotonic() < deadline, f"{step} did not come to the moment"
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert installation.report("first")["status"] == "running", "no process could record how the run ended"


def _started(log: Path, offset: int = 0) -> list[str]:
    with log.open("rb") as file:
        file.seek(offset)
        return _STARTED.findall(file.read().decode(errors="replace"))


def test_a_run_that_was_killed_in_every_step_ends_as_an_undisturbed_one(
    install: Callable[[str], Any], undisturbed: Any, loop: Loop, as_of: datetime
) -> None:
    installation = install("killed")
    settings: Settings = installation.settings
    moments: list[tuple[str, Callable[[], bool]]] = [
        ("begin-run", lambda: True),
        ("extract-data", _output(settings, "extract-data")),
        ("validate-data", _output(settings, "validate-data")),
        ("build-features", lambda: True),
        ("validate-features", lambda: True),
        ("train-model", _output(settings, "train-model")),
        ("evaluate-model", _output(settings, "evaluate-model")),
        ("gate-model", lambda: True),
        ("register-model", _registered(settings)),
        ("deploy-model", _applied(settings, installation.services.url("node"))),
    ]
    for step, moment in moments:
        _kill(installation, as_of, step, moment)
        assert len(registry.versions(settings, loop.name)) <= 1
        assert registry.champion(settings, loop.name) is None, "the alias moves last"
    length = installation.log("first").stat().st_size
    assert installation.finish("first", as_of) == 0, installation.log("first").read_text()[-3000:]
    # Finished steps are not repeated.
    again = _started(installation.log("first"), length)
    assert set(again) <= {"begin-run", "gate-model", "register-model", "deploy-model"}

    report, expected = installation.report("first"), undisturbed.report("first")
    assert report["status"] == "succeeded"
    assert report["result"] == expected["result"]
    (version,) = registry.versions(settings, loop.name)
    assert version.aliases == ("champion",)
    twin = registry.get(undisturbed.settings, loop.name, "1")
    assert version.sha256 == twin.sha256
    moving = {"kubeloop.served_at", "kubeloop.promoted_at"}
    assert {name: value for name, value in version.tags.items() if name not in moving} == {
        name: value for name, value in twin.tags.items() if name not in moving
    }
    assert _card(version.folder) == _card(twin.folder)
    served = httpx.get(f"{installation.services.url('node')}/v2/models/{loop.name}", trust_env=False).json()
    assert served["versions"] == ["1"]


def _card(folder: Path) -> dict[str, Any]:
    """Return a model's card without times."""
    card = kept.loads(folder / "model.json")
    assert model_folder.read(folder).sha256 == card["sha256"]
    card["metrics"] = {name: value for name, value in card["metrics"].items() if not name.startswith("latency")}
    return card


def test_no_step_outlives_a_run_whose_main_process_is_killed(undisturbed: Any, as_of: datetime) -> None:
    """As when the kernel kills the run because memory runs out: the steps remain, and must not continue to deploy."""
    earlier = set((undisturbed.settings.state / "pipeline").iterdir())
    # For another day, so that no step's outcome is cached.
    process = undisturbed.start("orphan", as_of - timedelta(days=1))
    log, deadline = undisturbed.log("orphan"), time.monotonic() + _LIMIT_S
    while not log.is_file() or "validate-data" not in _started(log):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = time.monotonic()
    while undisturbed.alive(process.pid):
        assert time.monotonic() < killed + 10, "a process of the run is still there"
        time.sleep(0.01)
    (attempt,) = set((undisturbed.settings.state / "pipeline").iterdir()) - earlier
    assert (attempt / "extract-data" / "executor_output.json").exists()
    assert not (attempt / "validate-data" / "executor_output.json").exists()

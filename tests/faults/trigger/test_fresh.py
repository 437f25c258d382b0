"""Starting over while a pipeline run of a killed session still works."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubeloop.session import run


def test_starting_over_ends_the_runs_that_a_killed_session_left(
    home: Any, serve: Callable[..., Any], event: Callable[..., dict[str, Any]], eventually: Callable[..., Any]
) -> None:
    home.behave("promote", wait=True)
    trigger = serve()
    name = trigger.post(event()).json()["run_name"]
    (started,) = eventually(home.starts)
    eventually(lambda: home.report(name)["status"] == "running")
    trigger.kill()
    os.kill(started["pid"], 0)

    said: list[str] = []
    run.forget(home.settings, said.append)
    assert said == [f"Ending {name}, which an earlier session left running."]
    eventually(lambda: _gone(started["pid"]))
    assert not home.settings.runs.exists()
    assert not list(home.settings.state.glob("*.db"))


def test_starting_over_leaves_a_stranger_with_a_known_process_id_alone(home: Any) -> None:
    """Another process may have the id of a finished run: only the lock proves that the run is alive."""
    folder = home.settings.runs / "over"
    folder.mkdir(parents=True)
    (folder / "alive").touch()
    (folder / "attempt.json").write_text(json.dumps({"attempt": 1, "pid": os.getpid()}))
    (folder / "run.json").write_text(json.dumps({"status": "running", "pid": os.getpid()}))
    said: list[str] = []
    run.forget(home.settings, said.append)
    assert said == []
    assert not home.settings.runs.exists()


def _gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kubeloop.config import QUIET
from kubeloop.trigger.runners import LocalRunner, Parameters, RunState

NAME = "flights-2013-07-01-00000000"


def ask(attempt: int = 1, reason: str = "drift") -> Parameters:
    return Parameters(attempt=attempt, as_of="2013-07-01T00:00:00+00:00", reason=reason)


@pytest.fixture
def runner(home: Any) -> Iterator[LocalRunner]:
    runner = LocalRunner(home.settings, home.loop_file, {"PATH": os.defpath})
    yield runner
    runner.stop(grace_s=1)


def ended(runner: LocalRunner) -> Callable[[], RunState | None]:
    def look() -> RunState | None:
        state = runner.find(NAME)
        return state if state and state.status != "running" else None

    return look


def test_a_run_that_was_never_started_is_not_found(runner: LocalRunner) -> None:
    assert runner.find(NAME) is None


def test_a_run_gets_its_parameters_and_a_clean_environment(runner: LocalRunner, home: Any, eventually: Any) -> None:
    assert runner.start(NAME, ask(reason='--drop \'n "quote"')) == RunState("running", 1)
    state = eventually(ended(runner))
    assert state == RunState("succeeded", 1, result={"promote": True, "version": "2", "reason": "to promote"})
    [start] = home.starts()
    assert start["run_name"] == NAME
    assert start["as_of"] == "2013-07-01T00:00:00+00:00"
    assert start["reason"] == '--drop \'n "quote"'
    assert start["loop"] == str(home.loop_file)
    assert start["state"] == str(home.settings.state)
    given = {"PATH": os.defpath, **home.settings.environ(), **QUIET}
    assert {name: start["environment"].get(name) for name in given} == given
    assert set(start["environment"]) - set(given) <= {"LC_CTYPE"}, "nothing of the caller's environment leaks in"
    assert "the stand-in runs" in (home.settings.runs / NAME / "log.txt").read_text()


@pytest.mark.parametrize(("end", "error"), [("fail", "no labels"), ("die", "process died")])
def test_a_bad_end_is_a_failure(runner: LocalRunner, home: Any, eventually: Any, end: str, error: str) -> None:
    home.behave(end)
    runner.start(NAME, ask())
    state = eventually(ended(runner))
    assert (state.status, state.attempt) == ("failed", 1)
    assert error in state.error


@pytest.mark.parametrize(
    ("end", "lasting"), [("lasting", True), ("misconfigured", True), ("fail", False), ("die", False)]
)
def test_whether_a_failure_lasts_is_known(
    runner: LocalRunner, home: Any, eventually: Any, end: str, lasting: bool
) -> None:
    """From the run's report or, if the run ended before it wrote one, from its exit code."""
    home.behave(end)
    runner.start(NAME, ask())
    state = eventually(ended(runner))
    assert (state.status, state.lasting) == ("failed", lasting)


def test_a_killed_run_is_noticed_by_a_runner_that_did_not_start_it(runner: Any, home: Any, eventually: Any) -> None:
    home.behave("promote", wait=True)
    runner.start(NAME, ask())
    [start] = eventually(home.starts)
    other = LocalRunner(home.settings, home.loop_file, {})
    assert other.find(NAME) == RunState("running", 1)
    os.killpg(start["pid"], signal.SIGKILL)
    state = eventually(ended(other))
    assert state.status == "failed"
    assert "process died" in state.error


def test_a_dead_run_whose_process_id_somebody_else_got_is_dead(runner: Any, home: Any, eventually: Any) -> None:
    home.behave("die")
    runner.start(NAME, ask())
    eventually(ended(runner))
    report = home.settings.runs / NAME / "run.json"
    report.write_text(report.read_text().replace(f'"pid": {home.starts()[0]["pid"]}', f'"pid": {os.getpid()}'))
    assert runner.find(NAME).status == "failed"


def test_an_attempt_starts_once_however_many_ask(home: Any, eventually: Any) -> None:
    home.behave("promote", wait=True)
    runners = [LocalRunner(home.settings, home.loop_file, {}) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda runner: runner.start(NAME, ask()), runners * 3))
    assert states == [RunState("running", 1)] * 12
    assert runners[0].start(NAME, ask(attempt=2)).attempt == 1, "no second attempt next to a live first one"
    home.gate.touch()
    eventually(ended(runners[0]))
    assert runners[1].start(NAME, ask(attempt=2)).status == "succeeded", "a successful run is not repeated"
    assert len(home.starts()) == 1


def test_a_failed_run_starts_again_with_a_later_attempt_only(runner: LocalRunner, home: Any, eventually: Any) -> None:
    home.behave("fail")
    runner.start(NAME, ask())
    failure = eventually(ended(runner))
    assert runner.start(NAME, ask()) == failure
    home.behave("reject")
    assert runner.start(NAME, ask(attempt=2)) == RunState("running", 2)
    state = eventually(ended(runner))
    assert (state.status, state.attempt, state.result["promote"]) == ("succeeded", 2, False)
    assert len(home.starts()) == 2
    assert runner.start(NAME, ask(attempt=1)).status == "succeeded"


def test_a_missing_interpreter_is_a_failure_that_says_what_to_set(home: Any) -> None:
    settings = home.settings.model_copy(update={"core_python": Path("/nowhere/python")})
    runner = LocalRunner(settings, home.loop_file, {})
    state = runner.start(NAME, ask())
    assert state.status == "failed"
    assert "KUBELOOP_CORE_PYTHON" in (state.error or "")
    assert runner.find(NAME) == state


def test_a_damaged_report_is_a_failure_not_a_crash(runner: LocalRunner, home: Any, eventually: Any) -> None:
    runner.start(NAME, ask())
    eventually(ended(runner))
    (home.settings.runs / NAME / "run.json").write_text("{")
    state = runner.find(NAME)
    assert state
    assert (state.status, "run.json is damaged: it is not JSON" in (state.error or "")) == ("failed", True)


@pytest.mark.parametrize("adopted", [False, True])
def test_stopping_interrupts_what_runs(runner: LocalRunner, home: Any, eventually: Any, adopted: bool) -> None:
    home.behave("promote", wait=True)
    runner.start(NAME, ask())
    eventually(home.starts)
    stopper = LocalRunner(home.settings, home.loop_file, {}) if adopted else runner
    assert stopper.find(NAME) == RunState("running", 1)
    assert stopper.stop() == [NAME]
    state = stopper.find(NAME)
    assert state
    assert (state.status, state.attempt) == ("interrupted", 1)
    assert home.report(NAME)["status"] == "interrupted"
    home.gate.touch()
    stopper.start(NAME, ask(attempt=2))
    assert eventually(ended(stopper)).status == "succeeded"


def test_stopping_leaves_what_has_ended_as_it_is(runner: LocalRunner, home: Any, eventually: Any) -> None:
    runner.start(NAME, ask())
    eventually(ended(runner))
    assert runner.stop() == []
    assert home.report(NAME)["status"] == "succeeded"


def test_a_starter_killed_before_it_noted_the_process_leaves_a_run_that_is_found_and_stopped(
    home: Any, eventually: Any
) -> None:
    folder = home.settings.runs / NAME
    folder.mkdir(parents=True)
    home.behave("promote", wait=True)
    (folder / "attempt.json").write_text('{"attempt": 1, "pid": null}')
    command = [sys.executable, "-m", "pipelines", "run", "training", "--run-name", NAME, "--as-of", "x", "--reason=x"]
    command += ["--loop", "x", "--state", str(home.settings.state)]
    with (folder / "alive").open("ab") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        child = subprocess.Popen(command, cwd=home.folder, pass_fds=(alive.fileno(),), start_new_session=True)
    eventually(lambda: (folder / "run.json").exists())
    runner = LocalRunner(home.settings, home.loop_file, {})
    assert runner.start(NAME, ask()) == RunState("running", 1)
    assert runner.stop() == [NAME]
    assert child.wait(timeout=5) == -signal.SIGTERM
    assert len(home.starts()) == 1


def test_a_run_that_hangs_is_ended_at_its_deadline(home: Any, eventually: Any) -> None:
    home.behave("promote", wait=True)
    runner = LocalRunner(home.settings, home.loop_file, {"PATH": os.defpath}, timedelta(seconds=1))
    assert runner.start(NAME, ask()).status == "running"
    eventually(lambda: home.starts())
    (start,) = home.starts()
    assert runner.find(NAME) == RunState("running", 1)
    state = eventually(ended(runner))
    assert state == RunState("failed", 1, error="took longer than 1s (pipelines.deadline) and was ended")
    eventually(lambda: not Path(f"/proc/{start['pid']}/cwd").exists())
    assert runner.find(NAME) == state, "it is remembered"
    home.behave("promote")
    assert runner.start(NAME, ask(2)).status == "running"
    assert eventually(ended(runner)).status == "succeeded"

"""`kubeloop submit`, `kubeloop schedule` and `kubeloop pipelines objects`, as users type them."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from kubeloop import errors
from kubeloop.cli import kubeflow
from kubeloop.cli.main import app
from kubeloop.config import Loop
from kubeloop.kubeflow import submission
from kubeloop.kubeflow.api import Api

NAME = "by-hand-1"
APP = "from kubeloop.cli.main import main; main()"


@pytest.fixture
def home(server: Any, case: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "loop.yaml").write_text(case.dump())
    monkeypatch.setenv("KUBELOOP_KFP_URL", server.url)
    monkeypatch.setenv("KUBELOOP_KFP_UI", "https://kubeflow.example/pipeline")
    for name in ("KUBELOOP_KFP_TOKEN_FILE", "KUBELOOP_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def kubeloop(home: Path) -> Callable[..., Result]:

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "-C", str(home)])

    return run


@pytest.fixture
def scripted(server: Any) -> Callable[..., None]:
    """Let the next run step through states by itself, one for each look at it."""

    def play(*states: Callable[[str], None]) -> None:
        left = list(states)
        look = server.store.run_service_get_run

        def next_look(run_id: str, **options: Any) -> Any:
            if left:
                left.pop(0)(run_id)
            return look(run_id, **options)

        server.store.run_service_get_run = next_look

    return play


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again after ten milliseconds."""
    sleep = time.sleep
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


def test_submit_shows_each_step_and_ends_with_the_run(
    server: Any, kubeloop: Callable[..., Result], scripted: Callable[..., None]
) -> None:
    store = server.store
    scripted(
        lambda run: store.set_tasks(run, extract_data="RUNNING", train_model="PENDING"),
        lambda run: store.set_tasks(run, extract_data="SUCCEEDED", train_model="RUNNING"),
        lambda run: store.set_tasks(run, extract_data="SUCCEEDED", train_model="SUCCEEDED"),
        lambda run: store.finish(run, "SUCCEEDED"),
    )
    done = kubeloop("submit", "--name", NAME, "--param", "as_of=2013-05-01")
    assert done.exit_code == 0, done.output
    [run] = store.runs.values()
    head, *lines = done.output.splitlines()
    assert (
        head == f"Run {NAME} of flight-delay-training https://kubeflow.example/pipeline/#/runs/details/{run['run_id']}"
    )
    assert [line.split(" in ")[0].strip() for line in lines] == [
        "extract data: runs",
        "extract data: done",
        "train model: runs",
        "train model: done",
        "succeeded",
    ]
    assert run["runtime_config"]["parameters"] == {"run": NAME, "as_of": "2013-05-01"}


def test_the_same_name_follows_and_compiles_nothing(
    server: Any, kubeloop: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kubeloop("submit", "--name", NAME, "--no-follow").exit_code == 0
    [run] = server.store.runs
    server.store.finish(run, "SUCCEEDED")
    monkeypatch.setenv("KUBELOOP_CORE_PYTHON", "/nonexistent")
    done = kubeloop("submit", "--name", NAME)
    assert done.exit_code == 0, done.output
    assert len(server.store.runs) == 1
    assert server.count("upload_pipeline_version") == 1


def test_a_second_run_of_the_same_pipeline_uploads_nothing(server: Any, kubeloop: Callable[..., Result]) -> None:
    names = [f"by-hand-{number}" for number in range(3)]
    for name in names:
        assert kubeloop("submit", "materialize", "--name", name, "--no-follow").exit_code == 0
    assert len(server.store.runs) == 3
    assert len(server.store.versions) == 1


def test_a_failed_run_is_a_failure_that_names_its_step(
    server: Any, kubeloop: Callable[..., Result], scripted: Callable[..., None]
) -> None:
    def fail(run: str) -> None:
        server.store.set_tasks(run, extract_data="FAILED")
        server.store.finish(run, "FAILED")

    scripted(fail)
    done = kubeloop("submit", "--name", NAME)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("failed in extract-data; ")


def test_json_is_one_object_whatever_was_shown(
    server: Any, home: Path, scripted: Callable[..., None], kubeloop: Callable[..., Result]
) -> None:
    scripted(
        lambda run: server.store.set_tasks(run, extract_data="SUCCEEDED"),
        lambda run: server.store.finish(run, "SUCCEEDED"),
    )
    done = kubeloop("submit", "--name", NAME, "--json")
    found = json.loads(done.stdout)
    assert (found["name"], found["state"], found["result"]) == (NAME, "SUCCEEDED", None)
    assert [(step["name"], step["state"]) for step in found["steps"]] == [("extract-data", "SUCCEEDED")]
    assert found["link"].endswith(found["run_id"])


def test_a_lost_answer_while_following_is_waited_for(server: Any, kubeloop: Callable[..., Result], fault: Any) -> None:
    looks = []

    def lose(operation: str) -> Any:
        if not operation.endswith("get_run"):
            return None
        looks.append(operation)
        if len(looks) == 5:
            server.store.finish(next(iter(server.store.runs)), "SUCCEEDED")
        return fault("lost before") if len(looks) in (2, 3) else None

    server.fault = lose
    done = kubeloop("submit", "--name", NAME)
    assert done.exit_code == 0, done.output
    assert done.output.count("trying again") == 1
    assert "the pipelines API answers again" in done.output


def test_a_second_run_of_the_name_that_is_ended_is_not_followed(
    server: Any, kubeloop: Callable[..., Result], scripted: Callable[..., None]
) -> None:
    def other_counts(run: str) -> None:
        older = {**server.store.runs[run], "run_id": "older", "created_at": "2020-01-01T00:00:00Z"}
        server.store.runs["older"] = older
        server.store.finish(run, "CANCELED")

    scripted(other_counts, lambda run: server.store.finish(run, "SUCCEEDED"))
    done = kubeloop("submit", "--name", NAME, "--json")
    assert json.loads(done.stdout)["run_id"] == "older"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("submit", "trainin"), "there is no pipeline trainin"),
        (("submit", "--name", "No Good"), "--name No Good"),
        (("submit", "--param", "colour=red"), "training has as_of, loop, reason, run"),
        (("submit", "--param", "as_of"), "write name=value"),
        (("submit", "--param", "run=x"), "with --name"),
    ],
)
def test_what_is_typed_wrong_is_a_sentence(
    server: Any, kubeloop: Callable[..., Result], arguments: tuple[str, ...], says: str
) -> None:
    done = kubeloop(*arguments)
    assert done.exit_code == errors.LASTING
    assert says in done.output
    assert server.store.runs == {}


@pytest.mark.parametrize("command", ["submit", "schedule"])
@pytest.mark.parametrize(("status", "says"), [(401, "KUBELOOP_KFP_TOKEN_FILE"), (403, "role"), (503, "later")])
def test_an_api_that_refuses_is_a_sentence(
    server: Any, kubeloop: Callable[..., Result], fault: Any, command: str, status: int, says: str
) -> None:
    server.fault = lambda _: fault("status", status=status)
    done = kubeloop(command)
    assert done.exit_code == (errors.PASSING if status == 503 else errors.LASTING)
    assert says in done.output
    assert "Traceback" not in done.output


def test_pipelines_that_do_not_compile_are_a_sentence(
    server: Any, kubeloop: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'TypeError: no such step' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("KUBELOOP_CORE_PYTHON", str(python))
    done = kubeloop("submit")
    assert "the pipelines do not compile: TypeError: no such step" in done.output
    assert done.exit_code == errors.LASTING
    monkeypatch.setenv("KUBELOOP_CORE_PYTHON", "/nonexistent")
    assert "KUBELOOP_CORE_PYTHON" in kubeloop("submit").output


def test_interrupted_it_leaves_the_run_and_says_how_to_go_on(server: Any, home: Path) -> None:
    command = [sys.executable, "-c", APP, "submit", "--name", NAME, "-C", str(home)]
    with subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(b"Run by-hand-1")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"`kubeloop submit training --name {NAME}` follows it again" in said.decode()
    assert [run["state"] for run in server.store.runs.values()] == ["PENDING"]


def test_interrupted_before_a_start_it_does_not_speak_of_a_run(server: Any, home: Path, fault: Any) -> None:
    begun = threading.Event()
    server.fault = lambda _: begun.set() or fault("delay", seconds=1.0)
    command = [sys.executable, "-c", APP, "submit", "--name", NAME, "-C", str(home)]
    with subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert begun.wait(20)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped before the run had started" in said.decode()
    assert server.store.runs == {}


def test_a_terminal_gets_a_live_table(server: Any, api: Api, kubeloop: Callable[..., Result]) -> None:
    kubeloop("submit", "--name", NAME, "--no-follow")
    run_id = next(iter(server.store.runs))
    server.store.set_tasks(run_id, extract_data="SUCCEEDED", train_model="RUNNING")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    run = api.run(run_id)
    with kubeflow._screen(console) as show:
        show(run)
    text = screen.getvalue()
    assert "extract data" in text
    assert "train model" in text
    assert "driver" not in text
    assert "condition" not in text


def test_schedule_shows_and_then_does_what_is_left(server: Any, kubeloop: Callable[..., Result]) -> None:
    shown = kubeloop("schedule", "--dry-run", "--json")
    assert json.loads(shown.stdout)["applied"] is False
    assert server.store.recurring == {}
    assert server.store.versions == {}, "showing a difference uploads nothing"
    done = kubeloop("schedule", "--json")
    assert json.loads(done.stdout)["changes"] == json.loads(shown.stdout)["changes"]
    assert len(server.store.recurring) == 3
    again = kubeloop("schedule", "--dry-run")
    assert again.output == "3 recurring runs; all match loop.yaml\n"
    server.store.recurring.popitem()
    assert "create flight-delay-scores: new" in kubeloop("schedule").output
    assert len(server.store.versions) == 3


def test_what_serves_on_one_machine_is_not_sent_to_a_cluster(
    server: Any, kubeloop: Callable[..., Result], project: Path
) -> None:
    for command in ("submit", "schedule", "pipelines objects"):
        done = kubeloop(*command.split(), "--loop", str(project / "loop.yaml"))
        assert done.exit_code == errors.LASTING
        assert "add `--release kubeloop --namespace kubeloop`" in done.output
    assert server.store.pipelines == {}


def test_objects_are_yaml(kubeloop: Callable[..., Result]) -> None:
    done = kubeloop("pipelines", "objects")
    assert done.exit_code == 0, done.output
    kinds = [item["kind"] for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader)]
    assert kinds == ["Pipeline", "PipelineVersion"] * 4


def test_submits_of_one_name_at_once_leave_one_run(server: Any, home: Path) -> None:
    command = [sys.executable, "-c", APP, "submit", "--name", NAME, "--no-follow", "-C", str(home)]
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(subprocess.run(command, check=False, timeout=60).returncode))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    assert len(server.store.live()) == 1

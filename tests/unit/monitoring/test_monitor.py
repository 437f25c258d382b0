import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from kubeloop import errors
from kubeloop.monitoring import monitor
from kubeloop.monitoring.store import Store
from kubeloop.payloads import segments

PROJECT = Path(sys.prefix).parent
ADDRESS = "/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices/flights"


@pytest.fixture
def python() -> Path:
    """The interpreter for the monitor, which must need only the runtime environment."""
    found = PROJECT / ".venv-runtime" / "bin" / "python"
    return found if found.exists() else Path(sys.executable)


@pytest.fixture
def run(tmp_path: Path, world: ModuleType, python: Path) -> Iterator[Callable[..., tuple[Any, str]]]:
    """Start the monitor's process on tmp_path; returns it and its address."""
    started = []

    def start(*flags: str, **drift: Any) -> tuple[Any, str]:
        (tmp_path / "loop.yaml").write_text(world.loop(**drift).dump())
        process = subprocess.Popen(
            [python, "-m", "kubeloop.monitoring.monitor", "--loop", tmp_path / "loop.yaml", "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "monitor.log").open("a"),
            text=True,
            env={"KUBELOOP_STATE": str(tmp_path / "state"), "PATH": os.environ["PATH"]},
        )
        started.append(process)
        line = process.stdout.readline()
        assert line.startswith("ready http://127.0.0.1:"), (tmp_path / "monitor.log").read_text()
        return process, line.split()[1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("engine", ["builtin", "alibi"])
def test_a_drifting_service_is_followed_over_http(
    world: ModuleType, tmp_path: Path, references: Path, trigger: Any, run: Callable[..., Any], engine: str
) -> None:
    trigger.replies["/flush"] = (200, {})
    model = {"storageUri": (references / "1").as_uri(), "args": ["--version=1"]}
    trigger.replies[ADDRESS] = (200, {"metadata": {}, "spec": {"predictor": {"model": model}}})
    urls = ("--trigger-url", "--collector-url", "--node-url")
    process, url = run(
        *(part for flag in urls for part in (flag, trigger.url)), "--poll-seconds", "0.05", engine=engine
    )
    place = world.write(tmp_path / "state" / "payloads", world.days(0, 2))
    world.write(tmp_path / "state" / "payloads", world.days(2, 4, shift=1.5), place)
    until = "2013-04-05T00:00:00Z"
    answer = httpx.post(f"{url}/advance", json={"until": until}, timeout=120)
    assert answer.status_code == 200, answer.text
    status = answer.json()
    assert "/flush" in [path for path, _, _ in trigger.received]
    assert status["processed_until"] == {"flights": until}
    assert status["watermark"] == until
    assert status["windows"] == {"judged": 4, "open": 0}
    assert status["engine"] == engine
    assert (status["lag_events"], status["late_rows"], status["malformed"], status["undelivered"]) == (0, 0, 0, 0)
    assert status["open_episode"]["id"] == "flights-20130405t000000z"
    assert [event["id"] for event in trigger.events()] == ["flights-20130405t000000z"]
    windows = httpx.get(f"{url}/windows").json()
    assert [row["drifted"] for row in windows] == [False, False, True, True]
    assert [len(row["scores"]) for row in windows] == [4] * 4
    assert [row["performance"] is None for row in windows] == [False, False, False, True]
    assert [row["run_name"] for row in httpx.get(f"{url}/episodes").json()] == ["run-1"]
    metrics = httpx.get(f"{url}/metrics").text
    assert 'kubeloop_monitor_windows_total{service="flights",status="judged"} 4.0' in metrics
    assert 'kubeloop_monitor_open_episodes{service="flights"} 1.0' in metrics
    assert 'kubeloop_monitor_effect{feature="wind",kind="numeric",service="flights",version="1"} 0.' in metrics
    assert 'kubeloop_monitor_metric{metric="auc",service="flights",version="1"} 0.' in metrics
    assert 'kubeloop_monitor_failing{service="flights"} 0.0' in metrics
    assert 'kubeloop_monitor_labelled_share{service="flights"} 1.0' in metrics
    assert httpx.get(f"{url}/healthz").status_code == httpx.get(f"{url}/readyz").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0


def test_it_finds_what_is_new_by_itself(
    world: ModuleType, tmp_path: Path, references: Path, run: Callable[..., Any]
) -> None:
    _, url = run("--references", str(references), "--poll-seconds", "0.05")
    world.write(tmp_path / "state" / "payloads", world.days(0, 3))
    end = time.monotonic() + 20
    while httpx.get(f"{url}/status").json()["windows"] != {"judged": 2, "open": 1}:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_does_not_answer_is_reported_until_it_does(
    world: ModuleType, tmp_path: Path, references: Path, trigger: Any, run: Callable[..., Any]
) -> None:
    trigger.replies["/flush"] = (200, {})
    trigger.replies[ADDRESS] = (500, {})
    _, url = run("--node-url", trigger.url, "--collector-url", trigger.url, "--poll-seconds", "0.05")
    world.write(tmp_path / "state" / "payloads", world.days(0, 1))
    until = {"until": "2013-04-02T00:00:00Z"}
    answer = httpx.post(f"{url}/advance", json=until, timeout=20)
    assert (answer.status_code, "check --node-url" in answer.json()["error"]) == (503, True)
    end = time.monotonic() + 20
    while httpx.get(f"{url}/readyz").status_code != 503:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "check --node-url" in httpx.get(f"{url}/status").json()["failure"]
    assert httpx.get(f"{url}/status").json()["processed_until"] == {"flights": "2013-04-01T00:00:00Z"}
    model = {"storageUri": (references / "1").as_uri(), "args": ["--version=1"]}
    trigger.replies[ADDRESS] = (200, {"metadata": {}, "spec": {"predictor": {"model": model}}})
    assert httpx.post(f"{url}/advance", json=until, timeout=20).json()["windows"] == {"judged": 1, "open": 0}
    assert httpx.get(f"{url}/readyz").status_code == 200
    trigger.replies["/flush"] = (503, {})
    assert httpx.post(f"{url}/advance", json=until, timeout=20).status_code == 503


def test_a_request_to_advance_that_names_no_moment_is_refused(run: Callable[..., Any]) -> None:
    _, url = run()
    for body in ("", "[]", "{}", '{"until": "soon"}', '{"until": 5}'):
        answer = httpx.post(f"{url}/advance", content=body)
        assert (answer.status_code, "until" in answer.json()["error"]) == (400, True), body
    large = httpx.post(f"{url}/advance", content=b" " * 100_000)
    assert large.status_code == 413


def test_one_round_on_the_command_line(world: ModuleType, tmp_path: Path, references: Path, python: Path) -> None:
    world.write(tmp_path / ".kubeloop" / "payloads", world.days(0, 3))
    (tmp_path / "loop.yaml").write_text(world.loop().dump())
    command = [python, "-m", "kubeloop.monitoring.monitor", "--loop", tmp_path / "loop.yaml", "--once"]
    done = subprocess.run(
        [*command, "--references", references, "--origin", "2013-04-01T12:00"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    status = json.loads(done.stdout)
    assert status["windows"] == {"judged": 3, "open": 1}
    assert status["processed_until"] == {"flights": "2013-04-03T12:00:00Z"}


def test_a_wrong_loop_file_is_named(tmp_path: Path, python: Path) -> None:
    command = [python, "-m", "kubeloop.monitoring.monitor", "--loop", tmp_path / "loop.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "does not exist" in done.stderr) == (errors.LASTING, True)


def test_behind_a_mirror_nothing_is_judged_before_the_last_events_can_be_here(
    world: ModuleType, tmp_path: Path, references: Path, run: Callable[..., Any]
) -> None:
    log = tmp_path / "state" / "payloads"
    place = world.write(log, world.predict("first", world.START, rows=60))
    segments.mark(log, segments.STORED, place - 1)
    _, url = run("--references", str(references), "--settle-seconds", "1")

    def mirror() -> None:
        time.sleep(1.5)
        segments.mark(log, segments.STORED, place + 1)
        time.sleep(0.5)
        world.write(log, world.predict("last", world.START, rows=60), place)

    fetching = threading.Thread(target=mirror)
    fetching.start()
    answer = httpx.post(f"{url}/advance", json={"until": datetime.now(UTC).isoformat()}, timeout=60)
    fetching.join()
    assert (answer.json()["windows"], answer.json()["late_rows"]) == ({"judged": 1, "open": 0}, 0)
    (window,) = httpx.get(f"{url}/windows").json()
    assert window["rows"] == 120


def test_a_mirror_that_brings_nothing_is_waited_for_no_longer_than_a_minute(
    world: ModuleType, tmp_path: Path, open_monitor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_FETCH_S", 0.3)
    found = open_monitor(tmp_path)
    world.write(tmp_path / "log", world.predict("first", world.START, rows=60))
    with pytest.raises(segments.LogError, match="the mirror has not copied "):
        monitor.Watch(found, 1.0, None, 0.1).advance(world.START + world.DAY)
    assert found.store.windows("flights") == []


def test_the_documented_command_resets_a_watermark_ahead_of_now(
    world: ModuleType, tmp_path: Path, python: Path
) -> None:
    (tmp_path / "state").mkdir()
    database = f"sqlite:///{tmp_path / 'monitor.db'}"
    store = Store(database)
    store.ingest(replace(store.progress("flights"), watermark=datetime(9999, 1, 1, tzinfo=UTC)), (), {})
    (tmp_path / "loop.yaml").write_text(world.loop().dump())
    command = [python, "-m", "kubeloop.monitoring.monitor", "--loop", tmp_path / "loop.yaml"]
    env = {"KUBELOOP_STATE": str(tmp_path / "state"), "KUBELOOP_MONITOR_DB": database, "PATH": os.environ["PATH"]}
    once = subprocess.run([*command, "--once"], env=env, capture_output=True, text=True, check=False)
    assert (once.returncode != 0, "--reset-watermark" in once.stderr, "Traceback" in once.stderr) == (True, True, False)
    done = subprocess.run([*command, "--reset-watermark"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, store.progress("flights").watermark) == (0, None), done.stderr
    store.close()

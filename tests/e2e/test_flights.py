"""The main job as a user runs it: the loop on the flights, killed, resumed and inspected."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kubeloop import access, config, errors
from kubeloop.payloads import table
from kubeloop.tasks.binary.task import BINARY

# Settings of this process must not reach the program, which must find its own.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("KUBELOOP_")}

ROOT = Path(__file__).parents[2]


def kubeloop(state: Path, *arguments: str, timeout: float = 420) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kubeloop.cli", *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, "KUBELOOP_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fast run that was killed in the middle of its replay and then run to its end."""
    folder = tmp_path_factory.mktemp("flights")
    process = subprocess.Popen(
        [sys.executable, "-m", "kubeloop.cli", "run", "--fast"],
        cwd=ROOT,
        env={**ENVIRONMENT, "KUBELOOP_STATE": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = []
    for line in process.stdout or ():
        seen.append(line)
        if "drift" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL, "".join(seen)
    # The kernel ends the processes that the killed program had started.
    deadline = time.monotonic() + 20
    while _alive(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(folder)
    done = kubeloop(folder, "run", "--fast", "--json")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def summary(state: Path) -> dict:
    return json.loads((state / "summary.json").read_text())


def _alive(folder: Path) -> list[str]:
    """Return the services that still work on a state folder, without the pipeline runs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            environment = (process / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"KUBELOOP_STATE={folder}\0" in environment and "-m kubeloop." in command:
            found.append(command)
    return found


def watching(services: dict, state: Path) -> dict:
    """Return the monitor's status once it has read the whole log."""
    login = access.header(state / "token")
    httpx.post(f"{services['collector']['url']}/flush", headers=login, trust_env=False).raise_for_status()
    return httpx.get(f"{services['monitor']['url']}/status", trust_env=False).json()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.timeout(900)
def test_every_prediction_is_served_once_and_logged(summary: dict) -> None:
    predictions = summary["predictions"]
    assert predictions["served"] > 4000
    assert predictions["errors"] == 0
    assert predictions["logged"] + predictions["dropped"] == predictions["served"]
    # Only the requests that were in flight when the first session was killed.
    assert predictions["uncertain"] < 100
    assert summary["labels"] > 0.95 * predictions["logged"]


def test_drift_led_to_a_retraining_and_a_verdict(summary: dict) -> None:
    assert summary["windows"] >= 10
    assert summary["episodes"]
    assert {episode["outcome"] for episode in summary["episodes"]} <= {"promoted", "rejected"}
    assert all(episode["why"] and episode["reason"] and episode["run_id"] for episode in summary["episodes"])


def test_one_version_a_run_and_one_champion(summary: dict) -> None:
    runs = [version["run_id"] for version in summary["versions"]]
    assert len(runs) == len(set(runs)) == 1 + len(summary["episodes"])
    assert sum(1 for version in summary["versions"] if version["champion"]) == 1
    assert summary["versions"][0]["promoted"]


def test_nothing_is_left_running(state: Path) -> None:
    assert not _alive(state)
    assert not (state / "services.json").exists()


def test_running_again_replays_nothing_new(state: Path, summary: dict) -> None:
    again = kubeloop(state, "run", "--fast", "--json")
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout)
    for key in ("predictions", "windows", "episodes", "absorbed", "quality"):
        assert second[key] == summary[key]
    assert [v["version"] for v in second["versions"]] == [v["version"] for v in summary["versions"]]


def test_the_full_replay_is_not_mixed_into_a_fast_one(state: Path) -> None:
    done = kubeloop(state, "run")
    assert done.returncode == errors.LASTING
    assert "--fresh" in done.stderr


def test_status_monitor_and_report_tell_the_story(state: Path, summary: dict) -> None:
    status = kubeloop(state, "status", "--json")
    assert status.returncode == 0, status.stderr
    champion = next(version["version"] for version in summary["versions"] if version["champion"])
    assert json.loads(status.stdout)["champion"]["version"] == champion
    windows = json.loads(kubeloop(state, "monitor", "--json").stdout)
    assert len(windows["windows"]) == summary["windows"]
    report = kubeloop(state, "report", "--json")
    page = Path(json.loads(report.stdout)["report"]).read_text()
    assert "flight-delay" in page
    assert all(episode["run_id"] in page for episode in summary["episodes"])


def test_predict_and_retrain_against_the_kept_champion(state: Path, summary: dict) -> None:
    environment = {**ENVIRONMENT, "KUBELOOP_STATE": str(state)}
    server = subprocess.Popen(
        [sys.executable, "-m", "kubeloop.cli", "serve"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert any("/infer" in line for line in server.stdout or ())
        status = json.loads(kubeloop(state, "status", "--json").stdout)
        before = watching(json.loads((state / "services.json").read_text()), state)
        row = {
            "origin": "EWR",
            "carrier": "UA",
            "dest": "ORD",
            "tailnum": "N14228",
            "sched_dep": "2013-06-30T13:00:00Z",
            "distance": 719,
            "sched_minutes": 105,
        }
        answer = kubeloop(state, "predict", json.dumps([row, row]), "--json")
        assert answer.returncode == 0, answer.stderr
        content = json.loads(answer.stdout)
        assert len(content["probability"]) == 2
        assert all(0 < value < 1 for value in content["probability"])
        assert content["note"] is None
        # The replay ended in June: May had other weather, and December has not come.
        past = kubeloop(state, "predict", json.dumps(row), "--at", "2013-05-30T12:00:00Z", "--json")
        assert json.loads(past.stdout)["note"].startswith("features that became known after --at are missing")
        assert json.loads(past.stdout)["probability"][0] != content["probability"][0]
        future = kubeloop(state, "predict", json.dumps(row), "--at", "2013-12-01")
        assert future.returncode == errors.LASTING
        assert "the replay is at 2013-06-29 22:00 UTC" in future.stderr
        # A client that does not know of the replay sends no time, so its request counts as of now.
        services = json.loads((state / "services.json").read_text())
        assert status["champion"]["served_at"] == services["node"]["url"]
        instances = {"instances": [row]}
        asked = httpx.post(f"{services['node']['url']}/v1/models/flight-delay:predict", json=instances, trust_env=False)
        assert asked.status_code == 200, asked.text
        until(lambda: watching(services, state)["early_rows"] == 1)
        assert watching(services, state)["watermark"] == "2013-07-01T00:00:00Z" == before["watermark"]
        assert watching(services, state)["windows"] == before["windows"]
        missing = kubeloop(state, "predict", '{"origin": "EWR"}')
        assert missing.returncode == errors.LASTING
        assert "carrier" in missing.stderr
        retrained = kubeloop(state, "retrain", "--as-of", "2013-06-30", "--reason", "a test", "--json")
        assert retrained.returncode == 0, retrained.stderr
        assert json.loads(retrained.stdout)["outcome"] in ("promoted", "rejected")
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert not _alive(state)
    assert not (state / "token").exists()
    assert kubeloop(state, "predict", json.dumps(row)).returncode == errors.PASSING


def test_a_segment_that_the_log_lost_is_reported(state: Path, summary: dict) -> None:
    """The clients keep their own counts. What the log has lost is asked again, so each lost row is served twice."""
    settings = config.settings(ROOT, state)
    before = table.read(BINARY, settings, "flight-delay").predictions.num_rows
    segment = max(settings.payloads.glob("*.parquet"), key=lambda path: path.stat().st_size)
    segment.unlink()
    lost = before - table.read(BINARY, settings, "flight-delay").predictions.num_rows
    assert lost > 10
    again = kubeloop(state, "run", "--fast")
    assert again.returncode == 0, again.stderr
    found = json.loads((state / "summary.json").read_text())["predictions"]
    assert found["served"] == summary["predictions"]["served"] + lost
    assert found["served"] - found["logged"] - found["dropped"] == lost
    assert f"Warning: the payload log lacks {lost:,} predictions that clients got" in again.stdout
    assert f"Warning: the payload log lacks {lost:,} predictions" in (state / "report.html").read_text()

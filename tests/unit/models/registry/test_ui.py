"""MLflow's UI on a laptop: only a client with the token of this start gets in."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import mlflow
import pytest

SEARCH = "/api/2.0/mlflow/experiments/search"
AJAX = "/ajax-api/2.0/mlflow/experiments/search"


@pytest.fixture(scope="module")
def ui(blank_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The link that the UI prints when it starts."""
    state: Path = tmp_path_factory.mktemp("ui") / "state"
    state.mkdir()
    shutil.copy(blank_mlflow, state / "mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kubeloop.cli", "mlflow", "--port", str(port)]
    with (state / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "KUBELOOP_STATE": str(state)}
        )
    try:
        assert process.stdout
        link = process.stdout.readline().split()[1]
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (state / "log").read_text()
            assert time.monotonic() < deadline
            try:
                httpx.get(link, trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield link
    finally:
        process.terminate()
        process.wait(30)


def test_others_stay_outside(ui: str) -> None:
    base, _, token = ui.partition("/?token=")
    assert len(token) >= 43
    for path in ("/", "/health", "/version", SEARCH, AJAX, "/?token=guessed", "/?token="):
        for headers in ({}, {"authorization": "Bearer x"}, {"cookie": "kubeloop-mlflow=x"}, {"cookie": "=;=,"}):
            answer = httpx.get(base + path, headers=headers, trust_env=False)
            assert answer.status_code == 403
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-security-policy"] == "default-src 'none'"
    search = {"max_results": 1}
    assert httpx.post(base + SEARCH, json=search, trust_env=False).status_code == 403
    assert httpx.post(f"{base}{SEARCH}?token={token}", json=search, trust_env=False).status_code == 403


def test_the_link_opens_it(ui: str) -> None:
    with httpx.Client(trust_env=False) as browser:
        answer = browser.get(ui)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "HttpOnly; SameSite=Strict" in answer.headers["set-cookie"]
        base = ui.partition("/?")[0]
        page = browser.get(base + "/")
        assert (page.status_code, page.headers["x-content-type-options"]) == (200, "nosniff")
        found = browser.post(base + AJAX, json={"max_results": 1}).raise_for_status()
        assert found.json()["experiments"][0]["name"] == "Default"


def test_its_own_clients_send_the_token(ui: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _, token = ui.partition("/?token=")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    assert [experiment.name for experiment in mlflow.MlflowClient(base).search_experiments()] == ["Default"]

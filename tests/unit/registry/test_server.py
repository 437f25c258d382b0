"""The MLflow server as the chart starts it: one process, with MLflow's own options and variables."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from kubeloop import config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Popen, str]]:
    folder: Path = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kubeloop.mlflow_server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    process = psutil.Popen(
        [*command, "--default-artifact-root=s3://store/mlflow", "--no-serve-artifacts"],
        cwd=folder,
        env=config.inherited()
        | {
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_SERVER_ALLOWED_HOSTS": "kubeloop-mlflow,localhost:*",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                httpx.get(f"{url}/health", timeout=5).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.5)
        else:
            raise AssertionError((folder / "log").read_text())
        yield process, url
    finally:
        process.terminate()
        process.wait(30)


def test_it_is_one_process(server: tuple[psutil.Popen, str]) -> None:
    process, _ = server
    assert process.children() == []
    assert "uvicorn" in process.cmdline()


def test_it_has_the_options_that_it_was_given(server: tuple[psutil.Popen, str]) -> None:
    _, url = server
    api = f"{url}/api/2.0/mlflow/experiments"
    made = httpx.post(f"{api}/create", json={"name": "one"}, headers={"host": "kubeloop-mlflow"}).raise_for_status()
    found = httpx.get(f"{api}/get", params=made.json(), headers={"host": "kubeloop-mlflow"}).raise_for_status()
    assert found.json()["experiment"]["artifact_location"].startswith("s3://store/mlflow/")


def test_it_refuses_other_hosts(server: tuple[psutil.Popen, str]) -> None:
    _, url = server
    denied = httpx.get(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"host": "elsewhere"})
    assert denied.status_code == 403


def test_it_knows_itself_as_a_server(server: tuple[psutil.Popen, str]) -> None:
    """MLflow runs no code of a stored scorer and follows no link of its own host in a process with these."""
    process, _ = server
    assert {"_MLFLOW_SERVER_BOOT_ID", "_MLFLOW_SERVER_ARTIFACT_ROOT"} <= process.environ().keys()

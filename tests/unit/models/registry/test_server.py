"""The MLflow server as the chart starts it: one process, with MLflow's own options and variables."""

import contextlib
import secrets
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


@contextlib.contextmanager
def running(folder: Path, *flags: str, **variables: str) -> Iterator[tuple[psutil.Popen, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kubeloop.models.mlflow_server", "--host=127.0.0.1", f"--port={port}"]
    command.append("--workers=1")
    process = psutil.Popen(
        [*command, "--default-artifact-root=s3://store/mlflow", "--no-serve-artifacts", *flags],
        cwd=folder,
        env=config.inherited()
        | {
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_SERVER_ALLOWED_HOSTS": "kubeloop-mlflow,localhost:*,127.0.0.1:*",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        | variables,
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Popen, str]]:
    with running(tmp_path_factory.mktemp("mlflow")) as found:
        yield found


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
    """In a process with these variables, MLflow runs no code of a stored scorer and follows no link to its own host."""
    process, _ = server
    assert {"_MLFLOW_SERVER_BOOT_ID", "_MLFLOW_SERVER_ARTIFACT_ROOT"} <= process.environ().keys()


def test_a_login_is_asked_of_everyone_but_probes(tmp_path: Path) -> None:
    """The server starts as in the chart with `mlflow.login`, and a step then talks to it."""
    password = secrets.token_urlsafe(12)
    ini = tmp_path / "auth.ini"
    ini.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{tmp_path}/auth.db\n"
        f"admin_username = platform\nadmin_password = {password}\n"
    )
    given = {"MLFLOW_AUTH_CONFIG_PATH": str(ini), "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16)}
    with running(tmp_path, "--app-name=basic-auth", **given) as (process, url):
        assert process.children() == []
        assert httpx.get(url).status_code == 401
        api = f"{url}/api/2.0/mlflow/registered-models/search"
        assert httpx.get(api).status_code == 401
        assert httpx.get(api, auth=("platform", "guess")).status_code == 401
        assert httpx.get(api, auth=("platform", password)).status_code == 200
        program = (
            "from kubeloop import config; from kubeloop.models import registry; "
            "print(registry.versions(config.settings(), 'flight-delay'))"
        )
        step = config.inherited() | {"KUBELOOP_MLFLOW_URI": url, "KUBELOOP_STATE": str(tmp_path / "state")}
        login = {"MLFLOW_TRACKING_USERNAME": "platform", "MLFLOW_TRACKING_PASSWORD": password}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=step | login, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr

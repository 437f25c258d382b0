"""The worker's exec probe, as the kubelet runs it in the detector environment."""

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from kubeloop import access, config
from kubeloop.monitoring.detector.alibi import WORKER, WorkerProcess


def check(port: str) -> "subprocess.CompletedProcess[str]":
    command = [config.settings().detector_python, "-I", WORKER, "--check", "--port", port]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_passes_while_the_worker_answers_and_fails_after(tmp_path: Path) -> None:
    worker = WorkerProcess(config.settings().detector_python, tmp_path)
    try:
        port = worker.url().rpartition(":")[2]
        assert check(port).returncode == 0
    finally:
        worker.stop()
    gone = check(port)
    assert gone.returncode == 1
    assert f"no detector worker answers on port {port}" in gone.stderr


def test_fails_on_another_server() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = check(str(server.server_port))
    finally:
        server.shutdown()
        server.server_close()
    assert found.returncode == 1
    assert "is not a detector worker: GET /healthz gave 501" in found.stderr


def test_does_not_import_alibi() -> None:
    """The probe runs every few seconds, and the import takes as long as that."""
    code = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['--check', '--port', '1']\n"
        "try:\n"
        f"    runpy.run_path({str(WORKER)!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('alibi_detect' in sys.modules)\n"
    )
    command = [config.settings().detector_python, "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "False\n"


def test_a_worker_with_a_token_takes_nothing_from_others(tmp_path: Path) -> None:
    """On a laptop every local user can reach its port, and a reference decides what counts as drift."""
    token_file = tmp_path / "token"
    access.make(token_file)
    worker = WorkerProcess(config.settings().detector_python, tmp_path, token_file)
    try:
        url = worker.url()
        for method, path in (("PUT", "/detectors/1"), ("POST", "/detectors/1/score")):
            for login in ({}, access.bearer("guessed")):
                assert (
                    httpx.request(method, url + path, content=b"x", headers=login, trust_env=False).status_code == 401
                )
            own = httpx.request(method, url + path, content=b"x", headers=worker.login, trust_env=False)
            assert own.status_code in (400, 404)
    finally:
        worker.stop()

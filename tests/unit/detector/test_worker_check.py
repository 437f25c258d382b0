"""The worker's exec probe, as the kubelet runs it in the detector environment."""

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kubeloop import config
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
    assert "is no detector worker: GET /healthz gave 501" in found.stderr


def test_does_not_import_alibi() -> None:
    """The probe runs every few seconds; that import takes as long."""
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

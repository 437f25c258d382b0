"""What an idle long-running process has imported: most of its memory is code, and one import can cost 100 MiB again."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.test_contract import PYTHON, ROOT

HEAVY = {
    *(
        "aiohttp",
        "alibi_detect",
        "boto3",
        "dask",
        "duckdb",
        "fastapi",
        "feast",
        "flask",
        "great_expectations",
        "grpc",
        "ibis",
    ),
    *("kfp", "kfp_server_api", "kserve", "kubernetes", "lightgbm", "matplotlib", "mlflow", "numba", "numpy", "onnx"),
    *("onnxruntime", "opentelemetry", "optuna", "pandas", "pyarrow", "requests", "scipy", "sklearn", "sqlalchemy"),
    *("torch", "transformers", "typer"),
}
"""Packages of 5 MiB and more."""
NOBODY = "http://127.0.0.1:9"
ARROW = {"numpy", "pyarrow"}
LOOP = ["--loop", str(ROOT / "loop.yaml")]
AT_REST = {
    "collector": ("runtime", ["-m", "kubeloop.payloads.collector", "--dir", "payloads"], ARROW),
    "mirror": ("runtime", ["-m", "kubeloop.payloads.mirror", "push", "--dir", "payloads"], ARROW),
    "monitor": (
        "runtime",
        ["-m", "kubeloop.monitoring.monitor", *LOOP, "--node-url", NOBODY, "--detector-url", NOBODY],
        {*ARROW, "sqlalchemy"},
    ),
    "trigger": (
        "runtime",
        ["-m", "kubeloop.trigger.server", *LOOP, "--runner", "kfp"],
        {"kfp_server_api", "sqlalchemy"},
    ),
    "detector": (
        "detector",
        [str(ROOT / "src/kubeloop/monitoring/detector/worker.py"), "--idle-seconds", "300"],
        set(),
    ),
}
UNREACHABLE = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_REGION": "none",
    "AWS_ENDPOINT_URL": NOBODY,
    "KUBELOOP_BUCKET": "s3://none",
    "KUBELOOP_KFP_URL": NOBODY,
}
ROUNDS_S = 3.0


@pytest.mark.parametrize("name", AT_REST)
def test_a_process_imports_no_more_than_it_needs_at_rest(name: str, tmp_path: Path) -> None:
    environment, command, allowed = AT_REST[name]
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [PYTHON[environment], "-X", "importtime", *command, "--port", "0"],
            cwd=tmp_path,
            env=os.environ | UNREACHABLE | {"KUBELOOP_STATE": str(tmp_path), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        guard = threading.Timer(120, process.kill)
        guard.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready http"), log.read_text()[-2000:]
            # Wait for a few looks at the log, the runs or the store, which have nothing new.
            time.sleep(ROUNDS_S)
            assert process.poll() is None, log.read_text()[-2000:]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            guard.cancel()
    # Of a missing package, only the first module is tried.
    found = {line.group(1) for line in re.finditer(r"^import time:.*\| +(\w+)\.[\w.]+$", log.read_text(), re.M)}
    assert "http" in found
    assert found & HEAVY == allowed

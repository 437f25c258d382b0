"""Check the runtime image: serve a model, accept an event, and start every other long-running program.

`docker run --rm -i --read-only --tmpfs /tmp IMAGE python - < runtime.py`
"""

# ruff: noqa: S101 - a smoke test is a test

import base64
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

# probability = sigmoid(x), x FP32 [n]
MODEL = (
    "CAgSADpMChkKAXgSC3Byb2JhYmlsaXR5IgdTaWdtb2lkEgFnWhAKAXgSCwoJCAESBQoDEgFuYhoKC3Byb2JhYmlsaXR5EgsKCQgBEgUKAxIBbkIE"
    "CgAQEQ=="
)
PROGRAMS = ("monitoring.monitor", "payloads.mirror", "trigger.server")


@contextlib.contextmanager
def program(module: str, *arguments: str) -> Iterator[str]:
    """Run a program on a port that the system picks; yield its address, and end it."""
    command = [sys.executable, "-m", f"kubeloop.{module}", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                word, _, url = line.strip().partition(" ")
                if word == "ready":
                    break
            else:
                sys.exit(f"{module} ended with {process.wait()} before it was ready")
            yield url
        finally:
            process.terminate()
            process.wait(30)
    if process.returncode not in (0, -15):
        sys.exit(f"{module} ended with {process.returncode}")


def ask(url: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Send a request with a JSON body, if any; return status and text."""
    data = None if body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json", **(headers or {})}
    with urlopen(Request(url, data, given), timeout=20) as answer:  # noqa: S310
        return answer.status, answer.read().decode()


def predict(folder: Path) -> None:
    """Serve a model and compare its answer."""
    (folder / "model.onnx").write_bytes(base64.b64decode(MODEL))
    with program("serving.server", "--model-dir", str(folder), "--name", "smoke") as url:
        tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [0.0, 100.0]}
        _, text = ask(f"{url}/v2/models/smoke/infer", {"inputs": [tensor]})
        assert json.loads(text)["outputs"][0]["data"] == [0.5, 1.0], text
        assert ask(f"{url}/v2/health/ready")[0] == 200
        assert "# HELP" in ask(f"{url}/metrics")[1]


def collect(folder: Path) -> None:
    """Accept an event and store it."""
    event = {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "smoke",
        "ce-type": "org.kubeflow.serving.inference.request",
        "ce-inferenceservicename": "smoke",
        "ce-namespace": "smoke",
        "ce-component": "predictor",
        "ce-endpoint": "default",
    }
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.0]}
    with program("payloads.collector", "--dir", str(folder)) as url:
        assert ask(url, {"inputs": [tensor]}, event)[0] == 202
        ask(f"{url}/flush", {})
    written = [path.name for path in folder.rglob("*") if path.is_file()]
    assert any(name.endswith((".parquet", ".wal")) for name in written), written


def main() -> None:
    """Run all checks; any failure ends the program with a message."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").mkdir()
        predict(Path(folder) / "model")
        collect(Path(folder) / "payloads")
    for module in PROGRAMS:
        subprocess.run([sys.executable, "-m", f"kubeloop.{module}", "--help"], check=True, stdout=subprocess.DEVNULL)
    print("ok")


if __name__ == "__main__":
    main()

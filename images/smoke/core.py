"""Check the core image: import what the steps import, compile the pipelines, start the transformer and MLflow.

`docker run --rm -i --read-only --tmpfs /tmp IMAGE python - < core.py`
"""

# ruff: noqa: S101 - a smoke test is a test

import importlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

MODULES = ("feast", "great_expectations", "kfp", "kserve", "kubernetes", "lightgbm", "mlflow", "onnx", "onnxruntime")


def run(*command: str) -> str:
    """Run a program in the project's folder and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def main() -> None:
    """Run all checks; any failure ends the program with a message."""
    for module in MODULES:
        importlib.import_module(module)
    assert Path.cwd() == Path(os.environ["KUBELOOP_HOME"]), Path.cwd()
    with tempfile.TemporaryDirectory() as out:
        run("python", "-m", "pipelines", "compile", "--out", out)
        written = sorted(path.name for path in Path(out).glob("*.yaml"))
    assert any("training" in name for name in written), written
    run("python", "-m", "kubeloop.serving.transformer", "--help")
    # A step's container runs this, in the image's working folder.
    run("python3", "-m", "pipelines.pod", "--help")
    findings = json.loads(subprocess.run(["kubeloop", "doctor", "--json"], capture_output=True, check=False).stdout)
    # A pod does not have another image's environment, and must not make one.
    wrong = [item["what"] for item in findings if not item["ok"] and "detector environment" not in item["what"]]
    assert not wrong, wrong
    run("python", "-m", "kubeloop.models.mlflow_server", "--help")
    print("ok")


if __name__ == "__main__":
    main()

"""Check the detector image: hold a reference, score a window, answer its probe.

`docker run --rm -i --read-only --tmpfs /tmp IMAGE python - < detector.py`
"""

# ruff: noqa: S101 - a smoke test is a test

import importlib.util
import io
import json
import subprocess
import sys
from urllib.request import Request, urlopen

import numpy as np

WORKER = "/opt/kubeloop/worker.py"


def pack(shift: float) -> bytes:
    """Return 500 rows of one number, one category and a score; numbers and scores are moved by `shift`."""
    rng = np.random.default_rng(7)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        numeric=rng.normal(shift, 1, (500, 1)).astype(np.float32),
        categorical=rng.integers(0, 3, (500, 1)).astype(np.int32),
        score=rng.normal(shift, 1, 500).astype(np.float32),
    )
    return buffer.getvalue()


def send(method: str, url: str, body: bytes) -> dict[str, list[float]]:
    """Send a body and return the JSON answer."""
    with urlopen(Request(url, body, method=method), timeout=60) as answer:  # noqa: S310
        found: dict[str, list[float]] = json.load(answer)
        return found


def main() -> None:
    """Run all checks; any failure ends the program with a message."""
    assert importlib.util.find_spec("kubeloop") is None, "kubeloop is in the detector's environment"
    with subprocess.Popen([sys.executable, WORKER, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            word, _, url = process.stdout.readline().strip().partition(" ")
            assert word == "ready", f"the worker ended with {process.wait(10)}"
            check = [sys.executable, WORKER, "--check", "--port", url.rpartition(":")[2]]
            subprocess.run(check, check=True)
            send("PUT", f"{url}/detectors/smoke", pack(0.0))
            p_values = send("POST", f"{url}/detectors/smoke/score", pack(2.0))["p_value"]
        finally:
            process.terminate()
            process.wait(30)
    assert p_values[0] < 1e-6 < 0.01 < p_values[1], p_values
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1, "the probe passes without a worker"
    print("ok")


if __name__ == "__main__":
    main()

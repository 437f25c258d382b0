"""The real worker, in the detector environment, over real HTTP."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from scipy.stats import chi2_contingency

from kubeloop import config
from kubeloop.monitoring.detector import port
from kubeloop.monitoring.detector.alibi import WORKER, AlibiDetector, WorkerProcess
from kubeloop.monitoring.detector.builtin import BuiltinDetector
from kubeloop.tasks.reference import Reference, build

PYTHON = config.settings().detector_python
ROWS = 3_000


def columns(seed: int, rows: int, shift: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    gaps = rng.normal(shift, 1, rows)
    gaps[rng.random(rows) < 0.1 + shift / 3] = np.nan
    return {
        "plain": rng.normal(shift, 1, rows),
        "ties": rng.poisson(3 + shift, rows),
        "constant": np.full(rows, 2.0),
        "gaps": gaps,
        "gone": [None] * rows if shift else np.ones(rows),
        "never": [None] * rows,
        "carrier": rng.choice(["AA", "UA", "DL", "WN", "ZZ"] if shift else ["AA", "UA", "DL", "WN"], rows),
        "pair": rng.choice(["yes", "no"], rows, p=[0.5 - shift / 5, 0.5 + shift / 5]),
        "single": ["only"] * rows,
    }


@pytest.fixture(scope="module")
def reference() -> Reference:
    data = columns(1, ROWS, 0.0)
    kinds = {name: "categorical" if name in ("carrier", "pair", "single") else "numeric" for name in data}
    score = np.random.default_rng(2).random(ROWS)
    return build(data, kinds, score, {}, None, trained_from="", trained_to="")


def window(reference: Reference, rows: int, shift: float) -> port.Window:
    score = np.random.default_rng(4).random(rows, dtype=np.float32) * (1 - shift / 2)
    return port.Window(*reference.encode(columns(3, rows, shift)), np.asarray(score, np.float32))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    process = WorkerProcess(PYTHON, tmp_path_factory.mktemp("logs"))
    yield process
    process.stop()


@pytest.fixture
def alibi(worker: WorkerProcess) -> AlibiDetector:
    return AlibiDetector(worker)


@pytest.mark.parametrize("shift", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 250, 2_000])
def test_both_engines_agree(alibi: AlibiDetector, reference: Reference, rows: int, shift: float) -> None:
    """The statistic to 1e-6 relative and the p-value to 1e-6 absolute: Alibi keeps both in float32."""
    builtin = BuiltinDetector()
    live = window(reference, rows, shift)
    found = []
    for detector in (builtin, alibi):
        detector.fit("agree", reference)
        found.append(detector.score("agree", live))
    assert [s.feature for s in found[0]] == [*reference.names, "score"]
    for ours, theirs in zip(*found, strict=True):
        assert (ours.feature, ours.kind, ours.rows) == (theirs.feature, theirs.kind, theirs.rows)
        assert (ours.missing_share, ours.psi) == (theirs.missing_share, theirs.psi)
        assert theirs.effect == pytest.approx(ours.effect, rel=1e-6, abs=1e-7)
        if ours.feature != "pair":
            assert theirs.statistic == pytest.approx(ours.statistic, rel=1e-6, abs=1e-7)
            assert theirs.p_value == pytest.approx(ours.p_value, abs=1e-6)


def test_two_categories_get_yates_correction_from_alibi(alibi: AlibiDetector, reference: Reference) -> None:
    live = window(reference, 500, 0.5)
    alibi.fit("yates", reference)
    pair = next(score for score in alibi.score("yates", live) if score.feature == "pair")
    sides = [side.categorical[:, reference.categorical_names.index("pair")] for side in (reference, live)]
    expected = chi2_contingency([np.bincount(side, minlength=2) for side in sides], correction=True)
    assert (pair.statistic, pair.p_value) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-6)


def test_a_killed_worker_is_started_again_and_given_its_reference(
    worker: WorkerProcess, alibi: AlibiDetector, reference: Reference
) -> None:
    live = window(reference, 200, 0.3)
    alibi.fit("killed", reference)
    before = alibi.score("killed", live)
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert alibi.score("killed", live) == before
    assert worker.pid != first


def test_a_worker_killed_before_a_fit_is_started_again(
    worker: WorkerProcess, alibi: AlibiDetector, reference: Reference
) -> None:
    alibi.fit("first", reference)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    alibi.fit("second", reference)
    live = window(reference, 50, 0.0)
    assert alibi.score("second", live) == alibi.score("first", live)


def test_a_reference_that_the_worker_let_go_is_sent_again(
    worker: WorkerProcess, alibi: AlibiDetector, reference: Reference
) -> None:
    live = window(reference, 50, 0.0)
    for number in range(9):
        alibi.fit(f"models/{number} ü?#%2F", reference)
    held = httpx.get(worker.url() + "/healthz").json()
    assert held["status"] == "ok"
    assert len(held["detectors"]) == 8
    assert "models/0 ü?#%2F" not in held["detectors"]
    assert "models/1 ü?#%2F" in held["detectors"]
    assert len(alibi.score("models/0 ü?#%2F", live)) == len(reference.names) + 1


def test_a_sidecar_is_used_by_its_address(worker: WorkerProcess, reference: Reference, tmp_path: Path) -> None:
    detector = port.open_detector("alibi", tmp_path / "none", tmp_path, url=worker.url())
    detector.fit("sidecar", reference)
    assert len(detector.score("sidecar", window(reference, 50, 0.0))) == len(reference.names) + 1
    detector.close()
    assert httpx.get(worker.url() + "/healthz").status_code == 200


def test_a_sidecar_that_is_not_there_is_an_error(reference: Reference, tmp_path: Path) -> None:
    detector = port.open_detector("alibi", tmp_path, tmp_path, url="http://127.0.0.1:9")
    with pytest.raises(port.DetectorError, match="does not answer"):
        detector.fit("1", reference)
    with pytest.raises(port.DetectorError, match="fit first"):
        detector.score("1", window(reference, 50, 0.0))


def test_a_worker_that_cannot_start_names_its_log(tmp_path: Path) -> None:
    bare = WorkerProcess(Path(sys.executable), tmp_path)
    with pytest.raises(port.DetectorError, match=r"detector\.log"):
        bare.url()
    assert "alibi_detect" in bare.log.read_text()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


GOOD = {
    "numeric": np.zeros((4, 1), np.float32),
    "categorical": np.zeros((4, 1), np.int32),
    "score": np.zeros(4, np.float32),
}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/detectors/good", npz(**GOOD), 200),
        ("POST", "/detectors/good/score", npz(**GOOD), 200),
        ("POST", "/detectors/unknown/score", npz(**GOOD), 404),
        ("PUT", "/detectors", npz(**GOOD), 404),
        ("PUT", "/detectors/good/score", npz(**GOOD), 404),
        ("GET", "/", None, 404),
        ("PUT", "/detectors/bad", b"", 400),
        ("PUT", "/detectors/bad", b"PK\x03\x04 no archive", 400),
        ("PUT", "/detectors/bad", npz(numeric=GOOD["numeric"]), 400),
        ("PUT", "/detectors/bad", npz(**GOOD | {"numeric": np.zeros((4, 1))}), 400),
        ("PUT", "/detectors/bad", npz(**GOOD | {"score": np.zeros((4, 1, 1), np.float32)}), 400),
        ("PUT", "/detectors/bad", npz(**GOOD | {"score": np.array([{}], dtype=object)}), 400),
        ("POST", "/detectors/good/score", npz(**GOOD | {"numeric": np.zeros((4, 2), np.float32)}), 400),
        ("PUT", "/detectors/bad", bytes(2**20 + 1), 413),
        ("PUT", "/detectors/bad", npz(**GOOD | {"score": np.zeros(2**20, np.float32)}), 413),
        ("PUT", "/detectors/bad", iter([npz(**GOOD)]), 411),
    ],
)
def test_the_worker_answers(strict: str, method: str, path: str, body: Any, status: int) -> None:
    response = httpx.request(method, strict + path, content=body)
    assert response.status_code == status, response.text
    assert ("error" in response.json()) == (status != 200)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (["Content-Length: 50"], b"PK", 400),
        (["Content-Length: 2", "Content-Length: 2"], b"PK", 411),
        (["Content-Length: +2"], b"PK", 411),
        (["Content-Length: 2", "Transfer-Encoding: chunked"], b"2\r\nPK\r\n0\r\n\r\n", 411),
    ],
)
def test_the_worker_takes_whole_bodies_only(strict: str, headers: list[str], body: bytes, status: int) -> None:
    host, port = strict.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "\r\n".join(["PUT /detectors/bad HTTP/1.1", "Host: x", *headers, "", ""])
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert received.count(b"HTTP/1.1 ") == 1, "the rest of a body is not read as a request"


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    """A worker started by hand, as in a container, with a small limit; it must exit cleanly on SIGTERM."""
    command = [PYTHON, WORKER, "--port", "0", "--max-body-mb", "1"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        yield process.stdout.readline().split()[1].decode()
        process.terminate()
        assert process.wait(10) == 0


def test_the_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from kubeloop.monitoring.detector.alibi import WorkerProcess\n"
        "worker = WorkerProcess(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "worker.url(); print(worker.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, PYTHON, tmp_path], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def test_after_a_rest_the_worker_starts_over_in_its_place(reference: Reference, tmp_path: Path) -> None:
    """It releases Alibi and its references; neither its id nor its address changes."""
    command = [PYTHON, "-I", WORKER, "--port", "0", "--idle-seconds", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        detector = AlibiDetector(url)
        live = window(reference, 200, 0.3)
        try:
            before = []
            for _ in range(3):
                detector.fit("rested", reference)
                before.append(detector.score("rested", live))
                assert imported(process.pid)
                for _ in range(100):
                    if not imported(process.pid) and httpx.get(f"{url}/healthz").json()["detectors"] == []:
                        break
                    time.sleep(0.1)
                assert not imported(process.pid)
            assert before[0] == before[1] == before[2]
        finally:
            detector.close()
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def imported(pid: int) -> bool:
    return "scipy" in Path(f"/proc/{pid}/maps").read_text()


def test_a_worker_without_a_rest_keeps_what_it_holds(worker: WorkerProcess, alibi: AlibiDetector) -> None:
    assert worker.url()
    assert worker.pid is not None
    assert imported(worker.pid)

"""The collector on a full disk: it says so, accepts nothing that it cannot write, and recovers."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeloop.payloads import segments
from tests import outside
from tests.unit.payloads.collector.conftest import Running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        outside.lack("A small file system cannot be mounted", "run as root", "NODE")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_makes_the_collector_unready_until_there_is_room(small_disk: Path) -> None:
    running = Running(small_disk / "payloads", "--flush-seconds", "60")
    acknowledged = []
    try:
        assert running.client.get("/readyz").status_code == 200
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space"):
            fill(filler)
        # The collector knows before anyone has sent an event.
        unready = running.client.get("/readyz")
        assert (unready.status_code, "free space" in unready.text) == (503, True), unready.text
        for event in range(20):
            answer = running.post(event, b"x" * 20_000)
            assert answer.status_code == 503
            assert "free space" in answer.json()["error"]
        assert running.client.get("/healthz").status_code == 200, "a restart would not make room"
        filler.unlink()
        (small_disk / "reserve").write_bytes(bytes(512 * 1024))
        assert running.client.get("/readyz").status_code == 200
        # Fill the disk again, with nothing but events.
        for event in range(100, 400):
            if running.post(event, b"x" * 20_000).status_code != 202:
                break
            acknowledged.append(str(event))
        assert 10 < len(acknowledged) < 299
        running.kill()
        # The next collector starts on the full disk, and waits for room to write the acknowledged events.
        running = Running(small_disk / "payloads", "--flush-seconds", "60")
        assert running.client.get("/readyz").status_code == 503
        (small_disk / "reserve").unlink()
        running.wait_for(lambda: running.status()["last_seq"] == len(acknowledged))
        assert running.client.get("/readyz").status_code == 200
        table, _ = segments.read(small_disk / "payloads")
    finally:
        running.kill()
    assert table["id"].to_pylist() == acknowledged

"""The payload log, copied through a real S3 store by real processes."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop import config, errors, names
from kubeloop.payloads import mirror, segments
from kubeloop.payloads.compaction import Compactor, remove_covered
from kubeloop.stores.bucket import Bucket


@pytest.fixture
def bucket(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("KUBELOOP_BUCKET", f"{s3.bucket}/loop")
    return Bucket.open(config.settings(tmp_path))


@pytest.fixture
def push(bucket: Bucket) -> Callable[[Path], int]:
    """One round of a running mirror."""
    there: dict[Path, set[str]] = {}

    def once(folder: Path) -> int:
        if folder not in there:
            there[folder] = mirror.stored(bucket, folder)
        return mirror.push(bucket, folder, there[folder])

    return once


def write(folder: Path, first: int, last: int) -> segments.Segment:
    rows = [(seq, seq, 0, str(seq), "t", "s", "", "", "", "", b"body") for seq in range(first, last + 1)]
    return segments.write(folder, segments.table_of(rows))


def seqs(folder: Path, after: int = 0) -> list[int]:
    found: list[int] = segments.read(folder, after)[0]["seq"].to_pylist()
    return found


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    found = (tmp_path / "collector", tmp_path / "monitor", tmp_path / "references")
    for folder in found:
        folder.mkdir()
    return found


def test_segments_arrive_once_and_in_order(bucket: Bucket, push: Any, folders: tuple[Path, Path, Path]) -> None:
    here, there, references = folders
    for first in (1, 4, 7):
        write(here, first, first + 2)
    assert push(here) == 3
    assert push(here) == 0
    assert mirror.pull(bucket, there, references) == 3
    assert mirror.pull(bucket, there, references) == 0
    assert seqs(there) == list(range(1, 10))


def test_a_merged_segment_takes_the_place_of_its_parts(
    bucket: Bucket, push: Any, folders: tuple[Path, Path, Path]
) -> None:
    here, there, references = folders
    compactor = Compactor(here, grace_s=0)
    for first in range(1, 20):
        compactor.add(write(here, first, first), 1)
        push(here)
    mirror.pull(bucket, there, references)
    reader = segments.read(there)[1]
    for first in range(20, 41):
        compactor.add(write(here, first, first), 1)
    compactor.sweep()
    assert len(segments.segments(here)) < 20, "some segments were merged"
    push(here)
    mirror.pull(bucket, there, references)
    assert seqs(there) == list(range(1, 41))
    assert seqs(there, reader) == list(range(20, 41))
    kept = [segment.path.name for segment in segments.segments(here)]
    assert bucket.names(names.PAYLOADS) == kept, "the store keeps no parts"
    assert sorted(path.name for path in there.glob("*.parquet")) == kept


def test_references_come_before_the_segments_that_need_them(
    bucket: Bucket, push: Any, folders: tuple[Path, Path, Path], learned: tuple[Path, Path]
) -> None:
    here, there, references = folders
    assert bucket.push(learned[1] / "reference", names.reference("flights", "7"))
    write(here, 1, 1)
    push(here)
    assert mirror.pull(bucket, there, references) > 1
    from kubeloop.tasks.reference import Reference

    found = Reference.load(references / "flights" / "7" / "reference")
    assert found.rows == Reference.load(learned[1] / "reference").rows


@pytest.mark.parametrize("seed", range(3))
def test_a_reader_misses_nothing_whatever_is_merged_meanwhile(
    seed: int, bucket: Bucket, push: Any, folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write, merge, push, pull and read in any order; objects vanish between listing and reading."""
    here, there, references = folders
    chance = random.Random(seed)
    compactor, last, seen, after = Compactor(here, grace_s=0), 0, list[int](), 0
    plain = Bucket.get

    def slow(store: Bucket, name: str) -> bytes | None:
        if chance.random() < 0.3:
            push(here)
        return plain(store, name)

    monkeypatch.setattr(Bucket, "get", slow)
    for _ in range(120):
        match chance.choice(("write", "write", "write", "sweep", "push", "pull", "read", "release")):
            case "write":
                size = chance.randint(1, 3)
                compactor.add(write(here, last + 1, last + size), 1)
                last += size
            case "sweep":
                compactor.sweep()
            case "push":
                push(here)
            case "pull":
                mirror.pull(bucket, there, references)
            case "read":
                table, after = segments.read(there, after)
                seen += table["seq"].to_pylist()
            case "release" if after:
                segments.mark(there, segments.NEEDED, after)
    push(here)
    mirror.pull(bucket, there, references)
    seen += seqs(there, after)
    assert seen == list(range(1, last + 1))
    remove_covered(here, segments.segments(here))


def test_the_reader_gets_what_it_needs_the_oldest_first(
    bucket: Bucket, push: Any, folders: tuple[Path, Path, Path]
) -> None:
    here, there, references = folders
    for first in range(1, 10, 2):
        write(here, first, first + 1)
    push(here)
    assert mirror.pull(bucket, there, references, most=2) == 2
    assert seqs(there) == [1, 2, 3, 4]
    segments.mark(there, segments.NEEDED, 5)
    assert mirror.pull(bucket, there, references) == 3
    assert seqs(there) == [5, 6, 7, 8, 9, 10], "a segment stays while one event of it is needed"
    assert mirror.pull(bucket, there, references) == 0, "a segment that was deleted is not fetched again"


def test_a_mirror_says_how_far_the_store_goes_and_when_it_looked(
    bucket: Bucket, push: Any, folders: tuple[Path, Path, Path]
) -> None:
    here, there, references = folders
    assert segments.stored(there) == (0, 0.0)
    for first in (1, 3, 5):
        write(here, first, first + 1)
    push(here)
    before = time.time() - 1
    mirror.pull(bucket, there, references, most=1)
    last, asked = segments.stored(there)
    assert (last, segments.newest(there), seqs(there)) == (6, 6, [1, 2])
    assert before < asked <= time.time() + 1


def test_no_reader_gets_past_what_the_mirror_says_is_there(
    bucket: Bucket, push: Any, folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the reader would conclude that the log was reset.

    A segment that arrives during a round waits for the next.
    """
    here, there, references = folders
    write(here, 1, 2)
    push(here)
    pull = Bucket.pull

    def slow(self: Bucket, prefix: str, *args: Any) -> list[str]:
        if prefix == names.PAYLOADS and not seqs(here, 2):
            write(here, 3, 4)
            push(here)
        return pull(self, prefix, *args)

    monkeypatch.setattr(Bucket, "pull", slow)
    mirror.pull(bucket, there, references)
    assert seqs(there)[-1] <= segments.newest(there)
    mirror.pull(bucket, there, references)
    assert (seqs(there), segments.newest(there)) == ([1, 2, 3, 4], 4)


def test_what_the_store_let_expire_is_not_copied_again(
    bucket: Bucket, push: Any, folders: tuple[Path, Path, Path]
) -> None:
    here = folders[0]
    old, new = write(here, 1, 3), write(here, 4, 6)
    push(here)
    bucket.delete(f"{names.PAYLOADS}/{old.path.name}")
    assert mirror.push(bucket, here, mirror.stored(bucket, here)) == 0
    assert bucket.names(names.PAYLOADS) == [new.path.name]


@pytest.mark.parametrize("expired", [False, True])
def test_a_collector_on_a_new_volume_goes_on_where_the_store_ends(
    carry: Any, bucket: Bucket, push: Any, folders: tuple[Path, Path, Path], tmp_path: Path, expired: bool
) -> None:
    here, there, references = folders
    old = write(here, 1, 20)
    push(here)
    mirror.pull(bucket, there, references)
    if expired:
        bucket.delete(f"{names.PAYLOADS}/{old.path.name}")
    new = tmp_path / "new"
    _, url = carry("push", "--dir", str(new), "--poll-seconds", "0.1")
    _until(lambda: httpx.get(f"{url}/healthz").is_success)
    command = [sys.executable, "-m", "kubeloop.payloads.collector", "--dir", str(new), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as collector:
        try:
            assert collector.stdout
            address = collector.stdout.readline().split()[-1]
            headers = {"ce-id": "1", "ce-type": "io.kubeloop.label", "ce-source": "test", "ce-specversion": "1.0"}
            httpx.post(address, content=b'{"labels": []}', headers=headers).raise_for_status()
            httpx.post(f"{address}/flush").raise_for_status()
            _until(lambda: len(bucket.names(names.PAYLOADS)) == 2 - expired)
        finally:
            collector.terminate()
    mirror.pull(bucket, there, references)
    assert seqs(there) == list(range(1, 22))


def test_a_new_volume_waits_for_the_store(carry: Any, seaweed: Any, bucket: Bucket, tmp_path: Path) -> None:
    seaweed.stop()
    try:
        _, url = carry("push", "--dir", str(tmp_path / "new"), "--poll-seconds", "0.1")
        # Its text says that it asks the store, or why the store did not answer.
        assert httpx.get(f"{url}/healthz").status_code == 503
    finally:
        seaweed.start()
    _until(lambda: httpx.get(f"{url}/healthz").is_success)


@pytest.fixture
def carry(bucket: Bucket) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "kubeloop.payloads.mirror", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("ready "), process.communicate(timeout=10)
        return process, line.split()[1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_processes_carry_on_through_a_store_that_was_away(
    carry: Any, seaweed: Any, bucket: Bucket, folders: tuple[Path, Path, Path]
) -> None:
    here, there, references = folders
    pusher, url = carry("push", "--dir", str(here), "--poll-seconds", "0.1")
    carry("pull", "--dir", str(there), "--references", str(references), "--poll-seconds", "0.1")
    write(here, 1, 5)
    _until(lambda: seqs(there) == [1, 2, 3, 4, 5])
    assert httpx.get(f"{url}/readyz").status_code == 200
    seaweed.stop()
    try:
        write(here, 6, 7)
        _until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        assert "cannot" in httpx.get(f"{url}/readyz").text
        assert httpx.get(f"{url}/healthz").status_code == 200, "a restart would not help"
        assert _metric(url, "kubeloop_mirror_failures_total") >= 1
    finally:
        seaweed.start()
    _until(lambda: seqs(there) == list(range(1, 8)))
    assert _metric(url, "kubeloop_mirror_files_total") == 2
    write(here, 8, 8)
    pusher.terminate()
    assert pusher.wait(20) == 0
    assert len(bucket.names(names.PAYLOADS)) == 3, "what was written before the end is copied"


def test_without_a_bucket_it_says_what_to_set(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kubeloop.payloads.mirror", "push", "--dir", str(tmp_path), "--once"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == errors.LASTING
    assert "write s3://bucket" in done.stderr
    assert "Traceback" not in done.stderr


def _metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)

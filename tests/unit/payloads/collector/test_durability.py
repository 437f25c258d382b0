"""An acknowledged event is in the log exactly once, however the collector ends."""

import asyncio
import os
import resource
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kubeloop.payloads import segments, wal

Start = Callable[..., Any]


async def stream(running: Any, name: str, kill_after: int) -> list[str]:
    """Post over eight connections; kill the collector after some answers; return the acknowledged ids."""
    acknowledged: list[str] = []

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        for count in range(100_000):
            event = f"{name}-{number}-{count}"
            try:
                async with session.post(running.url, data=os.urandom(300), headers=running.headers(event)) as answer:
                    assert answer.status == 202
            except aiohttp.ClientError:
                return
            acknowledged.append(event)
            if len(acknowledged) == kill_after:
                running.process.kill()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, number) for number in range(8)))
    running.process.communicate()
    return acknowledged


@pytest.mark.parametrize("flags", [("--flush-rows", "7", "--flush-seconds", "0.01"), ("--flush-rows", "100000")])
def test_every_acknowledged_event_survives_kills_exactly_once(start: Start, flags: tuple[str, ...]) -> None:
    acknowledged: list[str] = []
    for round_, kill_after in enumerate((1, 90, 203, 333)):
        acknowledged += asyncio.run(stream(start(*flags), str(round_), kill_after))
    assert len(acknowledged) >= 627
    counts = Counter(start(*flags).ids())
    assert set(acknowledged) <= set(counts)
    assert max(counts.values()) == 1


def test_a_crash_between_segment_and_write_ahead_file_doubles_nothing(start: Start, tmp_path: Path) -> None:
    first = start("--flush-seconds", "60")
    for event in range(10):
        assert first.post(event).status_code == 202
    first.kill()
    [path] = wal.wal_files(first.directory)
    shutil.copy(path, tmp_path / "kept")
    second = start("--flush-seconds", "60")
    assert second.ids() == [str(event) for event in range(10)]
    assert wal.wal_files(second.directory) == []
    second.kill()
    shutil.copy(tmp_path / "kept", path)
    third = start()
    assert third.post("next").status_code == 202
    assert third.ids() == [*(str(event) for event in range(10)), "next"]


def test_a_torn_record_is_ignored_and_the_events_before_it_kept(start: Start) -> None:
    first = start("--flush-seconds", "60")
    for event in range(5):
        first.post(event, b"x" * 100)
    first.kill()
    [path] = wal.wal_files(first.directory)
    os.truncate(path, path.stat().st_size - 30)
    second = start("--flush-seconds", "60")
    second.post("next")
    assert second.ids() == ["0", "1", "2", "3", "next"]
    assert "torn" in second.stop()[1]


def test_a_write_ahead_file_of_which_nothing_can_be_read_is_put_aside(start: Start) -> None:
    first = start("--flush-seconds", "60")
    first.post(0, b"x" * 100)
    first.kill()
    [path] = wal.wal_files(first.directory)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    second = start("--flush-seconds", "60")
    assert second.status()["dropped"] == {"damaged": 1}
    assert path.with_suffix(".damaged").read_bytes() == data
    second.post("next")
    assert second.ids() == ["next"]
    second.kill()
    # It is counted once, and no later collector reads it again.
    assert start().status()["dropped"] == {}


def test_a_flipped_bit_in_the_write_ahead_file_costs_one_event_which_is_counted(start: Start) -> None:
    first = start("--flush-seconds", "60")
    for event in range(5):
        first.post(event, b"x" * 100)
    first.kill()
    [path] = wal.wal_files(first.directory)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    second = start("--flush-seconds", "60")
    second.post("next")
    second.flush()
    assert segments.read(second.directory)[0]["id"].to_pylist() == ["0", "1", "3", "4", "next"]
    assert second.status()["dropped"] == {"damaged": 1}
    assert 'events_dropped_total{reason="damaged"} 1.0' in second.client.get("/metrics").text
    said = second.stop()[1]
    assert f"{path} is damaged: 1 events that were acknowledged are lost" in said


def test_sigterm_flushes_and_leaves_no_write_ahead_file(start: Start) -> None:
    running = start("--flush-seconds", "60")
    for event in range(20):
        running.post(event)
    status, log = running.stop()
    assert status == 0, log
    assert segments.read(running.directory)[1] == 20
    assert wal.wal_files(running.directory) == []


def test_a_second_collector_on_the_folder_exits_with_the_reason(start: Start) -> None:
    first = start()
    with pytest.raises(AssertionError, match=rf"process {first.process.pid}\) owns"):
        start()
    first.kill()
    assert start().post("now").status_code == 202


def test_the_limit_of_the_folder_is_kept_and_refusals_are_counted(start: Start) -> None:
    running = start("--max-disk-bytes", "300000", "--flush-rows", "3", "--flush-seconds", "0.02")
    taken = []
    for event in range(60):
        answer = running.post(event, os.urandom(10_000))
        if answer.status_code == 202:
            taken.append(str(event))
        else:
            assert answer.status_code == 503
            assert "--max-disk-bytes" in answer.json()["error"]
            assert answer.headers["retry-after"] == "1"
    assert 10 < len(taken) < 30
    assert running.ids() == taken
    assert sum(path.stat().st_size for path in running.directory.iterdir()) < 300_000
    status = running.status()
    assert status["dropped"] == {"disk_full": 60 - len(taken)}
    assert status["received"] == 60
    assert status["written"] == len(taken)
    assert f'events_dropped_total{{reason="disk_full"}} {60 - len(taken)}.0' in running.client.get("/metrics").text


def test_what_the_store_has_makes_room(start: Start) -> None:
    flags = ("--max-disk-bytes", "300000", "--flush-rows", "3", "--flush-seconds", "0.02")
    running, event = start(*flags), 0
    while running.post(event, os.urandom(10_000)).is_success:
        running.flush()
        event += 1
    full = segments.segments(running.directory)
    segments.mark(running.directory, segments.MIRRORED, full[-1].last)
    running.wait_for(lambda: running.post("again", os.urandom(10_000)).is_success)
    for later in range(event, event + 100):
        segments.mark(running.directory, segments.MIRRORED, running.flush())
        assert running.post(later, os.urandom(10_000)).is_success
    last = running.flush()
    kept = segments.segments(running.directory)
    assert kept[0].first > full[-1].last, "the oldest was removed"
    assert [segment.first for segment in kept[1:]] == [segment.last + 1 for segment in kept[:-1]]
    assert 100_000 < sum(path.stat().st_size for path in running.directory.iterdir()) < 300_000
    running.kill()
    again = start(*flags)
    assert again.post("next").status_code == 202
    assert again.flush() == last + 1


def test_a_disk_that_refuses_writes_costs_only_the_refused_events(start: Start) -> None:
    running = start("--flush-seconds", "60")
    pid, (soft, hard) = running.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    assert running.post("before", b"x" * 1000).status_code == 202
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (2000, hard))
    refused = running.post("refused", b"x" * 5000)
    assert refused.status_code == 503
    assert running.post("small", b"x" * 100).status_code == 202
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert running.post("after", b"x" * 5000).status_code == 202
    assert running.ids() == ["before", "small", "after"]
    assert running.status()["dropped"] == {"disk_full": 1}


def test_a_flusher_that_cannot_write_bounds_memory_and_loses_nothing(start: Start) -> None:
    flags = ("--max-memory-bytes", "4000000", "--flush-rows", "5", "--flush-seconds", "0.05")
    running = start(*flags)
    obstacle = running.directory / ".events.tmp"
    obstacle.mkdir()
    taken, refused = [], 0
    for event in range(120):
        answer = running.post(event, os.urandom(100_000))
        if answer.status_code == 202:
            taken.append(str(event))
        else:
            assert answer.status_code == 429
            refused += 1
    assert 30 < len(taken) < 40
    assert running.status()["held_bytes"] <= 4_000_000
    assert running.status()["dropped"] == {"memory": refused}
    running.wait_for(lambda: ".events.tmp" in (running.status()["flush_error"] or ""))
    failed = running.client.post("/flush")
    assert failed.status_code == 503
    assert ".events.tmp" in failed.json()["error"]
    status, log = running.stop()
    assert status == 1
    assert "write-ahead" in log
    again = start(*flags)
    obstacle.rmdir()
    assert again.ids() == taken


def test_readers_see_a_growing_prefix_while_events_come_in(start: Start) -> None:
    running = start("--flush-rows", "3", "--flush-seconds", "0.01")
    seen: list[str] = []
    done = threading.Event()
    problems: list[BaseException] = []

    def follow() -> None:
        after = 0
        try:
            while True:
                last_round = done.is_set()
                table, after = segments.read(running.directory, after)
                seen.extend(table["id"].to_pylist())
                if last_round:
                    return
        except BaseException as error:
            problems.append(error)
            raise

    reader = threading.Thread(target=follow)
    reader.start()
    for event in range(400):
        running.post(event)
    running.flush()
    done.set()
    reader.join()
    assert not problems
    assert seen == [str(event) for event in range(400)]
    # Small segments were merged meanwhile, and the reader was not disturbed.
    assert running.status()["segments"] < 60

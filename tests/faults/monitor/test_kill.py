"""However a monitor ends, the next one continues, and the outcome equals that of an undisturbed run."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from kubeloop.monitoring.rounds import Monitor
from kubeloop.monitoring.store import Store

Open = Callable[..., Monitor]
POLICY = {"min_rows": 10, "min_effect": 0.3}


class KilledError(Exception):
    """Simulates the end of the process."""


def outcome(store: Store) -> dict[str, Any]:
    """The state that must be equal: floats are rounded, and the time when the trigger answered is left out."""

    def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()} for row in rows]

    now = store.progress("flights")
    volatile = ("emitted_at", "as_of")
    return {
        "windows": rounded(store.windows("flights")),
        "scores": rounded(store.scores("flights")),
        "performance": rounded(store.performance("flights")),
        "episodes": [{k: v for k, v in row.items() if k not in volatile} for row in store.episodes("flights")],
        "counts": (now.cursor, now.watermark, now.late_rows, now.malformed),
        "waiting": store.open_windows("flights"),
    }


def events(world: ModuleType) -> list[Any]:
    found: list[Any] = []
    for day in range(4):
        found += world.days(day, day + 1, requests=2, rows=8, shift=1.5 * (day > 0))
    return [*found, *world.predict("late", world.START, rows=3)]


@contextlib.contextmanager
def killed_at(monitor: Monitor, name: str, nth: int) -> Iterator[None]:
    """Raise before the nth commit, or before the first statement after it."""
    engine = monitor.store.engine
    seen = 0

    def commit(_connection: sa.Connection) -> None:
        nonlocal seen
        seen += 1
        if (name, seen) == ("before", nth):
            raise KilledError

    def begin(_connection: sa.Connection) -> None:
        if name == "after" and seen == nth:
            raise KilledError

    sa.event.listen(engine, "commit", commit)
    sa.event.listen(engine, "begin", begin)
    try:
        yield
    finally:
        sa.event.remove(engine, "commit", commit)
        sa.event.remove(engine, "begin", begin)


def test_a_monitor_that_dies_at_any_commit_loses_and_repeats_nothing(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> None:
    log = events(world)
    whole = open_monitor(tmp_path, trigger.url, **POLICY)
    world.write(tmp_path / "log", log)
    whole.step()
    expected = outcome(whole.store)
    assert len(expected["windows"]) == 3
    assert len(expected["performance"]) == 2
    (event,) = trigger.events()
    kills = 0
    for name in ("before", "after"):
        for nth in range(1, 50):
            folder = tmp_path / f"{name}-{nth}"
            folder.mkdir()
            half = world.write(folder / "log", log[: len(log) // 2])
            monitor = open_monitor(folder, trigger.url, **POLICY)
            trigger.received.clear()
            try:
                with killed_at(monitor, name, nth):
                    monitor.step()
                    world.write(folder / "log", log[len(log) // 2 :], half)
                    monitor.step()
            except KilledError:
                kills += 1
            else:
                break
            if len(list((folder / "log").iterdir())) == 1:
                world.write(folder / "log", log[len(log) // 2 :], half)
            again = open_monitor(folder, trigger.url, **POLICY)
            again.step()
            assert outcome(again.store) == expected, (name, nth)
            assert 1 <= len(trigger.events()) <= 2, (name, nth)
            assert {found["id"] for found in trigger.events()} == {event["id"]}, (name, nth)
            # The same process may continue as well: its memory must not be ahead of its stored state.
            monitor.step()
            assert outcome(monitor.store) == expected, (name, nth)
        else:
            pytest.fail("all 50 commits were reached; the loop should end earlier")
    assert kills >= 14


def test_two_monitors_at_once_judge_every_window_once(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> None:
    log = events(world)
    alone = tmp_path / "alone"
    alone.mkdir()
    world.write(alone / "log", log)
    whole = open_monitor(alone, trigger.url, **POLICY)
    whole.step()
    trigger.received.clear()
    two = [open_monitor(tmp_path, trigger.url, **POLICY) for _ in range(2)]
    place = 1
    for begin in range(0, len(log), 5):
        place = world.write(tmp_path / "log", log[begin : begin + 5], place)
        two[begin % 2].step()
    assert outcome(two[0].store) == outcome(whole.store)
    assert len(trigger.events()) == 1


def test_a_trigger_that_is_away_hears_of_the_episode_when_it_is_back(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> None:
    accepting = trigger.replies["/events"]
    world.write(tmp_path / "log", events(world))
    for reply in ((503, {"error": "busy"}), (202, "no object"), (202, {"reason": "no decision"})):
        trigger.replies["/events"] = reply
        monitor = open_monitor(tmp_path, trigger.url, **POLICY)
        monitor.step()
        (row,) = monitor.store.episodes("flights")
        assert (row["emitted_at"], row["closed_at"]) == (None, None)
    sent = len(trigger.events())
    monitor.step()
    assert len(trigger.events()) == sent, "the trigger must not be called in every round"
    trigger.replies["/events"] = accepting
    monitor.advance(world.START)
    (row,) = monitor.store.episodes("flights")
    assert (row["accepted"], row["run_name"]) == (True, "run-1")
    assert len({event["id"] for event in trigger.events()}) == 1
    monitor.advance(world.START)
    assert len(trigger.events()) == sent + 1


class Process:
    """The monitor as a real process, with its log and state in one folder."""

    def __init__(self, folder: Path, references: Path, trigger_url: str, **variables: str) -> None:
        self._command = [sys.executable, "-m", "kubeloop.monitoring.monitor", "--loop", str(folder / "loop.yaml")]
        self._command += ["--references", str(references), "--trigger-url", trigger_url, "--poll-seconds", "0.01"]
        self._log = folder / "monitor.log"
        self._env = {"KUBELOOP_STATE": str(folder), "PATH": os.environ["PATH"], **variables}
        self.url = ""

    def __enter__(self) -> "Process":
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._env
            )
        line = self._process.stdout.readline()
        assert line.startswith("ready "), self._log.read_text()
        self.url = line.split()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def _undisturbed(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> tuple[list[Any], Path, Monitor]:
    """Return a log, a folder to watch it from, and a monitor that has read all of it in another folder."""
    log = events(world)
    alone, folder = tmp_path / "alone", tmp_path / "state"
    alone.mkdir()
    folder.mkdir()
    world.write(alone / "log", log)
    whole = open_monitor(alone, trigger.url, **POLICY)
    whole.advance(world.START + 3 * world.DAY)
    trigger.received.clear()
    (folder / "loop.yaml").write_text(world.loop(**POLICY).dump())
    return log, folder, whole


def test_a_process_that_is_killed_again_and_again_comes_to_the_same_end(
    world: ModuleType, open_monitor: Open, tmp_path: Path, references: Path, trigger: Any
) -> None:
    log, folder, whole = _undisturbed(world, open_monitor, tmp_path, trigger)
    chance = random.Random(7)
    place = 1
    pieces = [log[begin : begin + len(log) // 4 + 1] for begin in range(0, len(log), len(log) // 4 + 1)]
    for piece in pieces:
        place = world.write(folder / "payloads", piece, place)
        with Process(folder, references, trigger.url):
            time.sleep(chance.uniform(0.0, 0.15))
    with Process(folder, references, trigger.url) as process:
        until = {"until": (world.START + 3 * world.DAY).isoformat()}
        answer = httpx.post(f"{process.url}/advance", json=until, timeout=60)
        assert answer.status_code == 200, answer.text
    store = Store(f"sqlite:///{folder / 'monitor.db'}")
    assert outcome(store) == outcome(whole.store)
    store.close()
    assert len({event["id"] for event in trigger.events()}) == 1


def test_a_database_that_is_away_costs_no_window(
    world: ModuleType,
    open_monitor: Open,
    tmp_path: Path,
    references: Path,
    trigger: Any,
    postgres: str,
    postgres_server: Any,
) -> None:
    log, folder, whole = _undisturbed(world, open_monitor, tmp_path, trigger)
    half = len(log) // 2
    place = world.write(folder / "payloads", log[:half], 1)
    with Process(folder, references, trigger.url, KUBELOOP_MONITOR_DB=postgres) as process:
        _until(lambda: httpx.get(f"{process.url}/status").json()["last_seq"] == half)
        postgres_server.stop()
        try:
            world.write(folder / "payloads", log[half:], place)
            _until(lambda: httpx.get(f"{process.url}/readyz").status_code == 503)
            assert httpx.get(f"{process.url}/healthz").status_code == 200, "a restart would not help"
            assert httpx.get(f"{process.url}/status").status_code == 503
        finally:
            postgres_server.start()
        until = {"until": (world.START + 3 * world.DAY).isoformat()}
        _until(lambda: httpx.post(f"{process.url}/advance", json=until, timeout=60).status_code == 200)
        assert httpx.get(f"{process.url}/readyz").status_code == 200
    store = Store(postgres)
    assert outcome(store) == outcome(whole.store)
    store.close()
    assert len({event["id"] for event in trigger.events()}) == 1


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

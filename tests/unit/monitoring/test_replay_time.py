"""A monitor that watches a replay: its time is the replay's, not the wall clock's."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kubeloop.monitoring.detector import port
from kubeloop.monitoring.outbox import Outbox
from kubeloop.monitoring.rounds import Monitor
from kubeloop.monitoring.store import Store
from kubeloop.monitoring.versions import Versions
from kubeloop.monitoring.windows import Grid

DAY = timedelta(days=1)
Watch = Callable[[Path], Monitor]


@pytest.fixture
def watch(world: ModuleType, references: Path) -> Iterator[Watch]:
    """Open a monitor of a replay of ten days on a folder."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path) -> Monitor:
            loop, end = world.loop(), world.START + DAY * 10
            store = Store(f"sqlite:///{folder / 'monitor.db'}")
            versions = Versions(store, loop.name, loop.delivery.namespace, references=references)
            outbox = Outbox(store, loop.name, None)
            detector = port.open_detector("builtin", Path("unused"), folder)
            for part in (store, versions, outbox, detector):
                stack.callback(part.close)
            log, grid = folder / "log", Grid(loop.drift.window)
            return Monitor(loop, log, store, detector, versions, grid, outbox, until=end)

        yield start


def by_hand(world: ModuleType, key: str) -> list[Any]:
    """A client's request of today, without an event time."""
    request, response = world.predict(key, world.ARRIVAL, rows=2)
    del request.body["parameters"]["event_time"]
    return [request, response]


def stands(monitor: Monitor) -> tuple[datetime | None, int, int, int]:
    now = monitor.store.progress("flights")
    return now.watermark, now.late_rows, now.early_rows, len(monitor.store.windows("flights"))


@pytest.mark.parametrize("readings", ["one by one", "at once"])
def test_a_prediction_by_hand_does_not_end_the_windows(
    world: ModuleType, watch: Watch, tmp_path: Path, readings: str
) -> None:
    monitor, log = watch(tmp_path), tmp_path / "log"
    place = 1
    for events in (world.days(0, 4), by_hand(world, "x"), world.days(4, 6), by_hand(world, "y"), world.days(6, 8)):
        place = world.write(log, events, place)
        if readings == "one by one":
            monitor.step()
    monitor.step()
    # Eight days, of which the last is open; the four manual rows are counted, but belong to no window.
    assert stands(monitor) == (world.START + DAY * 7.875, 0, 4, 7)
    assert [row["rows"] for row in monitor.store.windows("flights")] == [160] * 7


@pytest.mark.parametrize("readings", ["one by one", "at once"])
def test_traffic_that_lives_now_is_watched_though_the_configuration_names_a_replay(
    world: ModuleType, watch: Watch, tmp_path: Path, readings: str
) -> None:
    """As in a cluster, where even the first request comes after the replay's end."""
    monitor, log = watch(tmp_path), tmp_path / "log"
    place = 1
    # A row that claims a moment of the replay is then late.
    for events in (by_hand(world, "x"), world.predict("old", world.START + DAY), by_hand(world, "y")):
        place = world.write(log, events, place)
        if readings == "one by one":
            monitor.step()
    monitor.step()
    assert stands(monitor) == (world.ARRIVAL, 40, 0, 0)


def test_once_the_replay_is_over_time_goes_on(world: ModuleType, watch: Watch, tmp_path: Path) -> None:
    monitor = watch(tmp_path)
    place = world.write(tmp_path / "log", world.days(0, 10))
    monitor.advance(world.START + DAY * 10)
    world.write(tmp_path / "log", by_hand(world, "x"), place)
    monitor.step()
    assert stands(monitor) == (world.ARRIVAL, 0, 0, 10)


def test_the_clock_may_be_set_before_the_first_request(world: ModuleType, watch: Watch, tmp_path: Path) -> None:
    monitor = watch(tmp_path)
    monitor.advance(world.START)
    place = world.write(tmp_path / "log", by_hand(world, "x"))
    monitor.step()
    assert stands(monitor) == (world.START, 0, 2, 0)
    world.write(tmp_path / "log", world.days(0, 3), place)
    monitor.step()
    assert stands(monitor) == (world.START + DAY * 2.875, 0, 2, 2)

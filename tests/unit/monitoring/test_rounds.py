import json
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeloop import config
from kubeloop.monitoring import rounds
from kubeloop.monitoring.detector import port
from kubeloop.monitoring.detector.alibi import WORKER
from kubeloop.monitoring.detector.port import DetectorError
from kubeloop.monitoring.outbox import Outbox
from kubeloop.monitoring.rounds import Monitor
from kubeloop.monitoring.status import Metrics, Status
from kubeloop.monitoring.versions import Versions
from kubeloop.monitoring.windows import Grid
from kubeloop.names import LABEL_EVENT
from kubeloop.payloads import decode, segments
from kubeloop.payloads.segments import LogError
from kubeloop.trigger.event import DriftEvent

DAY = timedelta(days=1)
Open = Callable[..., Monitor]


def brief(monitor: Monitor) -> list[tuple[int, str, int, str, bool | None, bool]]:
    """Day, version, rows, status, drifted and live for every window."""
    found = monitor.store.windows("flights")
    first = found[0]["start"]
    return [
        ((row["start"] - first).days, row["version"], row["rows"], row["status"], row["drifted"], row["live"])
        for row in found
    ]


def outcome(monitor: Monitor) -> dict[str, Any]:
    """All results that must not depend on how the log was read."""

    def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: near(v) for k, v in row.items()} for row in rows]

    def near(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: near(v) for k, v in value.items()}
        return round(value, 9) if isinstance(value, float) else value

    now, store = monitor.store.progress("flights"), monitor.store
    return {
        "windows": rounded(store.windows("flights")),
        "scores": rounded(store.scores("flights")),
        "performance": rounded(store.performance("flights")),
        "episodes": [{k: v for k, v in row.items() if k != "as_of"} for row in store.episodes("flights")],
        "counts": (now.watermark, now.late_rows, now.early_rows, now.malformed),
    }


def test_calm_traffic_is_judged_and_opens_nothing(world: ModuleType, open_monitor: Open, tmp_path: Path) -> None:
    world.write(tmp_path / "log", world.days(0, 4))
    monitor = open_monitor(tmp_path)
    monitor.step()
    assert brief(monitor) == [(day, "1", 160, "judged", False, True) for day in range(3)]
    measured = monitor.store.performance("flights")
    assert [(row["labelled"], row["status"], row["drifted"]) for row in measured] == [(160, "judged", False)] * 2
    assert all(0.7 < row["value"] < 1 and row["reference"] == 0.75 for row in measured)
    assert monitor.store.episodes("flights") == []
    features = {(row["feature"], row["kind"]) for row in monitor.store.scores("flights")}
    assert features == {
        ("wind", "numeric"),
        ("delay", "numeric"),
        ("carrier", "categorical"),
        ("score", "score"),
    }


def test_drift_opens_one_episode_and_the_trigger_hears_of_it_once(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> None:
    log = tmp_path / "log"
    place = world.write(log, world.days(0, 2))
    monitor = open_monitor(tmp_path, trigger.url)
    monitor.step()
    for day in range(2, 7):
        place = world.write(log, world.days(day, day + 1, shift=1.5), place)
        monitor.step()
    (episode,) = monitor.store.episodes("flights")
    (event,) = trigger.events()
    assert (episode["accepted"], episode["run_name"], episode["outcome"]) == (True, "run-1", None)
    assert event["type"] == "io.kubeloop.drift"
    assert event["id"] == event["subject"] == event["data"]["episode"] == "flights-20130405t000000z"
    assert event["data"] | {"reason": ""} == {
        "service": "flights",
        "episode": "flights-20130405t000000z",
        "opened_at": "2013-04-05T00:00:00+00:00",
        "as_of": "2013-04-05T21:00:00+00:00",
        "kind": "drift",
        "features": ["wind"],
        "reason": "",
    }
    assert "wind" in event["data"]["reason"]


def test_the_real_trigger_understands_the_event(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> None:
    world.write(tmp_path / "log", world.days(0, 3, shift=1.5))
    open_monitor(tmp_path, trigger.url).step()
    (_, media, body) = trigger.received[0]
    event = DriftEvent.parse({"content-type": media}, json.dumps(body).encode())
    assert (event.service, event.kind, event.features) == ("flights", "drift", ("wind",))


def test_a_refused_episode_is_over_and_later_votes_ask_again(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> None:
    trigger.replies["/events"] = (202, {"accepted": False, "run_name": None, "reason": "absorbed: it rests"})
    world.write(tmp_path / "log", world.days(0, 6, shift=1.5))
    monitor = open_monitor(tmp_path, trigger.url)
    monitor.step()
    found = monitor.store.episodes("flights")
    assert [row["id"] for row in found] == ["flights-20130403t000000z", "flights-20130405t000000z"]
    assert {(row["accepted"], row["outcome"], row["decision"]) for row in found} == {
        (False, "refused", "absorbed: it rests")
    }
    assert all(row["closed_at"] == row["opened_at"] for row in found)


def test_an_episode_ends_when_another_version_takes_over(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> None:
    log = tmp_path / "log"
    place = world.write(log, world.days(0, 3, shift=1.5))
    monitor = open_monitor(tmp_path, trigger.url)
    monitor.step()
    place = world.write(log, world.predict("canary", world.START + 3 * DAY, version="2", endpoint="canary"), place)
    monitor.step()
    assert monitor.store.episodes("flights")[0]["closed_at"] is None
    switch = world.START + 3.5 * DAY
    place = world.write(log, world.predict("first", switch, version="2"), place)
    monitor.step()
    (episode,) = monitor.store.episodes("flights")
    assert (episode["closed_at"], episode["outcome"]) == (switch, "replaced")
    world.write(log, world.days(4, 8, version="2", shift=1.5), place)
    monitor.step()
    found = monitor.store.episodes("flights")
    assert [(row["id"], row["version"]) for row in found[1:]] == [("flights-20130407t000000z", "2")]


def test_an_episode_that_changed_nothing_expires_and_persisting_drift_opens_the_next(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> None:
    world.write(tmp_path / "log", world.days(0, 10, shift=1.5))
    monitor = open_monitor(tmp_path, trigger.url)
    monitor.step()
    found = monitor.store.episodes("flights")
    assert [(row["id"], row["outcome"]) for row in found] == [
        ("flights-20130403t000000z", "expired"),
        ("flights-20130410t000000z", None),
    ]
    assert found[0]["closed_at"] == found[0]["opened_at"] + 5 * DAY
    assert [event["id"] for event in trigger.events()] == [row["id"] for row in found]


def test_poor_predictions_open_an_episode_when_their_labels_are_in(
    world: ModuleType, open_monitor: Open, tmp_path: Path, trigger: Any
) -> None:
    world.write(tmp_path / "log", world.days(0, 5, quality=-1))
    monitor = open_monitor(tmp_path, trigger.url)
    monitor.step()
    (event,) = trigger.events()
    assert event["data"]["kind"] == "performance"
    assert event["data"]["opened_at"] == "2013-04-04T00:00:00+00:00"
    assert "under the floor of 0.600" in event["data"]["reason"]
    assert event["id"] == "flights-20130403t000000z"


def test_versions_that_share_a_window_are_judged_apart_and_the_last_in_traffic_votes(
    world: ModuleType, open_monitor: Open, tmp_path: Path
) -> None:
    events = [
        *world.days(0, 1, version="1", shift=1.5),
        *world.days(1, 2, version="1", shift=1.5, requests=2),
        *world.predict("new", world.START + 1.8 * DAY, rows=100, version="2"),
        *world.predict("canary", world.START + 1.9 * DAY, rows=10, version="1", endpoint="canary"),
        *world.days(2, 3, version="2"),
    ]
    world.write(tmp_path / "log", events)
    monitor = open_monitor(tmp_path)
    monitor.step()
    assert brief(monitor) == [
        (0, "1", 160, "judged", True, True),
        (1, "1", 90, "judged", True, False),
        (1, "2", 100, "judged", False, True),
    ]
    assert monitor.store.episodes("flights") == []


@pytest.mark.parametrize(
    ("version", "rows", "status", "note"),
    [
        ("1", 10, "small", None),
        ("7", 80, "no_reference", "the folder of version 7 is unknown"),
    ],
)
def test_a_window_that_cannot_be_tested_is_reported(
    world: ModuleType, open_monitor: Open, tmp_path: Path, version: str, rows: int, status: str, note: str | None
) -> None:
    events = [
        *world.predict("a", world.START, rows=rows, version=version),
        *world.predict("b", world.START + DAY, rows=rows, version=version),
    ]
    world.write(tmp_path / "log", events)
    monitor = open_monitor(tmp_path)
    monitor.step()
    (row,) = monitor.store.windows("flights")
    assert (row["rows"], row["status"], row["drifted"]) == (rows, status, None)
    assert (note or "") in (row["note"] or "")


def test_a_feature_that_no_request_carries_has_drifted(world: ModuleType, open_monitor: Open, tmp_path: Path) -> None:
    request, response = world.predict("a", world.START, rows=80)
    request.body["inputs"] = [tensor for tensor in request.body["inputs"] if tensor["name"] != "wind"]
    world.write(tmp_path / "log", [request, response])
    monitor = open_monitor(tmp_path)
    monitor.advance(world.START + DAY)
    (row,) = monitor.store.windows("flights")
    assert (row["status"], row["drifted"]) == ("judged", True)
    assert [(s["missing_share"], s["drifted"]) for s in monitor.store.scores("flights") if s["feature"] == "wind"] == [
        (1.0, True)
    ]


def test_values_that_are_not_numbers_make_a_window_unreadable(
    world: ModuleType, open_monitor: Open, tmp_path: Path
) -> None:
    request, response = world.predict("a", world.START, rows=80)
    request.body["inputs"][0] |= {"datatype": "BYTES", "data": ["strong"] * 80}
    world.write(tmp_path / "log", [request, response])
    monitor = open_monitor(tmp_path)
    monitor.advance(world.START + DAY)
    (row,) = monitor.store.windows("flights")
    assert (row["status"], "wind" in row["note"]) == ("unreadable", True)


@pytest.mark.parametrize(
    "version", ["1\0", "\x1b[1m1", "1" * 201, "1" * 10_000], ids=["nul", "escape", "long", "endless"]
)
def test_a_version_that_no_database_takes_leaves_the_others_judged(
    world: ModuleType, open_monitor: Open, tmp_path: Path, postgres: str, version: str
) -> None:
    events = [*world.predict("odd", world.START, rows=60, version=version), *world.predict("a", world.START, rows=60)]
    world.write(tmp_path / "log", events)
    monitor = open_monitor(tmp_path, database=postgres)
    monitor.advance(world.START + DAY)
    assert brief(monitor) == [(0, "1", 60, "judged", False, True)]
    assert monitor.store.progress("flights").malformed == 1


def test_what_cannot_be_read_is_counted_where_an_alert_sees_it(
    world: ModuleType, open_monitor: Open, tmp_path: Path
) -> None:
    monitor = open_monitor(tmp_path)
    status = Status("flights", monitor.store, tmp_path / "log", monitor.drift, monitor.grid)

    def count() -> float:
        samples = [sample for family in Metrics(status).collect() for sample in family.samples]
        return next(sample.value for sample in samples if sample.name == "kubeloop_monitor_malformed_total")

    assert count() == 0, "otherwise an alert would see no increase"
    world.write(tmp_path / "log", [world.Event(LABEL_EVENT, "l", world.START, "", {"labels": [{"label": 2}, 3]})])
    monitor.step()
    assert count() == 2


def test_a_large_window_is_tested_on_a_sample_and_says_so(
    world: ModuleType, open_monitor: Open, tmp_path: Path
) -> None:
    world.write(tmp_path / "log", world.predict("a", world.START, rows=port.MOST_ROWS + 10, shift=1.0))
    found = []
    for database in ("once", "again"):
        monitor = open_monitor(tmp_path, database=f"sqlite:///{tmp_path / database}")
        monitor.advance(world.START + DAY)
        (row,) = monitor.store.windows("flights")
        assert (row["rows"], row["status"], row["drifted"]) == (100_010, "judged", True)
        assert row["note"] == "tested on a seeded sample of 100,000 of 100,010 rows"
        found.append(monitor.store.scores("flights"))
    assert {score["rows"] for score in found[0]} == {100_000}
    assert found[0] == found[1]


@pytest.fixture
def small_worker() -> Iterator[str]:
    """A detector worker that accepts at most one megabyte."""
    command = [config.settings().detector_python, "-I", WORKER, "--max-body-mb", "1", "--until-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield process.stdout.readline().split()[1].decode()
        process.terminate()


def test_a_window_that_the_worker_refuses_is_not_sent_forever(
    world: ModuleType, open_monitor: Open, tmp_path: Path, small_worker: str
) -> None:
    events = [
        *world.predict("large", world.START, rows=70_000),
        *world.predict("usual", world.START + DAY, rows=60),
    ]
    world.write(tmp_path / "log", events)
    monitor = open_monitor(tmp_path, detector_url=small_worker)
    monitor.advance(world.START + 2 * DAY)
    assert brief(monitor) == [(0, "1", 70_000, "unreadable", None, True), (1, "1", 60, "judged", False, True)]
    assert "refused with 413" in monitor.store.windows("flights")[0]["note"]


def test_rows_that_belong_to_no_window_are_counted(world: ModuleType, open_monitor: Open, tmp_path: Path) -> None:
    events = [
        *world.predict("a", world.START, rows=60),
        *world.predict("b", world.START + DAY, rows=60),
        *world.predict("late", world.START + 0.9 * DAY, rows=7),
        *world.predict("bogus", world.ARRIVAL + 90 * DAY, rows=5),
    ]
    world.write(tmp_path / "log", events)
    monitor = open_monitor(tmp_path)
    monitor.step()
    now = monitor.store.progress("flights")
    assert (now.late_rows, now.early_rows, now.watermark) == (7, 5, world.START + DAY)
    assert brief(monitor) == [(0, "1", 60, "judged", False, True)]


def test_labels_that_come_after_their_window_was_measured_do_not_count(
    world: ModuleType, open_monitor: Open, tmp_path: Path
) -> None:
    events = [
        *world.predict("a", world.START, rows=60),
        *world.predict("b", world.START + 0.1 * DAY, rows=60),
        *world.label("a", world.START + DAY, rows=60),
        *world.predict("c", world.START + 2 * DAY, rows=60),
        *world.label("b", world.START + DAY, rows=60),
    ]
    world.write(tmp_path / "log", events)
    monitor = open_monitor(tmp_path)
    monitor.step()
    (row,) = monitor.store.performance("flights")
    assert (row["rows"], row["labelled"]) == (120, 60)


def test_advancing_closes_what_no_later_row_has_closed(world: ModuleType, open_monitor: Open, tmp_path: Path) -> None:
    place = world.write(tmp_path / "log", world.days(0, 1))
    monitor = open_monitor(tmp_path)
    monitor.step()
    assert monitor.store.windows("flights") == []
    monitor.advance(world.START + DAY)
    assert brief(monitor) == [(0, "1", 160, "judged", False, True)]
    assert monitor.store.performance("flights") == []
    monitor.advance(world.START + 2 * DAY)
    assert [row["labelled"] for row in monitor.store.performance("flights")] == [160]
    world.write(tmp_path / "log", world.predict("late", world.START + 1.5 * DAY), place)
    monitor.advance(world.START + DAY)
    assert monitor.store.progress("flights").late_rows == 40


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_log_that_was_reset_is_an_error(
    world: ModuleType, open_monitor: Open, tmp_path: Path, mirrored: bool
) -> None:
    log = tmp_path / "log"
    end = world.write(log, world.days(0, 2)) - 1
    monitor = open_monitor(tmp_path)
    monitor.step()
    if mirrored:  # a mirror keeps the segments that are still needed, and marks where the store ends
        segments.mark(log, segments.STORED, 2)
    else:
        segments.segments(log)[0].path.unlink()
        monitor.step()  # an empty folder may be one that a mirror has not filled yet
        world.write(log, world.predict("new", world.START + 3 * DAY))
    with pytest.raises(LogError, match=f"ends at event 2, .* {end}: "):
        monitor.step()
    status = Status("flights", monitor.store, log, monitor.drift, monitor.grid)
    assert status.read()["lag_events"] == 2


def test_an_engine_that_fails_leaves_the_window_for_the_next_round(
    world: ModuleType, open_monitor: Open, tmp_path: Path, references: Path
) -> None:
    world.write(tmp_path / "log", world.days(0, 2))
    monitor = open_monitor(tmp_path)
    nowhere = port.open_detector("alibi", Path("unused"), tmp_path, url="http://127.0.0.1:9")
    versions = Versions(monitor.store, "flights", "kubeloop", references=references)
    outbox = Outbox(monitor.store, "flights")
    broken = Monitor(world.loop(), tmp_path / "log", monitor.store, nowhere, versions, Grid(DAY), outbox)
    with pytest.raises(DetectorError):
        broken.step()
    assert monitor.store.windows("flights") == []
    monitor.step()
    assert brief(monitor) == [(0, "1", 160, "judged", False, True)]
    for part in (nowhere, versions, outbox):
        part.close()


def stream(world: ModuleType) -> list[Any]:
    """Six small days with every case: drift, a switch, a canary, late rows, late labels, a bogus clock."""
    events: list[Any] = []
    for day in range(6):
        version = "1" if day < 4 else "2"
        for n in range(2):
            time = world.START + DAY * (day + 0.3 + n / 2)
            events += world.predict(f"{day}-{n}", time, rows=8, version=version, shift=1.5 * (1 <= day < 4))
        events += world.predict(f"{day}-c", world.START + DAY * (day + 0.5), rows=3, version="2", endpoint="canary")
        events += world.label(f"{day}-0", world.START + DAY * (day + 1), rows=8)
        if day:
            late = day - 2 if day == 3 else day - 1
            events += world.label(f"{late}-1", world.START + DAY * (day + 0.5), rows=8, quality=-1)
            events += world.predict(f"{day}-late", world.START + DAY * (day - 0.1), rows=2, version=version)
    return [*events, *world.predict("bogus", world.ARRIVAL + 90 * DAY, rows=1)]


SMALL = {"min_rows": 10, "min_effect": 0.3}


def test_the_stream_of_the_property_below_holds_all_there_is(
    world: ModuleType, open_monitor: Open, tmp_path: Path
) -> None:
    world.write(tmp_path / "log", stream(world))
    monitor = open_monitor(tmp_path, **SMALL)
    monitor.step()
    found = outcome(monitor)
    assert found["counts"][1:] == (10, 1, 0)
    assert {row["status"] for row in found["windows"]} == {"judged", "small"}
    assert {row["version"] for row in found["windows"]} == {"1", "2"}
    assert {row["drifted"] for row in found["windows"] if row["live"]} == {False, True}
    assert len({row["labelled"] for row in found["performance"] if row["live"]}) > 1
    assert [row["outcome"] for row in found["episodes"]] == ["replaced"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_however_the_log_is_cut_the_windows_are_the_same(
    world: ModuleType, open_monitor: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """The moment when a monitor is replaced does not matter either, even if the disk has only what it asked to keep."""
    monkeypatch.setattr(decode, "REMEMBER", 10)
    events = stream(world)
    if not (tmp_path / "log").exists():
        world.write(tmp_path / "log", events)
    whole = open_monitor(tmp_path, **SMALL)
    whole.step()
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=8).map(sorted))
    rounds = data.draw(st.lists(st.booleans(), min_size=len(cuts), max_size=len(cuts)))
    with TemporaryDirectory() as folder:
        monitor = open_monitor(Path(folder), **SMALL)
        place = 1
        for begin, end, now in zip([0, *cuts], [*cuts, len(events)], [*rounds, True], strict=True):
            place = world.write(Path(folder) / "log", events[begin:end], place)
            if now:
                monitor.step()
                needed = segments.marked(Path(folder) / "log", segments.NEEDED)
                for segment in segments.segments(Path(folder) / "log"):
                    if segment.last <= needed:
                        segment.path.unlink()
                monitor = open_monitor(Path(folder), **SMALL)
        assert needed == len(events) - 10
        assert outcome(monitor) == outcome(whole)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.randoms(use_true_random=False))
def test_the_order_of_events_within_a_window_does_not_matter(
    world: ModuleType, open_monitor: Open, order: random.Random
) -> None:
    days = [world.days(day, day + 1, shift=1.5 * (day > 0), rows=8) for day in range(3)]
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        found = []
        for folder in (Path(one), Path(other)):
            events = [event for day in days for event in (day if folder == Path(one) else order.sample(day, len(day)))]
            world.write(folder / "log", events)
            monitor = open_monitor(folder, min_rows=10)
            monitor.advance(world.START + 4 * DAY)
            found.append(outcome(monitor))
        assert found[0] == found[1]
        assert [row["labelled"] for row in found[0]["performance"]] == [32, 32, 32]


def test_a_collector_whose_clock_runs_ahead_ends_no_window(
    world: ModuleType, open_monitor: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = datetime.now(UTC) + 3650 * DAY
    monkeypatch.setattr(world, "ARRIVAL", ahead)
    world.write(tmp_path / "log", [*world.predict("a", world.START, rows=60), *world.predict("b", ahead, rows=5)])
    monitor = open_monitor(tmp_path)
    monitor.step()
    now = monitor.store.progress("flights")
    assert (now.early_rows, now.watermark) == (5, world.START)
    kept = (tmp_path / "log" / rounds.QUARANTINE).read_text().splitlines()
    assert [json.loads(line)["event_id"] for line in kept] == [f"b-{row}" for row in range(5)]


def test_a_watermark_ahead_of_now_stops_the_reading_until_it_is_reset(
    world: ModuleType, open_monitor: Open, tmp_path: Path
) -> None:
    end = world.write(tmp_path / "log", world.days(0, 2))
    monitor = open_monitor(tmp_path)
    monitor.advance(world.START + 2 * DAY)
    before = monitor.store.progress("flights")
    monitor.store.ingest(replace(before, watermark=datetime(9999, 1, 1, tzinfo=UTC)), (), {})
    world.write(tmp_path / "log", world.days(2, 3), end)
    with pytest.raises(rounds.AheadError, match="--reset-watermark"):
        monitor.step()
    assert monitor.store.progress("flights").late_rows == 0
    monitor.reset()
    monitor.advance(world.START + 3 * DAY)
    assert monitor.store.progress("flights").late_rows == 0
    assert [row["status"] for row in monitor.store.windows("flights")] == ["judged"] * 3


def rare(world: ModuleType, day: int, positives: int) -> list[Any]:
    """A day's traffic in which so many rows with the highest predictions, or the lowest, turn out positive."""
    key, rows = f"rare{day}", 160
    time = world.START + DAY * day
    events = world.predict(key, time + DAY / 2, rows=rows)
    order = np.argsort(np.array(events[1].body["outputs"][0]["data"]).ravel())
    positive = set((order[::-1] if day < 3 else order)[:positives].tolist())
    found = world.label(key, time + 1.5 * DAY, rows=rows)
    for row, item in enumerate(found[0].body["labels"]):
        item["label"] = int(row in positive)
    return [*events, *found]


def test_windows_with_few_positives_are_judged_together_and_vote_once(
    world: ModuleType, open_monitor: Open, tmp_path: Path
) -> None:
    events = [event for day in range(12) for event in rare(world, day, 4)]
    world.write(tmp_path / "log", events)
    monitor = open_monitor(tmp_path)
    monitor.advance(world.START + 13 * DAY)
    found = monitor.store.performance("flights")[:9]
    assert [row["status"] for row in found] == ["few", "few", "judged"] * 3
    assert [row["drifted"] for row in found] == [None, None, False, None, None, True, None, None, True]
    assert [(row["windows"], row["positives"]) for row in found[:3]] == [(1, 4), (1, 4), (3, 12)]
    assert found[0]["note"] == "too few to judge: 4 of 160 labels are 1, and either class needs 10"
    assert "under the floor" in found[5]["note"]
    (episode,) = monitor.store.episodes("flights")
    assert (episode["kind"], episode["window_end"]) == ("performance", world.START + 9 * DAY)

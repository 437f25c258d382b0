"""The replay against a small stand-in world that answers like the services and records the requests."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from kubeloop.config import Loop
from kubeloop.session import services
from kubeloop.session.replay import RETRAIN_TIME, Addresses, Progress, Replay, ReplayError, Sent, drawn

START = datetime(2024, 3, 1, tzinfo=UTC)
UTC_STAMP = pa.timestamp("us", "UTC")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass
class World:
    """The requests in order: `ask` with moment and events, `label` with moment and labels, `advance` with moment."""

    url: str = ""
    told: list[tuple[str, datetime, Any]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    active: int = 0
    queued: int = 0
    fail: Callable[[str], bool] = lambda _: False

    def answer(self, method: str, path: str, body: Any) -> Any:
        match method, path:
            case "GET", "/node/v2/models/shop":
                types = {"shop": "BYTES", "price": "FP64", "opened": "BYTES"}
                return {"inputs": [{"name": name, "datatype": kind} for name, kind in types.items()]}
            case "POST", "/node/v2/models/shop/infer":
                self.bodies.append(body)
                events = json.loads(body["parameters"]["event_ids"])
                self.told.append(("ask", datetime.fromisoformat(body["parameters"]["event_time"]), events))
                return {"outputs": [{"shape": [len(events)], "data": [0.5] * len(events)}]}
            case "GET", "/node/status":
                self.queued = max(0, self.queued - 1)
                return {"queued": self.queued}
            case "POST", "/collector":
                self.told.append(("label", START, body["labels"]))
                return None
            case "POST", "/monitor/advance":
                self.told.append(("advance", datetime.fromisoformat(body["until"]), self.queued))
                return {}
            case "GET", "/trigger/status":
                self.active = max(0, self.active - 1)
                self.told.append(("status", START, self.active > 0))
                return {"active": ["r1"] if self.active else []}
        raise AssertionError(f"{method} {path}")

    def of(self, kind: str) -> list[tuple[datetime, Any]]:
        return [(moment, what) for name, moment, what in self.told if name == kind]

    @property
    def asked(self) -> list[str]:
        return [event for _, events in self.of("ask") for event in events]

    @property
    def labels(self) -> list[dict[str, Any]]:
        return [item for _, items in self.of("label") for item in items]


@pytest.fixture
def world() -> Iterator[World]:
    found = World()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One packet per answer: a second packet would wait for the acknowledgement of the first.
        wbufsize = 65536

        def do_GET(self) -> None:
            self._respond("GET")

        def do_POST(self) -> None:
            self._respond("POST")

        def _respond(self, method: str) -> None:
            text = self.rfile.read(int(self.headers.get("content-length", 0)))
            with lock:
                failing = found.fail(self.path)
                asked = json.loads(text or "null")
                content = {"error": "out of order"} if failing else found.answer(method, self.path, asked)
            body = json.dumps(content).encode()
            self.send_response(500 if failing else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    lock = threading.Lock()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def loop(days: int = 3, group_by: str | None = None, seed: int = 7) -> Loop:
    return Loop.model_validate(
        {
            "name": "shop",
            "source": {"tables": {"t": {"available_at": "at"}}},
            "features": {"service": "v1"},
            "drift": {"window": "1d", "label_wait": "12h"},
            "replay": {
                "train_from": START - DAY,
                "train_to": START,
                "until": START + days * DAY,
                "group_by": group_by,
                "seed": seed,
            },
        }
    )


def events(days: int = 3, shops: str = "ab") -> pa.Table:
    """Two events per hour, whose labels come six hours later; every seventh event has none."""
    rows = [
        {
            "event_id": f"{shop}{hour:03}",
            "event_timestamp": START + hour * HOUR,
            "label": None if (hour + place) % 7 == 0 else hour % 2,
            "label_available_at": START + (hour + 6) * HOUR,
            "shop": shop,
            "price": hour / 2,
            "opened": START,
        }
        for hour in range(24 * days)
        for place, shop in enumerate(shops)
    ]
    return pa.Table.from_pylist(rows)


def run(
    world: World,
    *,
    sample: float = 1.0,
    sent: Sent | None = None,
    days: int = 3,
    seen: list[datetime] | None = None,
    note: Callable[[list[str], bool], None] = lambda *_: None,
    **options: Any,
) -> Progress:
    addresses = Addresses(*(f"{world.url}/{name}" for name in ("node", "collector", "monitor", "trigger")))
    seen = [] if seen is None else seen

    def materialize(moment: datetime) -> int:
        # The requests of this moment are yet to come, and those of every earlier moment were sent.
        assert all(at < moment for at, _ in world.of("ask"))
        seen.append(moment)
        return 0

    sent, found, plan = sent or Sent(), events(days), loop(days, **options)
    assert plan.replay
    moments = np.unique(found["event_timestamp"].to_numpy())
    found = found.filter(
        pc.is_in(found["event_timestamp"], pa.array(drawn(moments, sample, plan.replay.seed), UTC_STAMP))
    )
    replay = Replay(plan, found, addresses, materialize, sent, lambda _: None, note)
    return asyncio.run(replay.run())


def test_every_event_is_asked_for_once_in_the_order_of_time(world: World) -> None:
    seen: list[datetime] = []
    progress = run(world, seen=seen)
    assert sorted(world.asked) == sorted(events()["event_id"].to_pylist())
    moments = [moment for moment, _ in world.of("ask")]
    assert moments == sorted(moments) == seen
    assert (progress.served, progress.requests, progress.errors) == (144, 72, 0)
    assert progress.moment == progress.until == START + 3 * DAY
    assert 0 < progress.latency(0.5) <= progress.latency(0.99)
    assert progress.measured() == {"p50": progress.latency(0.5), "p99": progress.latency(0.99), "requests": 72}
    assert progress.rate() > 0


def test_a_request_carries_what_the_service_asks_for(world: World) -> None:
    run(world, days=1)
    body = world.bodies[3]
    assert body["parameters"] == {"event_ids": '["a003", "b003"]', "event_time": "2024-03-01T03:00:00+00:00"}
    assert body["inputs"] == [
        {"name": "shop", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
        {"name": "price", "datatype": "FP64", "shape": [2], "data": [1.5, 1.5]},
        {"name": "opened", "datatype": "BYTES", "shape": [2], "data": ["2024-03-01T00:00:00+00:00"] * 2},
    ]
    assert len({body["id"] for body in world.bodies}) == len(world.bodies)


def test_one_request_a_value_of_a_column(world: World) -> None:
    progress = run(world, days=1, group_by="shop")
    assert progress.requests == 48
    assert all(len({event[0] for event in events}) == 1 for _, events in world.of("ask"))
    assert len(world.asked) == 48


def test_labels_arrive_once_and_never_early(world: World) -> None:
    progress = run(world)
    truth = {row["event_id"]: row for row in events().to_pylist() if row["label"] is not None}
    due = {name for name, row in truth.items() if row["label_available_at"] <= START + 3 * DAY}
    assert len(due) < len(truth) < 144
    assert sorted(item["event_id"] for item in world.labels) == sorted(due)
    assert progress.labels == len(due)
    now = START
    for kind, moment, what in world.told:
        if kind in ("ask", "advance"):
            now = moment
        for item in what if kind == "label" else ():
            row = truth[item["event_id"]]
            assert item["label"] == row["label"]
            observed = datetime.fromisoformat(item["observed_at"])
            assert observed == row["label_available_at"]
            # The clock is between the moment that was just requested and the next hour.
            assert observed <= now + HOUR


def test_windows_are_judged_once_they_are_whole(world: World) -> None:
    world.queued = 5
    run(world)
    ends = [START + day * DAY + wait for day in (1, 2, 3) for wait in (timedelta(0), DAY / 2)]
    expected = [end for end in ends if end < START + 3 * DAY] + [START + 3 * DAY]
    assert [moment for moment, _ in world.of("advance")] == expected
    # Nothing was on its way to the collector.
    assert [queued for _, queued in world.of("advance")] == [0] * len(expected)
    for place, (kind, end, _) in enumerate(world.told):
        if kind != "advance":
            continue
        assert all(moment < end for name, moment, _ in world.told[:place] if name == "ask")
        assert all(moment >= end for name, moment, _ in world.told[place:] if name == "ask")
        told = {item["event_id"] for name, _, items in world.told[:place] if name == "label" for item in items}
        known = [row for row in events().to_pylist() if row["label"] is not None and row["label_available_at"] <= end]
        assert told == {row["event_id"] for row in known}


def test_a_sample_is_drawn_by_its_seed(world: World) -> None:
    run(world, sample=0.4)
    first = list(world.asked)
    assert 30 < len(first) < 90
    # Whole moments are drawn.
    assert {event[1:] for event in first if event[0] == "a"} == {event[1:] for event in first if event[0] == "b"}
    world.told.clear()
    run(world, sample=0.4)
    assert world.asked == first
    world.told.clear()
    run(world, sample=0.4, seed=8)
    assert world.asked != first


def test_a_replay_goes_on_where_it_stopped(world: World) -> None:
    run(world, sample=0.6)
    whole = list(world.asked)
    labels = {item["event_id"] for item in world.labels}
    world.told.clear()
    before, told = frozenset(whole[:50]), frozenset(sorted(labels)[:20])
    progress = run(world, sample=0.6, sent=Sent(before, told))
    assert world.asked == whole[50:]
    assert {item["event_id"] for item in world.labels} == labels - told
    assert len(world.labels) == len(labels - told)
    assert progress.served == len(whole)


def test_a_replay_that_was_finished_asks_nothing(world: World) -> None:
    run(world)
    done = Sent(frozenset(world.asked), frozenset(item["event_id"] for item in world.labels))
    world.told.clear()
    progress = run(world, sent=done)
    assert world.asked == world.labels == []
    assert (progress.served, progress.measured()) == (144, None)
    assert world.of("advance")[-1][0] == START + 3 * DAY


def test_the_clock_waits_for_a_retraining(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients continue for a day of simulated time, but slower; then they wait until the run is over."""
    monkeypatch.setattr("kubeloop.session.replay._PACE_S", 0.001)
    world.active = 100
    run(world)
    # The run becomes known when the first window is judged, and stays active for a while.
    hold = START + DAY + RETRAIN_TIME
    last = max(place for place, (kind, _, active) in enumerate(world.told) if kind == "status" and active)
    assert last > 60
    while_active = [moment for kind, moment, _ in world.told[:last] if kind == "ask"]
    assert START + DAY < max(while_active) < hold
    assert len(world.asked) == 144


def test_the_end_waits_for_a_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeloop.session.replay._PACE_S", 0.001)
    world.active = 40
    progress = run(world, days=1)
    assert world.active == 0
    assert not progress.retraining


def test_a_failed_prediction_is_counted(world: World) -> None:
    count: list[int] = []

    def fail_twice(path: str) -> bool:
        if path.endswith("/infer") and len(world.asked) == 20 and len(count) < 2:
            count.append(1)
            return True
        return False

    world.fail = fail_twice
    noted: list[tuple[list[str], bool]] = []
    progress = run(world, note=lambda events, answered: noted.append((events, answered)))
    assert (progress.errors, progress.served, progress.requests) == (4, 140, 72)
    assert "500" in progress.last_error
    assert "out of order" in progress.last_error
    # The world received the requests that were answered; the failed ones never reached it.
    assert [event for events, answered in noted if answered for event in events] == world.asked
    assert sum(len(events) for events, answered in noted if not answered) == 4


def test_an_answer_with_too_few_rows_is_an_error(world: World) -> None:
    answer = world.answer

    def short(method: str, path: str, body: Any) -> Any:
        found = answer(method, path, body)
        return {"outputs": [{"shape": [1], "data": [0.5]}]} if path.endswith("/infer") else found

    world.answer = short
    progress = run(world, days=1)
    assert (progress.errors, progress.served) == (48, 0)
    assert progress.last_error == "answers for 1 of 2 rows"


@pytest.mark.parametrize(
    "path", ["/collector", "/monitor/advance", "/trigger/status", "/node/status", "/node/v2/models/shop"]
)
def test_a_service_that_fails_ends_the_replay(world: World, path: str) -> None:
    world.fail = lambda asked: asked == path
    with pytest.raises(ReplayError, match=f"{path}: 500.*out of order"):
        run(world)


def test_a_service_that_is_away_ends_the_replay(world: World) -> None:
    addresses = Addresses("http://127.0.0.1:1", *[world.url] * 3)
    replay = Replay(loop(), events(), addresses, lambda _: 0, Sent(), lambda _: None, lambda *_: None)
    with pytest.raises(ReplayError, match=r"127\.0\.0\.1:1"):
        asyncio.run(replay.run())


def test_a_loop_without_a_replay_replays_nothing(world: World) -> None:
    bare = loop().model_copy(update={"replay": None})
    with pytest.raises(ReplayError, match="no `replay` section"):
        Replay(bare, events(), Addresses("", "", "", ""), lambda _: 0, Sent(), lambda _: None, lambda *_: None)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_requests_under_way_be_answered(world: World, how: signal.Signals) -> None:
    """The requests that were sent are counted, so Ctrl-C leaves no session to be settled by the log."""
    before = world.answer
    noted: list[tuple[list[str], bool]] = []

    def slow(method: str, path: str, body: Any) -> Any:
        if path.endswith("/infer") and len(world.asked) == 20:
            os.kill(os.getpid(), how)
            time.sleep(0.5)
        return before(method, path, body)

    world.answer = slow
    signals = services._Signals()
    signals.take()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(world, note=lambda asked, answered: noted.append((asked, answered)), group_by="shop")
    finally:
        signals.give_back()
    assert all(answered for _, answered in noted)
    assert sorted(event for asked, _ in noted for event in asked) == sorted(world.asked)
    assert 20 < len(world.asked) <= 22

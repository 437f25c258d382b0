"""Odd moments against every reader of moments from outside: a one-sentence refusal, and no time past now."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeloop import moments
from kubeloop.config import ConfigError, past
from kubeloop.config.types import instant
from kubeloop.monitoring import monitor as program
from kubeloop.monitoring.detector import port
from kubeloop.monitoring.outbox import Outbox
from kubeloop.monitoring.rounds import Monitor
from kubeloop.monitoring.status import Status
from kubeloop.monitoring.store import Store
from kubeloop.monitoring.versions import Versions
from kubeloop.monitoring.windows import Grid
from kubeloop.names import DRIFT_EVENT
from kubeloop.payloads import cloudevents, labels
from kubeloop.trigger.event import DriftEvent
from tests.unit.monitoring import world

EDGES = [
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59-14:00",
    "9999-12-31T23:59:59.999999Z",
    "1969-12-31T23:59:59Z",
    "1970-01-01",
    "2013-04-01T00:00:00",
    "",
    "soon",
]
OFFSETS = st.integers(-14, 14).map(lambda hours: f"{hours:+03d}:00")
TEXTS = st.one_of(
    st.sampled_from(EDGES),
    st.text(max_size=30),
    st.builds(lambda moment, offset: moment.isoformat() + offset, st.datetimes(), OFFSETS),
)


@pytest.fixture
def face(tmp_path: Path) -> Iterator[tuple[str, Store]]:
    """The monitor's own HTTP interface on a real server."""
    loop = world.loop()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store(f"sqlite:///{tmp_path / 'monitor.db'}")))
        versions = stack.enter_context(contextlib.closing(Versions(store, loop.name, loop.delivery.namespace)))
        outbox = stack.enter_context(contextlib.closing(Outbox(store, loop.name, None)))
        detector = stack.enter_context(contextlib.closing(port.open_detector("builtin", Path("unused"), tmp_path)))
        grid = Grid(loop.drift.window)
        monitor = Monitor(loop, tmp_path / "log", store, detector, versions, grid, outbox)
        (tmp_path / "log").mkdir()
        app = program.create_app(
            Status(loop.name, store, tmp_path / "log", loop.drift, grid), program.Watch(monitor, 1.0, None)
        )
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", store
        server.should_exit = True
        thread.join()


def test_no_moment_fails_advance_or_takes_time_past_now(face: tuple[str, Store]) -> None:
    url, store = face

    with httpx.Client(trust_env=False, timeout=30) as http:

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(TEXTS)
        def attack(text: str) -> None:
            answer = http.post(f"{url}/advance", json={"until": text})
            assert answer.status_code in (200, 400), answer.text
            mark = store.progress("flights").watermark
            assert mark is None or mark <= datetime.now(UTC) + moments.SKEW
            assert http.get(f"{url}/status").status_code == 200

        for text in EDGES:
            assert http.post(f"{url}/advance", json={"until": text}).status_code in (200, 400), text
        attack()
        assert http.post(f"{url}/advance", json={"until": "9999-01-01T00:00:00Z"}).status_code == 400


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_drift_event_takes_no_run_past_now(data: st.DataObject) -> None:
    """Tried in both of its moments: a run would look ahead, and its cooldown would last until then."""
    event = {"service": "shop", "episode": "e", "kind": "drift", "features": [], "reason": "because"}
    event |= {name: data.draw(TEXTS) for name in ("opened_at", "as_of")}
    headers = {"content-type": "application/json", "ce-specversion": "1.0", "ce-type": DRIFT_EVENT}
    headers |= {"ce-source": "a", "ce-id": "e"}
    with contextlib.suppress(ValueError):
        found = DriftEvent.parse(headers, json.dumps(event).encode())
        assert max(found.opened_at, found.as_of) <= datetime.now(UTC) + moments.MOST


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_every_reader_says_one_sentence(text: str) -> None:
    for read in (past, instant):
        with contextlib.suppress(ConfigError):
            read(text)
    with contextlib.suppress(ValueError):
        moments.past(moments.read(text))
    required = {b"ce-specversion": b"1.0", b"ce-id": b"a", b"ce-source": b"s", b"ce-type": b"t"}
    with contextlib.suppress(cloudevents.EventError):
        cloudevents.parse(required | {b"ce-time": text.encode("utf-8", "replace")}, b"", 0)
    told, _ = labels.read(json.dumps({"labels": [{"event_id": "a", "label": 1, "observed_at": text}]}).encode())
    now = datetime.now(UTC)
    for label in told:
        ahead = moments.read(text) > now + moments.MOST
        assert bool(labels.early(told, int(now.timestamp() * 1e6))) == ahead, label


def test_a_pipeline_refuses_a_future_as_of() -> None:
    with pytest.raises(ConfigError, match="in the future"):
        past((datetime.now(UTC) + timedelta(days=3650)).isoformat())

"""What `kubeloop predict` sends, received by a small real server."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kubeloop import config
from kubeloop.addresses import ServiceError
from kubeloop.config import Loop, Settings
from kubeloop.monitoring.store import Store
from kubeloop.session import client
from kubeloop.session.client import RequestError

START, UNTIL = datetime(2013, 4, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC)
MAY = datetime(2013, 5, 5, 12, 30, tzinfo=UTC)
ROW = '{"shop": "a"}'


@pytest.fixture
def received() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def settings(tmp_path: Path, received: list[dict[str, Any]]) -> Iterator[Settings]:
    """An installation whose services are up."""

    class Node(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"inputs": [{"name": "shop", "datatype": "BYTES"}]})

        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._answer({"model_version": "3", "outputs": [{"name": "probability", "shape": [1], "data": [0.25]}]})

        def _answer(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200 if "/v2/models/shop" in self.path else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    found = config.settings(tmp_path, tmp_path / "state")
    found.features.mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Node) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        found.services_file.write_text(json.dumps({"node": {"url": url, "pid": 1}}))
        yield found
        server.shutdown()


def loop(*, replay: bool) -> Loop:
    plan = {"train_from": START - timedelta(days=90), "train_to": START, "until": UNTIL}
    known = {"name": "shop", "source": {"tables": {"t": {"available_at": "at"}}}, "features": {"service": "v1"}}
    return Loop.model_validate(known | ({"replay": plan} if replay else {}))


def stand(settings: Settings, moment: datetime) -> None:
    """Set how far the online store is written."""
    (settings.features / "materialized-to").write_text(moment.isoformat())


@pytest.mark.parametrize(
    ("replay", "stands", "at", "sent", "noted"),
    [
        (False, None, None, None, False),
        (False, None, "2013-05-05", {"event_time": "2013-05-05"}, False),
        # Not the wall clock's time, which would end every window of the replay.
        (True, None, None, {"event_time": "2013-04-01T00:00:00+00:00"}, False),
        (True, MAY, None, {"event_time": "2013-05-05T12:30:00+00:00"}, False),
        (True, MAY, "2013-05-05T12:30:00Z", {"event_time": "2013-05-05T12:30:00Z"}, False),
        (True, MAY, "2013-05-05", {"event_time": "2013-05-05"}, True),
    ],
)
def test_a_prediction_is_of_the_loops_own_time(
    settings: Settings,
    received: list[dict[str, Any]],
    replay: bool,
    stands: datetime | None,
    at: str | None,
    sent: dict[str, str] | None,
    noted: bool,
) -> None:
    if stands:
        stand(settings, stands)
    found = client.predict(loop(replay=replay), settings, ROW, at)
    assert (found["probability"], found["version"]) == ([0.25], "3")
    assert received[0].get("parameters") == sent
    assert received[0]["inputs"] == [{"name": "shop", "datatype": "BYTES", "shape": [1], "data": ["a"]}]
    assert bool(found["note"]) is noted
    if noted:
        assert found["note"].endswith("the online store is at 2013-05-05 12:30 UTC")


def test_a_model_that_is_not_served_yet_is_said_in_a_sentence(settings: Settings) -> None:
    with pytest.raises(client.SilentError, match=r"^other is not served yet \(404\); try again in a moment$"):
        client.predict(loop(replay=False).model_copy(update={"name": "other"}), settings, ROW)


def test_a_moment_that_the_replay_has_not_reached_is_refused(
    settings: Settings, received: list[dict[str, Any]]
) -> None:
    stand(settings, MAY)
    with pytest.raises(RequestError, match=r"the replay is at 2013-05-05 12:30 UTC.*leave out --at"):
        client.predict(loop(replay=True), settings, ROW, "2013-06-01")
    assert received == []
    store = Store(settings.monitor_db)
    store.ingest(replace(store.progress("shop"), watermark=UNTIL), (), {})
    store.close()
    client.predict(loop(replay=True), settings, ROW, "2013-06-01")
    assert received[0]["parameters"] == {"event_time": "2013-06-01"}


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-14:00", "2099-01-01", "0001-01-01", "soon"])
def test_a_moment_that_has_not_come_is_refused(
    settings: Settings, received: list[dict[str, Any]], at: str, replay: bool
) -> None:
    with pytest.raises(config.ConfigError):
        client.predict(loop(replay=replay), settings, ROW, at)
    assert received == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "one JSON object"),
        ("[1]", "one JSON object"),
        ("{}", r"lacks shop; each row needs shop \(text\)"),
    ],
)
def test_rows_that_cannot_be_sent_are_explained(settings: Settings, rows: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        client.predict(loop(replay=True), settings, rows)


def test_nothing_is_asked_where_nothing_is_up(settings: Settings) -> None:
    settings.services_file.unlink()
    with pytest.raises(ServiceError, match="kubeloop serve"):
        client.predict(loop(replay=True), settings, ROW, "2013-06-01")

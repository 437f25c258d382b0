"""What the collector accepts, refuses and reports, over real HTTP."""

import asyncio
import base64
import json
import os
import resource
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop.names import LABEL_EVENT
from kubeloop.payloads import segments
from kubeloop.payloads.cloudevents import Event
from kubeloop.payloads.journal import Journal, Limits
from kubeloop.payloads.wal import Wal

Start = Callable[..., Any]
STRUCTURED = {"specversion": "1.0", "id": "s", "source": "test", "type": "io.kubeloop.test"}


def test_binary_events_keep_every_attribute_and_the_body(start: Start) -> None:
    running = start()
    before = datetime.now(UTC)
    answer = running.post(
        "a%20%C3%A9",
        b"\x00\xffnot json",
        time="2013-04-01T12:00:00.123456789+02:00",
        namespace="shop",
        component="predictor",
        endpoint="canary",
    )
    assert (answer.status_code, answer.content) == (202, b"")
    assert running.post("b").status_code == 202
    assert running.flush() == 2
    first, second = segments.read(running.directory)[0].to_pylist()
    assert before <= first.pop("received_at") <= datetime.now(UTC)
    assert first == {
        "seq": 1,
        "time": datetime(2013, 4, 1, 10, 0, 0, 123456, tzinfo=UTC),
        "id": "a é",
        "type": "org.kubeflow.serving.inference.request",
        "source": "test",
        "service": "flights",
        "namespace": "shop",
        "component": "predictor",
        "endpoint": "canary",
        "body": b"\x00\xffnot json",
    }
    assert second["time"] == second["received_at"]


def test_structured_and_batched_events_are_the_same_as_binary_ones(start: Start) -> None:
    running = start()
    single = STRUCTURED | {"inferenceservicename": "flights", "data": {"labels": []}}
    batch = [
        STRUCTURED | {"id": "raw", "data_base64": base64.b64encode(b"\x00\x01").decode()},
        STRUCTURED | {"id": "text", "data": "plain", "datacontenttype": "text/plain"},
        STRUCTURED | {"id": "none"},
    ]
    for kind, content in (("cloudevents", single), ("cloudevents-batch", batch), ("cloudevents-batch", [])):
        headers = {"content-type": f"application/{kind}+json; charset=utf-8"}
        assert running.client.post("/", content=json.dumps(content), headers=headers).status_code == 202
    running.flush()
    rows = segments.read(running.directory)[0].to_pylist()
    assert [(row["id"], row["service"], row["body"]) for row in rows] == [
        ("s", "flights", b'{"labels":[]}'),
        ("raw", "", b"\x00\x01"),
        ("text", "", b"plain"),
        ("none", "", b""),
    ]


BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
JSON = {"content-type": "application/cloudevents+json"}
BATCH = {"content-type": "application/cloudevents-batch+json"}


LABEL = BINARY | {"ce-type": LABEL_EVENT, "content-type": "application/json"}


def label(ahead: timedelta) -> bytes:
    at = (datetime.now(UTC) + ahead).isoformat()
    return json.dumps({"labels": [{"event_id": "a", "label": 1, "observed_at": at}]}).encode()


AHEAD = json.dumps({"labels": [{"event_id": "a", "label": 1, "observed_at": "2100-01-01T00:00:00Z"}]}).encode()


@pytest.mark.parametrize(
    ("headers", "body", "status", "says"),
    [
        (LABEL, AHEAD, 400, "label of 'a': observed_at is more than an hour in the future"),
        ({}, b"", 400, "ce-specversion, ce-id, ce-source, ce-type"),
        (BINARY | {"ce-id": ""}, b"", 400, "missing attribute: ce-id"),
        (BINARY | {"ce-specversion": "0.3"}, b"", 400, "ce-specversion is '0.3'"),
        (BINARY | {"ce-time": "yesterday"}, b"", 400, "ce-time is not an RFC 3339 time: 'yesterday'"),
        (BINARY | {"ce-time": "0001-01-01T00:00:00Z"}, b"", 400, "ce-time"),
        (BINARY | {"ce-id": "x" * 2000}, b"", 400, "ce-id must be text of at most 1024"),
        (BINARY | {"ce-source": "a%1Fb"}, b"", 400, "control characters"),
        (BINARY | {"content-encoding": "gzip"}, b"", 400, "content-encoding"),
        (JSON, b"{", 400, "the body is not JSON"),
        (JSON, b"[]", 400, "an event is a JSON object"),
        (JSON, json.dumps(STRUCTURED | {"type": None}).encode(), 400, "missing attribute: type"),
        (JSON, json.dumps(STRUCTURED | {"id": 7}).encode(), 400, "id must be text"),
        (JSON, json.dumps(STRUCTURED | {"data_base64": "*"}).encode(), 400, "data_base64"),
        (BATCH, b"{}", 400, "a batch is a JSON list"),
        (BATCH, json.dumps([STRUCTURED, {}]).encode(), 400, "event 1 of the batch: missing attribute"),
        ({"content-type": "application/cloudevents+avro"}, b"", 400, "avro"),
        (BINARY, b"x" * 50_001, 413, "--max-body-bytes"),
    ],
)
def test_bad_events_are_refused_with_the_reason(
    running: Any, headers: dict[str, str], body: bytes, status: int, says: str
) -> None:
    answer = running.client.post("/", content=body, headers=headers)
    assert (answer.status_code, says in answer.json()["error"]) == (status, True), answer.text
    assert running.status()["acknowledged_seq"] == 0


def test_a_body_of_unknown_length_is_cut_off_and_gives_its_memory_back(running: Any) -> None:
    answer = running.client.post("/", content=(b"x" * 10_000 for _ in range(20)), headers=BINARY)
    assert answer.status_code == 413
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nhost: localhost\r\nce-id: 1\r\ncontent-length: 40000\r\n\r\n" + b"x" * 20_000
        )
        running.wait_for(lambda: running.status()["held_bytes"] > 0)
    running.wait_for(lambda: running.status()["held_bytes"] == 0)
    assert running.status()["rejected"]["too_large"] >= 1


def test_other_methods_and_paths_are_answered(running: Any) -> None:
    assert running.client.get("/").status_code == 405
    assert running.client.post("/elsewhere").status_code == 404
    assert running.client.get("/healthz").text == "ok"
    assert running.client.get("/readyz").text == "ok"


def test_metrics_count_requests_and_agree_with_the_status(start: Start) -> None:
    running = start()
    for event in range(3):
        running.post(event)
    running.post("bad", time="never")
    running.flush()
    text = running.client.get("/metrics").text
    for line in (
        "kubeloop_collector_events_received_total 3.0",
        "kubeloop_collector_events_written_total 3.0",
        'kubeloop_collector_events_rejected_total{reason="bad_event"} 1.0',
        'kubeloop_collector_events_total{kind="request"} 3.0',
        'kubeloop_collector_events_total{kind="label"} 0.0',
        "kubeloop_collector_request_seconds_count 4.0",
        "kubeloop_collector_last_seq 3.0",
        "kubeloop_collector_wal_bytes 0.0",
    ):
        assert line in text.splitlines()
    status = running.status()
    assert {key: status[key] for key in ("received", "written", "last_seq", "segments", "wal_bytes")} == {
        "received": 3,
        "written": 3,
        "last_seq": 3,
        "segments": 1,
        "wal_bytes": 0,
    }
    assert status["uptime"] > 0


def test_events_become_a_segment_by_count_and_by_age(start: Start) -> None:
    running = start("--flush-rows", "4", "--flush-seconds", "0.3")
    for event in range(5):
        running.post(event)
    running.wait_for(lambda: running.status()["last_seq"] >= 4)
    running.wait_for(lambda: running.status()["last_seq"] == 5)


def test_memory_of_the_process_stays_bounded_under_a_stuck_flusher(start: Start) -> None:
    running = start("--max-memory-bytes", "20000000")
    (running.directory / ".events.tmp").mkdir()
    running.post("warm", b"x" * 1_000_000)
    before = resident(running.process.pid)
    codes = {running.post(event, b"x" * 2_000_000).status_code for event in range(60)}
    assert codes == {202, 429}
    assert resident(running.process.pid) - before < 100_000_000


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class _Stuck(Wal):
    """A write-ahead file on a disk that hangs for a while."""

    def __init__(self, directory: Path, first: int) -> None:
        super().__init__(directory, first)
        self.answers = threading.Event()

    def append(self, data: bytes) -> None:
        self.answers.wait()
        super().append(data)


def test_a_disk_that_does_not_answer_never_keeps_a_sender_waiting(tmp_path: Path) -> None:
    event = Event(0, 0, "1", "t", "s", "", "", "", "", b"{}")

    async def scenario() -> None:
        journal = Journal(tmp_path, Limits(answer_seconds=0.1))
        disk = journal._wal = _Stuck(tmp_path, 1)
        journal.start()
        taken = asyncio.create_task(journal.submit([event]))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(journal.submit([event, event]))
        await asyncio.sleep(0.15)
        journal.expire()
        answers = [await taken, await waiting]
        assert [answer.reason if answer else None for answer in answers] == ["stalled", "stalled"]
        assert journal.dropped == {"stalled": 3}
        disk.answers.set()
        assert await journal.submit([event]) is None
        assert await journal.flush() == 2
        await asyncio.sleep(0)
        assert journal.held == 0
        journal.close()

    asyncio.run(scenario())
    # The event that the disk held up is written after all; those behind it, refused before their turn, are not.
    assert segments.read(tmp_path)[0].num_rows == 2


def test_room_is_found_where_none_can_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS

    async def scenario() -> None:
        journal = Journal(tmp_path, Limits())
        journal.start()
        assert await journal.ready() is None
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
        try:
            refusal = await journal.ready()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert refusal is not None
        assert refusal.reason == "disk_full"
        assert await journal.ready() is None
        journal.close()

    asyncio.run(scenario())


def test_a_port_in_use_is_a_clear_error(start: Start, tmp_path: Path) -> None:
    first = start()
    with pytest.raises(AssertionError, match="Address already in use"):
        start("--port", first.url.rpartition(":")[2])


def test_answers_are_json_with_a_next_step(running: Any) -> None:
    answer: httpx.Response = running.client.post("/", headers=BINARY | {"ce-type": ""})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"error": "missing attribute: ce-type"}


def test_a_client_that_leaves_before_its_body_leaves_no_event(start: Start) -> None:
    collector = start()
    host, port = collector.url.removeprefix("http://").split(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in (BINARY | {"ce-type": "a"}).items())
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nhost: localhost\r\n{head}content-length: 20\r\n\r\n".encode())
    collector.wait_for(lambda: collector.status()["rejected"] == {"bad_event": 1})
    assert collector.post("retry").status_code == 202
    assert collector.ids() == ["retry"]


def test_a_label_may_be_as_far_ahead_as_clocks_are(running: Any) -> None:
    assert running.client.post("/", content=label(timedelta(minutes=50)), headers=LABEL).status_code == 202

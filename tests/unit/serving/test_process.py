"""Hostile and unlucky clients, and a stop under load: the server answers 4xx, keeps running and loses no request."""

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROW = json.dumps({"instances": [{"distance": 1, "hour": 1, "carrier": "AA"}]}).encode()
PATH = "/v1/models/flights:predict"
HEAD = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\n".encode()


def ask(url: str, *pieces: bytes | float, timeout: float = 10) -> bytes:
    """Send pieces over one connection, pausing for numbers, and return everything until the connection closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        for piece in pieces:
            if isinstance(piece, bytes):
                with contextlib.suppress(ConnectionError):
                    connection.sendall(piece)
            else:
                time.sleep(piece)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
        return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def alive(url: str) -> bool:
    return httpx.post(url + PATH, content=ROW).status_code == 200


def test_a_length_that_is_too_large_is_refused_unread(columns: str) -> None:
    answer = ask(columns, HEAD + b"content-length: 100001\r\n\r\n")
    assert status(answer) == 413
    assert b"more than 100000 bytes" in answer
    assert b"connection: close" in answer


def test_a_chunked_body_is_counted(columns: str) -> None:
    chunk = b"%x\r\n%s\r\n" % (10000, b" " * 10000)
    answer = ask(columns, HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 11, b"0\r\n\r\n")
    assert status(answer) == 413
    good = b"%x\r\n%s\r\n" % (len(ROW), ROW)
    answer = ask(columns, HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + good + b"0\r\n\r\n")
    assert status(answer) == 200


def test_a_refusal_reaches_a_client_that_is_still_sending(columns: str) -> None:
    answer = httpx.post(columns + PATH, content=b" " * 5_000_000)
    assert answer.status_code == 413
    assert "send fewer rows" in answer.json()["error"]


def test_a_body_without_end_is_cut_off(columns: str) -> None:
    begin = time.monotonic()
    chunk = b"%x\r\n%s\r\n" % (1000, b" " * 1000)
    answer = ask(columns, HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk, 0.01] * 150)
    assert status(answer) in (408, 413)
    assert time.monotonic() - begin < 6


def test_a_length_that_lies_is_noticed(columns: str) -> None:
    too_long = ask(columns, HEAD + b"content-length: 500\r\n\r\n" + ROW)
    assert status(too_long) == 408
    too_short = ask(columns, HEAD + b"connection: close\r\ncontent-length: 5\r\n\r\n" + ROW)
    assert status(too_short) == 400


def test_slow_bodies_get_408_and_hold_up_nobody(columns: str, in_threads: Callable[..., None]) -> None:
    answers: list[bytes] = []

    def slow() -> None:
        answers.append(ask(columns, HEAD + b"content-length: 50\r\n\r\n{", 0.3, b'"'))

    def quick() -> None:
        time.sleep(0.2)
        for _ in range(20):
            begin = time.perf_counter()
            assert alive(columns)
            assert time.perf_counter() - begin < 1

    in_threads([*[slow] * 50, quick])
    assert {status(answer) for answer in answers} == {408}
    assert b"did not arrive within 1 s" in answers[0]


def test_a_client_that_leaves_is_forgotten(columns: str) -> None:
    host, port = columns.removeprefix("http://").split(":")
    for sent in (b"", HEAD[:20], HEAD, HEAD + b"content-length: 50\r\n\r\n{"):
        connection = socket.create_connection((host, int(port)))
        connection.sendall(sent)
        connection.close()
    time.sleep(0.1)
    assert "kubeloop_requests_in_flight 1.0" in httpx.get(f"{columns}/metrics").text.splitlines()


def test_continue_is_sent_to_a_client_that_waits_for_it(columns: str) -> None:
    head = HEAD + b"connection: close\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(ROW)
    answer = ask(columns, head, 0.1, ROW)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


def test_an_offered_upgrade_is_ignored(columns: str) -> None:
    offer = {"connection": "upgrade, http2-settings", "upgrade": "h2c", "http2-settings": "AAEAAEAAAAIAAAAB"}
    with httpx.Client() as session:
        for _ in range(2):
            assert session.post(columns + PATH, content=ROW, headers=offer).status_code == 200


def test_pipelined_requests_are_answered_in_order(columns: str) -> None:
    one = HEAD + b"content-length: %d\r\n\r\n" % len(ROW) + ROW
    last = HEAD + b"connection: close\r\ncontent-length: 1\r\n\r\n{"
    answer = ask(columns, one + one + last)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 400]


GARBAGE = {
    "nonsense": b"\x00\x01\x02\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "version": b"GET / HTTP/9.9\r\n\r\n",
    "method": b"FETCH / HTTP/1.1\r\n\r\n",
    "connect": b"CONNECT x:1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    "escapes in the path": b"GET /v2/models/%ff%00%zz/infer HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    "length no number": HEAD + b"content-length: ten\r\n\r\n",
    "length negative": HEAD + b"content-length: -5\r\n\r\n",
    "length too long": HEAD + b"content-length: 99999999999999999999999\r\n\r\n",
    "two lengths": HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n12345",
    "length and chunks": HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "header without name": HEAD + b": x\r\n\r\n",
    "large headers": HEAD + b"x: " + b"y" * 200_000,
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_what_is_not_http_gets_4xx(columns: str, sent: bytes) -> None:
    answer = ask(columns, sent)
    assert 400 <= status(answer) < 500
    assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])
    assert alive(columns)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["distance", "hour", "carrier"]) | JSON,
        "datatype": st.sampled_from(["FP32", "BYTES"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data": st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3) | JSON, max_size=3),
    },
)
BODY = st.one_of(
    JSON,
    st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=4) | JSON}, optional={"id": JSON, "parameters": JSON}),
    st.fixed_dictionaries({"instances": st.lists(JSON, max_size=3) | JSON}),
).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODY, path=st.sampled_from(["/v2/models/flights/infer", PATH]))
def test_malformed_bodies_always_get_4xx(columns: str, client: httpx.Client, body: bytes, path: str) -> None:
    answer = client.post(columns + path, content=body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]


def test_after_all_that_there_was_no_5xx(columns: str, client: httpx.Client) -> None:
    assert alive(columns)
    counts = [line for line in client.get(f"{columns}/metrics").text.splitlines() if "requests_total{" in line]
    assert counts
    assert not [line for line in counts if 'code="5' in line]


def test_a_stop_under_load_loses_no_request(models: Path, start: Any, in_threads: Callable[..., None]) -> None:
    server = start("--model-dir", models / "columns", "--name=flights", drain_s=0.3)
    host, port = server.url.removeprefix("http://").split(":")
    served = [0] * 8

    def load(number: int) -> None:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        while True:
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionRefusedError:
                return  # The request was never accepted, so it is not lost.
            connection.request("POST", PATH, ROW)
            answer = connection.getresponse()
            assert (answer.status, answer.read()[:14]) == (200, b'{"predictions"')
            served[number] += 1

    def stop() -> None:
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)

    in_threads([*(lambda n=n: load(n) for n in range(8)), stop])
    assert server.stop()[0] == 0
    assert min(served) > 10


def test_a_stop_waits_for_what_is_in_flight_and_is_not_ready_meanwhile(
    models: Path, start: Any, in_threads: Callable[..., None]
) -> None:
    server = start("--model-dir", models / "slow", "--name=slow", drain_s=0.3)
    body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [4000], "data": [1] * 4000}]}
    sent = threading.Event()
    seen: list[tuple[int, dict[str, Any]]] = []

    def slow() -> None:
        sent.set()
        answer = httpx.post(f"{server.url}/v2/models/slow/infer", json=body, timeout=20)
        assert answer.status_code == 200
        assert answer.json()["outputs"][0]["shape"] == [4000]

    def stop() -> None:
        sent.wait()
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        answer = httpx.get(f"{server.url}/v2/health/ready", timeout=20)
        seen.append((answer.status_code, answer.json()))

    in_threads([slow, stop])
    code, log = server.stop()
    assert code == 0
    assert seen == [(503, {"ready": False})]
    assert log.count("draining") == 1


@pytest.fixture
def idle(models: Path, start: Any) -> Iterator[tuple[Any, socket.socket]]:
    server = start("--model-dir", models / "columns", "--name=flights")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        yield server, connection


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"])
def test_an_idle_connection_does_not_delay_the_stop(idle: tuple[Any, socket.socket], sent: bytes) -> None:
    server, connection = idle
    connection.sendall(sent)
    time.sleep(0.05)
    begin = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.stop()[0] == 0
    assert time.monotonic() - begin < 3

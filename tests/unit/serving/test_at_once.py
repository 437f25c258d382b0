"""A request that arrives complete is answered without a task; the client's answer and the counts stay the same."""

import json
import re
import socket
import time
from pathlib import Path

import httpx
import pytest

from kubeloop.serving.bounds import Post
from kubeloop.serving.guard import Guard
from tests.unit.serving.conftest import Start

ROW = {"name": "input", "shape": [1, 30], "datatype": "FP32", "data": [1] * 30}
V2 = "/v2/models/matrix/infer"
V1 = "/v1/models/matrix:predict"
JSON = "content-type: application/json"


def v2(**changes: object) -> bytes:
    return json.dumps({"id": "7", "inputs": [ROW | changes]}).encode()


CASES = {
    "V2": (V2, [JSON], v2()),
    "V2 without a type": (V2, [], v2()),
    "V1": (V1, [JSON], json.dumps({"instances": [[1] * 30, [2] * 30]}).encode()),
    "a version": (V2.replace("/infer", "/versions/1/infer"), [JSON], v2()),
    "another version": (V2.replace("/infer", "/versions/4/infer"), [JSON], v2()),
    "a quoted path": (V2.replace("matrix", "m%61trix"), [JSON], v2()),
    "a query": (f"{V2}?a=b", [JSON], v2()),
    "no such path": ("/v2/models/other/infer", [JSON], v2()),
    "no JSON": (V2, [JSON], b"{"),
    "no body": (V2, [JSON], b""),
    "wrong shape": (V2, [JSON], v2(shape=[2, 30])),
    "inner dimensions that do not fit": (V2, [JSON], v2(shape=[1, 2], data=[1, 2])),
    "another media type": (V2, ["content-type: text/csv"], v2()),
    "a compressed body": (V2, [JSON, "content-encoding: gzip"], v2()),
    "a page of another site": (V2, [JSON, "origin: http://evil.example"], v2()),
    "another name": (V2, [JSON, "host: evil.example"], v2()),
    "more rows than the loop takes": (V2, [JSON], v2(shape=[250, 30], data=[1] * 7500)),
    "a large body": (V2, [JSON], v2(shape=[1500, 30], data=[1] * 45_000)),
    "chunked": (V2, [JSON, "transfer-encoding: chunked"], v2()),
    "a client that leaves": (V2, [JSON, "connection: close"], v2()),
    "a client that waits to be asked": (V2, [JSON, "expect: 100-continue"], v2()),
}


def request(path: str, headers: list[str], body: bytes) -> tuple[bytes, bytes]:
    """Return head and body."""
    if not any(line.startswith("host:") for line in headers):
        headers = ["host: 127.0.0.1", *headers]
    if "transfer-encoding: chunked" in headers:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        headers = [*headers, f"content-length: {len(body)}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", *headers, "", ""]).encode(), body


def ask(url: str, *pieces: bytes) -> bytes:
    """Send pieces separately; return everything that comes back."""
    host, port = url.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, piece in enumerate(pieces):
            time.sleep(0.05 * bool(number))
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            received += chunk
    return received


def said(answer: bytes) -> list[bytes]:
    """Return the lines of an answer sorted, without its date."""
    return sorted(line for line in answer.split(b"\r\n") if not line.startswith(b"date:"))


def counts(url: str) -> dict[str, float]:
    """Return the server's counters, by series."""
    text = httpx.get(f"{url}/metrics").text
    found = re.findall(r"^(kubeloop_(?:requests_total|rows_total|inferences_total)\S*) (\S+)$", text, re.M)
    return {name: float(value) for name, value in found if "/metrics" not in name}


def change(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


@pytest.mark.parametrize("case", CASES)
def test_in_one_piece_or_in_two_it_is_the_same_request(matrix: str, case: str) -> None:
    head, body = request(*CASES[case])
    start = counts(matrix)
    whole = ask(matrix, head + body)
    middle = counts(matrix)
    parts = ask(matrix, head, body)
    assert said(whole) == said(parts)
    counted = change(start, middle)
    assert counted == change(middle, counts(matrix))
    # A request that the guard refuses is not counted.
    assert counted or whole.startswith((b"HTTP/1.1 403", b"HTTP/1.1 415"))


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"content-type": "application/json"}, True),
        ({"content-type": "application/octet-stream", "inference-header-content-length": "9"}, True),
        ({}, True),
        ({"content-type": "text/csv"}, False),
        ({"content-type": "application/json", "origin": "http://evil.example"}, False),
        ({"content-type": "application/json", "host": "evil.example"}, False),
    ],
)
def test_who_may_ask_is_answered_at_once(headers: dict[str, str], passes: bool) -> None:
    class Answers:
        def at_once(self, post: Post) -> bytes:
            return post.body

    named = {"host": "127.0.0.1", "content-length": "1", **headers}
    post = Post(V2.encode(), {key.encode(): value.encode() for key, value in named.items()}, b"x", 80)
    guard = Guard(Answers(), "127.0.0.1")
    # The second time, the guard knows the host already.
    assert [guard.at_once(post) for _ in range(2)] == [b"x" if passes else None] * 2


def test_the_limits_are_those_of_every_request(start: Start, models: Path) -> None:
    server = start("--model-dir", models / "matrix", "--name=matrix", "--max-body-bytes=1024", "--max-rows=1")
    for body, status in ((v2(), b"200"), (v2(id="x" * 2000), b"413"), (v2(shape=[2, 30], data=[1] * 60), b"413")):
        assert ask(server.url, b"".join(request(V2, [JSON], body))).startswith(b"HTTP/1.1 " + status)


def test_requests_in_one_packet_are_answered_in_their_order(matrix: str) -> None:
    first, second, slow = (b"".join(request(V2, [JSON], v2(data=[n] * 30))) for n in (1, 2, 3))
    get = b"GET /v2/health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    large = b"".join(request(V2, [JSON], v2(shape=[250, 30], data=[1] * 7500)))
    packet = [first, get, second, large, slow, get]
    alone = [ask(matrix, each) for each in packet]
    together = ask(matrix, b"".join(packet)).split(b"HTTP/1.1 ")[1:]
    assert [said(b"HTTP/1.1 " + each) for each in together] == [said(each) for each in alone]

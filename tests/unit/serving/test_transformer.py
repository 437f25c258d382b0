"""The transformer in front of a real predictor, over real HTTP, with a small feature source."""

import asyncio
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

from tests.unit.serving.front import Front, open_front, v2


@pytest.fixture(scope="module")
def front(columns: str) -> Iterator[Front]:
    yield from open_front(columns, max_rows=100)


@pytest.fixture
def fresh(columns: str) -> Iterator[Front]:
    """A separate transformer, for counts and pauses."""
    yield from open_front(columns, timeout_s=1)


@pytest.fixture
def small(columns: str) -> Iterator[Front]:
    """A transformer that accepts only small bodies, and so holds few of them."""
    yield from open_front(columns, timeout_s=1, max_body_bytes=4 * 1024)


@pytest.fixture
def no_predictor() -> Iterator[Front]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield from open_front(f"127.0.0.1:{port}", timeout_s=1)


def infer(front: Front, body: Any) -> httpx.Response:
    return httpx.post(f"{front.url}/v2/models/flights/infer", json=body, timeout=20)


def test_keys_become_a_prediction(front: Front, columns: str) -> None:
    answer = infer(front, v2(2, route=["JFK-LAX", "nowhere"], event_ids='["a", "b"]'))
    assert answer.status_code == 200
    direct = [
        {"name": "distance", "datatype": "FP32", "shape": [2, 1], "data": [2475, None]},
        {"name": "hour", "datatype": "FP32", "shape": [2, 1], "data": [5, 5]},
        {"name": "carrier", "datatype": "BYTES", "shape": [2, 1], "data": ["AA", "AA"]},
    ]
    expected = httpx.post(f"{columns}/v2/models/flights/infer", json={"id": "7", "inputs": direct}).json()
    assert answer.json() == expected
    assert expected["outputs"][0]["data"][0] > 0.9
    assert expected["outputs"][0]["data"][1] is None
    asked, at = front.source.seen[-1]
    assert asked["route"] == ["JFK-LAX", "nowhere"]
    assert asked["delay"] == [1.5, 1.5]
    assert at == datetime(2013, 4, 1, 4, tzinfo=UTC)


def test_v1(front: Front) -> None:
    row = {"route": "JFK-LAX", "carrier": "AA", "departure": "2013-04-01T05:00:00Z", "delay": None}
    body = {"instances": [row, row | {"route": "x"}], "parameters": {"event_time": "2013-04-01T04:00:00"}}
    answer = httpx.post(f"{front.url}/v1/models/flights:predict", json=body).json()
    assert list(answer) == ["predictions"]
    assert answer["predictions"][0] > 0.9
    assert answer["predictions"][1] is None
    assert front.source.seen[-1] == (
        {
            "route": ["JFK-LAX", "x"],
            "carrier": ["AA", "AA"],
            "departure": [row["departure"]] * 2,
            "delay": [None, None],
        },
        datetime(2013, 4, 1, 4, tzinfo=UTC),
    )


def test_the_moment_is_now_unless_the_request_says(front: Front) -> None:
    body = v2()
    del body["parameters"]["event_time"]
    assert infer(front, body).json()["outputs"][0]["data"] == [None]
    assert abs(datetime.now(UTC) - front.source.seen[-1][1]) < timedelta(seconds=10)


def test_missing_and_outdated_features_are_counted(fresh: Front) -> None:
    infer(fresh, v2(3, route=["JFK-LAX", "x", "y"]))
    infer(fresh, v2(1, event_time="2013-04-03T00:00:00Z", departure=[""]))
    lines = httpx.get(f"{fresh.url}/metrics").text.splitlines()
    assert 'kubeloop_features_missing_total{feature="distance"} 3.0' in lines
    assert 'kubeloop_features_missing_total{feature="hour"} 1.0' in lines
    assert 'kubeloop_features_missing_total{feature="carrier"} 0.0' in lines
    assert "kubeloop_rows_total 4.0" in lines


def _without(name: str) -> dict[str, Any]:
    body = v2()
    body["inputs"] = [tensor for tensor in body["inputs"] if tensor["name"] != name]
    return body


REFUSALS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no join key": (_without("route"), 400, "missing 'route'"),
    "no field": (_without("delay"), 400, "missing 'delay'"),
    "wrong type": (v2(route=[5]), 400, "'route' (BYTES) takes strings or null, got 5"),
    "read refuses": (v2(departure=["soon"]), 400, "soon"),
    "event_time": (v2(event_time="soon"), 400, "event_time must be an ISO 8601 time"),
    "event_time number": (v2(event_time=5), 400, "event_time must be an ISO 8601 time"),
    "event_time before time": (v2(event_time="0001-01-01T00:00:00+10:00"), 400, "event_time must be"),
    "event_ids too few": (v2(2, event_ids='["a"]'), 400, "list of 2 strings, one a row; got 1"),
    "event_ids no list": (v2(event_ids='"a"'), 400, "JSON list of 1 strings"),
    "event_ids no strings": (v2(event_ids="[1]"), 400, "JSON list of 1 strings"),
    "event_ids no JSON": (v2(event_ids="a"), 400, "JSON list of 1 strings"),
    "event_ids deep": (v2(event_ids="[" * 100_000), 400, "JSON list of 1 strings"),
    "event_ids no string": (v2(event_ids=1), 400, "JSON list of 1 strings"),
    "rows": (v2(101), 413, "101 rows in one request; send at most 100"),
}


@pytest.mark.parametrize(("body", "status", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(front: Front, body: dict[str, Any], status: int, words: str) -> None:
    answer = infer(front, body)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert infer(front, v2()).status_code == 200


def test_health_and_metadata(front: Front) -> None:
    assert httpx.get(f"{front.url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{front.url}/v2/health/ready").json() == {"ready": True}
    assert httpx.get(f"{front.url}/v1/models/flights").json() == {"name": "flights", "ready": True}
    metadata = httpx.get(f"{front.url}/v2/models/flights").json()
    assert [(item["name"], item["datatype"], item["shape"]) for item in metadata["inputs"]] == [
        ("route", "BYTES", [-1]),
        ("carrier", "BYTES", [-1]),
        ("departure", "BYTES", [-1]),
        ("delay", "FP32", [-1]),
    ]
    assert metadata["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]
    assert metadata["versions"] == ["3"]


@pytest.mark.parametrize("version", ["3", "9", "3%2F..%2F3", "%3F"])
def test_the_predictor_decides_about_versions(front: Front, version: str) -> None:
    status = 200 if version == "3" else 404
    base = f"{front.url}/v2/models/flights/versions/{version}"
    assert httpx.get(base).status_code == status
    assert httpx.post(f"{base}/infer", json=v2()).status_code == status


def test_kserves_own_client(front: Front) -> None:
    async def talk() -> None:
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as kserve:
            assert await kserve.is_model_ready(front.url, "flights")
            inputs = [InferInput(t["name"], t["shape"], t["datatype"], t["data"]) for t in v2()["inputs"]]
            answer = await kserve.infer(front.url, InferRequest("flights", inputs, "r1"), model_name="flights")
            assert (answer.id, answer.model_name) == ("r1", "flights")

    asyncio.run(talk())


def test_without_a_predictor_it_is_alive_but_not_ready(no_predictor: Front) -> None:
    assert httpx.get(f"{no_predictor.url}/v2/health/live").status_code == 200
    assert httpx.get(f"{no_predictor.url}/v2/health/ready").status_code == 503
    assert httpx.get(f"{no_predictor.url}/v2/models/flights").status_code == 503
    for answer in (
        infer(no_predictor, v2()),
        httpx.post(
            f"{no_predictor.url}/v1/models/flights:predict",
            json={"instances": [{"route": "x", "carrier": "AA", "departure": "", "delay": 1}]},
        ),
    ):
        assert answer.status_code == 503
        assert "the predictor cannot be reached" in answer.json()["error"]


def test_a_predictor_that_returns_is_found_again(models: Path, start: Callable[..., Any]) -> None:
    first = start("--model-dir", models / "columns", "--name=flights")
    port = first.url.rpartition(":")[2]
    fronts = open_front(first.url)
    front = next(fronts)
    assert infer(front, v2()).status_code == 200
    first.stop()
    assert infer(front, v2()).status_code == 503
    # The last --port counts.
    start("--model-dir", models / "columns", "--name=flights", f"--port={port}")
    assert infer(front, v2()).status_code == 200
    assert list(fronts) == []


def test_a_slow_feature_store_times_out(fresh: Front) -> None:
    fresh.source.pause_s = 1.2
    answer = infer(fresh, v2())
    assert answer.status_code == 504
    assert "no prediction within 1 s" in answer.json()["error"]


def test_a_feature_store_that_does_not_answer_is_not_a_fault_of_the_server(fresh: Front) -> None:
    fresh.source.fails = ConnectionError("the online store cannot be read; try again later")
    answer = infer(fresh, v2())
    assert (answer.status_code, answer.json()["error"]) == (503, "the online store cannot be read; try again later")


def test_what_waits_for_a_slow_feature_store_is_bounded(small: Front) -> None:
    small.source.pause_s = 1.5
    with ThreadPoolExecutor(12) as clients:
        codes = Counter(clients.map(lambda _: infer(small, v2()).status_code, range(12)))
    assert set(codes) == {503, 504}, "some requests wait, and others are refused"
    small.source.pause_s = 0.0
    until_answered(small)


def test_a_request_that_was_given_up_is_not_read_for(fresh: Front) -> None:
    fresh.source.pause_s = 3.0
    with ThreadPoolExecutor(20) as clients:
        assert set(clients.map(lambda _: infer(fresh, v2()).status_code, range(20))) == {504}
    asked = len(fresh.source.seen)
    assert asked <= 8, "one per thread"
    fresh.source.pause_s = 0.0
    until_answered(fresh)
    assert len(fresh.source.seen) == asked + 1


def until_answered(front: Front) -> None:
    deadline = time.monotonic() + 20
    while infer(front, v2()).status_code != 200:
        assert time.monotonic() < deadline


@dataclass
class Predictor:
    """A predictor for a transformer: it answers what the test sets, and keeps the requests."""

    front: Front
    answers: list[bytes]
    got: list[bytes]


@pytest.fixture
def predictor() -> Iterator[Predictor]:
    answers: list[bytes] = []
    got: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = connection.recv(65536)
                while not request.endswith(b"}"):
                    request += connection.recv(65536)
                got.append(request)
                connection.sendall(answers.pop(0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        for front in open_front(f"http://127.0.0.1:{listener.getsockname()[1]}/sub/", timeout_s=1):
            yield Predictor(front, answers, got)
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


ANSWERS = {
    "4xx is passed on": (http("422 No", '{"error": "too odd"}'), 422, "too odd"),
    "413 says whose limit it is": (http("413 No", '{"error": "9 bytes"}'), 413, "too large with its features"),
    "500 is a bad gateway": (http("500 Oh", '{"error": "boom"}'), 502, "the predictor failed: boom"),
    "503 stays": (http("503 Oh", "{}"), 503, "the predictor failed: status 503"),
    "a broken connection": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{",
        503,
        "connection to the predictor broke",
    ),
    "no response": (http("200 OK", '{"outputs": 5}'), 502, "no V2 response"),
}


@pytest.mark.parametrize(("answer", "status", "words"), ANSWERS.values(), ids=ANSWERS)
def test_what_a_predictor_may_answer(predictor: Predictor, answer: bytes, status: int, words: str) -> None:
    # An answer that may come from a switch of versions is requested once more.
    predictor.answers += [answer, answer]
    row = {"route": "x", "carrier": "AA", "departure": "", "delay": 1}
    url = f"{predictor.front.url}/v1/models/flights:predict"
    got = httpx.post(url, json={"instances": [row]}, timeout=10)
    assert got.status_code == status
    assert words in got.json()["error"]


def test_parameters_and_id_travel_on(predictor: Predictor) -> None:
    predictor.answers.append(http("200 OK", '{"anything": 1}'))
    answer = infer(predictor.front, v2(event_ids='["a"]', other=1))
    assert answer.json() == {"anything": 1}
    head, _, body = predictor.got[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /sub/v2/models/flights/infer HTTP/1.1\r\n")
    assert re.search(rb"\r\nce-id: [0-9a-f-]{36}\r\n", head)
    sent = json.loads(body)
    assert sent["id"] == "7"
    assert sent["parameters"] == {"event_ids": '["a"]', "event_time": "2013-04-01T04:00:00Z", "other": 1}


def test_the_payload_log_gets_every_output_whatever_was_asked_for(predictor: Predictor) -> None:
    tensors = [
        {"name": "leaf", "datatype": "INT64", "shape": [1], "data": [5]},
        {"name": "probability", "datatype": "FP32", "shape": [1], "data": [0.5]},
    ]
    said = {"model_name": "flights", "model_version": "3", "id": "7", "parameters": {"trace": "x"}}
    predictor.answers.append(http("200 OK", json.dumps(said | {"outputs": tensors})))
    wanted = [{"name": "leaf"}]
    answer = infer(predictor.front, v2() | {"outputs": wanted})
    assert "outputs" not in json.loads(predictor.got[0].partition(b"\r\n\r\n")[2])
    assert answer.json() == said | {"outputs": tensors[:1]}


def test_an_output_that_the_model_does_not_have_is_named(predictor: Predictor) -> None:
    tensors = [{"name": "probability", "datatype": "FP32", "shape": [1], "data": [0.5]}]
    predictor.answers.append(http("200 OK", json.dumps({"model_name": "flights", "outputs": tensors})))
    answer = infer(predictor.front, v2() | {"outputs": [{"name": "leaf"}]})
    assert answer.status_code == 400
    assert "unknown output 'leaf'" in answer.json()["error"]


def test_the_predictor_is_asked_in_json(predictor: Predictor) -> None:
    """KServe's agent logs the body without the header that binary tensors need."""
    tensor = {"name": "probability", "datatype": "FP32", "shape": [1], "data": [None]}
    predictor.answers.append(http("200 OK", json.dumps({"model_name": "flights", "outputs": [tensor]})))
    body = v2()
    body["parameters"]["binary_data_output"] = True
    body["inputs"][3] = {"name": "delay", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    head = json.dumps(body).encode()
    answer = httpx.post(
        f"{predictor.front.url}/v2/models/flights/infer",
        content=head + b"\0\0\xc0\x3f",
        headers={"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"},
    )
    asked_head, _, asked = predictor.got[0].partition(b"\r\n\r\n")
    assert b"inference-header-content-length" not in asked_head
    assert all("data" in item for item in json.loads(asked)["inputs"])
    assert json.loads(asked)["parameters"] == {"event_time": "2013-04-01T04:00:00Z"}
    assert predictor.front.source.seen[-1][0]["delay"] == [1.5]
    size = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert json.loads(answer.content[:size])["outputs"][0]["parameters"] == {"binary_data_size": 4}
    assert answer.content[size:] == b"\0\0\xc0\x7f"

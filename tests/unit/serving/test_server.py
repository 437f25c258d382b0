"""The model server as its clients see it: real processes, real HTTP, KServe's own client among them."""

import asyncio
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

ROWS = [{"distance": 1000, "hour": 5, "carrier": "AA"}, {"distance": None, "hour": 5, "carrier": "UA"}]
FIRST = 1 / (1 + math.exp(-2))


def v2(rows: list[dict[str, Any]] = ROWS, **more: Any) -> dict[str, Any]:
    datatypes = {"distance": "FP32", "hour": "FP32", "carrier": "BYTES"}
    return {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [len(rows), 1], "data": [row[name] for row in rows]}
            for name, datatype in datatypes.items()
        ]
    } | more


def test_infer(columns: str, client: httpx.Client) -> None:
    for path in ("/v2/models/flights/infer", "/v2/models/flights/versions/3/infer"):
        answer = client.post(columns + path, json=v2(id="42", parameters={"event_time": "2013-04-01T00:00:00Z"}))
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert body.pop("outputs")[0] == {
            "name": "probability",
            "datatype": "FP32",
            "shape": [2],
            "data": [pytest.approx(FIRST), None],
        }
        assert body == {"model_name": "flights", "model_version": "3", "id": "42"}


def test_predict(columns: str, matrix: str, client: httpx.Client) -> None:
    answer = client.post(f"{columns}/v1/models/flights:predict", json={"instances": ROWS})
    assert answer.json() == {"predictions": [pytest.approx(FIRST), None]}
    answer = client.post(f"{matrix}/v1/models/matrix:predict", json={"instances": [[1] * 30, [-1] * 30]})
    assert answer.json() == {"predictions": [{"total": 30.0, "positive": True}, {"total": -30.0, "positive": False}]}


def test_outputs_can_be_chosen(matrix: str, client: httpx.Client) -> None:
    body = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 30], "data": [1] * 30}],
        "outputs": [{"name": "positive"}],
    }
    answer = client.post(f"{matrix}/v2/models/matrix/infer", json=body).json()
    assert answer["outputs"] == [{"name": "positive", "datatype": "BOOL", "shape": [1], "data": [True]}]


def test_batches_are_answered_as_rows_are(columns: str, client: httpx.Client) -> None:
    # 1000 rows are handled in a thread; the answer must be the same.
    rows = [{"distance": i, "hour": 1, "carrier": ("AA", "UA", "??")[i % 3]} for i in range(1000)]
    batch = client.post(f"{columns}/v2/models/flights/infer", json=v2(rows)).json()["outputs"][0]["data"]
    assert len(batch) == 1000
    for i in (0, 1, 2, 999):
        single = client.post(f"{columns}/v2/models/flights/infer", json=v2([rows[i]])).json()["outputs"][0]["data"]
        assert single == [pytest.approx(batch[i], rel=1e-5)]


INFO = {
    "/": {"status": "alive"},
    "/v2/health/live": {"live": True},
    "/v2/health/ready": {"ready": True},
    "/v2/models/flights/ready": {"name": "flights", "ready": True},
    "/v2/models/flights/versions/3/ready": {"name": "flights", "ready": True},
    "/v1/models": {"models": ["flights"]},
    "/v1/models/flights": {"name": "flights", "ready": True},
}


@pytest.mark.parametrize(("path", "body"), INFO.items(), ids=INFO)
def test_information(columns: str, client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = client.get(columns + path)
    assert (answer.status_code, answer.json()) == (200, body)
    assert client.head(columns + path).status_code == 200


def test_metadata(columns: str, client: httpx.Client) -> None:
    assert client.get(f"{columns}/v2").json()["name"] == "kubeloop"
    for path in ("/v2/models/flights", "/v2/models/flights/versions/3"):
        body = client.get(columns + path).json()
        assert (body["name"], body["versions"], body["platform"]) == ("flights", ["3"], "onnxruntime_onnx")
        assert [item["name"] for item in body["inputs"]] == ["distance", "hour", "carrier"]
        assert body["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]


REFUSALS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "unknown path": ("GET", "/v3", {}, 404, "no such path"),
    "unknown model": ("POST", "/v2/models/other/infer", {"json": {}}, 404, "model 'other' is not served here"),
    "unknown v1 model": ("POST", "/v1/models/other:predict", {"json": {}}, 404, "this server has 'flights'"),
    "unknown version": ("POST", "/v2/models/flights/versions/9/infer", {"json": {}}, 404, "version '9'"),
    "unknown version ready": ("GET", "/v2/models/flights/versions/9/ready", {}, 404, "version '9'"),
    "unknown verb": ("POST", "/v2/models/flights/explain", {"json": {}}, 404, "no such path"),
    "get infer": ("GET", "/v2/models/flights/infer", {}, 405, "use POST"),
    "post metadata": ("POST", "/v2/models/flights", {"json": {}}, 405, "use GET"),
    "delete": ("DELETE", "/v2/models/flights", {}, 405, "use GET"),
    "no json": ("POST", "/v2/models/flights/infer", {"content": b"{"}, 400, "JSON object in UTF-8"),
    "nothing": ("POST", "/v2/models/flights/infer", {}, 400, "JSON object in UTF-8"),
    "v1 to v2": ("POST", "/v2/models/flights/infer", {"json": {"instances": ROWS}}, 400, '"inputs"'),
    "v2 to v1": ("POST", "/v1/models/flights:predict", {"json": v2()}, 400, '"instances"'),
    "more JSON than body": (
        "POST",
        "/v2/models/flights/infer",
        {"content": b"{}", "headers": {"inference-header-content-length": "3"}},
        400,
        "must be the bytes of the JSON, at most the body's 2, got '3'",
    ),
    "a length of text": (
        "POST",
        "/v2/models/flights/infer",
        {"content": b"{}", "headers": {"inference-header-content-length": "-1"}},
        400,
        "must be the bytes of the JSON",
    ),
    "a length beyond numbers": (
        "POST",
        "/v2/models/flights/infer",
        {"content": b"{}", "headers": {"inference-header-content-length": "9" * 5000}},
        400,
        "must be the bytes of the JSON",
    ),
    "binary to v1": (
        "POST",
        "/v1/models/flights:predict",
        {"content": b"{}", "headers": {"inference-header-content-length": "2"}},
        415,
        "V1 has no binary tensors",
    ),
    "media type": (
        "POST",
        "/v2/models/flights/infer",
        {"content": b"{}", "headers": {"content-type": "application/octet-stream"}},
        415,
        "send Content-Type: application/json",
    ),
    "compressed": (
        "POST",
        "/v2/models/flights/infer",
        {"content": b"{}", "headers": {"content-encoding": "gzip"}},
        415,
        "compressed bodies",
    ),
    "rows": ("POST", "/v2/models/flights/infer", {"json": v2(ROWS * 501)}, 413, "1002 rows in one request"),
}


@pytest.mark.parametrize(("method", "path", "arguments", "status", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(
    columns: str, client: httpx.Client, method: str, path: str, arguments: dict[str, Any], status: int, words: str
) -> None:
    answer = client.request(method, columns + path, **arguments)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert ("allow" in answer.headers) == (status == 405)


def test_metrics(models: Path, start: Callable[..., Any], client: httpx.Client) -> None:
    url = start("--model-dir", models / "columns", "--name=flights", "--version=7").url
    client.post(f"{url}/v2/models/flights/infer", json=v2())
    client.post(f"{url}/v1/models/flights:predict", json={"instances": ROWS})
    client.post(f"{url}/v2/models/flights/infer", content=b"{")
    client.get(f"{url}/secret/{time.time()}")
    lines = client.get(f"{url}/metrics").text.splitlines()
    assert 'kubeloop_requests_total{code="200",path="/v2/models/{name}/infer"} 1.0' in lines
    assert 'kubeloop_requests_total{code="400",path="/v2/models/{name}/infer"} 1.0' in lines
    assert 'kubeloop_requests_total{code="200",path="/v1/models/{name}:predict"} 1.0' in lines
    assert 'kubeloop_requests_total{code="404",path="other"} 1.0' in lines
    assert 'kubeloop_inferences_total{outcome="answered"} 2.0' in lines
    assert 'kubeloop_inferences_total{outcome="refused"} 1.0' in lines
    assert 'kubeloop_inferences_total{outcome="failed"} 0.0' in lines
    assert 'kubeloop_request_seconds_count{path="/v2/models/{name}/infer"} 2.0' in lines
    assert "kubeloop_rows_total 4.0" in lines
    assert "kubeloop_requests_in_flight 1.0" in lines
    assert any(line.startswith('kubeloop_model_info{name="flights",sha256="') for line in lines)


def test_kserves_own_client_speaks_v2(columns: str) -> None:
    async def talk() -> None:
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as kserve:
            assert await kserve.is_server_live(columns)
            assert await kserve.is_server_ready(columns)
            assert await kserve.is_model_ready(columns, "flights")
            assert not await kserve.is_model_ready(columns, "other")
            inputs = [
                InferInput("distance", [1, 1], "FP32", [1000.0]),
                InferInput("hour", [1, 1], "FP32", [5.0]),
                InferInput("carrier", [1, 1], "BYTES", ["AA"]),
            ]
            answer = await kserve.infer(columns, InferRequest("flights", inputs, "r1"), model_name="flights")
            assert answer.id == "r1"
            assert answer.model_name == "flights"
            assert answer.outputs[0].as_numpy() == pytest.approx(np.float32([FIRST]))
            inputs[0].set_data_from_numpy(np.float32([[1000]]), binary_data=False)
            answer = await kserve.infer(columns, InferRequest("flights", inputs, "r3"), model_name="flights")
            assert answer.outputs[0].as_numpy() == pytest.approx(np.float32([FIRST]))

    asyncio.run(talk())


def test_kserves_own_client_speaks_v1(columns: str) -> None:
    async def talk() -> None:
        async with InferenceRESTClient(RESTConfig(protocol="v1")) as kserve:
            assert await kserve.is_server_live(columns)
            assert await kserve.is_model_ready(columns, "flights")
            answer = await kserve.infer(columns, {"instances": ROWS}, model_name="flights")
            assert answer == {"predictions": [pytest.approx(FIRST), None]}
            with pytest.raises(httpx.HTTPStatusError, match="missing 'hour'"):
                await kserve.infer(columns, {"instances": [{"distance": 1, "carrier": "AA"}]}, model_name="flights")

    asyncio.run(talk())


def test_a_slow_prediction_holds_up_nobody_and_times_out(
    models: Path, start: Callable[..., Any], client: httpx.Client
) -> None:
    server = start("--model-dir", models / "slow", "--name=slow", "--timeout-s=0.3")
    body = json.dumps({"inputs": [{"name": "input", "datatype": "FP32", "shape": [10000], "data": [1] * 10000}]})
    quick: list[float] = []

    async def talk() -> httpx.Response:
        async with httpx.AsyncClient(timeout=20) as session:
            slow = asyncio.create_task(session.post(f"{server.url}/v2/models/slow/infer", content=body))
            while not slow.done():
                begin = time.perf_counter()
                await session.get(f"{server.url}/v2/health/live")
                quick.append(time.perf_counter() - begin)
                await asyncio.sleep(0.02)
            return slow.result()

    answer = asyncio.run(talk())
    assert answer.status_code == 503
    assert "no prediction within 0.3 s" in answer.json()["error"]
    assert len(quick) > 5
    assert float(np.median(quick)) < 0.1


def test_a_server_that_cannot_start_says_why(models: Path, start: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="not the requested abc; refusing to serve it"):
        start("--model-dir", models / "columns", "--name=flights", "--sha256=abc")

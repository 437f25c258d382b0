"""What the router passes through unchanged, what it removes, and how it refuses."""

import re

import httpx
import pytest


@pytest.fixture(scope="module")
def node(shared):
    node = shared.node("--max-body-bytes", "5000")
    node.apply(shared.manifest(shared.model("v1"), name="flights"))
    node.apply(shared.manifest(shared.model("slow", sleep=3), name="slow", serving={"timeout_s": 1}))
    node.apply(shared.manifest(shared.model("sick", status=500), name="sick"))
    return node


def test_headers_query_and_path_arrive_and_hop_by_hop_headers_do_not(node):
    sent = {
        "x-request-id": "abc",
        "x-mark": "ä".encode("latin-1"),
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "te": "trailers",
        "keep-alive": "timeout=5",
        "proxy-authorization": "secret",
        "accept-encoding": "gzip",
    }
    answer = httpx.get(f"{node.url}/_predictor/v2/models/flights/any%20thing?x=%2F&y=1", headers=sent)
    got = answer.json()
    assert got["path"] == "/v2/models/flights/any%20thing?x=%2F&y=1"
    assert (got["headers"]["x-request-id"], got["headers"]["x-mark"]) == ("abc", "ä")
    assert not {"x-hop", "te", "keep-alive", "proxy-authorization", "accept-encoding"} & set(got["headers"])
    assert answer.headers["x-served-by"] == "standin"
    assert not {"x-secret", "connection", "transfer-encoding"} & set(answer.headers)
    assert len(answer.headers.get_list("date")) == 1


def test_bytes_pass_as_they_are(node):
    body = b'{ "inputs" :[ {"shape":[2], "name":"x\\u00e4", "data" : [1.50, null]} ]}\n'
    answer = httpx.post(f"{node.url}/v2/models/flights/infer", content=body)
    assert answer.json()["got"] == body.decode()


@pytest.mark.parametrize(
    "path", ["/v2/models/flights/infer", "/v2/models/flights/versions/v1/infer", "/v1/models/flights:predict"]
)
def test_the_ways_to_ask_for_a_prediction(node, path):
    before = node.get()["predictions"]
    body = {"inputs": [{"shape": [2]}]}
    assert httpx.post(node.url + path, json=body).json()["model_version"] == "v1"
    assert node.get()["predictions"] == before + 2


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("prefix", "limit"), [("", 5000), ("/_predictor", 20_000)])
def test_too_large_a_body_is_refused(node, prefix, limit, chunked):
    """A transformer's request may be four times the size of a client's, since the features are in it."""
    for size in (limit, limit + 1):
        body = b"x" * size
        content = iter([body[:3000], body[3000:]]) if chunked else body
        answer = httpx.post(f"{node.url}{prefix}/v2/models/flights/infer", content=content)
        assert (answer.status_code == 413) == (size > limit)
    assert f"{limit} bytes" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("/v2/models/elephants/infer", 404, "no inference service 'elephants'"),
        ("/v2/health/ready", 404, "name the model in the path"),
        ("/elephants", 404, ""),
    ],
)
def test_unknown_paths(node, path, code, message):
    answer = httpx.post(node.url + path, json={}, headers=node.login())
    assert answer.status_code == code
    assert message in answer.text


def test_without_a_service_there_is_503(shared):
    answer = httpx.get(f"{shared.node().url}/v2/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"error": "there is no inference service here yet"})


def test_slow_backend_is_504_in_time(node):
    answer = node.infer(name="slow")
    assert answer.status_code == 504
    assert "more than 1 s" in answer.json()["error"]
    assert answer.elapsed.total_seconds() < 2.5


@pytest.fixture
def metric(node):
    def value(name: str, **labels: str) -> float:
        text = httpx.get(f"{node.url}/metrics").text
        for line in text.splitlines():
            match = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
            if match and all(f'{key}="{label}"' in (match[1] or "") for key, label in labels.items()):
                return float(match[2])
        return 0.0

    return value


def test_error_of_the_model_server_passes_through_and_is_not_a_prediction(node, metric):
    before = node.get()
    answer = node.infer(name="sick")
    assert (answer.status_code, answer.json()["model_version"]) == (500, "sick")
    after = node.get()
    assert after["predictions"] == before["predictions"]
    assert all(after["errors"][part] > before["errors"][part] for part in ("transformer", "predictor"))
    for part in ("transformer", "predictor"):
        assert metric("kubeloop_router_requests_total", component=part, backend="default", code="500") == 1


def test_metrics_count_by_component_backend_and_code(node, metric):
    parts = ("transformer", "predictor")
    count = {part: metric("kubeloop_router_requests_total", component=part, code="200") for part in parts}
    rows = metric("kubeloop_predictions_total")
    assert node.infer(rows=4).status_code == 200
    for part in parts:
        labels = {"component": part, "backend": "default"}
        assert metric("kubeloop_router_requests_total", code="200", **labels) == count[part] + 1
        assert metric("kubeloop_router_request_seconds_bucket", le="+Inf", **labels) > count[part]
    assert metric("kubeloop_predictions_total") == rows + 4
    assert metric("kubeloop_payload_events_queued") + metric("kubeloop_payload_events_sent_total") > 0

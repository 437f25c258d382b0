"""The second port shows only metrics and health, whatever is sent to it: a client that may scrape changes nothing."""

import pytest

from tests.hostile.front.servers import SECOND, Server, contents, status, statuses

CHANGING = ("/", "/events", "/advance", "/flush", "/v1/models/flights:predict", "/v2/models/flights/infer")
READING = (
    "/status",
    "/windows",
    "/episodes",
    "/runs/1",
    "/v2/models/flights",
    "/v2",
    "/docs",
    "/metrics/",
    "//metrics",
)
TRICKS = ("/metrics/../events", "/metrics/%2e%2e/events", "/events?/metrics", "/events#/metrics", "/metrics;/events")


@pytest.fixture(params=SECOND)
def second(every: dict[str, Server], request: pytest.FixtureRequest) -> Server:
    return every[request.param]


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()


def test_it_shows_metrics_and_health(second: Server) -> None:
    answer = second.ask(get("/metrics"), port=second.metrics)
    assert status(answer) == 200
    assert b"# TYPE " in contents(answer)[0]
    # Inference servers have their health under the protocol's paths, which are open only to prediction clients.
    inference = second.name in ("predictor", "transformer")
    assert status(second.ask(get("/healthz"), port=second.metrics)) == (404 if inference else 200)
    assert status(second.ask(get("/metrics", "HEAD"), port=second.metrics)) in (200, 405)


def test_what_is_taken_on_the_first_port_is_not_found_on_the_second(second: Server) -> None:
    assert status(second.ask(second.whole("connection: close"))) == second.status
    assert status(second.ask(second.whole("connection: close"), port=second.metrics)) == 404


def test_any_other_request_is_refused(second: Server) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GET"):
        for path in (*CHANGING, *READING, *TRICKS, *(("/metrics", "/healthz") if method != "GET" else ())):
            answer = second.ask(get(path, method), port=second.metrics)
            assert status(answer) in (400, 404), f"{method} {path}: {answer[:200]!r}"


def test_a_second_request_on_a_connection_is_looked_at_too(second: Server) -> None:
    first = b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    answers = second.ask(first + second.whole("connection: close"), port=second.metrics)
    assert statuses(answers) == [200, 404]


def test_the_first_port_shows_them_too(second: Server) -> None:
    assert status(second.ask(get("/metrics"))) == 200

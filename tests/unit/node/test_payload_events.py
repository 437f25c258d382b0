"""The payload log gets what was served, and a collector's troubles do not affect serving."""

import asyncio
import json
import statistics
import time
import uuid
from datetime import datetime

import httpx
import pytest

from kubeloop.node import payload_events


def test_every_prediction_is_one_pair_and_equal_to_what_was_served(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    forged = {"ce-id": "forged", "ce-type": "org.kubeflow.serving.inference.response", "ce-endpoint": "canary"}
    answers = [node.infer(rows=1 + n % 3, headers=forged) for n in range(20)]
    kit.eventually(lambda: node.get()["queued"] == 0)
    pairs = kit.collector.pairs()
    assert all(set(pair) == {"request", "response"} for pair in pairs.values())
    assert len(kit.collector.events) == 2 * len(pairs) == 40
    served = sorted(answer.text for answer in answers)
    assert sorted(json.dumps(pair["response"][1]) for pair in pairs.values()) == served
    assert sorted(pair["response"][1]["got"] for pair in pairs.values()) == sorted(
        body.decode() for headers, body in kit.collector.events if headers["ce-type"].endswith("request")
    )
    for pair_id, pair in pairs.items():
        assert uuid.UUID(pair_id).version == 4
        asked, answered = (datetime.fromisoformat(pair[kind][0]["ce-time"]) for kind in ("request", "response"))
        assert asked <= answered
        assert asked.utcoffset() is not None
        for kind in ("request", "response"):
            headers = pair[kind][0]
            assert {
                key: headers[key]
                for key in headers
                if key.startswith("ce-") and key not in ("ce-id", "ce-time", "ce-recordedtime")
            } == {
                "ce-specversion": "1.0",
                "ce-type": f"org.kubeflow.serving.inference.{kind}",
                "ce-source": "http://localhost:9081/",
                "ce-inferenceservicename": "flights",
                "ce-namespace": "kubeloop",
                "ce-component": "predictor",
                "ce-endpoint": "default",
                "ce-metadata": "{}",
            }
            assert headers["content-type"] == "application/json"
    status = node.get()
    assert (status["sent"], status["dropped"]) == (40, {"events": 0, "predictions": 0})
    assert status["predictions"] == sum(1 + n % 3 for n in range(20))


def test_failed_predictions_and_other_requests_are_not_logged(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1", status=422)))
    assert node.infer().status_code == 422
    node.get("/_predictor/v2/models/flights")
    status = node.get()
    assert (status["queued"], status["sent"], status["predictions"]) == (0, 0, 0)


def test_without_a_logger_nothing_is_sent(kit):
    node = kit.node()
    manifest = kit.manifest(kit.model("v1"))
    del manifest["spec"]["predictor"]["logger"]
    node.apply(manifest)
    node.infer()
    status = node.get()
    assert (status["queued"], status["sent"], status["predictions"]) == (0, 0, 1)


def test_collector_that_is_away_gets_everything_later(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    kit.collector.down()
    with kit.load(node, clients=4) as load:
        load.wait(200)
    assert (set(load.codes()), load.failures) == ({200}, [])
    status = node.get()
    assert (status["queued"], status["sent"]) == (2 * len(load.answers), 0)
    assert status["retries"] > 0
    kit.collector.up()
    kit.eventually(lambda: node.get()["queued"] == 0)
    assert len(kit.collector.pairs()) == len(load.answers)
    assert node.get()["dropped"] == {"events": 0, "predictions": 0}


def test_waiting_events_follow_the_collector_to_a_new_address(kit):
    node = kit.node()
    kit.collector.down()
    node.apply(kit.manifest(kit.model("v1")))
    for _ in range(10):
        node.infer()
    kit.collector.port = 0
    kit.collector.up()
    node.apply(kit.manifest(kit.model("v1")))
    kit.eventually(lambda: len(kit.collector.pairs()) == 10)
    assert [p["restarts"] for p in node.processes()] == [0]


def test_events_of_a_deleted_service_are_dropped_and_counted(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    kit.collector.down()
    node.infer(rows=2)
    path = "/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices/flights"
    httpx.delete(f"{node.url}{path}", headers=node.login()).raise_for_status()
    kit.eventually(lambda: node.get()["dropped"] == {"events": 2, "predictions": 2})
    assert node.get()["queued"] == 0


@pytest.mark.parametrize("status", [500, 503, 429])
def test_collector_that_fails_is_tried_again(kit, status):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    kit.collector.status = status
    node.infer()
    kit.eventually(lambda: node.get()["retries"] >= 2)
    kit.collector.status = 200
    kit.eventually(lambda: len(kit.collector.events) == 2)


def test_refused_events_are_counted_and_do_not_block_the_next(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    kit.collector.status = 400
    node.infer(rows=3)
    kit.eventually(lambda: node.get()["dropped"] == {"events": 2, "predictions": 3})
    kit.collector.status = 200
    node.infer()
    kit.eventually(lambda: len(kit.collector.events) == 2)


def test_full_queue_drops_the_newest_and_counts_rows_and_events(kit):
    node = kit.node("--log-queue", "20")
    node.apply(kit.manifest(kit.model("v1")))
    kit.collector.down()
    kept = [node.infer(rows=2) for _ in range(10)]
    lost = [node.infer(rows=3) for _ in range(7)]
    assert {answer.status_code for answer in kept + lost} == {200}
    status = node.get()
    assert (status["queued"], status["dropped"]) == (20, {"events": 14, "predictions": 21})
    assert status["predictions"] == 41
    kit.collector.up()
    kit.eventually(lambda: node.get()["sent"] == 20)
    shapes = [pair["response"][1]["outputs"][0]["shape"] for pair in kit.collector.pairs().values()]
    assert shapes == [[2]] * 10


def test_slow_collector_does_not_slow_inference(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1", sleep=0.01)))

    def median() -> float:
        with kit.load(node, clients=4) as load:
            load.wait(150)
        assert (set(load.codes()), load.failures) == ({200}, [])
        return statistics.median(seconds for _, _, seconds in load.answers)

    median()
    fast = median()
    kit.collector.sleep = 0.5
    time.sleep(0.1)
    slow = median()
    assert node.get()["queued"] > 100
    assert slow < fast * 1.5 + 0.01
    kit.collector.sleep = 0.0


def test_the_token_goes_only_to_the_collector_of_the_same_owner(kit):
    """The port in a manifest, also in one kept from an earlier start, may meanwhile belong to another program."""
    node = kit.node("--collector-url", kit.collector.url.removesuffix("/events"))
    node.apply(kit.manifest(kit.model("v1")))
    node.infer()
    kit.eventually(lambda: len(kit.collector.events) == 2)
    assert {headers["authorization"] for headers, _ in kit.collector.events} == {node.login()["authorization"]}
    other = kit.node()
    other.apply(kit.manifest(kit.model("v1")))
    other.infer()
    kit.eventually(lambda: len(kit.collector.events) == 4)
    assert not any("authorization" in headers for headers, _ in kit.collector.events[2:])


def test_the_first_event_waits_for_those_that_follow_and_for_the_answer(kit, monkeypatch):
    monkeypatch.setattr(payload_events, "GATHER_S", 0.2)

    async def seen() -> tuple[int, int]:
        log = payload_events.EventLog(10)
        log.urls["flights"] = kit.collector.url
        log.open()
        # Give the workers something to wait for.
        await asyncio.sleep(0)
        moment = time.time()
        log.offer(payload_events.Pair("1", "flights", "n", "default", b"a/b", b"{}", moment, b"{}", moment, 1))
        await asyncio.sleep(0.1)
        early = len(kit.collector.events)
        await log.close(5)
        return early, len(kit.collector.events)

    assert asyncio.run(seen()) == (0, 2)

"""The events that Knative and Argo Events really send, made from the examples' own objects, are drift events."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop.names import DRIFT_EVENT
from kubeloop.trigger.event import DriftEvent

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
DATA = {
    "service": "flight-delay",
    "episode": "by-hand-7",
    "opened_at": "2013-07-01T00:00:00Z",
    "as_of": "2013-07-01T02:00:00+02:00",
    "kind": "manual",
    "features": ["dep_delay"],
    "reason": "a new runway",
}


def example(file: str, kind: str) -> dict[str, Any]:
    (found,) = [item for item in yaml.safe_load_all((EXAMPLES / file).read_text()) if item["kind"] == kind]
    return dict(found)


def delivered(**changes: str | None) -> tuple[dict[str, str], bytes]:
    """Return the request that a Broker makes: the event in binary mode, with the headers of its dispatcher."""
    wanted = example("knative-trigger.yaml", "Trigger")["spec"]["filter"]["attributes"]
    headers: dict[str, str | None] = {
        "Ce-Specversion": "1.0",
        "Ce-Id": DATA["episode"],
        "Ce-Time": "2026-01-01T00:00:00.123456789Z",
        "Ce-Knativearrivaltime": "2026-01-01T00:00:00.223456789Z",
        "Ce-Knativebrokerttl": "254",
        "Ce-Traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        **{f"Ce-{name.capitalize()}": value for name, value in wanted.items()},
        "Content-Type": "application/json",
        "Kn-Namespace": "kubeloop",
        "Prefer": "reply",
        "Traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "Accept-Encoding": "gzip",
        **changes,
    }
    return {name: value for name, value in headers.items() if value is not None}, json.dumps(DATA).encode()


@pytest.mark.parametrize("subject", [None, DATA["episode"]])
def test_what_a_broker_delivers_is_read(subject: str | None) -> None:
    event = DriftEvent.parse(*delivered(**{"Ce-Subject": subject}))
    assert (event.service, event.episode, event.features) == ("flight-delay", "by-hand-7", ("dep_delay",))


def test_what_a_broker_delivers_of_another_id_is_refused() -> None:
    """Its senders may invent ids, and two ids would be two runs of one episode."""
    with pytest.raises(ValueError, match=r"id is '0198c3'; it must be data\.episode"):
        DriftEvent.parse(*delivered(**{"Ce-Id": "0198c3"}))


def posted(data: Any) -> tuple[dict[str, str], bytes]:
    """The request of the Sensor's HTTP trigger, whose payload Argo Events makes field by field.

    A `value` alone is that text. A `dataKey` is the value at that path in the webhook's event (`header`, `body`), as
    text unless `useRawData` keeps an object.
    """
    http = example("argo-events-sensor.yaml", "Sensor")["spec"]["triggers"][0]["template"]["http"]
    payload: dict[str, Any] = {}
    for field in http["payload"]:
        source = field["src"]
        value: Any = {"header": {"Accept": ["*/*"]}, "body": data}
        for part in source["dataKey"].split(".") if "dataKey" in source else ():
            value = value[part]
        if "dataKey" not in source:
            value = source["value"]
        elif isinstance(value, dict | list) and not source.get("useRawData"):
            value = json.dumps(value)
        payload[field["dest"]] = value
    return http["headers"], json.dumps(payload).encode()


def test_what_a_sensor_posts_is_read() -> None:
    event = DriftEvent.parse(*posted(DATA))
    assert event == DriftEvent.parse(*delivered())
    with pytest.raises(ValueError, match=r"data\.kind"):
        DriftEvent.parse(*posted({**DATA, "kind": "whim"}))


def test_the_examples_name_the_event_and_the_service_of_the_demo() -> None:
    trigger = example("knative-trigger.yaml", "Trigger")["spec"]
    assert trigger["filter"]["attributes"]["type"] == DRIFT_EVENT
    service = f"kubeloop-trigger-{yaml.safe_load((EXAMPLES.parents[1] / 'loop.yaml').read_text())['name']}"
    assert (trigger["subscriber"]["ref"]["name"], trigger["subscriber"]["uri"]) == (service, "/events")
    sensor = example("argo-events-sensor.yaml", "Sensor")["spec"]["triggers"][0]["template"]["http"]
    assert sensor["url"] == f"http://{service}.kubeloop.svc/events"

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeloop.trigger.event import DriftEvent

DATA = {
    "service": "flights",
    "episode": "flights-2013-07-01T00:00:00+00:00",
    "opened_at": "2013-07-01T00:00:00+00:00",
    "as_of": "2013-07-01T02:00:00+02:00",
    "kind": "drift",
    "features": ["dep_delay"],
    "reason": "D = 0.31 > 0.2",
}
ATTRIBUTES = {
    "specversion": "1.0",
    "id": DATA["episode"],
    "subject": DATA["episode"],
    "source": "/kubeloop/monitor",
    "type": "io.kubeloop.drift",
}


def binary(data: Any = DATA, **changes: str | None) -> tuple[dict[str, str], bytes]:
    attributes = {name: value for name, value in {**ATTRIBUTES, **changes}.items() if value is not None}
    headers = {f"Ce-{name}": value for name, value in attributes.items()}
    return {"Content-Type": "application/json; charset=utf-8", **headers}, json.dumps(data).encode()


def structured(data: Any = DATA, **changes: str | None) -> tuple[dict[str, str], bytes]:
    attributes = {name: value for name, value in {**ATTRIBUTES, **changes}.items() if value is not None}
    body = {**attributes, "datacontenttype": "application/json", "traceparent": "00-ab-cd-01", "data": data}
    return {"content-type": "application/cloudevents+json"}, json.dumps(body).encode()


@pytest.mark.parametrize("mode", [binary, structured])
def test_both_modes_give_the_same_event(mode: Any) -> None:
    event = DriftEvent.parse(*mode())
    assert event == DriftEvent(
        service="flights",
        episode="flights-2013-07-01T00:00:00+00:00",
        opened_at=datetime(2013, 7, 1, tzinfo=UTC),
        as_of=datetime(2013, 7, 1, tzinfo=UTC),
        kind="drift",
        features=("dep_delay",),
        reason="D = 0.31 > 0.2",
    )
    assert event.as_of.tzinfo is UTC


def test_binary_attributes_are_percent_decoded() -> None:
    encoded = DATA["episode"].replace(":", "%3A").replace("+", "%2B")
    assert DriftEvent.parse(*binary(id=encoded, subject=encoded)).episode == DATA["episode"]


@pytest.mark.parametrize("mode", [binary, structured])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"specversion": "0.3"}, r"specversion is '0\.3'; expected '1\.0'"),
        ({"type": "io.kubeloop.label"}, r"type is 'io\.kubeloop\.label'; expected 'io\.kubeloop\.drift'"),
        ({"type": None}, r"type is None"),
        ({"id": "another"}, r"id is 'another'; it must be data\.episode"),
        ({"id": None}, r"id is None; it must be data\.episode"),
        ({"subject": "another"}, r"subject is 'another'; it must be data\.episode"),
        ({"source": None}, r"source is missing"),
    ],
)
def test_wrong_attributes_are_named(mode: Any, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftEvent.parse(*mode(**changes))


@pytest.mark.parametrize("mode", [binary, structured])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"service": "Flights_1"}, r"data\.service"),
        ({"episode": ""}, r"data\.episode"),
        ({"as_of": "2013-07-01T00:00:00"}, r"data\.as_of.*timezone"),
        ({"as_of": 1372636800}, r"data\.as_of"),
        ({"as_of": "9999-12-31T00:00:00+00:00"}, r"data\.as_of.*in the future"),
        ({"as_of": (datetime.now(UTC) + timedelta(hours=2)).isoformat()}, r"data\.as_of.*in the future"),
        ({"as_of": "1969-12-31T00:00:00Z"}, r"data\.as_of.*before 1970"),
        ({"opened_at": (datetime.now(UTC) + timedelta(hours=2)).isoformat()}, r"data\.opened_at.*in the future"),
        ({"as_of": "0001-01-01T00:00:00+14:00"}, r"data\.as_of.*no year"),
        ({"opened_at": "0001-01-01T00:00:00+14:00"}, r"data\.opened_at.*no year"),
        ({"opened_at": "yesterday"}, r"data\.opened_at"),
        ({"kind": "whim"}, r"data\.kind"),
        ({"features": "dep_delay"}, r"data\.features"),
        ({"features": [1]}, r"data\.features\.0"),
        ({"reason": "a\x00b"}, r"data\.reason"),
        ({"reason": "a\nb"}, r"data\.reason"),
        ({"severity": 3}, r"data\.severity"),
    ],
)
def test_wrong_data_are_named(mode: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftEvent.parse(*mode({**DATA, **changes}))


@pytest.mark.parametrize("missing", sorted(DATA))
def test_every_field_is_needed(missing: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.{missing}: Field required"):
        DriftEvent.parse(*binary({name: value for name, value in DATA.items() if name != missing}))


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        ({}, b"{}", "not a CloudEvent"),
        ({"content-type": "application/cloudevents-batch+json"}, b"[]", "not a CloudEvent"),
        ({"content-type": "application/cloudevents+json"}, b"{", "not JSON"),
        ({"content-type": "application/cloudevents+json"}, b"[]", "is a JSON object"),
        ({"content-type": "application/cloudevents+json"}, b'{"a":' * 30_000, "not JSON"),
        ({"content-type": "application/cloudevents+json"}, b'{"specversion": "1.0"}', "type is None"),
        ({"ce-specversion": "1.0", "content-type": "text/plain"}, b"{}", "content-type is text/plain"),
        (binary()[0], b"\xff", "data"),
        (binary()[0], b"null", "data"),
        (binary()[0], json.dumps(DATA).replace("D = ", r"\ud800").encode(), "data"),
    ],
)
def test_anything_but_a_drift_event_is_refused(headers: dict[str, str], body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftEvent.parse(headers, body)


@given(body=st.binary(max_size=200), media=st.sampled_from(["application/json", "application/cloudevents+json"]))
def test_no_body_raises_anything_but_a_value_error(body: bytes, media: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        DriftEvent.parse({**binary()[0], "Content-Type": media}, body)


SERVICES = st.from_regex(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", fullmatch=True)
EPISODES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200)


@given(first=st.tuples(SERVICES, EPISODES), second=st.tuples(SERVICES, EPISODES))
def test_run_names_are_kubernetes_names_of_one_episode(first: tuple[str, str], second: tuple[str, str]) -> None:
    moment = datetime(2013, 7, 1, tzinfo=UTC)
    names = [DriftEvent(s, e, moment, moment, "drift", (), "").run_name for s, e in (first, second)]
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in names)
    assert (names[0] == names[1]) == (first == second)


def test_run_name_reads_well_and_never_changes() -> None:
    assert DriftEvent.parse(*binary()).run_name == "flights-2013-07-01t00-00-00-00-00-da68243d"

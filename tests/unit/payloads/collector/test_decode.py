"""Raw events become predictions and labels, each exactly once, in any order and wherever the log is cut."""

import json
import struct
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeloop.monitoring import performance
from kubeloop.names import LABEL_EVENT, REQUEST_EVENT, RESPONSE_EVENT
from kubeloop.payloads import decode, segments
from kubeloop.tasks.binary.task import BINARY

Raw = tuple[str, str, bytes]
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)


def tensor(name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data), 1], "data": data}


def request(id_: str = "a", *tensors: dict[str, Any], **parameters: str) -> Raw:
    inputs = list(tensors) or [tensor("delay", "FP32", [1.5])]
    return id_, REQUEST_EVENT, json.dumps({"inputs": inputs, "parameters": parameters}).encode()


def response(id_: str = "a", scores: Iterable[Any] = (0.25,), version: str | None = "3", **more: Any) -> Raw:
    outputs = [{"name": "probability", "datatype": "FP32", "data": list(scores)}]
    return id_, RESPONSE_EVENT, json.dumps({"model_version": version, "outputs": outputs} | more).encode()


def label(id_: str, *labels: Any) -> Raw:
    return id_, LABEL_EVENT, json.dumps({"labels": list(labels)}).encode()


def table(*events: Raw, first: int = 1, service: str = "flights", source: str = "agent") -> pa.Table:
    if not events:
        return segments.SCHEMA.empty_table()
    return segments.table_of(
        [
            (seq, seq * 10, seq, id_, kind, source, service, "shop", "predictor", "default", body)
            for seq, (id_, kind, body) in enumerate(events, first)
        ]
    )


def test_a_batched_pair_becomes_one_row_a_prediction() -> None:
    sent = request(
        "a",
        tensor("delay", "FP32", [1, None]),
        tensor("carrier", "BYTES", ["UA", None]),
        tensor("late", "BOOL", [True, False]),
        event_ids='["x", "y"]',
        event_time="2013-04-01T14:00:00+02:00",
    )
    decoded = decode.decode(BINARY, table(sent, response(scores=(0.25, 1))))
    own = {"request_id": "a", "event_time": NOON, "model_version": "3", "endpoint": "default"}
    received = datetime.fromtimestamp(20e-6, UTC)
    assert decoded.predictions.to_pylist() == [
        own | {"received_at": received, "event_id": "x", "score": 0.25, "delay": 1.0, "carrier": "UA", "late": 1.0},
        own | {"received_at": received, "event_id": "y", "score": 1.0, "delay": None, "carrier": None, "late": 0.0},
    ]
    features = decoded.predictions.schema
    assert [features.field(name).type for name in ("delay", "carrier")] == [pa.float32(), pa.string()]
    assert (decoded.malformed, decoded.duplicates, decoded.unpaired.num_rows) == (0, 0, 0)


def binary(message: dict[str, Any], *raw: bytes) -> bytes:
    return b"".join([json.dumps(message).encode(), *raw])


def test_binary_tensors_are_read_without_the_header_that_the_agent_drops() -> None:
    def tensor(name: str, datatype: str, size: int) -> dict[str, Any]:
        return {"name": name, "datatype": datatype, "shape": [2, 1], "parameters": {"binary_data_size": size}}

    raw = struct.pack("<2f", 1.5, float("nan")), b"\x02\0\0\0\xc3\xa4\x00\0\0\0"
    inputs = [tensor("delay", "FP32", 8), tensor("carrier", "BYTES", 10)]
    late = {"name": "late", "datatype": "BOOL", "shape": [2], "data": [True, False]}
    asked = {"inputs": [*inputs, late], "parameters": {"event_ids": '["x", "ä"]'}}
    answered = {"model_version": "3", "outputs": [tensor("probability", "FP32", 8)]}
    scores = struct.pack("<2f", 0.25, 1)
    decoded = decode.decode(
        BINARY, table(("a", REQUEST_EVENT, binary(asked, *raw)), ("a", RESPONSE_EVENT, binary(answered, scores)))
    )
    assert decoded.predictions.select(["event_id", "score", "delay", "carrier", "late"]).to_pylist() == [
        {"event_id": "x", "score": 0.25, "delay": 1.5, "carrier": "ä", "late": 1.0},
        {"event_id": "ä", "score": 1.0, "delay": None, "carrier": "", "late": 0.0},
    ]
    assert decoded.malformed == 0
    for torn in (binary(asked, *raw)[:-1], binary(asked, *raw, b"x"), binary(asked | {"inputs": []}, b"x"), b"{} x"):
        decoded = decode.decode(
            BINARY, table(("a", REQUEST_EVENT, torn), ("a", RESPONSE_EVENT, binary(answered, scores)))
        )
        assert (decoded.malformed, decoded.predictions.num_rows) == (1, 0)


def test_what_triton_is_sent_is_read() -> None:
    """A transformer in front of Triton writes NaN for a missing number, which JSON does not have."""
    sent = request("a", tensor("delay", "FP32", [1, float("nan")]), tensor("carrier", "BYTES", ["NaN", ""]))
    assert b"NaN]" in sent[2]
    decoded = decode.decode(BINARY, table(sent, response(scores=(0.25, 1))))
    assert decoded.predictions.select(["delay", "carrier"]).to_pylist() == [
        {"delay": 1.0, "carrier": "NaN"},
        {"delay": None, "carrier": ""},
    ]
    assert decoded.malformed == 0


def test_what_a_request_leaves_out_has_a_default() -> None:
    [row] = decode.decode(BINARY, table(response(version=None), request())).predictions.to_pylist()
    assert (row["event_id"], row["model_version"]) == (None, None)
    assert row["event_time"] == datetime.fromtimestamp(2e-6, UTC)


def test_a_request_without_a_body_is_neither_a_prediction_nor_malformed() -> None:
    """KServe's agent logs a GET like any other request."""
    asked, told = ("a", REQUEST_EVENT, b""), ("a", RESPONSE_EVENT, b'{"name": "flights", "ready": true}')
    for events in ((asked, told), (told, asked)):
        decoded = decode.decode(BINARY, table(*events, request("b"), response("b")))
        assert decoded.predictions["request_id"].to_pylist() == ["b"]
        assert (decoded.malformed, decoded.ambiguous, decoded.unpaired.num_rows) == (0, 0, 0)


def test_nothing_in_nothing_out() -> None:
    decoded = decode.decode(BINARY, table())
    assert decoded.predictions.schema == decode.schema(BINARY)
    assert decoded.labels.schema == decode.LABEL
    assert decoded.carry.waiting.num_rows == decoded.labels.num_rows == 0


def test_versions_with_other_features_share_a_table_in_order() -> None:
    decoded = decode.decode(
        BINARY,
        table(
            request("a"),
            response("a"),
            request("b", tensor("carrier", "BYTES", ["UA"]), tensor("delay", "FP32", [2])),
            response("b", version="4"),
            request("c"),
            response("c"),
            request("d", tensor("carrier", "INT64", [7])),
            response("d"),
        ),
    )
    rows = decoded.predictions.select(["request_id", "delay", "carrier"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("a", 1.5, None),
        ("b", 2.0, "UA"),
        ("c", 1.5, None),
        ("d", None, "7"),
    ]


@pytest.mark.parametrize(
    ("sent", "answered", "reason"),
    [
        (("a", REQUEST_EVENT, b"{"), response(), "the request is not a V2 payload"),
        (("a", REQUEST_EVENT, b"[]"), response(), "the request is not a V2 payload"),
        (("a", REQUEST_EVENT, b"[NaN," * 100_000), response(), "nested too deeply"),
        (request("a", tensor("x", "BYTES", ["\ud800"]), tensor("y", "FP32", [float("nan")])), response(), "surrogate"),
        (request("a", tensor("x", "INT64", [2**70]), tensor("y", "FP32", [float("nan")])), response(), "64-bit"),
        (("a", REQUEST_EVENT, b'{"inputs":[{"name":"x"}]}'), response(), "KeyError: 'datatype'"),
        (("a", REQUEST_EVENT, b'{"inputs":[]}'), response(), "other sizes"),
        (("a", REQUEST_EVENT, b'{"inputs":{"a":1}}'), response(), "the request is not a V2 payload"),
        (request(), ("a", RESPONSE_EVENT, b"{"), "the response is not a V2 payload"),
        (request(), ("a", RESPONSE_EVENT, b'{"error":"no"}'), "the response is not a V2 payload"),
        (request(), ("a", RESPONSE_EVENT, b'{"outputs":[{"name":"label","data":[1]}]}'), "no output named"),
        (request(), response(scores=(0.1, 0.2)), "2 scores"),
        (request(), response(scores=(None,)), "a score is null"),
        (request(), response(scores=("high",)), "'high' is not a number"),
        (request(), response(version=3), "model_version"),  # type: ignore[arg-type]
        (request(), response(version="3\0"), r"not a name of up to 200 characters: '3\x00'"),
        (request(), response(version="3\n4"), "model_version is not a name"),
        (request(), response(version="3" * 201), "model_version is not a name"),
        (request("a", tensor("x", "FP32", ["1"])), response(), "'1' is not a number"),
        (request("a", tensor("x", "BYTES", [1])), response(), "1 is not text"),
        (request("a", tensor("x", "FP32", [[1, 2]])), response(), "more than one value per row"),
        (request("a", tensor("x", "COMPLEX", [1])), response(), "unknown datatype 'COMPLEX'"),
        (request("a", tensor("x", "FP32", [1]), tensor("x", "FP32", [1])), response(), "occurs twice"),
        (request("a", tensor("score", "FP32", [1])), response(), "rename it"),
        (request("a", tensor(["x"], "FP32", [1])), response(), "the request is not a V2 payload"),  # type: ignore[arg-type]
        (request("a", {"name": "x", "datatype": "BYTES", "data": "x"}), response(), "other sizes"),
        (request(event_ids="[1]"), response(), "event_ids is not a JSON list of 1 strings"),
        (request(event_ids='["x","y"]'), response(), "event_ids"),
        (request(event_ids="x"), response(), "event_ids"),
        (request(event_time="soon"), response(), "event_time"),
        (("a", REQUEST_EVENT, request()[2][:-1] + b',"id":"1"}'), response(id="2"), "belongs to another request"),
        (label("l", {"event_id": "x", "label": 2, "observed_at": "2013-01-01"}), request("l"), "label must be 0 or 1"),
        (label("l", {"event_id": "", "label": 1, "observed_at": "2013-01-01"}), request("l"), "text event_id"),
        (label("l", {"event_id": "x", "label": 1}), request("l"), "KeyError: 'observed_at'"),
        (label("l", {"event_id": "x", "label": 1, "observed_at": "soon"}), request("l"), "'observed_at': 'soon'"),
        (label("l", "x"), request("l"), "a label is malformed"),
        (("l", LABEL_EVENT, b'{"labels":{}}'), request("l"), "no list of labels"),
        (("l", LABEL_EVENT, b"\xff"), request("l"), "no list of labels"),
    ],
)
def test_malformed_bodies_are_counted_and_cost_only_themselves(sent: Raw, answered: Raw, reason: str) -> None:
    good = [request("before"), response("before"), request("after"), response("after")]
    decoded = decode.decode(BINARY, table(*good[:2], sent, answered, *good[2:]))
    assert decoded.predictions["request_id"].to_pylist() == ["before", "after"]
    assert decoded.malformed == 1
    [found] = decoded.reasons
    assert found.startswith("event 3: ")
    assert reason in found


@pytest.mark.parametrize("data", [[[1.5], [None]], [[2**60], [True]], [2**60, 0.1]])
def test_odd_but_legal_numbers_are_read(data: list[Any]) -> None:
    decoded = decode.decode(BINARY, table(request("a", tensor("x", "FP64", data)), response(scores=[[0.5], 1])))
    flat = [value[0] if isinstance(value, list) else value for value in data]
    expected = [None if value is None else pytest.approx(float(value)) for value in flat]
    assert decoded.predictions["x"].to_pylist() == expected


def test_only_the_first_reasons_are_kept() -> None:
    events = [event for number in range(9) for event in (request(str(number)), response(str(number), ()))]
    decoded = decode.decode(BINARY, table(*events))
    assert (decoded.malformed, len(decoded.reasons)) == (9, 5)


def test_labels_are_read_once_and_good_ones_survive_bad_neighbours() -> None:
    # The events in this table were received a few microseconds after the start of 1970.
    at, observed = "1970-01-01T00:00:00.000005Z", datetime.fromtimestamp(5e-6, UTC)
    first = label("l", {"event_id": "x", "label": 1, "observed_at": at}, {"label": 1})
    second = label("l", {"event_id": "y", "label": 0, "observed_at": at})
    before = decode.decode(BINARY, table(first))
    after = decode.decode(BINARY, table(first, second, second, first=2), before.carry)
    assert [*before.labels.to_pylist(), *after.labels.to_pylist()] == [
        {"event_id": "x", "label": 1, "observed_at": observed, "received_at": datetime.fromtimestamp(10e-6, UTC)},
        {"event_id": "y", "label": 0, "observed_at": observed, "received_at": datetime.fromtimestamp(30e-6, UTC)},
    ]
    assert (before.malformed, after.duplicates) == (1, 2)


def test_a_label_from_a_clock_that_is_ahead_wins_over_no_later_correction() -> None:
    """This holds also for a label that an earlier version of the collector accepted."""
    labels = [label(str(number), {"event_id": "x", "label": number, "observed_at": at}) for number, at in
              enumerate(("2099-01-01T00:00:00Z", "1970-01-01T00:00:00.000019Z"))]  # fmt: skip
    found = decode.decode(BINARY, table(*labels)).labels
    known = np.zeros(len(found), np.int64)
    scored = pa.table({"event_id": ["x"], "event_time": [NOON], "score": [0.5]})
    y, _ = performance.join(BINARY, scored, [performance.labels(found, known)], 1)
    assert y.tolist() == [1]


def test_an_id_that_two_requests_share_gives_no_pair() -> None:
    other = request("a", tensor("delay", "FP32", [9]))
    decoded = decode.decode(BINARY, table(request(), other, response(scores=[0.9]), response(scores=[0.1])))
    assert decoded.predictions.num_rows == 0
    assert (decoded.ambiguous, decoded.duplicates) == (1, 2)


def test_a_pair_that_is_done_is_not_disturbed_by_its_id_coming_again() -> None:
    again = request("a", tensor("delay", "FP32", [9])), response(scores=[0.9])
    decoded = decode.decode(BINARY, table(request(), response(), *again))
    assert decoded.predictions["score"].to_pylist() == [0.25]
    assert decoded.duplicates == 2


def test_the_same_id_from_two_sources_is_two_requests() -> None:
    one, two = table(request()), table(request(), first=2, source="other")
    answers = table(response(scores=[0.5]), first=3, source="other")
    decoded = decode.decode(BINARY, pa.concat_tables([one, two, answers]))
    assert decoded.predictions["score"].to_pylist() == [0.5]
    assert decoded.unpaired["source"].to_pylist() == ["agent"]


def test_another_service_is_left_out_and_its_labels_too() -> None:
    at = {"label": 1, "observed_at": "2013-01-01"}
    tables = [
        table(request(), response(), label("l", at | {"event_id": "mine"})),
        table(request(), response(), label("l", at | {"event_id": "theirs"}), first=4, service="other"),
        table(label("m", at | {"event_id": "anyone's"}), first=7, service=""),
    ]
    decoded = decode.decode(BINARY, pa.concat_tables(tables), service="flights")
    assert decoded.predictions.num_rows == 1
    assert decoded.labels["event_id"].to_pylist() == ["mine", "anyone's"]
    assert decode.decode(BINARY, pa.concat_tables(tables)).predictions.num_rows == 2


def test_what_never_pairs_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "REMEMBER", 4)
    carry = decode.decode(BINARY, table(request("lost"), request("b"), response("b"))).carry
    assert (carry.waiting.num_rows, len(carry.settled)) == (1, 1)
    carry = decode.decode(BINARY, table(request("c"), request("d"), first=4), carry).carry
    assert carry.waiting["id"].to_pylist() == ["c", "d"]
    assert len(carry.settled) == 1
    carry = decode.decode(BINARY, table(request("e"), first=9), carry).carry
    assert (carry.waiting["id"].to_pylist(), dict(carry.settled)) == (["e"], {})


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[Raw], list[int]]:
    """Pairs in any order, with repeats of any event anywhere after it, and the places where the log is cut."""
    count = draw(st.integers(1, 8))
    events: list[Raw] = []
    for number in range(count):
        rows = draw(st.integers(1, 3))
        events.append(
            request(
                f"r{number}",
                tensor("delay", "FP32", [float(number)] * rows),
                *([tensor("carrier", "BYTES", ["UA"] * rows)] if number % 2 else []),
                event_ids=json.dumps([f"{number}-{row}" for row in range(rows)]),
            )
        )
        events.append(response(f"r{number}", [number / 8] * rows))
    events += draw(st.lists(st.sampled_from(events), max_size=10))
    events = draw(st.permutations(events))
    cuts = draw(st.lists(st.integers(0, len(events)), max_size=6))
    return events, sorted(cuts)


@settings(deadline=None, max_examples=60)
@given(traffic(), st.booleans())
def test_each_prediction_comes_out_exactly_once(tmp_path_factory: Any, case: Any, restart: bool) -> None:
    events, cuts = case
    unique = {(id_, kind) for id_, kind, _ in events}
    directory: Path = tmp_path_factory.mktemp("log") if restart else Path()
    carry = decode.Carry()
    found: list[tuple[str, float, float]] = []
    duplicates = 0
    for begin, end in zip([0, *cuts], [*cuts, len(events)], strict=True):
        part = table(*events[begin:end], first=begin + 1)
        if restart:
            carry = decode.resume(BINARY, directory, begin)
            if part.num_rows:
                segments.write(directory, part)
        decoded = decode.decode(BINARY, part, carry)
        carry = decoded.carry
        duplicates += decoded.duplicates
        assert (decoded.malformed, decoded.ambiguous) == (0, 0)
        rows = decoded.predictions.to_pylist()
        found += [(row["event_id"], row["score"], row["delay"]) for row in rows]
        assert all(row.get("carrier") == ("UA" if row["delay"] % 2 else None) for row in rows)
    sent = {id_: json.loads(body)["parameters"]["event_ids"] for id_, kind, body in events if kind == REQUEST_EVENT}
    numbers = {int(id_[1:]): json.loads(ids) for id_, ids in sent.items()}
    assert sorted(found) == sorted((one, number / 8, float(number)) for number, ids in numbers.items() for one in ids)
    assert duplicates == len(events) - len(unique)
    assert carry.waiting.num_rows == 0


def test_resuming_opens_no_segment_that_it_does_not_need(tmp_path: Path) -> None:
    segments.write(tmp_path, table(request("a"), response("a"), request("b")))
    later = segments.write(tmp_path, table(response("b"), first=4))
    later.path.write_bytes(b"would fail if it were opened")
    assert decode.resume(BINARY, tmp_path, 3).waiting["id"].to_pylist() == ["b"]
    segments.segments(tmp_path)[0].path.write_bytes(b"would fail too")
    assert decode.resume(BINARY, tmp_path, 0) == decode.Carry()

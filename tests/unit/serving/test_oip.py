"""The protocol: what is understood, what is refused, and with which message."""

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kubeloop.serving import oip
from kubeloop.serving import v1 as v1_protocol
from kubeloop.serving.tensors import DTYPES, ProtocolError, TensorSpec, specs_of

COLUMNS = specs_of(
    [TensorSpec("x", "FP32", (-1, 1)), TensorSpec("n", "INT64", (-1, 1)), TensorSpec("c", "BYTES", (-1, 1))]
)
MATRIX = specs_of([TensorSpec("input", "FP32", (-1, 3))])


def tensor(name: str, datatype: str, shape: list[int], data: list[Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


def request(**changes: Any) -> dict[str, Any]:
    """A valid two-row request; `x`, `n` and `c` replace an input, other names a field."""
    inputs = {
        "x": tensor("x", "FP32", [2, 1], [1.5, None]),
        "n": tensor("n", "INT64", [2], [7, -7]),
        "c": tensor("c", "BYTES", [2, 1], ["a", None]),
    }
    message: dict[str, Any] = {"id": "42", "parameters": {"event_time": "2013-04-01"}}
    for name, value in changes.items():
        if name in inputs:
            inputs[name] = value
        else:
            message[name] = value
    return {"inputs": list(inputs.values())} | message


def v2(message: Any, specs: oip.Any = COLUMNS, outputs: tuple[str, ...] = ("p",)) -> oip.InferRequest:
    return oip.parse_v2(json.dumps(message).encode(), specs, outputs)


def v1(message: Any, specs: Any = COLUMNS) -> oip.InferRequest:
    return v1_protocol.parse(json.dumps(message).encode(), specs)


def test_v2_request_becomes_arrays_of_the_declared_rank() -> None:
    parsed = v2(request(outputs=[{"name": "p"}]))
    assert parsed.rows == 2
    assert parsed.id == "42"
    assert parsed.parameters == {"event_time": "2013-04-01"}
    assert parsed.outputs == ("p",)
    assert {name: array.shape for name, array in parsed.inputs.items()} == dict.fromkeys("xnc", (2, 1))
    assert parsed.inputs["x"].dtype == np.float32
    assert parsed.inputs["x"][0, 0] == 1.5
    assert math.isnan(parsed.inputs["x"][1, 0])
    assert parsed.inputs["n"].ravel().tolist() == [7, -7]
    assert parsed.inputs["c"].ravel().tolist() == ["a", ""]


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]], ids=["flat", "nested"])
def test_v2_matrix_may_come_flat_or_nested(data: list[Any]) -> None:
    parsed = v2({"inputs": [tensor("input", "FP32", [2, 3], data)]}, MATRIX)
    assert parsed.inputs["input"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_what_a_proxy_or_client_adds_is_ignored() -> None:
    assert v2(request(model_name="m", extra=[1])).rows == 2


def test_v1_objects_and_lists() -> None:
    rows = [{"x": 1, "n": 2, "c": "a"}, {"c": None, "n": 3, "x": None}]
    parsed = v1({"instances": rows, "parameters": {"event_ids": "[]"}})
    assert parsed.rows == 2
    assert parsed.parameters == {"event_ids": "[]"}
    assert parsed.inputs["n"].tolist() == [[2], [3]]
    assert parsed.inputs["c"].tolist() == [["a"], [""]]
    assert v1({"instances": [[1, 2, 3]]}, MATRIX).inputs["input"].tolist() == [[1, 2, 3]]
    assert v1({"instances": [{"input": [1, 2, 3]}]}, MATRIX).inputs["input"].tolist() == [[1, 2, 3]]
    one = specs_of([TensorSpec("x", "FP64", (-1,))])
    assert v1({"instances": [1, 2]}, one).inputs["x"].tolist() == [1, 2]
    free = specs_of([TensorSpec("x", "FP64", (-1, -1))])
    assert v1({"instances": [[1, 2], [3, 4]]}, free).inputs["x"].shape == (2, 2)


WRONG = {
    "no inputs": ({"id": "1"}, "inputs"),
    "empty inputs": ({"inputs": []}, "at least one tensor"),
    "inputs no objects": ({"inputs": [1]}, "tensor object"),
    "a list": ([1], "must be a JSON object, got a list"),
    "id a number": (request(id=4), '"id" must be a string, got a number'),
    "missing input": ({"inputs": request()["inputs"][:2]}, "missing 'c'"),
    "unknown input": (request(x=tensor("y", "FP32", [2, 1], [1, 2])), "unknown name 'y'"),
    "name no string": (request(x=tensor([], "FP32", [2, 1], [1, 2])), "unknown name []"),  # type: ignore[arg-type]
    "duplicate input": (request(x=request()["inputs"][1]), "'n' appears twice"),
    "unknown datatype": (request(x=tensor("x", "FP31", [2, 1], [1, 2])), "datatype FP32, got 'FP31'"),
    "other datatype": (request(x=tensor("x", "FP64", [2, 1], [1, 2])), "datatype FP32, got 'FP64'"),
    "no shape": (request(x={"name": "x", "datatype": "FP32", "data": [1, 2]}), "shape [-1, 1]"),
    "shape of strings": (request(x=tensor("x", "FP32", ["2", 1], [1, 2])), "got ['2', 1]"),  # type: ignore[list-item]
    "shape of booleans": (request(x=tensor("x", "FP32", [True, 1], [1])), "shape [-1, 1]"),
    "shape negative": (request(x=tensor("x", "FP32", [-1, 1], [1, 2])), "shape [-1, 1]"),
    "no rows": (request(x=tensor("x", "FP32", [0, 1], [])), "any size from 1"),
    "wrong inner size": (request(x=tensor("x", "FP32", [1, 2], [1, 2])), "got [1, 2]"),
    "rank too high": (request(x=tensor("x", "FP32", [2, 1, 1, 1], [1, 2])), "shape [-1, 1]"),
    "too few values": (request(x=tensor("x", "FP32", [2, 1], [1])), "needs 2 values, got 1"),
    "too many values": (request(x=tensor("x", "FP32", [2, 1], [1, 2, 3])), "needs 2 values, got 3"),
    "huge shape": (request(x=tensor("x", "FP32", [10**18, 1], [1])), "needs 1000000000000000000 values, got 1"),
    "ragged": (request(x=tensor("x", "FP32", [2, 1], [[1], [2, 3]])), "nesting"),
    "half nested": (request(x=tensor("x", "FP32", [2, 1], [[1], 2])), "nesting"),
    "too deep": (request(x=tensor("x", "FP32", [2, 1], [[[1]], [[2]]])), "numbers or null, got [1]"),
    "no data": (request(x={"name": "x", "datatype": "FP32", "shape": [2, 1]}), 'needs "data"'),
    "string in numbers": (request(x=tensor("x", "FP32", [2, 1], [1, "2"])), "numbers or null, got '2'"),
    "boolean in numbers": (request(x=tensor("x", "FP32", [2, 1], [1, True])), "numbers or null, got True"),
    "object in numbers": (request(x=tensor("x", "FP32", [2, 1], [1, {}])), "got an object"),
    "float too large": (request(x=tensor("x", "FP32", [2, 1], [1, 1e39])), "out of the range of FP32"),
    "null integer": (request(n=tensor("n", "INT64", [2, 1], [1, None])), "never null"),
    "float integer": (request(n=tensor("n", "INT64", [2, 1], [1, 2.0])), "whole numbers"),
    "integer too large": (request(n=tensor("n", "INT64", [2, 1], [1, 2**63])), "out of the range of INT64"),
    "number in strings": (request(c=tensor("c", "BYTES", [2, 1], ["a", 1])), "strings or null, got 1"),
    "other rows": (request(n=tensor("n", "INT64", [3, 1], [1, 2, 3])), "same number of rows, got 'x' 2, 'n' 3"),
    "parameters no object": (request(parameters=[1]), "object of strings, numbers and booleans"),
    "parameters nested": (request(parameters={"event_ids": ["a", "b"]}), "object of strings, numbers and booleans"),
    "outputs no list": (request(outputs="p"), "list of objects"),
    "unknown output": (request(outputs=[{"name": "q"}]), "unknown output 'q'; expected 'p'"),
    "duplicate output": (request(outputs=[{"name": "p"}, {"name": "p"}]), "'p' appears twice"),
}


@pytest.mark.parametrize(("message", "words"), WRONG.values(), ids=WRONG)
def test_v2_refuses(message: Any, words: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        v2(message)
    assert words in str(caught.value)
    assert caught.value.status == 400


WRONG_V1 = {
    "no instances": ({"inputs": []}, "instances"),
    "empty": ({"instances": []}, "at least one row"),
    "lists for many inputs": ({"instances": [[1, 2, "a"]]}, "every instance must be an object with 'x', 'n', 'c'"),
    "mixed": ({"instances": [{"x": 1, "n": 1, "c": "a"}, 4]}, "instance 1 must be an object"),
    "missing": ({"instances": [{"x": 1, "c": "a"}]}, "instance 0: missing 'n'"),
    "unknown": ({"instances": [{"x": 1, "n": 1, "c": "a", "z": 1}]}, "unknown 'z'"),
    "list for a scalar": ({"instances": [{"x": [1, 2], "n": 1, "c": "a"}]}, "nesting"),
    "type": ({"instances": [{"x": "1", "n": 1, "c": "a"}]}, "'x' (FP32) takes numbers or null, got '1'"),
    "null integer": ({"instances": [{"x": 1, "n": None, "c": "a"}]}, "never null"),
    "parameters": ({"instances": [{"x": 1, "n": 1, "c": "a"}], "parameters": 3}, '"parameters"'),
}


@pytest.mark.parametrize(("message", "words"), WRONG_V1.values(), ids=WRONG_V1)
def test_v1_refuses(message: Any, words: str) -> None:
    with pytest.raises(ProtocolError, match=r".") as caught:
        v1(message)
    assert words in str(caught.value)


@pytest.mark.parametrize("rows", [[[1, 2, 3], [4, 5]], [[1, 2]], [1, 2, 3], [[[1, 2, 3]]]])
def test_v1_refuses_ragged_rows(rows: list[Any]) -> None:
    with pytest.raises(ProtocolError, match="input"):
        v1({"instances": rows}, MATRIX)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nul", b"\xff\xfe", b'{"inputs": NaN}', b'{"inputs": "\\ud800"}', b"[" * 5000, b'{"id": 1e999}'],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    for parse in (lambda: oip.parse_v2(body, COLUMNS), lambda: v1_protocol.parse(body, COLUMNS)):
        with pytest.raises(ProtocolError, match="JSON object in UTF-8"):
            parse()


def test_scalar_and_fixed_inputs_do_not_count_rows() -> None:
    specs = specs_of([TensorSpec("t", "FP32", ()), TensorSpec("w", "FP32", (2,)), TensorSpec("x", "FP32", (-1,))])
    message = {
        "inputs": [
            tensor("t", "FP32", [], [0.5]),
            tensor("w", "FP32", [2], [1, 2]),
            tensor("x", "FP32", [3], [1, 2, 3]),
        ]
    }
    parsed = v2(message, specs)
    assert parsed.rows == 3
    assert parsed.inputs["t"].shape == ()


def test_an_error_does_not_echo_megabytes() -> None:
    for value in ("y" * 10**6, ["y"] * 10**5, [[[["y" * 10**5]]]]):
        with pytest.raises(ProtocolError) as caught:
            v2(request(x=tensor(value, "FP32", [2, 1], [1, 2])))  # type: ignore[arg-type]
        assert len(str(caught.value)) < 300


def test_v2_response() -> None:
    outputs = {"p": np.float32([0.1, np.nan]), "c": np.array(["a", "ä"], object), "b": np.array([[True], [False]])}
    encoded, json_size = oip.encode_v2(oip.InferResponse("m", "3", outputs, "42", {"k": 1}))
    assert json_size is None
    assert json.loads(encoded) == {
        "model_name": "m",
        "model_version": "3",
        "id": "42",
        "parameters": {"k": 1},
        "outputs": [
            {"name": "p", "datatype": "FP32", "shape": [2], "data": [0.1, None]},
            {"name": "c", "datatype": "BYTES", "shape": [2], "data": ["a", "ä"]},
            {"name": "b", "datatype": "BOOL", "shape": [2, 1], "data": [True, False]},
        ],
    }
    bare, _ = oip.encode_v2(oip.InferResponse("m", None, outputs))
    assert list(json.loads(bare)) == ["model_name", "outputs"]


def test_v1_response() -> None:
    one = {"p": np.float32([0.5, np.inf])}
    assert json.loads(v1_protocol.encode(one)) == {"predictions": [0.5, None]}
    two = {"p": np.float32([0.5, -np.inf]), "label": np.array([1, 0], np.longlong)}
    assert json.loads(v1_protocol.encode(two)) == {"predictions": [{"p": 0.5, "label": 1}, {"p": None, "label": 0}]}
    with pytest.raises(ProtocolError, match="use V2"):
        v1_protocol.encode({"p": np.float32([0.5, 1.0]), "sum": np.float32([1.5])})


def arrays() -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
    dtypes = st.sampled_from([dtype for name, dtype in DTYPES.items() if name != "BYTES"])
    numbers = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes, elements=hnp.from_dtype(np.dtype(dtype))))
    words = hnp.arrays(object, shapes, elements=st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
    return numbers | words


def as_json(array: np.ndarray) -> np.ndarray:
    """Return what JSON can hold of an array: no infinities."""
    return np.where(np.isinf(array), np.nan, array) if array.dtype.kind == "f" else array


@settings(max_examples=150, deadline=None)
@given(array=arrays(), request_id=st.none() | st.text(st.characters(exclude_categories=["Cs"])))
def test_a_tensor_survives_the_round_trip(array: np.ndarray, request_id: str | None) -> None:
    datatype = next(name for name, dtype in DTYPES.items() if array.dtype == dtype)
    spec = TensorSpec("x", datatype, (-1, *array.shape[1:]))
    values = [None if value != value else value for value in as_json(array).ravel().tolist()]
    parsed = oip.parse_v2(oip.encode_v2_request([(spec, values)], len(array), request_id, {"k": 1}), specs_of([spec]))
    assert (parsed.id, parsed.parameters, parsed.rows) == (request_id, {"k": 1}, len(array))
    np.testing.assert_array_equal(parsed.inputs["x"], as_json(array))
    encoded, _ = oip.encode_v2(oip.InferResponse("m", None, {"x": array}, request_id))
    response = oip.parse_v2_response(encoded)
    assert response.id == request_id
    np.testing.assert_array_equal(response.outputs["x"], as_json(array))


def test_a_server_that_refuses_null_is_sent_nan() -> None:
    numbers, texts = TensorSpec("x", "FP32", (-1,)), TensorSpec("c", "BYTES", (-1,))
    columns = [(numbers, [1.5, None]), (texts, ["é", None])]
    sent = oip.encode_v2_request(columns, 2, "7", {"k": "v"}, nan=True)
    assert b"null" not in sent
    plain = oip.encode_v2_request([(numbers, [1.5, "missing"]), (texts, ["é", ""])], 2, "7", {"k": "v"})
    assert sent == plain.replace(b'"missing"', b"NaN")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)


@st.composite
def nearly_right(draw: st.DrawFn) -> dict[str, Any]:
    """A valid request with one piece replaced by arbitrary JSON."""
    message: Any = request(outputs=[{"name": "p"}], instances=[{"x": 1, "n": 2, "c": "a"}])
    place, key = message, draw(st.sampled_from(["inputs", "id", "parameters", "outputs", "instances"]))
    while draw(st.booleans()) and isinstance(place[key], dict | list) and place[key]:
        place = place[key]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = draw(JSON)
    return message


@settings(max_examples=400, deadline=None)
@given(message=JSON | nearly_right())
def test_arbitrary_json_raises_nothing_but_protocol_errors(message: Any) -> None:
    body = json.dumps(message).encode()
    for parse in (
        lambda: oip.parse_v2(body, COLUMNS, ("p",)),
        lambda: oip.parse_v2(body, MATRIX),
        lambda: v1_protocol.parse(body, COLUMNS),
        lambda: v1_protocol.parse(body, MATRIX),
        lambda: oip.parse_v2_response(body),
    ):
        with contextlib.suppress(ProtocolError):
            parse()


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=100))
def test_arbitrary_bytes_raise_nothing_but_protocol_errors(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        oip.parse_v2(body, COLUMNS)

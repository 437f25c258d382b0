"""The binary tensor data extension: bytes after a request's JSON and after its answer's JSON."""

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from kubeloop.serving import oip
from kubeloop.serving.tensors import DTYPES, ProtocolError, TensorSpec, array_of_raw, raw_of, specs_of

SPECS = specs_of([TensorSpec("x", "FP32", (-1, 1)), TensorSpec("b", "BOOL", (-1,)), TensorSpec("c", "BYTES", (-1,))])
X, B = struct.pack("<2f", 1.5, float("nan")), b"\x01\x00"
C = b"\x02\0\0\0\xc3\xa4\x00\0\0\0"


def body(
    tensors: dict[str, bytes] | None = None, junk: bytes = b"", *, shape: Any = (2,), **more: Any
) -> tuple[bytes, int]:
    """A valid two-row request; `tensors` replaces bytes, and `sizes` the sizes that the JSON gives for them."""
    raw = {"x": X, "b": B, "c": C} | (tensors or {})
    sizes = {name: len(data) for name, data in raw.items()} | more.pop("sizes", {})
    inputs = [
        {"name": spec.name, "datatype": spec.datatype, "shape": list(shape), "parameters": {"binary_data_size": size}}
        for spec, size in zip(SPECS.values(), sizes.values(), strict=True)
    ]
    head = json.dumps({"inputs": inputs} | more).encode()
    return b"".join([head, *raw.values(), junk]), len(head)


def parse(request: tuple[bytes, int], outputs: tuple[str, ...] = ("p", "q")) -> oip.InferRequest:
    return oip.parse_v2(request[0], SPECS, outputs, request[1])


def test_bytes_become_arrays() -> None:
    parsed = parse(body(parameters={"event_time": "2013-04-01", "binary_data_output": True}))
    assert parsed.rows == 2
    assert parsed.inputs["x"].shape == (2, 1)
    np.testing.assert_array_equal(parsed.inputs["x"], np.float32([[1.5], [np.nan]]))
    assert parsed.inputs["x"].flags.aligned
    assert parsed.inputs["b"].tolist() == [True, False]
    assert parsed.inputs["c"].tolist() == ["ä", ""]
    assert parsed.binary
    assert parsed.parameters == {"event_time": "2013-04-01"}, "a parameter about the answer's format is not forwarded"


def test_json_and_bytes_may_be_mixed() -> None:
    head, size = body()
    message = json.loads(head[:size])
    message["inputs"][1] = {"name": "b", "datatype": "BOOL", "shape": [2], "data": [False, True]}
    text = json.dumps(message).encode()
    assert parse((text + X + C, len(text))).inputs["b"].tolist() == [False, True]


WRONG = {
    "too few bytes": (body({"x": X[:-1]}), "'x' of shape [2, 1] needs 8 bytes, got 7"),
    "too many bytes": (body({"x": X + b"\0"}), "'x' of shape [2, 1] needs 8 bytes, got 9"),
    "more than there is": (body(sizes={"c": 11}), "binary_data_size 11; 10 bytes are left"),
    "far more": (body(sizes={"x": 10**18}), "binary_data_size 1000000000000000000; 20 bytes"),
    "negative": (body(sizes={"x": -8}), "binary_data_size -8"),
    "a boolean": (body(sizes={"x": True}), "binary_data_size True"),
    "a text": (body(sizes={"x": "8"}), "binary_data_size '8'"),
    "bytes for nobody": (body(junk=b"abc"), "3 bytes of the body belong to no input"),
    "a huge shape": (body(shape=(10**18,)), "needs 4000000000000000000 bytes"),
    "rows apart": (body({"b": b"\1"}), "'b' of shape [2] needs 2 bytes, got 1"),
    "infinity": (body({"x": struct.pack("<2f", 1, float("inf"))}), "'x' has a value out of the range of FP32"),
    "no UTF-8": (body({"c": b"\x01\0\0\0\xff\0\0\0\0"}), "'c' needs 2 elements of UTF-8 text"),
    "an element too long": (body({"c": b"\xff\xff\xff\xff\0\0\0\0"}), "'c' needs 2 elements"),
    "half a length": (body({"c": b"\x05\0\0\0abcde\0\0"}), "'c' needs 2 elements"),
    "too many elements": (body({"c": C + b"\0\0\0\0"}), "'c' needs 2 elements"),
    "too few elements": (body({"c": C[:6]}), "'c' needs 2 elements"),
    "a flag of text": (body(parameters={"binary_data_output": "yes"}), "binary_data_output must be true or false"),
    "an output's flag of text": (
        body(outputs=[{"name": "p", "parameters": {"binary_data": 1}}]),
        "binary_data must be true or false",
    ),
    "shared memory": (
        body(outputs=[{"name": "p", "parameters": {"shared_memory_region": "r"}}]),
        "'shared_memory_region' of output 'p' is an extension that is not supported",
    ),
}


@pytest.mark.parametrize(("request_", "words"), WRONG.values(), ids=WRONG)
def test_refusals(request_: tuple[bytes, int], words: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(request_)
    assert words in str(caught.value)
    assert caught.value.status == 400


def test_a_size_needs_the_header_and_no_data() -> None:
    text, size = body()
    with pytest.raises(ProtocolError, match="needs Inference-Header-Content-Length"):
        oip.parse_v2(text[:size], SPECS)
    message = json.loads(text[:size])
    message["inputs"][0]["data"] = [1, 2]
    head = json.dumps(message).encode()
    with pytest.raises(ProtocolError, match='"data" and a binary_data_size'):
        parse((head + X + B + C, len(head)))


def test_an_answer_is_binary_where_its_request_says_so() -> None:
    outputs = {"p": np.float32([0.5, np.nan]), "q": np.array(["ä", ""], object)}
    response = oip.InferResponse("m", "3", outputs, "7")

    def encoded(**more: Any) -> tuple[dict[str, Any], bytes]:
        text, size = oip.encode_v2(response, parse(body(**more)))
        head = json.loads(text[:size])
        return {tensor.pop("name"): tensor for tensor in head["outputs"]}, b"" if size is None else text[size:]

    _, tail = encoded()
    assert tail == b""
    tensors, tail = encoded(parameters={"binary_data_output": True})
    assert tensors["p"] == {"datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    np.testing.assert_array_equal(np.frombuffer(tail[:8], "<f4"), outputs["p"])
    assert tail[8:] == C
    for all_binary in (True, False):
        named = [{"name": "p", "parameters": {"binary_data": not all_binary}}, {"name": "q"}]
        tensors, tail = encoded(parameters={"binary_data_output": all_binary}, outputs=named)
        assert ("data" in tensors["p"], "data" in tensors["q"]) == (all_binary, not all_binary)


def arrays() -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
    dtypes = st.sampled_from([dtype for name, dtype in DTYPES.items() if name != "BYTES"])
    numbers = dtypes.flatmap(
        lambda dtype: hnp.arrays(dtype, shapes, elements=hnp.from_dtype(np.dtype(dtype), allow_infinity=False))
    )
    return numbers | hnp.arrays(object, shapes, elements=st.text(st.characters(exclude_categories=["Cs"]), max_size=5))


@settings(max_examples=150, deadline=None)
@given(array=arrays())
def test_a_tensor_survives_the_round_trip(array: np.ndarray) -> None:
    datatype = next(name for name, dtype in DTYPES.items() if array.dtype == dtype)
    spec = TensorSpec("x", datatype, (-1,) * array.ndim)
    raw = raw_of(array)
    np.testing.assert_array_equal(array_of_raw(spec, memoryview(raw), list(array.shape)), array)
    if datatype == "BYTES":
        assert raw == serialize_byte_tensor(array).item()
        assert [text.decode() for text in deserialize_bytes_tensor(raw)] == array.ravel().tolist()


@settings(max_examples=300, deadline=None)
@given(tail=st.binary(max_size=60), sizes=st.lists(st.integers(-2, 30), min_size=3, max_size=3), cut=st.integers(0, 9))
def test_arbitrary_bytes_raise_nothing_but_protocol_errors(tail: bytes, sizes: list[int], cut: int) -> None:
    text, size = body({"x": b"", "b": b"", "c": tail}, sizes=dict(zip("xbc", sizes, strict=True)))
    with contextlib.suppress(ProtocolError):
        parse((text, size))
    with contextlib.suppress(ProtocolError):
        parse((text, max(0, size - cut)))

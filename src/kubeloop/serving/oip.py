"""Read and write the Open Inference Protocol (V2): bytes to numpy arrays and back.

Pure functions. Every mistake of a client raises `ProtocolError`, whose message says what was expected.

Sources: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md);
the binary tensor data extension is Triton's (docs/protocol/extension_binary_data.md), which KServe and tritonclient
use: first the JSON, then the bytes of the tensors that have a `binary_data_size`.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from kubeloop.serving.tensors import (
    Array,
    ProtocolError,
    Specs,
    TensorSpec,
    array_of,
    array_of_raw,
    datatype_of,
    listed,
    raw_of,
    show,
    type_of,
)

__all__ = [
    "InferRequest",
    "InferResponse",
    "Parameters",
    "ProtocolError",
    "TensorSpec",
    "encode_v2",
    "encode_v2_request",
    "parse_v2",
    "parse_v2_response",
    "read_v2",
]

Parameters = dict[str, str | int | float | bool]

_SCALARS = frozenset({str, int, float, bool})
_OTHER_EXTENSIONS = ("classification", "shared_memory_region")
"""Parameters of an output that would change its answer, so that ignoring them would give a wrong one."""


@dataclass(slots=True)
class InferRequest:
    """One parsed request: every declared input as an array of its declared rank, all with the same `rows`."""

    inputs: dict[str, Array]
    rows: int
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    """Outputs that the client requested, in its order; empty means all."""
    binary: bool = False
    """Whether the answer's tensors follow its JSON as bytes."""
    binary_by_name: dict[str, bool] = field(default_factory=dict)
    """The same for each output that sets it itself."""

    @property
    def plain(self) -> bool:
        """Whether the whole answer is JSON."""
        return not self.binary and not any(self.binary_by_name.values())


@dataclass(slots=True)
class InferResponse:
    """One answer; `version`, `id` and `parameters` are left out if there are none."""

    name: str
    version: str | None
    outputs: dict[str, Array]
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)


def parse_v2(
    body: bytes, specs: Specs, outputs: Collection[str] | None = None, json_size: int | None = None
) -> InferRequest:
    """Parse a V2 inference request.

    `[n]` is accepted if `[-1, 1]` is declared, and vice versa. null is NaN in FP* and the empty string (ONNX's missing
    string) in BYTES.

    Args:
        body: the JSON request, followed by the bytes of its binary tensors, if any.
        specs: the required inputs, no more and no fewer.
        outputs: the outputs that a client may ask for; None leaves that to the next server.
        json_size: how much of the body is JSON; None means all.

    Raises:
        ProtocolError: the body is not such a request (400).
    """
    message = load_object(body if json_size is None else body[:json_size])
    return read_v2(message, specs, outputs, None if json_size is None else memoryview(body)[json_size:])


def read_v2(
    message: dict[str, Any], specs: Specs, outputs: Collection[str] | None, raw: memoryview | None
) -> InferRequest:
    """Read a V2 inference request from its parsed JSON and the bytes of its binary tensors; see `parse_v2`."""
    tail = _Tail(raw)
    request_id = message.get("id")
    if request_id is not None and type(request_id) is not str:
        raise ProtocolError(f'"id" must be a string, got {type_of(request_id)}')
    inputs = _tensors(message, "inputs", specs, tail)
    tail.end()
    if len(inputs) != len(specs):
        refuse_names("inputs", inputs.keys(), specs)
    parameters = parameters_of(message)
    # It concerns only the answer to this client; the next server is asked in JSON.
    binary = _flag(parameters, "binary_data_output")
    parameters.pop("binary_data_output", None)
    request = InferRequest(inputs, _rows(inputs, specs), request_id, parameters, binary=bool(binary))
    if (wanted := message.get("outputs")) is not None:
        _request_outputs(request, wanted, outputs)
    return request


def parse_v2_response(body: bytes, wanted: Sequence[str] = ()) -> InferResponse:
    """Parse a V2 inference response in JSON.

    Args:
        body: the response.
        wanted: the outputs to keep, in this order; empty means all.

    Raises:
        ProtocolError: the body is not such a response.
    """
    message = load_object(body)
    specs: dict[str, TensorSpec] = {}
    for tensor in _objects(message, "outputs"):
        name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        if type(name) is str and type(datatype) is str and type(shape) is list:
            specs[name] = TensorSpec(name, datatype, (-1,) * len(shape))
    found = _tensors(message, "outputs", specs, _Tail(None))
    if missing := [name for name in wanted if name not in found]:
        raise ProtocolError(f"missing {listed(missing)} in 'outputs'")
    name, version, answered = (message.get(key) for key in ("model_name", "model_version", "id"))
    said = message.get("parameters")
    return InferResponse(
        name=name if type(name) is str else "",
        version=version if type(version) is str else None,
        outputs={name: found[name] for name in wanted or found},
        id=answered if type(answered) is str else None,
        # Servers other than ours use more than the protocol's scalars.
        parameters={key: said[key] for key in said if type(said[key]) in _SCALARS} if type(said) is dict else {},
    )


def encode_v2(response: InferResponse, request: InferRequest | None = None) -> tuple[bytes, int | None]:
    """Write a V2 inference response as its request wants it: JSON, followed by the bytes of the binary tensors.

    NaN and infinities become null in JSON.

    Returns:
        the body, and how much of it is JSON if that is not all.
    """
    message: dict[str, Any] = {"model_name": response.name}
    if response.version is not None:
        message["model_version"] = response.version
    if response.id is not None:
        message["id"] = response.id
    if response.parameters:
        message["parameters"] = response.parameters
    message["outputs"] = tensors = []
    tail: list[bytes] = []
    for name, array in response.outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
        if request is not None and request.binary_by_name.get(name, request.binary):
            tail.append(raw_of(array))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            flat = array.ravel()
            tensor["data"] = flat.tolist() if flat.dtype.hasobject else flat
        tensors.append(tensor)
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)


def encode_v2_request(
    columns: Iterable[tuple[TensorSpec, Sequence[Any]]],
    rows: int,
    request_id: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    outputs: Iterable[str] = (),
    nan: bool = False,
) -> bytes:
    """Write a V2 inference request from one flat column per input; None becomes null.

    Args:
        columns: each input with its values in row-major order, `rows` times the product of its inner dimensions.
        rows: size of dimension 0.
        request_id: the ID, which the server returns.
        parameters: request parameters.
        outputs: the requested outputs; empty means all.
        nan: for a server that refuses null: None becomes NaN, which is not JSON but which Triton reads, and the empty
            string in BYTES.
    """
    message: dict[str, Any] = {} if request_id is None else {"id": request_id}
    if parameters:
        message["parameters"] = parameters
    message["inputs"] = [
        {"name": spec.name, "datatype": spec.datatype, "shape": [rows, *spec.shape[1:]], "data": values}
        for spec, values in columns
    ]
    if named := [{"name": name} for name in outputs]:
        message["outputs"] = named
    if not nan:
        return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    for tensor in message["inputs"]:
        absent = "" if tensor["datatype"] == "BYTES" else math.nan
        tensor["data"] = [absent if value is None else value for value in tensor["data"]]
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def jsonable(array: Array) -> Any:
    """Return what orjson can write: strings as lists, everything else as a contiguous array."""
    return array.tolist() if array.dtype == np.object_ else np.ascontiguousarray(array)


def load_object(body: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the body must be a JSON object in UTF-8: {error}") from None
    if type(message) is not dict:
        raise ProtocolError(f"the body must be a JSON object, got {type_of(message)}")
    return message


def _objects(message: dict[str, Any], key: str) -> list[dict[str, Any]]:
    tensors = message.get(key)
    if type(tensors) is not list or set(map(type, tensors)) != {dict}:
        raise ProtocolError(f'expected a JSON object with "{key}", a list of at least one tensor object')
    return tensors


class _Tail:
    """The bytes after a request's JSON; its binary tensors read them in order."""

    def __init__(self, data: memoryview | None) -> None:
        self._data = data
        self._at = 0

    def take(self, name: str, tensor: dict[str, Any], size: Any) -> memoryview:
        if self._data is None:
            raise ProtocolError(
                f"{name!r} has a binary_data_size, so the request needs Inference-Header-Content-Length, the bytes of "
                "its JSON"
            )
        if "data" in tensor:
            raise ProtocolError(f'{name!r} has "data" and a binary_data_size; send one of them')
        left = len(self._data) - self._at
        if type(size) is not int or not 0 <= size <= left:
            raise ProtocolError(f"{name!r} has binary_data_size {show(size)}; {left} bytes are left in the body")
        self._at += size
        return self._data[self._at - size : self._at]

    def end(self) -> None:
        if self._data is not None and (left := len(self._data) - self._at):
            raise ProtocolError(f"{left} bytes of the body belong to no input; each needs its binary_data_size")


def _tensors(message: dict[str, Any], key: str, specs: Specs, tail: _Tail) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    with np.errstate(over="raise"):
        for tensor in _objects(message, key):
            name = tensor.get("name")
            spec = specs.get(name) if type(name) is str else None
            if spec is None:
                raise ProtocolError(f"unknown name {show(name)} in {key!r}; expected {listed(specs)}")
            if spec.name in arrays:
                raise ProtocolError(f"{spec.name!r} appears twice in {key!r}")
            if tensor.get("datatype") != spec.datatype:
                raise ProtocolError(f"{name!r} must have datatype {spec.datatype}, got {show(tensor.get('datatype'))}")
            size = parameters_of(tensor).get("binary_data_size") if "parameters" in tensor else None
            if size is not None:
                raw = tail.take(spec.name, tensor, size)
                arrays[spec.name] = array_of_raw(spec, raw, tensor.get("shape"))
                continue
            data = tensor.get("data")
            if type(data) is not list:
                raise ProtocolError(f'{name!r} needs "data", a list, got {type_of(data)}')
            arrays[spec.name] = array_of(spec, data, tensor.get("shape"))
    return arrays


def _rows(inputs: dict[str, Array], specs: Specs) -> int:
    first, *others = {array.shape[:1] for array in inputs.values()}
    if not others:
        return first[0] if first else 1
    sizes = {name: array.shape[0] if array.ndim else 1 for name, array in inputs.items()}
    free = {size for name, size in sizes.items() if specs[name].shape[:1] == (-1,)}
    if len(free) > 1:
        listed = ", ".join(f"{show(name)} {size}" for name, size in list(sizes.items())[:50])
        raise ProtocolError(f"every input must have the same number of rows, got {listed}")
    return max(sizes.values())


def parameters_of(message: dict[str, Any]) -> Parameters:
    """Return the parameters of a message or a tensor."""
    parameters = message.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict or not _SCALARS.issuperset(map(type, parameters.values())):
        raise ProtocolError('"parameters" must be an object of strings, numbers and booleans')
    return parameters


def _request_outputs(request: InferRequest, wanted: Any, outputs: Collection[str] | None) -> None:
    if type(wanted) is not list or not all(type(item) is dict for item in wanted):
        raise ProtocolError('"outputs" must be a list of objects with a "name"')
    names: dict[str, None] = {}
    for item in wanted:
        name = item.get("name")
        if type(name) is not str or (outputs is not None and name not in outputs):
            raise ProtocolError(f"unknown output {show(name)}; expected {listed(outputs or ['a name'])}")
        if name in names:
            raise ProtocolError(f"{name!r} appears twice in 'outputs'")
        names[name] = None
        parameters = parameters_of(item)
        if unknown := [key for key in _OTHER_EXTENSIONS if key in parameters]:
            raise ProtocolError(f"{listed(unknown)} of output {name!r} is an extension that is not supported here")
        if (binary := _flag(parameters, "binary_data")) is not None:
            request.binary_by_name[name] = binary
    request.outputs = tuple(names)


def _flag(parameters: Parameters, key: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and type(value) is not bool:
        raise ProtocolError(f"parameter {key} must be true or false, got {show(value)}")
    return value


def refuse_names(where: str, got: Collection[str], specs: Specs) -> None:
    """Raise the error that names what is missing and what is unknown."""
    missing = [name for name in specs if name not in got]
    unknown = [name for name in got if name not in specs]
    parts = [f"{word} {listed(names)}" for word, names in (("missing", missing), ("unknown", unknown)) if names]
    raise ProtocolError(f"{where}: {' and '.join(parts)}; expected {listed(specs)}")

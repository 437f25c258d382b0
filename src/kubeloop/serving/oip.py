"""Read and write the Open Inference Protocol (V2 JSON) and KServe's V1 predict: bytes to numpy arrays and back.

Pure functions. Everything a client can get wrong ends in `ProtocolError`, whose message says what was expected.

Sources: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md) and KServe's
V1 protocol page. The binary tensor extension is not supported; `http` refuses it before a body gets here.
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
    datatype_of,
    listed,
    shape_of,
    show,
    type_of,
)

__all__ = [
    "InferRequest",
    "Parameters",
    "ProtocolError",
    "TensorSpec",
    "encode_v1",
    "encode_v2",
    "encode_v2_request",
    "parse_v1",
    "parse_v2",
    "parse_v2_response",
]

Parameters = dict[str, str | int | float | bool]

_SCALARS = frozenset({str, int, float, bool})


@dataclass(slots=True)
class InferRequest:
    """One parsed request: every declared input as an array of its declared rank, all with the same `rows`."""

    inputs: dict[str, Array]
    rows: int
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    """Outputs the client asked for; empty means all."""


def parse_v2(body: bytes, specs: Specs, outputs: Collection[str] = ()) -> InferRequest:
    """Parse a V2 inference request.

    `[n]` is taken where `[-1, 1]` is declared, and the other way round. null is NaN in FP* and the empty string
    (what ONNX has for a missing string) in BYTES.

    Args:
        body: the JSON request.
        specs: the inputs that must be there, no more and no fewer.
        outputs: the outputs that a client may ask for.

    Raises:
        ProtocolError: the body is not such a request (400).
    """
    message = _load(body)
    request_id = message.get("id")
    if request_id is not None and type(request_id) is not str:
        raise ProtocolError(f'"id" must be a string, got {type_of(request_id)}')
    inputs = _tensors(message, "inputs", specs)
    if len(inputs) != len(specs):
        _refuse_names("inputs", inputs.keys(), specs)
    wanted = message.get("outputs")
    return InferRequest(
        inputs,
        _rows(inputs, specs),
        request_id,
        _parameters(message),
        _requested(wanted, outputs) if wanted is not None else (),
    )


def parse_v1(body: bytes, specs: Specs) -> InferRequest:
    """Parse a V1 predict request: `instances` are objects, or bare values for a model with one input.

    A top-level `parameters` object is taken as in V2.

    Raises:
        ProtocolError: the body is not such a request (400).
    """
    message = _load(body)
    instances = message.get("instances")
    if type(instances) is not list or not instances:
        raise ProtocolError('expected a JSON object with "instances", a list of at least one row')
    if dict in set(map(type, instances)):
        columns = _columns(instances, specs)
    elif len(specs) == 1:
        columns = dict.fromkeys(specs, instances)
    else:
        raise ProtocolError(f"every instance must be an object with {listed(specs)}")
    inputs = {}
    with np.errstate(over="raise"):
        for name, spec in specs.items():
            free = -1 in spec.shape[1:]
            inner = shape_of(columns[name][0]) if free else list(spec.shape[1:])
            inputs[name] = array_of(spec, columns[name], [len(instances), *inner])
    return InferRequest(inputs, len(instances), parameters=_parameters(message))


def parse_v2_response(body: bytes) -> dict[str, Array]:
    """Parse the outputs of a V2 inference response.

    Raises:
        ProtocolError: the body is not such a response.
    """
    message = _load(body)
    specs: dict[str, TensorSpec] = {}
    for tensor in _objects(message, "outputs"):
        name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        if type(name) is str and type(datatype) is str and type(shape) is list:
            specs[name] = TensorSpec(name, datatype, (-1,) * len(shape))
    return _tensors(message, "outputs", specs)


def encode_v2(name: str, version: str | None, outputs: Mapping[str, Array], request_id: str | None = None) -> bytes:
    """Write a V2 inference response; NaN and infinities become null."""
    message: dict[str, Any] = {"model_name": name}
    if version is not None:
        message["model_version"] = version
    if request_id is not None:
        message["id"] = request_id
    message["outputs"] = [
        {"name": key, "datatype": datatype_of(array), "shape": list(array.shape), "data": _jsonable(array.ravel())}
        for key, array in outputs.items()
    ]
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_v1(outputs: Mapping[str, Array]) -> bytes:
    """Write a V1 predict response: plain rows for one output, objects for more; NaN and infinities become null.

    Raises:
        ProtocolError: the outputs differ in their number of rows.
    """
    if len(outputs) == 1:
        predictions = _jsonable(next(iter(outputs.values())))
    elif len({array.shape[:1] for array in outputs.values()}) == 1:
        columns = [array.tolist() for array in outputs.values()]
        predictions = [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]
    else:
        raise ProtocolError("the model's outputs do not have one value a row, which V1 cannot say; use V2")
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_v2_request(
    columns: Iterable[tuple[TensorSpec, Sequence[Any]]],
    rows: int,
    request_id: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    nan: bool = False,
) -> bytes:
    """Write a V2 inference request from one flat column an input; None becomes null.

    Args:
        columns: each input with its values in row-major order, `rows` times the product of its inner dimensions.
        rows: size of dimension 0.
        request_id: echoed by the server.
        parameters: request parameters.
        nan: for a server that refuses null: None becomes NaN, which JSON does not know but Triton reads, and the empty
            string in BYTES.
    """
    message: dict[str, Any] = {} if request_id is None else {"id": request_id}
    if parameters:
        message["parameters"] = parameters
    message["inputs"] = [
        {"name": spec.name, "datatype": spec.datatype, "shape": [rows, *spec.shape[1:]], "data": values}
        for spec, values in columns
    ]
    if not nan:
        return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    for tensor in message["inputs"]:
        absent = "" if tensor["datatype"] == "BYTES" else math.nan
        tensor["data"] = [absent if value is None else value for value in tensor["data"]]
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def _jsonable(array: Array) -> Any:
    """Return what orjson can write: strings as lists, all else as a contiguous array."""
    return array.tolist() if array.dtype == np.object_ else np.ascontiguousarray(array)


def _load(body: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the body must be a JSON object in UTF-8: {error}") from None
    if type(message) is not dict:
        raise ProtocolError(f"the body must be a JSON object, got {type_of(message)}")
    return message


def _objects(message: dict[str, Any], key: str) -> list[dict[str, Any]]:
    tensors = message.get(key)
    if type(tensors) is not list or not tensors or not all(type(tensor) is dict for tensor in tensors):
        raise ProtocolError(f'expected a JSON object with "{key}", a list of at least one tensor object')
    return tensors


def _tensors(message: dict[str, Any], key: str, specs: Specs) -> dict[str, Array]:
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
            if "parameters" in tensor:
                _refuse_binary(_parameters(tensor), "binary_data_size")
            data = tensor.get("data")
            if type(data) is not list:
                raise ProtocolError(f'{name!r} needs "data", a list, got {type_of(data)}')
            arrays[spec.name] = array_of(spec, data, tensor.get("shape"))
    return arrays


def _columns(instances: list[Any], specs: Specs) -> dict[str, list[Any]]:
    names = specs.keys()
    for number, instance in enumerate(instances):
        if type(instance) is not dict:
            raise ProtocolError(f"instance {number} must be an object with {listed(specs)}, got {type_of(instance)}")
        if instance.keys() != names:
            _refuse_names(f"instance {number}", instance.keys(), specs)
    return {name: [instance[name] for instance in instances] for name in names}


def _rows(inputs: dict[str, Array], specs: Specs) -> int:
    sizes = {name: array.shape[0] if array.ndim else 1 for name, array in inputs.items()}
    free = {size for name, size in sizes.items() if specs[name].shape[:1] == (-1,)}
    if len(free) > 1:
        listed = ", ".join(f"{show(name)} {size}" for name, size in list(sizes.items())[:50])
        raise ProtocolError(f"every input must have the same number of rows, got {listed}")
    return max(sizes.values())


def _parameters(message: dict[str, Any]) -> Parameters:
    parameters = message.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict or not _SCALARS.issuperset(map(type, parameters.values())):
        raise ProtocolError('"parameters" must be an object of strings, numbers and booleans')
    _refuse_binary(parameters, "binary_data_output")
    return parameters


def _requested(wanted: Any, outputs: Collection[str]) -> tuple[str, ...]:
    if type(wanted) is not list or not all(type(item) is dict for item in wanted):
        raise ProtocolError('"outputs" must be a list of objects with a "name"')
    names = []
    for item in wanted:
        name = item.get("name")
        if type(name) is not str or name not in outputs:
            raise ProtocolError(f"unknown output {show(name)}; expected {listed(outputs)}")
        if name in names:
            raise ProtocolError(f"{name!r} appears twice in 'outputs'")
        _refuse_binary(_parameters(item), "binary_data")
        names.append(name)
    return tuple(names)


def _refuse_binary(parameters: Parameters, key: str) -> None:
    if parameters.get(key):
        raise ProtocolError(f'"{key}": the binary tensor extension is not supported; send and ask for JSON data', 415)


def _refuse_names(where: str, got: Collection[str], specs: Specs) -> None:
    missing = [name for name in specs if name not in got]
    unknown = [name for name in got if name not in specs]
    parts = [f"{word} {listed(names)}" for word, names in (("missing", missing), ("unknown", unknown)) if names]
    raise ProtocolError(f"{where}: {' and '.join(parts)}; expected {listed(specs)}")

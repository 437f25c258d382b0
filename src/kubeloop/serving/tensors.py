"""One tensor of a request: its declared shape and datatype, and the numpy array made of its JSON or its bytes."""

import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from kubeloop.errors import KubeloopError

Array = np.ndarray[Any, np.dtype[Any]]

_TYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(of) for name, of in _TYPES.items()}
"""OIP datatypes and the numpy types that carry them; BYTES are Python strings."""

_LENGTH = struct.Struct("<I")
"""The length before each element of raw BYTES."""

_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_FLOAT: tuple[frozenset[type], str] = (frozenset({float, int, type(None)}), "numbers or null")
_INTEGER: tuple[frozenset[type], str] = (frozenset({int}), "whole numbers, never null")
_KINDS: dict[str, tuple[frozenset[type], str]] = {
    **{name: _FLOAT if name.startswith("FP") else _INTEGER for name in DTYPES},
    "BOOL": (frozenset({bool}), "true or false, never null"),
    "BYTES": (frozenset({str, type(None)}), "strings or null"),
}


class ProtocolError(KubeloopError):
    """A request that gets an HTTP error status instead of a prediction; the message says what was expected."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.lasting = status < 500 and status != 408


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model declares for one input or output; -1 in `shape` means any size, and dimension 0 counts rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def metadata(self) -> dict[str, Any]:
        """Return the OIP metadata of the tensor."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


Specs = Mapping[str, TensorSpec]


def specs_of(tensors: Iterable[TensorSpec]) -> dict[str, TensorSpec]:
    """Index tensors by name, in order."""
    return {tensor.name: tensor for tensor in tensors}


def datatype_of(array: Array) -> str:
    """Return the OIP datatype of an array.

    Raises:
        KeyError: the protocol has no datatype for it.
    """
    return _DATATYPES[array.dtype]


def _fit(spec: TensorSpec, dims: Any) -> list[int]:
    """Check a request's shape against the declared one and return it with the declared rank."""
    declared = spec.shape
    if type(dims) is list and abs(len(dims) - len(declared)) <= 1:
        shape = dims
        if len(shape) < len(declared) and declared[-1] in (1, -1):
            shape = [*shape, 1]
        elif len(shape) > len(declared) and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) == len(declared):
            for size, want in zip(shape, declared):  # noqa: B905 - as long as each other, and strict costs
                if type(size) is not int or size < 1 or (want != size and want != -1):
                    break
            else:
                return shape
    raise ProtocolError(f"{spec.name!r} must have shape {list(declared)} (-1 is any size from 1), got {show(dims)}")


def array_of(spec: TensorSpec, data: list[Any], dims: Any) -> Array:
    """Make an array of the declared rank from row-major values, flat or nested as the stated shape says."""
    shape = _fit(spec, dims)
    datatype = spec.datatype
    if datatype not in _KINDS:
        raise _unknown(spec)
    allowed, expected = _KINDS[datatype]
    kinds = set(map(type, data))
    if list in kinds:
        data = _flatten(spec, data, dims)
        kinds = set(map(type, data))
    if not kinds <= allowed:
        wrong = next(value for value in data if type(value) not in allowed)
        raise ProtocolError(f"{spec.name!r} ({spec.datatype}) takes {expected}, got {show(wrong)}")
    if len(data) != prod(shape):
        raise ProtocolError(f"{spec.name!r} of shape {shape} needs {prod(shape)} values, got {len(data)}")
    if datatype == "BYTES" and type(None) in kinds:
        data = ["" if value is None else value for value in data]
    try:
        array = np.array(data, DTYPES[datatype])
    except (OverflowError, FloatingPointError):
        raise ProtocolError(f"{spec.name!r} has a value out of the range of {spec.datatype}") from None
    return array if len(shape) == 1 else array.reshape(shape)


def array_of_raw(spec: TensorSpec, data: memoryview, dims: Any) -> Array:
    """Make an array of the declared rank from a tensor's bytes: row-major and little-endian.

    Elements of BYTES are UTF-8, each after its length in four bytes. NaN is a missing number, like null in JSON.
    Infinities are refused, since JSON has none.
    """
    shape = _fit(spec, dims)
    count = prod(shape)
    if spec.datatype not in DTYPES:
        raise _unknown(spec)
    if spec.datatype == "BYTES":
        return np.array(_texts(spec, data, count), dtype=np.object_).reshape(shape)
    dtype = DTYPES[spec.datatype]
    if len(data) != count * dtype.itemsize:
        raise ProtocolError(f"{spec.name!r} of shape {shape} needs {count * dtype.itemsize} bytes, got {len(data)}")
    if spec.datatype == "BOOL":
        return np.frombuffer(data, np.uint8).astype(np.bool_).reshape(shape)
    # A copy: tensors in one body need not be aligned.
    array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    if dtype.kind == "f" and np.isinf(array).any():
        raise ProtocolError(f"{spec.name!r} has a value out of the range of {spec.datatype}")
    return array


def raw_of(array: Array) -> bytes:
    """Return an array's bytes, as `array_of_raw` reads them."""
    if array.dtype != np.object_:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [str(value).encode() for value in array.ravel()]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))


def _texts(spec: TensorSpec, data: memoryview, count: int) -> list[str]:
    wrong = ProtocolError(
        f"{spec.name!r} needs {count} elements of UTF-8 text, each led by its length in four bytes (little-endian), in "
        f"{len(data)} bytes"
    )
    if len(data) < count * _LENGTH.size:
        raise wrong
    texts, at = [], 0
    try:
        for _ in range(count):
            (size,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size + size
            if at > len(data):
                raise wrong
            texts.append(str(data[at - size : at], "utf-8"))
    except (struct.error, UnicodeDecodeError):
        raise wrong from None
    if at != len(data):
        raise wrong
    return texts


def _unknown(spec: TensorSpec) -> ProtocolError:
    return ProtocolError(f"{spec.name!r} has unknown datatype {show(spec.datatype)}; one of {', '.join(DTYPES)}")


def _flatten(spec: TensorSpec, data: list[Any], shape: list[int]) -> list[Any]:
    level: list[Any] = [data]
    for size in shape:
        if not all(type(item) is list and len(item) == size for item in level):
            raise ProtocolError(f"{spec.name!r}: the nesting of the data does not match shape {shape}")
        level = list(chain.from_iterable(level))
    return level


def shape_of(value: Any) -> list[int]:
    """Return the shape of nested lists by their first elements; `_flatten` checks the rest."""
    shape = []
    while type(value) is list and value:
        shape.append(len(value))
        value = value[0]
    return shape


def listed(names: Collection[str]) -> str:
    """Quote names for an error, the first fifty of them."""
    shown = [show(name) for name in list(names)[:50]]
    return ", ".join(shown) + (f" and {len(names) - 50} more" if len(names) > 50 else "")


def type_of(value: Any) -> str:
    """Name a value's JSON type for an error."""
    words = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "nothing or null"}
    return words.get(type(value), "a number")


def show(value: Any) -> str:
    """Quote a client's value in an error without repeating megabytes or nesting deeper than `repr` can."""
    if type(value) is dict or (type(value) is list and (len(value) > 8 or {list, dict} & set(map(type, value)))):
        return type_of(value)
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

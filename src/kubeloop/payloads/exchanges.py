"""Turns Open Inference Protocol exchanges (a request body and its response body) into rows of predictions."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from kubeloop import moments
from kubeloop.errors import KubeloopError
from kubeloop.payloads.segments import INSTANT
from kubeloop.serving.tensors import ProtocolError, TensorSpec, array_of_raw
from kubeloop.tasks.port import Task, Tensor

PREDICTION = pa.schema(
    [
        pa.field("request_id", pa.string()),
        pa.field("event_id", pa.string()),
        pa.field("event_time", INSTANT),
        pa.field("received_at", INSTANT),
        pa.field("model_version", pa.string()),
        pa.field("endpoint", pa.string()),
    ]
)
"""The columns of every prediction. After them come the numbers of its answer, `Task.columns`, then the features."""

_NUMERIC = frozenset(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)) | {
    "BOOL",
    "FP16",
    "FP32",
    "FP64",
}
_REASONS = 5
_LONGEST_VERSION = 200
"""The version is a key of the monitor's tables. PostgreSQL accepts neither NUL nor a key of more than 2704 bytes."""
_SIGNATURE, _DATA = itemgetter("name", "datatype"), itemgetter("data")
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
_BLOCK = 250
"""Pairs that are parsed at a time: few enough that their Python objects stay in the processor's cache."""

Signature = tuple[tuple[str, str], ...]


class MalformedError(KubeloopError, ValueError):
    """A body is not an Open Inference Protocol payload; the message says why."""

    lasting = True


class Faults:
    """Counts what could not be decoded and keeps the first reasons."""

    def __init__(self) -> None:
        self.count = 0
        self.reasons: list[str] = []

    def add(self, seq: int, reason: object) -> None:
        """Count one fault of the event `seq`."""
        self.count += 1
        if len(self.reasons) < _REASONS:
            self.reasons.append(f"event {seq}: {reason}")


class Pair(NamedTuple):
    """A request event and its response event; times in microseconds since 1970."""

    seq: int
    request_id: str
    received_at: int
    endpoint: str
    time: int
    request: memoryview
    response: memoryview


class _Exchange(NamedTuple):
    """A parsed pair; `columns` holds one list of values per input, `scores` one per number of the answer."""

    pair: Pair
    event_time: int
    model_version: str | None
    event_ids: list[str] | list[None]
    signature: Signature
    columns: list[list[Any]]
    scores: list[list[Any]]


def schema(task: Task) -> pa.Schema:
    """Return the columns that every prediction of a task has; the features follow, float32 or string."""
    return pa.schema([*PREDICTION, *(pa.field(name, pa.float32()) for name in task.columns)])


def predictions(pairs: Iterable[Pair], faults: Faults, task: Task) -> pa.Table:
    """Return one row per prediction, in the order of the pairs.

    Pairs with different inputs (model versions) are decoded separately. A feature that some of them lack is null there,
    and one that is numeric in some and text in others becomes text.
    """
    pairs = iter(pairs)
    tables: list[pa.Table] = []
    while block := list(islice(pairs, _BLOCK)):
        tables += _decode(block, faults, task)
    return _unify(tables) if tables else schema(task).empty_table()


def _decode(block: list[Pair], faults: Faults, task: Task) -> list[pa.Table]:
    """Return the predictions of some pairs, in order, in zero or one table, or in several if inputs differ."""
    groups: dict[Signature, list[tuple[int, _Exchange]]] = {}
    for position, pair in enumerate(block):
        try:
            exchange = _parse(pair, task)
        except MalformedError as error:
            faults.add(pair.seq, error)
        else:
            groups.setdefault(exchange.signature, []).append((position, exchange))
    tables: list[pa.Table] = []
    order: list[int] = []
    own = schema(task)
    for signature, group in groups.items():
        try:
            kinds = _kinds(signature, own)
        except MalformedError as error:
            for _, exchange in group:
                faults.add(exchange.pair.seq, error)
            continue
        try:
            table = _columns(own, kinds, [exchange for _, exchange in group])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            group = list(_clean(kinds, group, faults))
            table = _columns(own, kinds, [exchange for _, exchange in group])
        tables.append(table)
        for position, exchange in group:
            order += [position] * len(exchange.event_ids)
    if len(tables) < 2:
        return tables
    return [_unify(tables).take(pa.array(np.argsort(np.array(order, dtype=np.int64), kind="stable")))]


def _parse(pair: Pair, task: Task) -> _Exchange:
    what = "request"
    try:
        request = _load(pair.request)
        inputs = request["inputs"]
        signature = tuple(map(_SIGNATURE, inputs))
        hash(signature)
        columns = list(map(_DATA, inputs))
        parameters = request.get("parameters") or {}
        event_ids, event_time = parameters.get("event_ids"), parameters.get("event_time")
        what = "response"
        response = _load(pair.response)
        version = response.get("model_version")
        outputs = {tensor["name"]: tensor["data"] for tensor in response["outputs"]}
        lost = [tensor.name for tensor in task.tensors if type(outputs.get(tensor.name)) is not list]
    except (ValueError, KeyError, TypeError, AttributeError, ProtocolError) as error:
        raise MalformedError(f"the {what} is not a V2 payload ({type(error).__name__}: {error})") from error
    if lost:
        raise MalformedError(f"the response has no output named {lost[0]}")
    scores = [column for tensor in task.tensors for column in _spread(outputs[tensor.name], tensor)]
    rows = len(scores[0])
    if set(map(len, scores)) != {rows}:
        raise MalformedError("the response's outputs have different sizes")
    if set(map(type, columns)) != {list} or set(map(len, columns)) != {rows}:
        raise MalformedError(f"the response has {rows} scores, but the request's inputs have other sizes")
    if version is not None and type(version) is not str:
        raise MalformedError("model_version is not a string")
    if version is not None and (len(version) > _LONGEST_VERSION or not version.isprintable()):
        raise MalformedError(f"model_version is not a name of up to {_LONGEST_VERSION} characters: {version!r:.80}")
    if request.get("id") and response.get("id") and request["id"] != response["id"]:
        raise MalformedError("the response belongs to another request: the IDs in the bodies differ")
    try:
        moment = pair.time if event_time is None else moments.micros(event_time)
    except (ValueError, TypeError) as error:
        raise MalformedError(f"parameters.event_time is not an ISO 8601 time: {event_time!r:.80}") from error
    return _Exchange(pair, moment, version, _event_ids(event_ids, rows), signature, columns, scores)


def _spread(data: list[Any], tensor: Tensor) -> list[list[Any]]:
    """Return an output's numbers as one list per column; the protocol allows both flat and nested data."""
    if tensor.width == 1:
        return [data]
    if data and type(data[0]) is list:
        if {len(row) if type(row) is list else -1 for row in data} != {tensor.width}:
            raise MalformedError(f"the output {tensor.name} must have {tensor.width} numbers per row")
        return [list(column) for column in zip(*data, strict=True)]
    if len(data) % tensor.width:
        raise MalformedError(f"the output {tensor.name} must have {tensor.width} numbers per row, but has {len(data)}")
    return [data[place :: tensor.width] for place in range(tensor.width)]


def _load(body: bytes | memoryview) -> Any:
    """Read JSON and the binary tensors after it.

    NaN, which a transformer before Triton writes for a missing number, becomes None, as null does.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        text = bytes(body).lstrip()
    try:
        # Each byte is read as one character, so that positions are byte positions.
        _, end = _DECODER.raw_decode(text.decode("latin-1"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text[end:].strip():
        return _with_tensors(orjson.loads(text[:end]), text[end:])
    # Converted back and forth, since the standard library accepts texts and numbers that no table can hold.
    return orjson.loads(orjson.dumps(json.loads(text, parse_constant=lambda _: None)))


def _with_tensors(message: Any, tail: bytes) -> Any:
    """Put the bytes after a message's JSON into its tensors.

    KServe's agent and the node log the body without Inference-Header-Content-Length. The tensors' sizes replace it.
    """
    tensors = [tensor for tensor in message.get("inputs") or message["outputs"] if "data" not in tensor]
    sizes = [tensor["parameters"]["binary_data_size"] for tensor in tensors]
    if set(map(type, sizes)) - {int} or any(size < 0 for size in sizes):
        raise ValueError("a binary_data_size is not a size")
    at = len(tail) - sum(sizes)
    if at < 0 or tail[:at].strip():
        raise ValueError(f"{len(tail)} bytes follow the JSON, but its tensors have {sum(sizes)}")
    for tensor, size in zip(tensors, sizes, strict=True):
        spec = TensorSpec(tensor["name"], tensor["datatype"], (-1,) * len(tensor["shape"]))
        array = array_of_raw(spec, memoryview(tail)[at : at + size], tensor["shape"])
        at += size
        tensor["data"] = [None if value != value else value for value in array.ravel().tolist()]
    return message


def _event_ids(text: Any, rows: int) -> list[str] | list[None]:
    if text is None:
        return [None] * rows
    try:
        ids = orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError):
        ids = None
    if type(ids) is not list or len(ids) != rows or not all(type(value) is str for value in ids):
        raise MalformedError(f"parameters.event_ids is not a JSON list of {rows} strings")
    return ids


def _kinds(signature: Signature, own: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """Return the name and Arrow type of each input."""
    kinds: dict[str, pa.DataType] = {}
    for name, datatype in signature:
        if type(name) is not str or name in kinds:
            raise MalformedError(f"the input {name!r:.80} has no name or occurs twice")
        if name in own.names:
            raise MalformedError(f"the feature {name!r} has the name of a column of predictions; rename it")
        if datatype != "BYTES" and datatype not in _NUMERIC:
            raise MalformedError(f"the input {name!r:.80} has the unknown datatype {datatype!r:.80}")
        kinds[name] = pa.string() if datatype == "BYTES" else pa.float32()
    return list(kinds.items())


def _columns(schema: pa.Schema, kinds: list[tuple[str, pa.DataType]], group: list[_Exchange]) -> pa.Table:
    """Build the table of exchanges with the same inputs.

    Raises:
        pa.ArrowInvalid, pa.ArrowTypeError, OverflowError: a value is not of its input's type.
    """
    sizes = [len(exchange.event_ids) for exchange in group]

    def spread(values: list[Any], name: str) -> pa.Array:
        return flat(map(repeat, values, sizes), PREDICTION.field(name).type)

    def flat(lists: Iterable[Iterable[Any]], kind: pa.DataType) -> pa.Array:
        return pa.array(list(chain.from_iterable(lists)), kind)

    own = [
        spread([exchange.pair.request_id for exchange in group], "request_id"),
        flat((exchange.event_ids for exchange in group), pa.string()),
        spread([exchange.event_time for exchange in group], "event_time"),
        spread([exchange.pair.received_at for exchange in group], "received_at"),
        spread([exchange.model_version for exchange in group], "model_version"),
        spread([exchange.pair.endpoint for exchange in group], "endpoint"),
    ]
    scores = [
        flat((exchange.scores[place] for exchange in group), pa.float32())
        for place in range(len(schema) - len(PREDICTION))
    ]
    if any(score.null_count for score in scores):
        raise pa.ArrowInvalid("a score is null")
    columns = zip(*(exchange.columns for exchange in group), strict=True) if group else ([] for _ in kinds)
    features = [flat(lists, kind) for lists, (_, kind) in zip(columns, kinds, strict=True)]
    return pa.table(own + scores + features, names=[*schema.names, *(name for name, _ in kinds)])


def _clean(
    kinds: list[tuple[str, pa.DataType]], group: list[tuple[int, _Exchange]], faults: Faults
) -> Iterator[tuple[int, _Exchange]]:
    """Convert a group value by value, and leave out the exchanges that do not convert."""
    for position, exchange in group:
        try:
            scores = [[_number(value) for value in _flatten(score)] for score in exchange.scores]
            if any(None in score for score in scores):
                raise MalformedError("a score is null")
            columns = [
                [(_number if kind == pa.float32() else _text)(value) for value in _flatten(column)]
                for column, (_, kind) in zip(exchange.columns, kinds, strict=True)
            ]
        except MalformedError as error:
            faults.add(exchange.pair.seq, error)
        else:
            yield position, exchange._replace(columns=columns, scores=scores)


def _flatten(values: list[Any]) -> Iterator[Any]:
    """Read data nested as [[1], [2]], which the protocol allows for shape [n, 1]."""
    for value in values:
        if type(value) is list:
            if len(value) != 1:
                raise MalformedError("an input has more than one value per row")
            yield value[0]
        else:
            yield value


def _number(value: Any) -> float | None:
    if value is not None and not isinstance(value, int | float):
        raise MalformedError(f"{value!r:.80} is not a number")
    try:
        return None if value is None else float(value)
    except OverflowError as error:
        raise MalformedError("a number is too large") from error


def _text(value: Any) -> str | None:
    if value is not None and type(value) is not str:
        raise MalformedError(f"{value!r:.80} is not text")
    return value


def _unify(tables: list[pa.Table]) -> pa.Table:
    """Concatenate tables; a column that is text in one of them is text in all."""
    text = {field.name for table in tables for field in table.schema if pa.types.is_string(field.type)}
    casted = [
        table.cast(
            pa.schema([pa.field(f.name, pa.string() if f.name in text else f.type) for f in table.schema]),
        )
        for table in tables
    ]
    return pa.concat_tables(casted, promote_options="default").combine_chunks()

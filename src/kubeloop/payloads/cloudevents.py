"""Reads CloudEvents 1.0 from HTTP: binary, structured and batched mode."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import orjson

from kubeloop.errors import KubeloopError
from kubeloop.payloads.segments import micros

_REQUIRED = ("specversion", "id", "source", "type")
_TEXTS = ("id", "type", "source", "inferenceservicename", "namespace", "component", "endpoint")
_LONGEST = 1024
_SINGLE, _BATCH = b"application/cloudevents+json", b"application/cloudevents-batch+json"
_CONTROL = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])


class EventError(KubeloopError, ValueError):
    """What was sent is no CloudEvent; the message names the attribute that is missing or wrong."""

    lasting = True


class Event(NamedTuple):
    """One event, in the order of the payload log's columns; times in microseconds since 1970."""

    received_at: int
    time: int
    id: str
    type: str
    source: str
    service: str
    namespace: str
    component: str
    endpoint: str
    body: bytes


def parse(headers: Mapping[bytes, bytes], body: bytes, received_at: int) -> list[Event]:
    """Read the events of one HTTP request.

    Args:
        headers: names in lower case.
        body: the whole body.
        received_at: microseconds since 1970; also the time of an event that names none.

    Raises:
        EventError: one of the events is none; then none of them counts.
    """
    content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if not content_type.startswith(b"application/cloudevents"):
        attributes = {name: value for name in (*_REQUIRED, *_TEXTS, "time") if (value := _header(headers, name))}
        return [_event(attributes, body, received_at, "ce-")]
    if content_type not in (_SINGLE, _BATCH):
        known = f"{_SINGLE.decode()}, {_BATCH.decode()} or binary mode"
        raise EventError(f"content type {content_type.decode('latin-1')!r} is none of {known}")
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EventError(f"the body is no JSON: {error}") from error
    if content_type == _SINGLE:
        return [_structured(content, received_at)]
    if not isinstance(content, list):
        raise EventError("a batch is a JSON list of events")
    events = []
    for position, item in enumerate(content):
        try:
            events.append(_structured(item, received_at))
        except EventError as error:
            raise EventError(f"event {position} of the batch: {error}") from error
    return events


def _header(headers: Mapping[bytes, bytes], name: str) -> str:
    value = headers.get(b"ce-" + name.encode(), b"").decode("utf-8", "replace")
    return unquote(value) if "%" in value else value


def _structured(content: Any, received_at: int) -> Event:
    if not isinstance(content, dict):
        raise EventError("an event is a JSON object")
    if "data_base64" in content:
        try:
            body = base64.b64decode(content["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise EventError(f"data_base64 is no base64 text: {error}") from error
    elif "data" not in content:
        body = b""
    elif isinstance(content["data"], str) and "json" not in str(content.get("datacontenttype", "json")):
        body = content["data"].encode()
    else:
        body = orjson.dumps(content["data"])
    return _event(content, body, received_at, "")


def _event(attributes: Mapping[str, Any], body: bytes, received_at: int, prefix: str) -> Event:
    missing = [prefix + name for name in _REQUIRED if not attributes.get(name)]
    if missing:
        raise EventError(f"missing attribute: {', '.join(missing)}")
    if attributes["specversion"] != "1.0":
        raise EventError(f"{prefix}specversion is {attributes['specversion']!r:.80}, not '1.0'")
    texts: dict[str, str] = {}
    for name in _TEXTS:
        value = attributes.get(name) or ""
        if not isinstance(value, str) or len(value) > _LONGEST or value.translate(_CONTROL) != value:
            raise EventError(f"{prefix}{name} is no text of up to {_LONGEST} characters without control characters")
        texts[name] = value
    time = received_at
    if attributes.get("time"):
        try:
            time = micros(attributes["time"])
        except (ValueError, TypeError) as error:
            raise EventError(f"{prefix}time is no RFC 3339 time: {attributes['time']!r:.80}") from error
    texts["service"] = texts.pop("inferenceservicename")
    return Event(received_at=received_at, time=time, body=body, **texts)

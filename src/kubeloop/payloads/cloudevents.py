"""Read CloudEvents 1.0 over HTTP in binary, structured and batched mode, and write the drift event.

The collector reads payload events with `parse`, the trigger reads drift events with `messages`.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import unquote

import orjson

from kubeloop import moments
from kubeloop.errors import KubeloopError
from kubeloop.names import DRIFT_EVENT

_REQUIRED = ("specversion", "id", "source", "type")
_KNOWN = (*_REQUIRED, "subject", "time", "inferenceservicename", "namespace", "component", "endpoint")
_TEXTS = ("id", "type", "source", "inferenceservicename", "namespace", "component", "endpoint")
_LONGEST = 1024
STRUCTURED = "application/cloudevents+json"
"""The content type of an event in structured mode."""
_SINGLE, _BATCH = STRUCTURED.encode(), b"application/cloudevents-batch+json"
_CONTROL = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])


class EventError(KubeloopError, ValueError):
    """The message is not a CloudEvent; the message names the attribute that is missing or wrong."""

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


class Message(NamedTuple):
    """One event as it was sent: its attributes, its data, the prefix of its attributes, and whether it was in a
    batch."""

    attributes: Mapping[str, Any]
    body: bytes
    prefix: str
    of_batch: bool = False


def parse(headers: Mapping[bytes, bytes], body: bytes, received_at: int) -> list[Event]:
    """Read the events of one HTTP request.

    Args:
        headers: names in lower case.
        body: the whole body.
        received_at: microseconds since 1970; also the time of an event without one.

    Raises:
        EventError: one of them is not an event; then all are refused.
    """
    found = messages(headers, body)
    events = []
    for position, message in enumerate(found):
        try:
            events.append(_event(message, received_at))
        except EventError as error:
            if not message.of_batch:
                raise
            raise EventError(f"event {position} of the batch: {error}") from error
    return events


def messages(headers: Mapping[bytes, bytes], body: bytes) -> list[Message]:
    """Read the messages of one HTTP request; the caller checks which attributes each needs, and their form.

    Args:
        headers: names in lower case.
        body: the whole body.

    Raises:
        EventError: the request is in none of the three modes, or its JSON is broken.
    """
    content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if not content_type.startswith(b"application/cloudevents"):
        return [Message({name: value for name in _KNOWN if (value := _header(headers, name))}, body, "ce-")]
    if content_type not in (_SINGLE, _BATCH):
        known = f"{_SINGLE.decode()}, {_BATCH.decode()} or binary mode"
        raise EventError(f"content type {content_type.decode('latin-1')!r} is not one of {known}")
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EventError(f"the body is not JSON: {error}") from error
    if content_type == _SINGLE:
        return [_structured(content)]
    if not isinstance(content, list):
        raise EventError("a batch is a JSON list of events")
    found = []
    for position, item in enumerate(content):
        try:
            found.append(_structured(item)._replace(of_batch=True))
        except EventError as error:
            raise EventError(f"event {position} of the batch: {error}") from error
    return found


def drift_event(
    *,
    source: str,
    service: str,
    episode: str,
    opened_at: datetime,
    as_of: datetime,
    kind: str,
    features: Sequence[str],
    reason: str,
) -> dict[str, Any]:
    """Return the event that asks the trigger for a retraining, in structured mode; `trigger.event` says what it means.

    Source: CloudEvents 1.0, JSON format.
    """
    return {
        "specversion": "1.0",
        "id": episode,
        "type": DRIFT_EVENT,
        "source": source,
        "subject": episode,
        "time": opened_at.isoformat(),
        "datacontenttype": "application/json",
        "data": {
            "service": service,
            "episode": episode,
            "opened_at": opened_at.isoformat(),
            "as_of": as_of.isoformat(),
            "kind": kind,
            "features": list(features),
            "reason": reason,
        },
    }


def _header(headers: Mapping[bytes, bytes], name: str) -> str:
    value = headers.get(b"ce-" + name.encode(), b"").decode("utf-8", "replace")
    return unquote(value) if "%" in value else value


def _structured(content: Any) -> Message:
    if not isinstance(content, dict):
        raise EventError("an event is a JSON object")
    if "data_base64" in content:
        try:
            body = base64.b64decode(content["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise EventError(f"data_base64 is not base64 text: {error}") from error
    elif "data" not in content:
        body = b""
    elif isinstance(content["data"], str) and "json" not in str(content.get("datacontenttype", "json")):
        body = content["data"].encode()
    else:
        body = orjson.dumps(content["data"])
    return Message(content, body, "")


def _event(message: Message, received_at: int) -> Event:
    attributes, body, prefix, _ = message
    missing = [prefix + name for name in _REQUIRED if not attributes.get(name)]
    if missing:
        raise EventError(f"missing attribute: {', '.join(missing)}")
    if attributes["specversion"] != "1.0":
        raise EventError(f"{prefix}specversion is {attributes['specversion']!r:.80}, not '1.0'")
    texts: dict[str, str] = {}
    for name in _TEXTS:
        value = attributes.get(name) or ""
        if not isinstance(value, str) or len(value) > _LONGEST or value.translate(_CONTROL) != value:
            raise EventError(f"{prefix}{name} must be text of at most {_LONGEST} characters without control characters")
        texts[name] = value
    time = received_at
    if attributes.get("time"):
        try:
            time = moments.micros(attributes["time"])
        except ValueError as error:
            raise EventError(f"{prefix}time is not an RFC 3339 time: {attributes['time']!r:.80}") from error
    texts["service"] = texts.pop("inferenceservicename")
    return Event(received_at=received_at, time=time, body=body, **texts)

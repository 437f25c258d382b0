"""Ask the inference service for predictions over the Open Inference Protocol."""

import json
from datetime import datetime
from typing import Any

import httpx

from kubeloop import addresses
from kubeloop.config import Loop, Settings, instant, past
from kubeloop.errors import KubeloopError
from kubeloop.features import online
from kubeloop.monitoring.store import Store


class RequestError(KubeloopError):
    """The rows or the service's answer are wrong; the message says what is expected."""

    lasting = True


class SilentError(RequestError):
    """The service does not answer."""

    lasting = False


def predict(loop: Loop, settings: Settings, text: str, at: str | None = None) -> dict[str, Any]:
    """Ask the running inference service.

    Args:
        loop: the use case.
        settings: where the services are.
        text: JSON: one object, or a list of objects, with the entity keys and request-time fields of each row.
        at: moment of the prediction, ISO 8601; by default now, or the moment that the loop's replay has reached.

    Returns:
        Each output of the model by name, with one value per row, the model `version` that gave them, and a `note` about
        what they are based on, which is usually None.

    Raises:
        ServiceError: no service is running.
        RequestError: the rows are not what the service takes, or the moment would end the replay's windows.
    """
    base = f"{addresses.address(settings, 'node')}/v2/models/{loop.name}"
    now = present(loop, settings)
    moment = _moment(loop, settings, at, now)
    try:
        given = json.loads(text)
    except ValueError as error:
        raise RequestError(f"the rows are not valid JSON: {error}") from error
    rows = given if isinstance(given, list) else [given]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise RequestError("write one JSON object per prediction, or a list of objects")
    with httpx.Client(timeout=30) as http:
        try:
            told = http.get(base)
            if told.status_code != 200:
                raise SilentError(f"{loop.name} is not served yet ({told.status_code}); try again in a moment")
            fields = {item["name"]: item["datatype"] for item in told.json()["inputs"]}
            missing = sorted({name for name in fields for row in rows if name not in row})
            if missing:
                wanted = ", ".join(f"{name} ({'text' if kind == 'BYTES' else kind})" for name, kind in fields.items())
                raise RequestError(f"a row lacks {', '.join(missing)}; each row needs {wanted}")
            body: dict[str, Any] = {
                "inputs": [
                    {"name": name, "datatype": kind, "shape": [len(rows)], "data": [row[name] for row in rows]}
                    for name, kind in fields.items()
                ]
            }
            if moment:
                body["parameters"] = {"event_time": moment}
            answer = http.post(f"{base}/infer", json=body)
        except httpx.HTTPError as error:
            raise SilentError(f"the inference service does not answer: {error}") from error
    if answer.status_code != 200:
        raise RequestError(f"the inference service answers: {answer.json().get('error', answer.text)}")
    content = answer.json()
    note = None
    if at and now and instant(at) < now:
        note = f"features that became known after --at are missing; the online store is at {now:%Y-%m-%d %H:%M} UTC"
    outputs = {item["name"]: _rows(item["data"], len(rows)) for item in content["outputs"]}
    return {**outputs, "version": content.get("model_version"), "note": note}


def _rows(data: list[Any], rows: int) -> list[Any]:
    """Return an output's values by row; the protocol writes the values of all rows one after the other."""
    width = len(data) // rows
    return data if width == 1 else [data[place * width : (place + 1) * width] for place in range(rows)]


def present(loop: Loop, settings: Settings) -> datetime | None:
    """Return the moment that this machine's replay of a loop has reached; None for a loop without a replay."""
    if loop.replay is None:
        return None
    return online.stands(settings.features) or loop.replay.train_to


def _moment(loop: Loop, settings: Settings, at: str | None, now: datetime | None) -> str | None:
    """Return the event time to send.

    The monitor's clock is the newest event time, so a prediction for a moment that the replay has not reached would
    close windows that are still filling, and what the replay sends later would be late.
    """
    if at is not None:
        past(at)
    if loop.replay is None or now is None:
        return at
    if at is None:
        return now.isoformat()
    if instant(at) > now and not _over(loop, settings):
        raise RequestError(
            f"the replay is at {now:%Y-%m-%d %H:%M} UTC, and a prediction for a later moment would end its windows "
            "early; leave out --at, or let `kubeloop run` continue first"
        )
    return at


def _over(loop: Loop, settings: Settings) -> bool:
    """Return whether the monitor's clock has reached the replay's end."""
    store = Store(settings.monitor_db)
    watermark = store.progress(loop.name).watermark
    store.close()
    return loop.replay is not None and watermark is not None and watermark >= loop.replay.until

"""A client of the inference service: rows in, probabilities out, over the Open Inference Protocol."""

import json
from typing import Any

import httpx

from kubeloop import services
from kubeloop.config import Loop, Settings


class RequestError(RuntimeError):
    """The rows or the service's answer are not right; the message says what is expected."""


def predict(loop: Loop, settings: Settings, text: str, at: str | None = None) -> dict[str, Any]:
    """Ask the running inference service.

    Args:
        loop: the use case.
        settings: where the services are.
        text: JSON, one object or a list of them: the entity keys and request-time fields of each row.
        at: moment of the prediction, ISO 8601; now when left out.

    Returns:
        `probability`, one a row, and the model `version` that gave them.

    Raises:
        ServiceError: no service is up.
        RequestError: the rows are not what the service takes.
    """
    base = f"{services.address(settings, 'node')}/v2/models/{loop.name}"
    try:
        given = json.loads(text)
    except ValueError as error:
        raise RequestError(f"the rows are not valid JSON: {error}") from error
    rows = given if isinstance(given, list) else [given]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise RequestError("write one JSON object, or a list of objects, one a prediction")
    with httpx.Client(timeout=30) as http:
        try:
            fields = {item["name"]: item["datatype"] for item in http.get(base).raise_for_status().json()["inputs"]}
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
            if at:
                body["parameters"] = {"event_time": at}
            answer = http.post(f"{base}/infer", json=body)
        except httpx.HTTPError as error:
            raise RequestError(f"the inference service does not answer: {error}") from error
    if answer.status_code != 200:
        raise RequestError(f"the inference service says: {answer.json().get('error', answer.text)}")
    content = answer.json()
    return {"probability": content["outputs"][0]["data"], "version": content.get("model_version")}

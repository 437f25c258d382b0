import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kubeloop import config
from kubeloop.config import Settings
from kubeloop.names import LABEL_EVENT, REQUEST_EVENT, RESPONSE_EVENT
from kubeloop.payloads import segments, table
from kubeloop.tasks.binary.task import BINARY

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
Add = Callable[..., None]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = config.settings(tmp_path, tmp_path / "state")
    found.payloads.mkdir(parents=True)
    return found


@pytest.fixture
def add(settings: Settings) -> Add:
    """Append events of one service to the payload log."""
    place = 0

    def add(*events: tuple[str, str, dict[str, Any]], service: str = "shop") -> None:
        nonlocal place
        rows = []
        for kind, name, body in events:
            place += 1
            stamp = round((NOON.timestamp() + place) * 1_000_000)
            attributes = ("test", service, "kubeloop", "predictor", "default")
            rows.append((place, stamp, stamp, name, kind, *attributes, json.dumps(body).encode()))
        segments.write(settings.payloads, segments.table_of(rows))

    return add


def request(name: str, minute: int, *event_ids: str) -> tuple[str, str, dict[str, Any]]:
    parameters = {"event_time": (NOON + timedelta(minutes=minute)).isoformat()}
    if event_ids:
        parameters["event_ids"] = json.dumps(event_ids)
    rows = len(event_ids) or 1
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows], "data": [float(minute)] * rows}
    return REQUEST_EVENT, name, {"inputs": [tensor], "parameters": parameters}


def response(name: str, score: float, rows: int = 1, version: str = "1") -> tuple[str, str, dict[str, Any]]:
    output = {"name": "probability", "datatype": "FP32", "shape": [rows], "data": [score] * rows}
    return RESPONSE_EVENT, name, {"model_name": "shop", "model_version": version, "outputs": [output]}


def labels(name: str, **truth: int) -> tuple[str, str, dict[str, Any]]:
    items = [{"event_id": event, "label": label, "observed_at": NOON.isoformat()} for event, label in truth.items()]
    return LABEL_EVENT, name, {"labels": items}


def test_an_empty_log(settings: Settings) -> None:
    found = table.read(BINARY, settings, "shop")
    assert found.event_ids == found.labelled == []
    assert found.labelled_predictions().num_rows == 0


def test_predictions_are_joined_with_their_labels(settings: Settings, add: Add) -> None:
    add(request("r2", 5, "e3", "e4"), request("r1", 1, "e1", "e2"))
    add(response("r1", 0.25, 2), response("r2", 0.5, 2, "2"), labels("l1", e4=1, e2=0))
    add(labels("l2", e1=1, unheard=1), request("r3", 9, "e9"))
    found = table.read(BINARY, settings, "shop")
    assert found.event_ids == ["e1", "e2", "e3", "e4"]
    assert sorted(found.labelled) == ["e1", "e2", "e4", "unheard"]
    rows = found.labelled_predictions().to_pylist()
    assert [(row["event_id"], row["label"], row["score"], row["model_version"], row["x"]) for row in rows] == [
        ("e1", 1, 0.25, "1", 1.0), ("e2", 0, 0.25, "1", 1.0), ("e4", 1, 0.5, "2", 5.0),
    ]  # fmt: skip
    assert [row["event_time"] for row in rows] == [NOON + timedelta(minutes=minute) for minute in (1, 1, 5)]


def test_an_event_counts_once_with_its_first_answer_and_label(settings: Settings, add: Add) -> None:
    add(request("r1", 1, "e1"), response("r1", 0.25), request("r2", 1, "e1", "e2"), response("r2", 0.75, 2))
    add(labels("l1", e1=1), labels("l2", e1=0, e2=0))
    found = table.read(BINARY, settings, "shop")
    rows = found.labelled_predictions().to_pylist()
    assert [(row["event_id"], row["score"], row["label"]) for row in rows] == [("e1", 0.25, 1), ("e2", 0.75, 0)]


def test_a_prediction_without_a_business_key_is_left_out(settings: Settings, add: Add) -> None:
    add(request("r1", 1), response("r1", 0.25), request("r2", 2, "e1"), response("r2", 0.5))
    assert table.read(BINARY, settings, "shop").event_ids == ["e1"]


def test_another_services_events_are_left_out(settings: Settings, add: Add) -> None:
    add(request("r1", 1, "e1"), response("r1", 0.25), labels("l1", e1=1))
    add(request("r1", 1, "e2"), response("r1", 0.25), labels("l1", e2=1), service="other")
    assert table.read(BINARY, settings, "shop").event_ids == ["e1"]
    assert table.read(BINARY, settings, "other").labelled == ["e2"]

"""A small world for the monitor: a model's references, and logs of its predictions and their labels."""

import json
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from kubeloop.config import Loop
from kubeloop.names import LABEL_EVENT, REQUEST_EVENT, RESPONSE_EVENT
from kubeloop.payloads import segments
from kubeloop.tasks import reference
from kubeloop.tasks.intervals import Estimate

DAY = timedelta(days=1)
START = datetime(2013, 4, 1, tzinfo=UTC)
ARRIVAL = datetime(2026, 1, 1, tzinfo=UTC)
SERVICE = "flights"
KINDS = {"wind": "numeric", "delay": "numeric", "carrier": "categorical"}


class Event(NamedTuple):
    """An event of the log before it has a position there."""

    type: str
    id: str
    time: datetime
    endpoint: str
    body: dict[str, Any]


def features(rng: np.random.Generator, rows: int, shift: float = 0.0) -> dict[str, list[Any]]:
    return {
        "wind": (rng.normal(size=rows) + shift).tolist(),
        "delay": rng.normal(size=rows).tolist(),
        "carrier": rng.choice(["AA", "DL", "UA"], size=rows).tolist(),
    }


def probability(columns: dict[str, list[Any]]) -> np.ndarray:
    return 1 / (1 + np.exp(-np.array(columns["delay"])))


def save_reference(folder: Path, version: str, auc: float = 0.75) -> Path:
    """Write <folder>/<version>/reference; returns <folder>/<version>."""
    rng = np.random.default_rng(0)
    columns = features(rng, 1500)
    reference.build(
        columns,
        KINDS,
        probability(columns),
        {"wind": 5, "delay": 3, "carrier": 2},
        reference.Measured("auc", Estimate(auc, auc, auc)),
        trained_from="2013-01-01T00:00:00+00:00",
        trained_to="2013-04-01T00:00:00+00:00",
        model_version=version,
    ).save(folder / version / "reference")
    return folder / version


def predict(
    key: str,
    time: datetime,
    rows: int = 40,
    version: str = "1",
    shift: float = 0.0,
    endpoint: str = "default",
) -> list[Event]:
    """A request and its response; event ids are <key>-0, <key>-1, ..."""
    columns = features(np.random.default_rng(seed(key)), rows, shift)
    ids = [f"{key}-{row}" for row in range(rows)]
    inputs = [
        {
            "name": name,
            "datatype": "BYTES" if kind == "categorical" else "FP32",
            "shape": [rows, 1],
            "data": columns[name],
        }
        for name, kind in KINDS.items()
    ]
    parameters = {"event_ids": json.dumps(ids), "event_time": time.isoformat()}
    output = {
        "name": "probability",
        "datatype": "FP32",
        "shape": [rows],
        "data": probability(columns).astype(np.float32).tolist(),
    }
    answer = {"model_name": SERVICE, "model_version": version, "outputs": [output]}
    return [
        Event(REQUEST_EVENT, key, time, endpoint, {"inputs": inputs, "parameters": parameters}),
        Event(RESPONSE_EVENT, key, time, endpoint, answer),
    ]


def label(key: str, observed_at: datetime, rows: int = 40, quality: float = 1.0) -> list[Event]:
    """Labels for the predictions of `predict(key)`: drawn from the probabilities, or against them if quality is -1."""
    rng = np.random.default_rng(seed(key))
    p = probability(features(rng, rows))
    truth = rng.random(rows) < 1 / (1 + np.exp(-3 * quality * (p - 0.5) * 2))
    items = [
        {"event_id": f"{key}-{row}", "label": int(y), "observed_at": observed_at.isoformat()}
        for row, y in enumerate(truth)
    ]
    return [Event(LABEL_EVENT, f"label-{key}", observed_at, "", {"labels": items})]


def write(directory: Path, events: Sequence[Event], first: int = 1) -> int:
    """Append one segment to a log, from position `first` on; returns the next position."""
    rows = [
        (
            first + index,
            micros(ARRIVAL + timedelta(milliseconds=first + index)),
            micros(event.time),
            event.id,
            event.type,
            "test",
            SERVICE,
            "kubeloop",
            "predictor",
            event.endpoint,
            json.dumps(event.body).encode(),
        )
        for index, event in enumerate(events)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    if rows:
        segments.write(directory, segments.table_of(rows))
    return first + len(rows)


def days(first: int, last: int, requests: int = 4, **kind: Any) -> list[Event]:
    """Several requests a day, with labels twelve hours after the day."""
    quality = kind.pop("quality", 1.0)
    found: list[Event] = []
    for day in range(first, last):
        version = kind.get("version", "1")
        keys = [f"d{day}-{n}-v{version}-{kind.get('endpoint', 'default')}" for n in range(requests)]
        for n, key in enumerate(keys):
            found += predict(key, START + DAY * (day + (n + 0.5) / requests), **kind)
        for key in keys:
            found += label(key, START + DAY * (day + 1.5), quality=quality)
    return found


def loop(**drift: Any) -> Loop:
    policy = {
        "engine": "builtin",
        "window": "1d",
        "min_rows": 50,
        "label_wait": "1d",
        "cooldown": "5d",
        "votes": 2,
        "of": 3,
    } | drift
    return Loop.parse(
        yaml.safe_dump(
            {
                "name": SERVICE,
                "source": {"tables": {"flights": {"available_at": "known_at"}}},
                "features": {"service": "flights_v1"},
                "drift": policy,
            }
        )
    )


def seed(key: str) -> int:
    return zlib.crc32(key.encode())


def micros(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

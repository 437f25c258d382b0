"""The payload log as the judge of a rollout sees it: what each version did with the requests that chance gave it.

While a route has two versions, the router logs each first attempt (`node.payload_events.EventLog.expose`): the version,
the canary's share at that moment, the status and the time. A second attempt is not logged, since it was not left to
chance: the failure stays with the version that failed. Answers come from the logged responses, truths from the labels.

The body of an event: `{"attempts": [{"id": "…", "time": "2013-04-01T12:00:00+00:00", "version": "7", "canary": true,
"share": 0.05, "status": 200, "seconds": 0.004}]}`; status 0 is a timeout or a lost connection.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from kubeloop import moments
from kubeloop.config import Loop, Settings
from kubeloop.judge import ExposureError, Exposures
from kubeloop.judge.exposures import failures
from kubeloop.names import EXPOSURE_EVENT
from kubeloop.payloads import decode
from kubeloop.tasks import port

__all__ = ["Rollout", "read"]


@dataclass(frozen=True)
class Rollout:
    """The newest rollout of a payload log."""

    champion: str
    canary: str
    exposures: Exposures


def read(loop: Loop, settings: Settings) -> Rollout:
    """Return the newest rollout: the requests of the two versions that shared the traffic last.

    A request counts at its event time if it was answered, and otherwise at that of the request before it, or after it
    if there is none before.

    Raises:
        ExposureError: there was no rollout yet.
        LogError: a segment is damaged.
    """
    task = port.of(loop)
    table, _ = decode.read(settings.payloads, after=0)
    attempts = _attempts(table, loop.name)
    canary = next((one["version"] for one in reversed(attempts) if one["canary"]), None)
    champion = next((one["version"] for one in reversed(attempts) if not one["canary"]), None)
    if canary is None or champion is None:
        raise ExposureError(
            "the payload log has no requests that two versions shared; give a file with the events of both "
            "(docs/judging.md)"
        )
    kept = [one for one in attempts if one["version"] == (canary if one["canary"] else champion)]
    decoded = decode.decode(task, table, service=loop.name)
    rows = _first_rows(decoded.predictions)
    place = {name: number for number, name in enumerate(rows["request_id"].to_pylist())}
    failed = failures([one["status"] for one in kept])
    found = np.array([-1 if bad else place.get(one["id"], -1) for one, bad in zip(kept, failed, strict=True)])
    known = found >= 0
    answers = task.answers(rows)
    wide = answers.reshape(len(answers), -1)
    chosen = np.full((len(kept), wide.shape[1]), np.nan)
    chosen[known] = wide[found[known]]
    labels = _labels(decoded.labels)
    truths = np.full(len(kept), np.nan)
    told = np.array([labels.get(name, np.nan) for name in rows["event_id"].to_pylist()], dtype=np.float64)
    truths[known] = told[found[known]]
    return Rollout(
        champion,
        canary,
        Exposures(
            at=_times(kept, rows, found),
            canary=np.array([one["canary"] for one in kept], dtype=bool),
            share=np.array([one["share"] for one in kept], dtype=np.float64),
            unit=np.array([one["id"] for one in kept], dtype=object),
            failed=failed,
            seconds=np.array([one["seconds"] for one in kept], dtype=np.float64),
            answers=chosen if chosen.shape[1] > 1 else chosen[:, 0],
            truths=truths,
            slices={
                name: np.array([*rows[name].to_pylist(), None], dtype=object)[found]
                for name in loop.gates.slices
                if name in rows.column_names
            },
        ),
    )


def _attempts(table: pa.Table, service: str) -> list[dict[str, Any]]:
    """Return the attempts of a service in the order of time; an event that came twice counts once."""
    wanted = pc.and_(pc.equal(table["type"], EXPOSURE_EVENT), pc.equal(table["service"], service))
    found: dict[str, dict[str, Any]] = {}
    for body in table.filter(wanted)["body"].to_pylist():
        try:
            for one in orjson.loads(body)["attempts"]:
                found.setdefault(str(one["id"]), _checked(one))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ExposureError(f"the payload log has an exposure that is not one: {error}") from error
    return sorted(found.values(), key=lambda one: one["time"])


def _checked(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": str(one["id"]),
        "time": moments.micros(one["time"]),
        "version": str(one["version"]),
        "canary": bool(one["canary"]),
        "share": float(one["share"]),
        "status": int(one["status"]),
        "seconds": float(one["seconds"]),
    }


def _first_rows(predictions: pa.Table) -> pa.Table:
    """Return the first row of each request."""
    numbered = predictions.append_column("row", pa.array(range(predictions.num_rows), pa.int64()))
    first = numbered.group_by("request_id").aggregate([("row", "min")])["row_min"]
    return predictions.take(first.sort())


def _labels(labels: pa.Table) -> dict[str, float]:
    """Return the first truth of each event."""
    found: dict[str, float] = {}
    for name, label in zip(labels["event_id"].to_pylist(), labels["label"].to_pylist(), strict=True):
        found.setdefault(name, label)
    return found


def _times(attempts: list[dict[str, Any]], rows: pa.Table, found: Any) -> Any:
    events = rows["event_time"].cast(pa.int64()).to_numpy()
    times = np.array([one["time"] for one in attempts], dtype=np.int64)
    last = next((events[place] for place in found.tolist() if place >= 0), None)
    for number, place in enumerate(found.tolist()):
        if place >= 0:
            last = events[place]
        if last is not None:
            times[number] = last
    return times.astype("datetime64[us]")

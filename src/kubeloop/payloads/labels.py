"""Read the body of a label event, which holds the outcomes of predictions.

The collector refuses a body with a fault; the log may hold such bodies from older versions.
"""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import orjson

from kubeloop import moments


class Label(NamedTuple):
    """The outcome of one prediction; `observed_at` in microseconds since 1970."""

    event_id: str
    label: float
    observed_at: int


_LONGEST = 200
"""Most characters of a class's name."""
_MOST_US = moments.MOST // timedelta(microseconds=1)


def early(told: Sequence[Label], received_at: int) -> list[str]:
    """Return what is wrong with labels that were observed after they were received; both in microseconds since 1970.

    The label observed last counts, so a label from a clock that is years ahead could never be corrected.
    """
    return [
        f"label of {label.event_id!r:.80}: observed_at is more than an hour in the future; set the sender's clock"
        for label in told
        if label.observed_at > received_at + _MOST_US
    ]


def any_label(value: Any) -> float:
    """Accept what may be a label of some task. The collector serves loops of every kind, so readers check further.

    Raises:
        ValueError: it cannot be a label of any task.
    """
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return float(value)
    if isinstance(value, str) and 0 < len(value) <= _LONGEST:
        return math.nan
    raise ValueError("a label must be a number, or the name of a class")


def read(body: bytes, label: Callable[[Any], float] = any_label) -> tuple[list[Label], list[str]]:
    """Return the labels of `{"labels": [{"event_id": "a", "label": 1, "observed_at": "2013-04-01T12:00:00Z"}]}`.

    Args:
        body: of the event.
        label: reads one label, as `Task.label` does.

    Returns:
        The labels that can be read, and what is wrong with each other one, or with a body without labels.
    """
    try:
        items = orjson.loads(body)["labels"]
        if type(items) is not list:
            raise TypeError("labels is not a list")
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        return [], [f"the label event has no list of labels ({error})"]
    found: list[Label] = []
    faults: list[str] = []
    for item in items:
        try:
            event_id = item["event_id"]
            if type(event_id) is not str or not event_id:
                raise ValueError("it needs a text event_id")
            found.append(Label(event_id, label(item["label"]), moments.micros(item["observed_at"])))
        except (KeyError, TypeError, ValueError) as error:
            faults.append(f"a label is malformed: {item!r:.80} ({type(error).__name__}: {error})")
    return found, faults

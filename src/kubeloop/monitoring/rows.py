"""The rows of the monitor's tables, as the store reads and writes them and the API shows them; see `schema`.

Moments are in event time unless they say otherwise. A service has one row of each kind per window and version.
"""

from datetime import datetime
from typing import Literal, TypedDict

WindowStatus = Literal["judged", "small", "no_reference", "unreadable"]
PerformanceStatus = Literal["judged", "few", "small", "one_class", "unreadable"]


class WindowKey(TypedDict):
    """A window of one version."""

    service: str
    start: datetime
    version: str
    end: datetime


class WindowRow(WindowKey):
    """A window that has closed.

    `live` is whether the version was in ordinary traffic at its end. `importance` is the share of the model's
    decisions that rests on the features that drifted, 0 to 1. Fields that only a judged window has are None in the
    others.
    """

    rows: int
    status: WindowStatus
    live: bool
    drifted: bool | None
    importance: float | None
    prediction_drifted: bool | None
    note: str | None


class ShownWindow(WindowRow):
    """A window with the scores of its features and, once labels are in, its performance."""

    scores: "list[ScoreRow]"
    performance: "PerformanceRow | None"


class ScoreRow(WindowKey):
    """The test of one feature, or of one number of the answers, in a judged window; see `detector.port.Score`.

    Rows of older releases may lack the interval of the effect.
    """

    feature: str
    kind: str
    statistic: float
    p_value: float
    p_adjusted: float
    effect: float
    effect_low: float
    effect_high: float
    psi: float
    rows: int
    missing_share: float
    importance: float
    drifted: bool


class Measured(TypedDict):
    """What was measured on the labels of a window.

    `metric` is the loop's headline, `value`, `low` and `high` its estimate with the 95 % interval, and `metrics` has
    all of the task's. `scarce` counts the labels outside the most frequent class.
    """

    labelled: int
    positives: int | None
    scarce: int | None
    metric: str | None
    value: float | None
    low: float | None
    high: float | None
    metrics: dict[str, float] | None


class PerformanceRow(WindowKey, Measured):
    """What the labels show about a window.

    `windows` is how many windows were judged together, `reference` the hold-out's value that the verdict compares
    with.
    """

    rows: int
    status: PerformanceStatus
    live: bool
    drifted: bool | None
    windows: int | None
    reference: float | None
    note: str | None


class EpisodeRow(TypedDict):
    """An episode; `emitted_at` (UTC, now), `accepted`, `run_name` and `decision` are the trigger's answer."""

    id: str
    service: str
    version: str
    kind: str
    window_end: datetime
    opened_at: datetime
    as_of: datetime
    features: list[str]
    reason: str
    emitted_at: datetime | None
    accepted: bool | None
    run_name: str | None
    decision: str | None
    closed_at: datetime | None
    outcome: str | None


class VersionRow(TypedDict):
    """A model version: where its model is stored, and since when it has been in ordinary traffic."""

    service: str
    version: str
    uri: str | None
    live_since: datetime | None


class FillingRow(TypedDict):
    """A window that is still filling."""

    start: datetime
    end: datetime
    version: str
    rows: int

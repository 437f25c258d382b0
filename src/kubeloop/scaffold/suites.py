"""Draft the expectations of a new use case: those of `profiling`, wide enough for every run of its replay."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from kubeloop.data import expectations, profiling
from kubeloop.scaffold.timing import Activity, Timeline, text

if TYPE_CHECKING:
    import pandas as pd

_UNIQUE = ("expect_column_values_to_be_unique", "expect_compound_columns_to_be_unique")


@dataclass(frozen=True)
class Runs:
    """What the runs of a replay would see: rows of the raw table and the training set, and the share of positives."""

    raw: tuple[int, ...]
    labelled: tuple[int, ...]
    share: tuple[float, ...]

    @classmethod
    def of(cls, activity: Activity, plan: Timeline) -> "Runs":
        """Measure one run per drift window, from the first model to the end of the replay."""
        raw, labelled, share = [], [], []
        as_of = plan.train_to
        while as_of <= plan.until:
            start = as_of - plan.training_window
            positives, negatives = (
                activity.total(name, start, as_of - plan.label_delay) for name in ("positives", "negatives")
            )
            raw.append(activity.total("rows", start - plan.history, as_of))
            labelled.append(positives + negatives)
            share.append(positives / max(1, positives + negatives))
            as_of += plan.window
        return cls(tuple(raw), tuple(labelled), tuple(share))


def raw(
    frame: "pd.DataFrame",
    moment: str,
    label: str | None,
    keys: Sequence[str],
    unique: str | None,
    runs: Runs,
    gap: str,
    waiting: Sequence[str] = (),
) -> str:
    """Return the suite of the raw table.

    Args:
        frame: its used columns, or a sample of their rows.
        moment: the timestamp's column.
        label: the label's column, if it holds 0 and 1.
        keys: the keys' columns.
        unique: the id's column, if there is one.
        runs: what runs would see.
        gap: how old the newest row may be, a duration.
        waiting: columns that are empty until a row's label is known.
    """
    suite = profiling.profile(frame, timestamp=moment, label=label, keys=keys)
    suite = [item for item in suite if item.get("expect_column_values_to_not_be_null", {}).get("column") not in waiting]
    suite = _fit(suite, runs.raw, runs.share, moment, gap)
    for item in suite:
        bounds = item.get("expect_column_values_to_be_between")
        share = float(np.isinf(frame[bounds["column"]]).mean()) if bounds else 0.0
        if bounds and share:
            # events.sql reads an infinite number as missing, so its row stays.
            bounds |= {"mostly": round(max(0.5, 0.98 - 2 * share), 3), "meta": {"rows": "keep"}}
    if unique is not None:
        suite.append({"expect_column_values_to_be_unique": {"column": unique}})
    head = "# Checks of the raw table. Drafted from its data: read them once, then they are yours.\n"
    return head + expectations.dump(suite)


def training(frame: "pd.DataFrame", runs: Runs, gap: str, first: datetime, label: str | None = "label") -> str:
    """Return the suite of the training set.

    Args:
        frame: a training set over the whole table, or a sample of its rows.
        runs: what runs would see.
        gap: how old the newest labelled row may be, a duration.
        first: where the first training set ends; its histories are the emptiest.
        label: the label's column, if it holds 0 and 1.
    """
    suite = profiling.profile(frame, timestamp="event_timestamp", label=label, keys=["event_id"])
    suite = _fit(suite, runs.labelled, runs.share, "event_timestamp", gap)
    early = frame[(frame["event_timestamp"] < first).to_numpy()]
    for item in suite:
        if (filled := item.get("expect_column_values_to_not_be_null")) and "mostly" in filled and len(early):
            missing = float(early[filled["column"]].isna().to_numpy().mean())
            filled["mostly"] = min(filled["mostly"], int(max(0.98 - 2 * missing, (1 - missing) / 2) * 1000) / 1000)
        # Late labels are not a fault of the rows that have one.
        if (fresh := item.get("expect_column_max_to_be_between")) and fresh["column"] == "event_timestamp":
            fresh["severity"] = "warning"
    # A row that occurs twice goes to the quarantine; a table that was loaded twice fails.
    suite.append({"expect_column_values_to_be_unique": {"column": "event_id", "mostly": 0.99}})
    head = "# Checks of the training set, from which every model learns. A feature without a line is not checked.\n"
    return head + expectations.dump(suite)


def gap(moments: Iterable[datetime], delay: timedelta = timedelta(0)) -> str:
    """Return how old the newest row of a run may be: a day or three times the largest gap, and the delay."""
    ordered = sorted(moments)
    largest = max((after - before for before, after in pairwise(ordered)), default=timedelta(0))
    days = -(-max(timedelta(days=1), 3 * largest) // timedelta(days=1))
    return text(timedelta(days=days) + delay)


def _fit(
    suite: profiling.Suite, rows: Sequence[int], share: Sequence[float], moment: str, oldest: str
) -> profiling.Suite:
    """Widen the limits of the whole table's profile for volume, label, freshness and types to what runs will see."""
    fitted = []
    for item in suite:
        ((name, arguments),) = item.items()
        changed: dict[str, Any] = dict(arguments)
        if name in _UNIQUE:
            continue
        if name == "expect_table_row_count_to_be_between":
            changed = {"min_value": min(rows) // 2, "max_value": 2 * max(rows)}
        elif name == "expect_column_mean_to_be_between":
            changed |= {"min_value": round(min(share) / 2, 4), "max_value": round((1 + max(share)) / 2, 4)}
        elif name == "expect_column_max_to_be_between" and changed["column"] == moment:
            changed |= {"min_value": {"as_of": f"-{oldest}"}, "max_value": {"as_of": "0d"}}
        elif name == "expect_column_type_to_be" and changed["type_"] == "float64":
            # Whole numbers are floats only while one of them is missing.
            name, changed = (
                "expect_column_values_to_be_in_type_list",
                {"column": changed["column"], "type_list": ["int64", "float64"]},
            )
        fitted.append({name: changed})
    return fitted

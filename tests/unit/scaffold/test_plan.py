"""The settings fit the table, whatever its span and density, or one sentence says why the table is unusable."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kubeloop.config import Drift, Replay, duration
from kubeloop.models.gates import MIN_BLOCKS
from kubeloop.scaffold import suites
from kubeloop.scaffold.table import ScaffoldError
from kubeloop.scaffold.timing import (
    FAST_WINDOWS,
    SCALES,
    Activity,
    Scale,
    Timeline,
    about,
    default_delay,
    scale,
    text,
    timeline,
)
from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.maker import BinaryMaker
from kubeloop.tasks.binary.task import BINARY

START = datetime(2024, 3, 1, 7, 13, tzinfo=UTC)
UNITS = {"day": "D", "hour": "h", "minute": "m"}


def activity(moments: np.ndarray, rows: np.ndarray, share: float, chosen: Scale) -> Activity:
    """Count rows per step, as the table's own query does."""
    steps = moments.astype(f"datetime64[{UNITS[chosen.unit]}]").astype("datetime64[us]")
    starts, place = np.unique(steps, return_inverse=True)
    total = np.bincount(place, rows).astype(np.int64)
    positives = np.round(total * share).astype(np.int64)
    largest = np.zeros(len(starts), dtype=np.int64)
    np.maximum.at(largest, place, rows)
    return Activity(starts, total, positives, total - positives, np.bincount(place).astype(np.int64), largest)


def plan(days: float, moments: int, rows: int, share: float, delay: timedelta | None = None, seed: int = 1) -> Timeline:
    random = np.random.default_rng(seed)
    offsets = np.unique(random.integers(0, int(days * 86400), moments))
    offsets[0], offsets[-1] = 0, int(days * 86400)
    stamps = np.datetime64(START.replace(tzinfo=None), "us") + offsets * np.timedelta64(1_000_000, "us")
    chosen = scale(START, START + timedelta(seconds=int(offsets[-1])), "table.csv")
    counts = np.full(len(stamps), max(1, rows // len(stamps)))
    found = activity(stamps, counts, share, chosen)
    wait = default_delay(chosen) if delay is None else delay
    return timeline(found, START, START + timedelta(seconds=int(offsets[-1])), chosen, wait)


@given(
    days=st.floats(0.8, 2000),
    moments=st.integers(200, 3000),
    rows=st.integers(1000, 2_000_000),
    share=st.floats(0.02, 0.98),
    seed=st.integers(0, 99),
)
def test_every_plan_holds_together(days: float, moments: int, rows: int, share: float, seed: int) -> None:
    try:
        found = plan(days, moments, rows, share, seed=seed)
    except ScaffoldError:
        return
    assert found.train_from > START - timedelta(days=1)
    assert found.train_from < found.train_to < found.fast_until <= found.until
    assert found.fast_until - found.train_to <= FAST_WINDOWS * found.window, "a newcomer waits for the first run"
    assert found.history >= found.scale.long + found.label_delay + found.scale.step
    assert found.until - found.train_to >= 3 * found.window
    assert 0 < found.fast_sample <= 1
    assert 0 < found.sample <= 1
    assert found.min_rows >= 30
    # The configuration accepts what is written.
    for span in (found.training_window, found.holdout, found.window, found.label_delay, found.history, found.block):
        assert duration(text(span)) == span
    binary.Training(window=found.training_window, holdout=found.holdout)
    binary.Gates(block=found.block, slice_min_rows=found.slice_min_rows)
    Drift(window=found.window, min_rows=found.min_rows, label_wait=found.label_delay)
    Replay(
        train_from=found.train_from,
        train_to=found.train_to,
        until=found.until,
        fast_until=found.fast_until,
        sample=found.sample,
        fast_sample=found.fast_sample,
    )


@pytest.mark.parametrize(
    ("days", "moments", "rows", "unit", "window"),
    [
        (270, 30_000, 30_000, "day", timedelta(days=7)),
        (270, 39, 60_000, "day", timedelta(days=7)),
        (270, 2500, 2500, "day", timedelta(days=14)),
        (30, 30_000, 30_000, "hour", timedelta(days=1)),
        (2, 20_000, 20_000, "minute", timedelta(hours=1)),
    ],
)
def test_windows_and_steps_follow_span_and_density(
    days: float, moments: int, rows: int, unit: str, window: timedelta
) -> None:
    found = plan(days, moments, rows, 0.3)
    assert found.scale.unit == unit
    assert found.window == window


def test_a_holdout_spans_enough_blocks_where_moments_are_rare() -> None:
    weekly = START.replace(tzinfo=None) + np.arange(40) * timedelta(days=7)
    stamps = weekly.astype("datetime64[us]")
    found = activity(stamps, np.full(40, 500), 0.2, SCALES[0])
    end = START + timedelta(days=7 * 39)
    planned = timeline(found, START, end, SCALES[0], timedelta(days=1))
    newest = planned.train_to - planned.label_delay
    assert found.blocks(newest - planned.holdout, newest, planned.block) > MIN_BLOCKS
    assert planned.sample == planned.fast_sample == 1, "whole moments are drawn, so a few moments must not be sampled"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale(START, START + timedelta(hours=5), "t.csv"), "t.csv spans only 5h"),
        (lambda: plan(200, 3000, 3000, 0.3, timedelta(days=90)), "give a shorter --label-delay"),
        (lambda: plan(200, 9, 9000, 0.3), "6 different days, and its newest half has 0 in 0"),
        (lambda: plan(200, 500, 500, 0.3), "fewer than 600 labelled rows"),
    ],
)
def test_a_table_that_cannot_work_is_refused_with_a_reason(call: object, message: str) -> None:
    with pytest.raises(ScaffoldError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("hours", "told"),
    [(0.01, "36 seconds"), (1.5, "90 minutes"), (30, "30 hours"), (425, "18 days"), (20_000, "2 years")],
)
def test_a_person_reads_a_span_in_one_unit(hours: float, told: str) -> None:
    assert about(timedelta(hours=hours)) == told


@given(auc=st.floats(0.3, 1), ece=st.floats(0, 1))
def test_the_first_model_passes_the_floors_it_sets(auc: float, ece: float) -> None:
    found = BinaryMaker(BINARY).draft(np.array([0.0, 1.0]), {"auc": auc, "ece": ece})
    assert found.floors["auc"] <= max(auc, 0.4)
    assert found.ceilings["ece"] >= min(ece, 1)
    assert found.watch == {"min_auc": found.floors["auc"], "max_auc_drop": 0.05}


def test_the_first_training_set_may_miss_more_than_the_whole_table() -> None:
    stamps = pd.date_range(START, periods=1000, freq="h")
    history = np.where(np.arange(1000) < 100, np.nan, 1.5 + np.arange(1000) % 7)
    frame = pd.DataFrame(
        {"event_id": list(map(str, range(1000))), "event_timestamp": stamps, "label": 1, "rate_30d": history}
    )
    runs = suites.Runs((1000,), (1000,), (0.5,))
    found = yaml.safe_load(suites.training(frame, runs, "1d", stamps[200].to_pydatetime()))
    nulls = [item.get("expect_column_values_to_not_be_null", {}) for item in found]
    (mostly,) = [item["mostly"] for item in nulls if item.get("column") == "rate_30d"]
    assert mostly <= 0.5, "half of its first rows have no history yet"

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kubeloop.data.expectations import dump
from kubeloop.data.profiling import profile
from kubeloop.data.validation import Report


@pytest.fixture
def frame(readings: pd.DataFrame) -> pd.DataFrame:
    """Readings with the flaws of real tables: nulls, one absurd value, a narrow number, a flag and a label."""
    rows = np.arange(len(readings))
    readings["gust"] = np.where(rows % 5 == 0, 20.0 + rows % 7, np.nan)
    readings["speed"] = np.where(rows == 500, 1048.0, 10.0 + rows % 11).astype(np.float32)
    readings["cancelled"] = rows % 50 == 0
    readings["label"] = (rows % 4 == 0).astype(np.int32)
    return readings


def draft(frame: pd.DataFrame) -> str:
    return dump(profile(frame, timestamp="observed_at", label="label", keys=["id"]))


def test_the_data_pass_their_own_draft(place: Any, check: Callable[..., Report], frame: pd.DataFrame) -> None:
    report = check(frame, draft(frame))
    assert report.failures == ()
    assert place.read("quarantine", "t")["speed"].tolist() == [1048.0]


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (lambda f: f.assign(wind=f["wind"] + 100), {("expect_column_values_to_be_between", "wind")}),
        (lambda f: f.assign(speed=f["speed"] * 1.852 * 10), {("expect_column_values_to_be_between", "speed")}),
        (lambda f: f.assign(wind=f["wind"].mask(f.index % 10 == 0)), {("expect_column_values_to_not_be_null", "wind")}),
        (lambda f: f.assign(gust=np.nan), {("expect_column_values_to_not_be_null", "gust")}),
        (lambda f: pd.concat([f, f[:100]]), {("expect_column_values_to_be_unique", "id")}),
        (lambda f: pd.concat([f, f, f]).assign(id=range(3000)), {("expect_table_row_count_to_be_between", "")}),
        (lambda f: f[:400], {("expect_table_row_count_to_be_between", ""),
                             ("expect_column_max_to_be_between", "observed_at")}),
        (lambda f: f.assign(site=f["site"].str.lower()), {("expect_column_values_to_be_in_set", "site")}),
        (lambda f: f.assign(label=1 - f["label"] // 2), {("expect_column_mean_to_be_between", "label")}),
        (lambda f: f.assign(label=f["label"] * 2), {("expect_column_values_to_be_in_set", "label")}),
        (lambda f: f.drop(columns="site"), {("expect_table_columns_to_match_set", ""),
                                            ("expect_column_values_to_not_be_null", "site"),
                                            ("expect_column_values_to_be_in_set", "site")}),
        (lambda f: f.assign(cancelled=f["cancelled"].astype(int)),
         {("expect_column_values_to_be_in_type_list", "cancelled")}),
        (lambda f: f.assign(observed_at=f["observed_at"] + timedelta(days=1)),
         {("expect_column_max_to_be_between", "observed_at")}),
    ],
)  # fmt: skip
def test_broken_data_do_not_pass(
    check: Callable[..., Report],
    frame: pd.DataFrame,
    broken: Callable[[pd.DataFrame], pd.DataFrame],
    caught: set[tuple[str, str]],
) -> None:
    report = check(broken(frame).reset_index(drop=True), draft(frame))
    assert {(failure.expectation, failure.column) for failure in report.failures} == caught


def test_drift_passes(check: Callable[..., Report], frame: pd.DataFrame) -> None:
    """A seasonal shift is the monitor's task; refusing the data would stop the retraining that the shift calls for."""
    drifted = frame.assign(wind=frame["wind"] + frame["wind"].std(), label=(frame.index % 3 == 0).astype(np.int32))
    assert check(drifted, draft(frame)).failures == ()


@pytest.mark.parametrize(
    ("values", "entries"),
    [
        (["a", "b"] * 100, {"expect_column_values_to_be_in_set": ["a", "b"]}),
        ([f"text {i}" for i in range(200)], {}),
        ([None] * 200, {}),
        ([["a"]] * 200, {}),
    ],
)
def test_only_strings_with_few_values_are_categories(values: list[Any], entries: dict[str, list[str]]) -> None:
    frame = pd.DataFrame({"at": pd.Timestamp("2013-01-01", tz="UTC"), "x": values})
    found = {
        name: arguments["value_set"]
        for entry in profile(frame, timestamp="at")
        for name, arguments in entry.items()
        if "value_set" in arguments
    }
    assert found == entries


def test_a_column_with_repeated_values_is_not_a_key() -> None:
    frame = pd.DataFrame({"at": pd.Timestamp("2013-01-01", tz="UTC"), "a": [1, 1, 2], "b": [1, 2, 1]})
    names = {name for entry in profile(frame, timestamp="at", keys=["a"]) for name in entry}
    assert "expect_column_values_to_be_unique" not in names
    both = [
        entry for entry in profile(frame, timestamp="at", keys=["a", "b"]) if "expect_compound" in next(iter(entry))
    ]
    assert both == [{"expect_compound_columns_to_be_unique": {"column_list": ["a", "b"]}}]


@pytest.mark.parametrize(
    ("frame", "arguments", "message"),
    [
        (pd.DataFrame({"at": [1]}), {"timestamp": "when"}, "no column when; they have at"),
        (pd.DataFrame({"at": [1]}), {"timestamp": "at", "keys": ["id"]}, "no column id"),
        (pd.DataFrame({"at": []}), {"timestamp": "at"}, "no rows"),
        (pd.DataFrame({"at": [pd.Timestamp("2013-01-01")]}), {"timestamp": "at"}, "at has no time zone"),
        (pd.DataFrame({"at": [pd.Timestamp("2013-01-01", tz="UTC")], "y": [2]}), {"timestamp": "at", "label": "y"},
         "other than 0 and 1"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_profiled(frame: pd.DataFrame, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        profile(frame, **arguments)


NUMBERS = st.lists(st.none() | st.floats(-1e9, 1e9, width=32), min_size=1, max_size=300)


@given(numbers=NUMBERS, step=st.integers(0, 100_000), share=st.floats(0, 1))
@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # Shrinking would run hundreds of validations.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_data_pass_their_own_draft(
    check: Callable[..., Report], numbers: list[float | None], step: int, share: float
) -> None:
    rows = len(numbers)
    start = datetime.fromisoformat("2013-01-01T00:00:00+00:00")
    frame = pd.DataFrame(
        {
            "id": range(rows),
            "observed_at": [start + timedelta(seconds=step * i) for i in range(rows)],
            "number": pd.array(numbers, dtype="float64"),
            "label": [int(i < share * rows) for i in range(rows)],
            "kind": ["ab"[i % 2] for i in range(rows)],
        }
    )
    report = check(frame, draft(frame), as_of=frame["observed_at"].max().to_pydatetime())
    assert report.failures == ()

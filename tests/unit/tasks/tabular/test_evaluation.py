import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from kubeloop.tasks import slices
from kubeloop.tasks.binary import evaluation
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.port import EvaluationError

SCIKIT_LEARN = {
    "auc": reference.roc_auc_score,
    "pr_auc": reference.average_precision_score,
    "log_loss": lambda y, p, **kwargs: reference.log_loss(y, p, labels=[0, 1], **kwargs),
    "brier": reference.brier_score_loss,
}


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of both classes, probabilities with many ties, and whole weights that keep both classes."""
    rows = draw(st.integers(2, 60))
    y = np.array([0, 1, *draw(st.lists(st.integers(0, 1), min_size=rows - 2, max_size=rows - 2))])
    grid = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
    p = np.array(draw(st.lists(grid | st.floats(0, 1), min_size=rows, max_size=rows)))
    weights = np.array([1, 2, *draw(st.lists(st.integers(0, 4), min_size=rows - 2, max_size=rows - 2))])
    return y, p, weights


@settings(max_examples=150, deadline=None)
@given(predictions())
def test_agrees_with_scikit_learn(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    y, p, weights = case
    scores = BINARY.score(y, p)
    for name, function in SCIKIT_LEARN.items():
        assert scores[name] == pytest.approx(function(y, p), abs=1e-12), name
        got = BINARY.weighted(name, y, p)(np.stack([weights, np.ones(len(y))]))
        assert got[0] == pytest.approx(function(y, p, sample_weight=weights), abs=1e-12), name
        assert got[1] == pytest.approx(scores[name], abs=1e-12), name


@pytest.mark.parametrize("metric", SCIKIT_LEARN)
def test_a_group_weight_counts_for_each_of_its_rows(metric: str) -> None:
    random = np.random.default_rng(3)
    y, p, groups = random.integers(0, 2, 200), random.random(200).round(1), random.integers(0, 7, 200)
    drawn = random.integers(0, 3, size=(5, 7))
    expected = [BINARY.score(np.repeat(y, row[groups]), np.repeat(p, row[groups]))[metric] for row in drawn]
    assert BINARY.weighted(metric, y, p, groups)(drawn) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["auc", "pr_auc"])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_weighting_without_one_class_is_undefined(metric: str, kept: int) -> None:
    y, p = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.4, 0.3])
    assert math.isnan(BINARY.weighted(metric, y, p)([(y == kept).astype(float)])[0])


def test_ece_is_the_mean_gap_of_equal_mass_bins() -> None:
    p = np.repeat([0.2, 0.6], 150)
    y = np.concatenate([np.arange(150) < 45, np.arange(150) < 75]).astype(int)
    assert BINARY.score(y, p)["ece"] == pytest.approx((0.1 + 0.1) / 2)
    assert BINARY.score((np.arange(300) % 2), np.full(300, 0.5))["ece"] == pytest.approx(0)


def test_bins_are_of_equal_mass_and_ece_does_not_depend_on_the_order_of_rows() -> None:
    random = np.random.default_rng(5)
    p, y = random.random(1500), random.integers(0, 2, 1500)
    assert (np.bincount(evaluation.calibration_bins(p)) == 100).all()
    tied, order = p.round(2), random.permutation(1500)
    assert BINARY.score(y, tied)["ece"] == pytest.approx(BINARY.score(y[order], tied[order])["ece"], abs=1e-12)


@pytest.mark.parametrize(
    ("y", "reason"),
    [([], "no rows"), ([1, 1, 1], "all 3 labels are 1"), ([0, 0], "all 2 labels are 0"), ([0, 1], None)],
)
def test_degenerate_classes_give_nan_with_a_reason(y: list[int], reason: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = BINARY.score(np.array(y, dtype=int), np.full(len(y), 0.5))
    told = evaluation.undefined(np.array(y, dtype=int))
    assert (reason is None) == (told is None)
    assert reason is None or reason in str(told)
    assert math.isnan(scores["auc"]) == math.isnan(scores["pr_auc"]) == (reason is not None)
    assert math.isnan(scores["brier"]) == (not y)
    assert scores["rows"] == len(y)
    assert scores["positives"] == sum(y)


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([0, 1], [0.1], "one length"),
        ([0, 2], [0.1, 0.2], "0 or 1"),
        ([0, np.nan], [0.1, 0.2], "0 or 1"),
        ([0, 1], [0.1, np.nan], "between 0 and 1"),
        ([0, 1], [0.1, 1.5], "between 0 and 1"),
    ],
)
def test_refuses_what_cannot_be_measured(y: list[float], p: list[float], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        BINARY.score(y, p)


def test_refuses_a_metric_without_a_weighted_form() -> None:
    with pytest.raises(EvaluationError, match="'ece' has no weighted form"):
        BINARY.weighted("ece", [0, 1], [0.1, 0.2])


def test_slices_measure_the_rows_of_each_value() -> None:
    random = np.random.default_rng(1)
    y, p = random.integers(0, 2, 400), random.random(400)
    origin = np.array(["EWR", "JFK", None, ""], dtype=object)[np.arange(400) % 4]
    frame = pd.DataFrame({"origin": origin, "rare": ["a"] * 390 + ["b"] * 10, "wave": np.linspace(0, 1, 400)})
    found = {
        (part.column, part.value): part for part in slices.measure(BINARY, frame, y, p, ["origin", "rare", "wave"], 50)
    }
    assert [key for key in found if key[0] != "wave"] == [
        ("origin", "EWR"), ("origin", "JFK"), ("origin", "missing"), ("rare", "a"),
    ]  # fmt: skip
    jfk = found["origin", "JFK"]
    assert (jfk.rows, jfk.positives) == (100, int(y[origin == "JFK"].sum()))
    assert jfk.metrics["auc"] == pytest.approx(reference.roc_auc_score(y[origin == "JFK"], p[origin == "JFK"]))
    assert [part.rows for key, part in found.items() if key[0] == "wave"] == [100] * 4


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pd.Series(["a", None, "b"], dtype="string"), {"a", "b", "missing"}),
        (pd.Series([1, None, 2], dtype="Int64"), {"1", "2", "missing"}),
        (pd.Series([1.5, np.nan, 2.0]), {"1.5", "2", "missing"}),
        (pd.Series([True, False, True]), {"0", "1"}),
    ],
)
def test_slices_name_values_of_any_type(values: "pd.Series[str]", names: set[str]) -> None:
    assert {value for _, value, _ in slices.members({"x": values}, ["x"], 1)} == names


def test_a_slice_with_one_class_says_so() -> None:
    (part,) = slices.measure(BINARY, {"x": ["a"] * 5}, [1] * 5, [0.5] * 5, ["x"], 1)
    assert math.isnan(part.metrics["auc"])
    assert part.note
    assert "all 5 labels are 1" in part.note


def test_a_slice_column_that_is_missing_is_named() -> None:
    with pytest.raises(EvaluationError, match="'origin'"):
        list(slices.members({"x": [1]}, ["origin"], 1))

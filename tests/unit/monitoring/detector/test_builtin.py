from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ks_2samp

from kubeloop.monitoring.detector.builtin import BuiltinDetector
from kubeloop.monitoring.detector.port import DetectorError, Score, Window
from kubeloop.tasks.reference import Reference, build


def reference(columns: dict[str, Any], score: Any = (0.5,)) -> Reference:
    kinds = {name: "categorical" if name.startswith("c") else "numeric" for name in columns}
    return build(columns, kinds, score, {}, None, trained_from="", trained_to="", max_rows=10**6)


def scores(before: dict[str, Any], now: dict[str, Any], score: Any = (0.5,), live: Any = (0.5,)) -> dict[str, Score]:
    fitted = reference(before, score)
    detector = BuiltinDetector()
    detector.fit("1", fitted)
    window = Window(*fitted.encode(now), np.asarray(live, np.float32))
    return {found.feature: found for found in detector.score("1", window)}


# Few distinct values make ties, a single value makes a constant column, None is a missing value.
values = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-3, 3)), max_size=60),
    st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)), max_size=60),
    st.lists(st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), 1.0]), max_size=20),
    st.lists(st.none(), max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(before=values, now=values)
def test_numeric_features_agree_with_scipy(before: list[float | None], now: list[float | None]) -> None:
    found = scores({"x": before}, {"x": now})["x"]
    old, new = (np.array([v for v in side if v is not None], dtype=np.float32) for side in (before, now))
    expected = (0.0, 1.0)
    if len(old) == len(new) == 1:
        # SciPy's p-value is NaN here; one row against one is not evidence.
        expected = (float(old[0] != new[0]), 1.0)
    elif len(old) and len(new):
        test = ks_2samp(old, new, method="asymp")
        expected = (test.statistic, test.pvalue)
    assert found.statistic == pytest.approx(expected[0], abs=1e-9)
    if None not in before and None not in now:
        assert found.p_value == pytest.approx(expected[1], rel=1e-9, abs=1e-9)
        assert found.effect <= found.statistic + 1e-12
    assert 0 <= found.effect_low <= found.effect <= found.effect_high <= 1
    assert 0 <= found.p_value <= 1
    assert np.isfinite(found.psi)
    assert found.psi >= 0
    assert found.rows == len(new)
    assert found.missing_share == (now.count(None) / len(now) if now else 0)


@pytest.mark.parametrize("n", [5_000, 30_000])
@pytest.mark.parametrize("m", [200, 4_000])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5, 3.0])
def test_large_samples_agree_with_scipy(n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(3)
    before, now = rng.normal(size=n).astype(np.float32), rng.normal(shift, size=m).round(1).astype(np.float32)
    expected = ks_2samp(before, now, method="asymp")
    found = scores({"x": before}, {"x": now})["x"]
    assert found.statistic == pytest.approx(expected.statistic, abs=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    before=st.lists(st.sampled_from("abcde"), max_size=60),
    now=st.lists(st.one_of(st.none(), st.sampled_from("abcxyz")), max_size=60),
)
def test_categorical_features_agree_with_scipy(before: list[str], now: list[str | None]) -> None:
    found = scores({"c": before}, {"c": now})["c"]
    # Missing values and values that training never saw form one category.
    known = sorted(set(before))
    table = [[side.count(name) for name in known] for side in (before, now)]
    table[0].append(0)
    table[1].append(len(now) - sum(table[1]))
    seen = np.array(table)[:, np.sum(table, axis=0) > 0]
    expected = (0.0, 1.0)
    if before and now:
        test = chi2_contingency(seen, correction=False)
        expected = (test.statistic, test.pvalue)
    assert (found.statistic, found.p_value) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.missing_share == (table[1][-1] / len(now) if now else 0)
    assert found.rows == len(now) - table[1][-1]


def test_a_feature_that_vanishes_drifts_by_the_change_of_its_missing_share() -> None:
    rng = np.random.default_rng(1)
    before, now = rng.normal(size=5_000), rng.normal(size=1_000)
    now[:400] = np.nan
    found = scores({"x": before, "y": before}, {"x": now, "y": [None] * 1_000})
    assert found["x"].effect == pytest.approx(0.4, abs=1e-4)
    assert found["x"].p_value < 1e-50
    assert found["x"].statistic < 0.1
    assert (found["x"].missing_share, found["x"].rows) == (0.4, 600)
    assert found["x"].psi > 0.25
    assert (found["y"].effect, found["y"].rows, found["y"].statistic) == (1, 0, 0)
    assert found["y"].p_value < 1e-50


def test_values_that_come_back_drift_too() -> None:
    found = scores({"x": [None] * 500 + [1.0] * 500}, {"x": [1.0] * 500})["x"]
    assert (found.effect, found.statistic) == (pytest.approx(0.5, abs=2e-3), 0)
    assert found.p_value < 1e-20


def test_a_steady_missing_share_is_not_drift() -> None:
    rng = np.random.default_rng(2)
    before, now = rng.normal(size=5_000), rng.normal(size=1_000)
    before[:1_500], now[:300] = np.nan, np.nan
    found = scores({"x": before}, {"x": now})["x"]
    assert found.effect < found.statistic
    test = ks_2samp(before[1_500:].astype(np.float32), now[300:].astype(np.float32), method="asymp")
    assert found.p_value == pytest.approx(min(1, 2 * test.pvalue), rel=1e-9)


def test_psi_uses_the_references_deciles_and_sees_new_ranges() -> None:
    ramp = np.arange(1_000.0)
    steady, halved, above, below = (
        scores({"x": ramp}, {"x": now})["x"].psi for now in (ramp, ramp[:500], ramp + 1_000, ramp - 1_000)
    )
    assert steady == pytest.approx(0, abs=1e-9)
    assert halved == pytest.approx(5 * 0.1 * np.log(2) + 5 * 0.0999 * np.log(0.1 / 1e-4), rel=1e-6)
    assert above == below > 5
    constant = [scores({"x": [3.0] * 50}, {"x": [now] * 50})["x"].psi for now in (3.0, 3.1, 2.9)]
    assert constant[0] == 0
    assert constant[1] == constant[2] > 5


def test_scores_come_in_the_ports_order_and_name_the_models_score() -> None:
    rng = np.random.default_rng(4)
    columns = {"c1": ["a", "b"] * 50, "x": rng.normal(size=100), "c2": ["p"] * 100, "score": np.zeros(100)}
    fitted = reference(columns, rng.random(300))
    detector = BuiltinDetector()
    detector.fit("1", fitted)
    found = detector.score("1", Window(*fitted.encode(columns), rng.random(80).astype(np.float32) / 2))
    assert [(s.feature, s.kind) for s in found] == [
        ("x", "numeric"),
        ("score", "numeric"),
        ("c1", "categorical"),
        ("c2", "categorical"),
        ("score", "score"),
    ]
    assert [s.effect for s in found[:4]] == [0, 0, 0, 0]
    assert found[-1].effect > 0.3
    assert found[-1].rows == 80


def test_a_known_key_is_left_as_it_is() -> None:
    detector, old = BuiltinDetector(), reference({"x": [1.0, 2.0, 3.0]})
    detector.fit("1", old)
    detector.fit("1", reference({"x": [10.0, 20.0, 30.0]}))
    window = Window(*old.encode({"x": [1.0, 2.0, 3.0]}), np.float32([0.5]))
    assert detector.score("1", window)[0].statistic == 0


def test_a_window_without_rows_is_not_evidence() -> None:
    found = scores({"x": [1.0, 2.0], "c": ["a", "b"]}, {"x": [], "c": []}, live=[])
    assert {(s.statistic, s.p_value, s.effect, s.psi, s.rows, s.missing_share) for s in found.values()} == {
        (0, 1, 0, 0, 0, 0)
    }


@pytest.mark.parametrize(
    ("key", "numeric", "codes", "says"),
    [
        ("2", np.zeros((3, 1)), [0, 0, 0], "fit"),
        ("1", np.zeros((3, 2)), [0, 0, 0], "encode"),
        ("1", np.zeros((3, 1)), [0, 0, 7], "encode"),
        ("1", np.zeros((3, 1)), [0, 0, -2], "encode"),
    ],
)
def test_a_window_of_another_reference_is_refused(key: str, numeric: Any, codes: list[int], says: str) -> None:
    detector = BuiltinDetector()
    detector.fit("1", reference({"x": [1.0], "c": ["a"]}))
    window = Window(numeric.astype(np.float32), np.array(codes, np.int32)[:, None], np.float32([0.5]))
    with pytest.raises(DetectorError, match=says):
        detector.score(key, window)


def test_many_categories_raise_no_alarm_and_a_change_among_them_does() -> None:
    """5,000 shops by Zipf's law: with one cell per shop, every fourth quiet window of 150 rows has such a p-value."""
    random = np.random.default_rng(1)
    shares = 1 / np.arange(1, 5001)
    shares /= shares.sum()

    def shops(rows: int, moved: float = 0.0) -> list[str]:
        drawn = random.choice(5000, rows, p=shares)
        drawn = np.where(random.random(rows) < moved, 40 + drawn % 20, drawn)
        return [f"s{number}" for number in drawn]

    fitted = reference({"c": shops(10_000)})
    detector = BuiltinDetector()
    detector.fit("1", fitted)

    def found(rows: int, moved: float = 0.0) -> Score:
        return detector.score("1", Window(*fitted.encode({"c": shops(rows, moved)}), np.float32([0.5])))[0]

    quiet = [found(rows) for rows in [150] * 200 + [2000] * 20]
    assert np.mean([score.p_value < 0.01 for score in quiet]) < 0.05
    assert all(score.missing_share == 0 for score in quiet), "a rare shop counts as another shop, not as a missing one"
    assert found(500, moved=0.5).p_value < 1e-6

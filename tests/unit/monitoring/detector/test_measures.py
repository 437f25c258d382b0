import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, kstwo

from kubeloop.monitoring.detector.measures import (
    chi_square,
    corrected_distance,
    cramers_v,
    effect_interval,
    evidence,
    ks_p_values,
    psi,
)

counts = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("n", "m"),
    [(1, 2), (5, 3), (100, 150), (300, 300), (10_000, 200), (10_000, 2_000), (100_000, 2_000), (400_000, 300_000)],
)
def test_p_values_are_scipys_over_the_whole_range(n: int, m: int) -> None:
    size = np.round(n * m / (n + m))
    z = np.concatenate([np.linspace(0, 5, 40), [8, 12, 30]])
    distances = [*np.minimum(z / np.sqrt(size), 1), 1 / size, 1.5 / size, 0.5, 1][:: 1 if size < 1e5 else 7]
    expected = kstwo.sf(distances, size)
    found = ks_p_values(distances, [n] * len(distances), [m] * len(distances))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_p_values_of_mixed_sizes_keep_their_order() -> None:
    n, m, d = [10_000, 50, 10_000, 0], [2_000, 40, 1_000, 5], [0.02, 0.3, 0.2, 0.0]
    alone = [ks_p_values([d[i]], [n[i]], [m[i]])[0] for i in range(4)]
    assert ks_p_values(d, n, m) == alone
    assert alone[3] == 1


def test_one_row_against_one_is_not_evidence() -> None:
    assert ks_p_values([1.0], [1], [1]) == [1.0]


@settings(max_examples=200, deadline=None)
@given(pairs=counts)
def test_chi_square_is_scipys(pairs: list[tuple[int, int]]) -> None:
    table = np.array(pairs).T
    found = chi_square(*table)
    seen = table[:, table.sum(axis=0) > 0]
    if not table.sum(axis=1).all():
        assert found == (0.0, 1.0)
        return
    expected = chi2_contingency(seen, correction=False)
    assert found == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("reference", [200, 10_000, 1_000_000])
def test_cramers_v_does_not_shrink_with_a_larger_reference(reference: int) -> None:
    effect = cramers_v(np.array([reference // 2] * 2), np.array([180, 20]))
    table = np.array([[100, 100], [180, 20]])
    found = chi2_contingency(table, correction=False).statistic / table.sum()
    rows = 4 * reference * 200 / (reference + 200)
    assert effect == pytest.approx(np.sqrt((found - 1 / (rows - 1)) / (1 - 1 / (rows - 1))), abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(pairs=counts)
def test_cramers_v_is_a_symmetric_share(pairs: list[tuple[int, int]]) -> None:
    one, other = np.array(pairs).T
    assert 0 <= cramers_v(one, other) <= 1
    assert cramers_v(one, other) == pytest.approx(cramers_v(other, one))
    assert cramers_v(one, 3 * one) == pytest.approx(0, abs=1e-9)


def test_cramers_v_of_no_common_category_is_one() -> None:
    assert cramers_v(np.array([0, 7, 3]), np.array([5, 0, 0])) == pytest.approx(1)


def test_psi_by_hand() -> None:
    expected = (0.7 - 0.5) * np.log(0.7 / 0.5) + (0.3 - 0.5) * np.log(0.3 / 0.5)
    assert psi(np.array([50, 50]), np.array([700, 300])) == pytest.approx(expected)


def test_psi_of_an_empty_bin_is_finite() -> None:
    expected = (1 - 0.5) * np.log(1 / 0.5) + (1e-4 - 0.5) * np.log(1e-4 / 0.5)
    assert psi(np.array([50, 50]), np.array([10, 0])) == pytest.approx(expected)


def test_an_empty_side_has_no_effect() -> None:
    nothing, something = np.array([0, 0]), np.array([1, 2])
    assert [psi(nothing, something), psi(something, nothing)] == [0, 0]
    assert [cramers_v(nothing, something), cramers_v(something, nothing)] == [0, 0]


def test_many_categories_in_few_rows_are_not_an_effect() -> None:
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 49)
    shares /= shares.sum()
    before = rng.multinomial(10_000, shares)
    plain, found = [], []
    for window in rng.multinomial(150, shares, size=300):
        p, q = before / before.sum(), window / 150
        plain.append(float(np.sqrt(((p - q) ** 2 / np.maximum(p + q, 1e-12)).sum() / 2)))
        found.append(cramers_v(before, window))
    assert np.median(plain) > 0.25, "without the correction, it was over the threshold of 0.2"
    assert np.median(found) < 0.1
    assert np.mean(np.array(found) >= 0.2) < 0.05
    moved = [cramers_v(before, window) for window in rng.multinomial(150, shares[::-1], size=50)]
    assert min(moved) > 0.5, "a real change is still seen"


@pytest.mark.parametrize("k", [2, 5, 48])
def test_the_corrected_effect_is_that_of_many_rows(k: int) -> None:
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.full(k, 5.0)), rng.dirichlet(np.full(k, 5.0))
    true = float(np.sqrt(((p - q) ** 2 / (p + q)).sum() / 2))
    before = rng.multinomial(10_000, p)
    found = [cramers_v(before, window) for window in rng.multinomial(150, q, size=400)]
    assert np.mean(found) == pytest.approx(true, abs=0.03)
    low, high = np.transpose([effect_interval(value, evidence(10_000, 150), k) for value in found])
    assert np.mean((low <= true) & (true <= high)) >= 0.92, "nominal 0.95, with a standard error of 0.011"


@pytest.mark.parametrize("values", [2, 3, 1000])
@pytest.mark.parametrize("rows", [30, 200])
def test_a_distance_without_drift_is_nearly_none_in_few_rows(values: int, rows: int) -> None:
    rng = np.random.default_rng(2)
    steps = np.arange(1, values + 1) / values
    found, plain = [], []
    for _ in range(400):
        drawn = np.bincount(rng.integers(0, values, rows), minlength=values)
        distance = float(np.abs(np.cumsum(drawn) / rows - steps).max())
        plain.append(distance**2)
        found.append(corrected_distance(distance, steps, rows) ** 2)
    assert np.mean(found) < 0.6 * np.mean(plain)
    assert np.median(found) < 1e-2


def test_an_effect_of_everything_stays_one() -> None:
    assert corrected_distance(1.0, np.array([0.5, 1.0]), 10) == 1
    assert effect_interval(1.0, 100) == (pytest.approx(1 - 0.098, abs=1e-3), 1)
    assert effect_interval(0.3, 0) == (0, 1)

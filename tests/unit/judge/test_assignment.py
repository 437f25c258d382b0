"""Which arm a unit gets: by chance over units, always the same, and only ever more of them."""

import numpy as np
from scipy import stats

from kubeloop.judge.assignment import bucket, is_canary


def test_places_are_uniform_and_differ_by_experiment() -> None:
    units = [f"entity-{number}" for number in range(5_000)]
    first = np.array([bucket("salt", "v7", unit) for unit in units])
    second = np.array([bucket("salt", "v8", unit) for unit in units])
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert first.tolist() == [bucket("salt", "v7", unit) for unit in units]
    assert not np.array_equal(first, [bucket("pepper", "v7", unit) for unit in units])


def test_a_growing_canary_moves_nobody_back() -> None:
    places = [bucket("salt", "v7", str(number)) for number in range(5_000)]
    small, large = ({n for n, place in enumerate(places) if is_canary(place, share)} for share in (0.05, 0.25))
    assert small < large
    assert 0.04 < len(small) / 5_000 < 0.06
    assert not any(is_canary(place, 0.0) for place in places)
    assert all(is_canary(place, 1.0) for place in places)

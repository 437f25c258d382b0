from datetime import timedelta

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest

from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.maker import BinaryMaker
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.tabular import export, training

# onnxmltools writes booleans where ONNX expects integers.
pytestmark = pytest.mark.filterwarnings("ignore:Field onnx:DeprecationWarning")

Parts = tuple[pd.DataFrame, pd.DataFrame]


MAKER = BinaryMaker(BINARY)


def test_every_algorithm_predicts_the_same_as_a_graph(fitted: training.Fitted, parts: Parts) -> None:
    """The hold-out contains missing, infinite and unseen values (see the fixture)."""
    model = export.to_onnx(fitted)
    found = export.parity(model, fitted, parts[1])
    assert found.rows == len(parts[1])
    assert 0 <= found.mean_abs_difference <= found.max_abs_difference < 1e-6


def test_missing_and_unseen_values_are_served_as_they_were_trained(fitted: training.Fitted, parts: Parts) -> None:
    rows = parts[1].head(60).copy()
    rows["carrier"] = ([None, "", "never seen", "é", np.nan, "AA"] * 10)[: len(rows)]
    rows["tail"] = None
    for position, name in enumerate(("distance", "stamp", "seats", "constant", "absent")):
        rows[name] = rows[name].astype(float).where(np.arange(len(rows)) % 7 != position)
    rows.loc[rows.index[:3], "stamp"] = [np.inf, -np.inf, 3e38]
    found = export.parity(export.to_onnx(fitted), fitted, rows)
    assert found.max_abs_difference < 1e-6
    served = _run(export.to_onnx(fitted), fitted, rows)
    assert served[0] == pytest.approx(fitted.predict(rows.head(1).assign(stamp=np.nan))[0], abs=1e-6), (
        "infinite counts as missing"
    )


def test_missing_numbers_take_the_same_branch_at_every_threshold(fitted: training.Fitted, parts: Parts) -> None:
    """Each numeric feature in turn takes values at its thresholds and next to them.

    Meanwhile the other features are present, missing or infinite. The thresholds are float64, and ONNX compares
    float32. For a missing number, a tree follows its own default.
    """
    rows = []
    for position, values in _thresholds(fitted).items():
        name = fitted.encoder.names[position]
        near = np.unique(values.clip(-3e38, 3e38).astype(np.float32))[:40]
        ends = np.float32([-np.inf, np.inf])
        at = np.concatenate([near, *(np.nextafter(near, end) for end in ends)])
        for others in (0.0, np.nan, np.inf, None):
            part = parts[1].iloc[np.arange(len(at)) % len(parts[1])].astype({"seats": float, "night": float})
            if others is not None:
                part = part.assign(**dict.fromkeys(fitted.encoder.fills, others))
            rows.append(part.assign(**{name: at}))
    empty = parts[1].head(3).assign(**dict.fromkeys(fitted.encoder.fills, np.nan), carrier=None, tail=None)
    together = pd.concat([*rows, empty], ignore_index=True)
    assert together[list(fitted.encoder.fills)].isna().all(axis=1).any()
    assert export.parity(export.to_onnx(fitted), fitted, together).max_abs_difference < 1e-6


def _thresholds(fitted: training.Fitted) -> dict[int, np.ndarray]:
    """Return the thresholds of each numeric column in a model's trees, or some values for a model without trees."""
    numeric, estimator = range(len(fitted.encoder.fills)), fitted.heads.estimators[0]
    if fitted.algorithm == "lightgbm":
        splits = estimator.booster_.trees_to_dataframe().dropna(subset=["threshold"])
        features, values = splits["split_feature"].str.removeprefix("Column_").astype(int), splits["threshold"]
    elif fitted.algorithm == "random_forest":
        features = pd.Series(np.concatenate([tree.tree_.feature for tree in estimator.estimators_]))
        values = pd.Series(np.concatenate([tree.tree_.threshold for tree in estimator.estimators_]))
    elif fitted.algorithm == "hist_gradient_boosting":
        nodes = np.concatenate([tree.nodes for stage in estimator._predictors for tree in stage])
        nodes = nodes[nodes["is_leaf"] == 0]
        features, values = pd.Series(nodes["feature_idx"]), pd.Series(nodes["num_threshold"])
    else:
        return dict.fromkeys(numeric, np.linspace(-2, 2, 9))
    return {column: values[features == column].to_numpy() for column in numeric if (features == column).any()}


def _run(model: onnx.ModelProto, fitted: training.Fitted, rows: pd.DataFrame) -> np.ndarray:
    return export.predict(BINARY, model.SerializeToString(), fitted.encoder.kinds, rows)


def test_the_graph_has_one_input_a_feature_and_one_output(fitted: training.Fitted) -> None:
    model = export.to_onnx(fitted)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert [tensor.name for tensor in session.get_inputs()] == list(fitted.encoder.columns)
    assert {tensor.name: (tensor.type, tensor.shape) for tensor in session.get_inputs()} == {
        name: ("tensor(float)" if kind == "numeric" else "tensor(string)", ["batch"])
        for name, kind in fitted.encoder.kinds.items()
    }
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("probability", "tensor(float)", ["batch"])
    assert model.ir_version == 8
    assert {item.domain: item.version for item in model.opset_import} == {"": 17, "ai.onnx.ml": 3}


def test_rows_may_come_alone_or_not_at_all(fitted: training.Fitted, parts: Parts) -> None:
    model = export.to_onnx(fitted)
    together = _run(model, fitted, parts[1].head(20))
    alone = [_run(model, fitted, parts[1].iloc[[row]])[0] for row in range(20)]
    assert together == pytest.approx(alone, abs=1e-7)
    assert _run(model, fitted, parts[1].head(0)).shape == (0,)


@pytest.mark.parametrize("columns", [["distance"], ["carrier"]])
@pytest.mark.parametrize("algorithm", ["lightgbm", "logistic_regression", "random_forest", "hist_gradient_boosting"])
def test_one_feature_is_enough(algorithm: str, columns: list[str], parts: Parts) -> None:
    train, holdout = (part[["event_id", "event_timestamp", "label", *columns]] for part in parts)
    fitted = training.fit(MAKER, train, binary.Training(algorithm=algorithm, threads=1))
    assert export.parity(export.to_onnx(fitted), fitted, holdout).max_abs_difference < 1e-6


@pytest.mark.parametrize("algorithm", ["lightgbm", "logistic_regression", "random_forest", "hist_gradient_boosting"])
def test_a_model_that_learned_nothing_predicts_its_prior(algorithm: str, parts: Parts) -> None:
    train = parts[0][["event_id", "event_timestamp", "label", "constant"]]
    fitted = training.fit(MAKER, train, binary.Training(algorithm=algorithm, threads=1))
    served = _run(export.to_onnx(fitted), fitted, train.head(5))
    assert served == pytest.approx([train["label"].mean()] * 5, abs=0.01)
    assert fitted.importance() == {"constant": 1.0}


@pytest.mark.parametrize("algorithm", ["lightgbm", "random_forest", "hist_gradient_boosting"])
@pytest.mark.parametrize("start", [-1.7e9, -1.0, 0.0, 1e-38, 1.0, 16777214.0, 1.7e9])
def test_neighbouring_float32_values_fall_on_the_same_side(algorithm: str, start: float) -> None:
    """A threshold between two neighbours is not a float32 value: rounding it to nearest would move some rows."""
    steps = [np.float32(start)]
    for _ in range(39):
        steps.append(np.nextafter(steps[-1], np.float32(np.inf)))
    x = np.tile(np.array(steps), 100)
    random = np.random.default_rng(2)
    y = (random.random(len(x)) < np.where(np.arange(len(x)) % 40 % 2, 0.9, 0.1)).astype(int)
    frame = pd.DataFrame({"event_id": "e", "event_timestamp": pd.Timestamp("2024-01-01", tz="UTC"), "label": y, "x": x})
    settings = binary.Training(algorithm=algorithm, parameters=_TINY[algorithm], threads=1)
    fitted = training.fit(MAKER, frame, settings)
    if start not in (0.0, 1e-38) and algorithm != "random_forest":
        assert np.unique(fitted.predict(frame)).size > 10, "the model tells neighbours apart"
    assert export.parity(export.to_onnx(fitted), fitted, frame).max_abs_difference < 1e-6


_TINY: dict[str, dict[str, int | float]] = {
    "lightgbm": {"n_estimators": 30, "min_child_samples": 5},
    "random_forest": {"n_estimators": 10, "min_samples_leaf": 5},
    "hist_gradient_boosting": {"max_iter": 30, "min_samples_leaf": 5},
}


@pytest.mark.parametrize("algorithm", ["lightgbm", "logistic_regression", "random_forest", "hist_gradient_boosting"])
def test_real_flights_pass(algorithm: str, flights: pd.DataFrame) -> None:
    """Flights that did not leave have no delay and no air time, and the label follows from that."""
    train, holdout = training.split(BINARY, flights, timedelta(days=5))
    fitted = training.fit(MAKER, train, binary.Training(algorithm=algorithm, parameters=_FEW[algorithm], threads=1))
    assert holdout["dep_delay"].isna().any()
    assert fitted.encoder.flags or np.isnan(fitted.encoder.fills["dep_delay"])
    assert not set(holdout["tailnum"].dropna()) <= set(train["tailnum"])
    assert export.parity(export.to_onnx(fitted), fitted, flights).rows == 20_000


_FEW: dict[str, dict[str, int | float]] = {
    "lightgbm": {},
    "logistic_regression": {},
    "random_forest": {"n_estimators": 20},
    "hist_gradient_boosting": {"max_iter": 40},
}


def test_a_graph_of_another_model_fails_and_shows_the_worst_rows(fitted: training.Fitted, parts: Parts) -> None:
    other = training.fit(MAKER, parts[0], binary.Training(algorithm="logistic_regression", parameters={"C": 1e-6}))
    with pytest.raises(export.ExportError, match=rf"rows differ by more than 1e-05 .* {fitted.algorithm}") as raised:
        export.parity(export.to_onnx(other), fitted, parts[1])
    gaps = np.abs(fitted.predict(parts[1]) - other.predict(parts[1]))
    assert f"\n{parts[1].index[gaps.argmax()]} " in str(raised.value)


def test_a_graph_that_predicts_nan_fails(fitted: training.Fitted, parts: Parts) -> None:
    model = export.to_onnx(fitted)
    for node in model.graph.node:
        for position, name in enumerate(node.output):
            if name == "probability":
                node.output[position] = "sound"
    model.graph.node.append(onnx.helper.make_node("Sub", ["sound", "sound"], ["zero"]))
    model.graph.node.append(onnx.helper.make_node("Div", ["zero", "zero"], ["probability"]))
    with pytest.raises(export.ExportError, match=f"{len(parts[1])} of {len(parts[1])} rows differ"):
        export.parity(model, fitted, parts[1])


def test_parity_needs_rows(fitted: training.Fitted, parts: Parts) -> None:
    with pytest.raises(export.ExportError, match="pass the hold-out"):
        export.parity(export.to_onnx(fitted), fitted, parts[1].head(0))


def test_a_feature_cannot_take_the_outputs_name(parts: Parts) -> None:
    train = parts[0][["event_id", "event_timestamp", "label", "distance"]].rename(columns={"distance": "probability"})
    fitted = training.fit(MAKER, train, binary.Training(algorithm="logistic_regression"))
    with pytest.raises(export.ExportError, match="rename it"):
        export.to_onnx(fitted)


def test_latency_is_measured_for_one_and_a_hundred_rows(fitted: training.Fitted, parts: Parts) -> None:
    content = export.to_onnx(fitted).SerializeToString()
    found = export.latency(content, fitted.encoder.kinds, parts[1].head(30), repeats=20)
    assert set(found) == {
        "latency_1_p50_ms", "latency_1_p99_ms", "latency_100_p50_ms", "latency_100_p99_ms", "size_bytes",
    }  # fmt: skip
    assert 0 < found["latency_1_p50_ms"] <= found["latency_1_p99_ms"]
    assert found["size_bytes"] == len(content)

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kubeloop import config, encoding, evaluation, export, model_folder, reference, training

Parts = tuple[pd.DataFrame, pd.DataFrame]


@pytest.fixture(scope="module")
def small(parts: Parts) -> training.Fitted:
    return training.fit(parts[0], config.Training(parameters={"n_estimators": 20}, threads=1))


@pytest.fixture
def folder(small: training.Fitted, parts: Parts, tmp_path: Path) -> Path:
    model_folder.write(tmp_path / "model", small, export.to_onnx(small), *parts, name="flights", max_rows=500)
    return tmp_path / "model"


def test_the_folder_is_what_the_architecture_says(folder: Path, small: training.Fitted, parts: Parts) -> None:
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "model.onnx", "model.json", "reference/reference.toml", "reference/numeric.npy", "reference/categorical.npy",
        "reference/score.npy",
    }  # fmt: skip
    card = json.loads((folder / "model.json").read_text())
    assert card["name"] == "flights"
    assert card["sha256"] == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert card["features"] == [{"name": name, "kind": kind} for name, kind in small.encoder.kinds.items()]
    assert card["trained_from"] == parts[0]["event_timestamp"].min().isoformat()
    assert card["trained_to"] == parts[0]["event_timestamp"].max().isoformat()
    assert card["algorithm"] == "lightgbm"
    assert card["parameters"]["n_estimators"] == 20
    expected = evaluation.score(parts[1]["label"], small.predict(parts[1]))
    for name, value in expected.items():
        assert card["metrics"][name] == pytest.approx(value, abs=1e-5)
    assert card["metrics"]["size_bytes"] == (folder / "model.onnx").stat().st_size


def test_what_is_written_is_read(small: training.Fitted, parts: Parts, tmp_path: Path) -> None:
    written = model_folder.write(tmp_path, small, export.to_onnx(small), *parts, name="flights")
    assert model_folder.read(tmp_path) == written


def test_the_same_model_has_the_same_digest(small: training.Fitted, parts: Parts, tmp_path: Path) -> None:
    again = training.fit(parts[0], config.Training(parameters={"n_estimators": 20}, threads=1))
    digests = {
        model_folder.write(tmp_path, fitted, export.to_onnx(fitted), *parts, name="flights").sha256
        for fitted in (small, again)
    }
    assert len(digests) == 1


def test_a_stored_model_predicts_new_rows(folder: Path, small: training.Fitted, parts: Parts) -> None:
    got = model_folder.predict(folder, parts[1].drop(columns="label"))
    assert got == pytest.approx(small.predict(parts[1]), abs=1e-6)
    with pytest.raises(encoding.EncodingError, match="'seats'"):
        model_folder.predict(folder, parts[1].drop(columns="seats"))


def test_the_reference_remembers_the_training_rows(folder: Path, small: training.Fitted, parts: Parts) -> None:
    remembered = reference.Reference.load(folder / "reference")
    assert remembered.rows == len(parts[0])
    assert remembered.numeric.shape == (500, len(small.encoder.medians))
    assert remembered.categories["carrier"] == ("AA", "B6", "DL", "é")
    assert remembered.importance == pytest.approx(small.importance())
    scores = small.predict(parts[1])
    measured = evaluation.score(parts[1]["label"], scores)
    assert remembered.auc == pytest.approx([measured[name] for name in ("auc", "auc_low", "auc_high")], abs=1e-5)
    assert np.isin(remembered.score.round(4), scores.round(4)).mean() > 0.99
    codes = remembered.categorical[:, remembered.categorical_names.index("carrier")]
    assert (codes == reference.ABSENT).mean() == pytest.approx(1 / 11, abs=0.04)


def test_an_undefined_metric_is_null_in_the_card(small: training.Fitted, parts: Parts, tmp_path: Path) -> None:
    quiet = parts[1].query("label == 0")
    card = model_folder.write(tmp_path, small, export.to_onnx(small), parts[0], quiet, name="flights")
    assert card.metrics["auc"] is None
    assert json.loads((tmp_path / "model.json").read_text())["metrics"]["auc"] is None
    assert math.isfinite(card.metrics["brier"] or math.nan)


def test_a_graph_that_differs_is_never_written(small: training.Fitted, parts: Parts, tmp_path: Path) -> None:
    other = training.fit(parts[0], config.Training(algorithm="logistic_regression"))
    with pytest.raises(export.ExportError):
        model_folder.write(tmp_path / "model", small, export.to_onnx(other), *parts, name="flights")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.onnx", b"another", "but its card says"),
        ("model.onnx", None, "model.onnx cannot be read"),
        ("model.json", b"{}", "is no model card"),
        ("model.json", b"not json", "model.json is damaged"),
        ("model.json", None, "model.json cannot be read"),
    ],
)
def test_damage_is_found(folder: Path, file: str, content: bytes | None, message: str, parts: Parts) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(model_folder.ModelFolderError, match=f"{message}.*train the model again"):
        model_folder.predict(folder, parts[1])

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kubeloop.stores import kept
from kubeloop.tasks import reference
from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.maker import BinaryMaker
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.tabular import encoding, export, model_folder, training

Parts = tuple[pd.DataFrame, pd.DataFrame]


MAKER = BinaryMaker(BINARY)


@pytest.fixture(scope="module")
def small(parts: Parts) -> training.Fitted:
    return training.fit(MAKER, parts[0], binary.Training(parameters={"n_estimators": 20}, threads=1))


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
    expected = BINARY.score(parts[1]["label"], small.predict(parts[1]))
    for name, value in expected.items():
        assert card["metrics"][name] == pytest.approx(value, abs=1e-5)
    assert card["metrics"]["size_bytes"] == (folder / "model.onnx").stat().st_size


def test_what_is_written_is_read(small: training.Fitted, parts: Parts, tmp_path: Path) -> None:
    written, _ = model_folder.write(tmp_path, small, export.to_onnx(small), *parts, name="flights")
    assert model_folder.read(tmp_path) == written


def test_the_same_model_has_the_same_digest(small: training.Fitted, parts: Parts, tmp_path: Path) -> None:
    again = training.fit(MAKER, parts[0], binary.Training(parameters={"n_estimators": 20}, threads=1))
    digests = {
        model_folder.write(tmp_path, fitted, export.to_onnx(fitted), *parts, name="flights")[0].sha256
        for fitted in (small, again)
    }
    assert len(digests) == 1


def test_a_stored_model_predicts_new_rows(folder: Path, small: training.Fitted, parts: Parts) -> None:
    got = model_folder.predict(BINARY, folder, parts[1].drop(columns="label"))
    assert got == pytest.approx(small.predict(parts[1]), abs=1e-6)
    with pytest.raises(encoding.EncodingError, match="'seats'"):
        model_folder.predict(BINARY, folder, parts[1].drop(columns="seats"))


def test_the_reference_remembers_the_training_rows(folder: Path, small: training.Fitted, parts: Parts) -> None:
    remembered = reference.Reference.load(folder / "reference")
    assert remembered.rows == len(parts[0])
    assert remembered.numeric.shape == (500, len(small.encoder.fills))
    assert remembered.categories["carrier"] == ("AA", "B6", "DL", "é")
    assert remembered.importance == pytest.approx(small.importance())
    scores = small.predict(parts[1])
    measured = BINARY.score(parts[1]["label"], scores)
    assert remembered.measured is not None
    assert remembered.measured.metric == "auc"
    sure = [measured[name] for name in ("auc", "auc_low", "auc_high")]
    assert remembered.measured.sure == pytest.approx(sure, abs=1e-5)
    assert np.isin(remembered.score.round(4), scores.round(4)).mean() > 0.99
    codes = remembered.categorical[:, remembered.categorical_names.index("carrier")]
    assert (codes == reference.ABSENT).mean() == pytest.approx(1 / 11, abs=0.04)


def test_an_undefined_metric_is_null_in_the_card(small: training.Fitted, parts: Parts, tmp_path: Path) -> None:
    quiet = parts[1].query("label == 0")
    card, _ = model_folder.write(tmp_path, small, export.to_onnx(small), parts[0], quiet, name="flights")
    assert card.metrics["auc"] is None
    assert json.loads((tmp_path / "model.json").read_text())["metrics"]["auc"] is None
    assert math.isfinite(card.metrics["brier"] or math.nan)


def test_a_graph_that_differs_is_never_written(small: training.Fitted, parts: Parts, tmp_path: Path) -> None:
    other = training.fit(MAKER, parts[0], binary.Training(algorithm="logistic_regression"))
    with pytest.raises(export.ExportError):
        model_folder.write(tmp_path / "model", small, export.to_onnx(other), *parts, name="flights")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.onnx", b"another", "but its card says"),
        ("model.onnx", None, "model.onnx cannot be read"),
        ("model.json", b"{}", "is not a model card"),
        ("model.json", b"not json", "model.json is damaged"),
        ("model.json", None, "model.json cannot be read"),
    ],
)
def test_damage_is_found(folder: Path, file: str, content: bytes | None, message: str, parts: Parts) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(model_folder.ModelFolderError, match=f"{message}.*train the model again"):
        model_folder.predict(BINARY, folder, parts[1])


def test_a_card_without_warnings_is_read(folder: Path) -> None:
    """An older kubeloop wrote it, and its version is still the champion."""
    card = model_folder.read(folder)
    data = kept.loads(folder / "model.json")
    del data["warnings"]
    (folder / "model.json").write_text(kept.dumps(data))
    assert card.warnings
    assert model_folder.read(folder) == replace(card, warnings=[])


def _doubts(auc: float = 0.7, **columns: object) -> list[str]:
    labels = np.arange(4000) % 3 == 0
    return model_folder.doubts(
        MAKER, pd.DataFrame({"label": labels.astype(int), **columns}), {"auc": auc}, {"speed": 0.9}
    )


def test_numbers_that_float32_cannot_tell_apart_are_named() -> None:
    random = np.random.default_rng(1)
    days = 20_240_101 + random.integers(0, 28, 4000)
    columns = {
        "day": days,
        "gone": np.where(random.random(4000) < 0.1, np.nan, days.astype(float)),
        "offset": days - 20_240_101,
        "exact": 2**24 - random.integers(0, 9, 4000),
        "revenue": np.exp(random.normal(9, 4, 4000)).round(),
        "measured": random.normal(5e6, 1, 4000) + 0.5,
        "absent": np.nan,
        "text": days.astype(str),
    }
    first, second = _doubts(**columns)
    assert first.startswith("'day' holds whole numbers around 20,240,1")
    assert "tells neighbours apart only up to 16,777,216" in first
    assert second.startswith("'gone' holds whole numbers")


def test_an_auc_that_is_too_good_is_named_with_what_it_comes_from() -> None:
    noise = np.random.default_rng(1).normal(size=4000)
    assert _doubts(0.979, speed=noise) == []
    (found,) = _doubts(0.98, speed=noise)
    assert found.startswith("an AUC of 0.980 is too good for most tables; 90% of it comes from 'speed'")
    assert _doubts(math.nan, speed=noise) == []

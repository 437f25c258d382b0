"""MLflow's own reader of a registered model, for every kind of task."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from kubeloop import config
from kubeloop.config import Loop
from kubeloop.models import registry
from kubeloop.tasks.tabular import export, maker, model_folder, training

BASE = {"name": "parcels", "source": {"tables": {"t": {"available_at": "at"}}}, "features": {"service": "v1"}}
CLASSES = ("low", "mid", "high")
FAST = {"parameters": {"n_estimators": 5}, "threads": 1}


@pytest.mark.parametrize(
    ("section", "labels"),
    [
        ({"task": "binary", "training": FAST}, lambda level: (level > 0).astype(int)),
        (
            {"task": "multiclass", "training": {**FAST, "classes": CLASSES}},
            lambda level: np.array(CLASSES)[np.digitize(level, [-1, 1])],
        ),
        ({"task": "regression", "training": FAST}, lambda level: 10 * level),
    ],
    ids=["binary", "multiclass", "regression"],
)
def test_mlflow_predicts_with_a_registered_model(section: dict[str, Any], labels: Any, tmp_path: Path) -> None:
    loop, random = Loop.model_validate(BASE | section), np.random.default_rng(0)
    level = random.normal(size=900)
    moments = pd.date_range("2024-01-01", periods=900, freq="1h", tz="UTC")
    shop = random.choice(["a", "b"], 900)
    frame = pd.DataFrame({"event_timestamp": moments, "label": labels(level), "x": level, "shop": shop})
    ours, folder = maker.of(loop), tmp_path / "model"
    learn, holdout = training.split(ours.task, frame, timedelta(days=10))
    fitted = training.fit(ours, learn, loop.training)
    model_folder.write(folder, fitted, export.to_onnx(fitted), learn, holdout, name="parcels")
    version = registry.register(config.settings(tmp_path, tmp_path / "state"), loop, folder, run="r", tags={})

    model = mlflow.pyfunc.load_model(version.uri)
    # MLflow looks at row 0 by its label.
    asked = holdout[["x", "shop"]].astype({"x": np.float32}).reset_index(drop=True)
    found = model.predict(asked)
    assert ours.task.read(found) == pytest.approx(model_folder.predict(ours.task, folder, holdout), abs=1e-6)
    assert len(model.predict(model.input_example)[ours.task.tensors[0].name]) == len(model.input_example)

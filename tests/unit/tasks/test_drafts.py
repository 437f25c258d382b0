"""The limits that `init` writes are for the metric that the loop names, and the first model meets them."""

import numpy as np
import pytest

from kubeloop.config import kinds
from kubeloop.tasks.tabular import maker

RANDOM = np.random.default_rng(3)
CLASSES = ("a", "b", "c")


def multiclass() -> tuple[np.ndarray, np.ndarray]:
    logits = RANDOM.normal(size=(500, 3))
    answers = np.exp(2 * logits) / np.exp(2 * logits).sum(axis=1, keepdims=True)
    return (RANDOM.random((500, 1)) > answers.cumsum(axis=1)).sum(axis=1).clip(max=2).astype(float), answers


def regression() -> tuple[np.ndarray, np.ndarray]:
    value = RANDOM.normal(50, 10, 500)
    return value + RANDOM.normal(0, 4, 500), value[:, None] + np.array([0, -6.6, 6.6])


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("multiclass", name) for name in ("log_loss", "macro_f1", "balanced_accuracy", "accuracy", "top_k")]
    + [("regression", name) for name in ("rmse", "mae", "r2", "pinball", "coverage")],
)
def test_the_first_model_is_within_its_limits(kind: str, metric: str) -> None:
    y, answers = multiclass() if kind == "multiclass" else regression()
    own = {"classes": CLASSES} if kind == "multiclass" else {}
    ours = maker.make(kind, kinds.settings(kind).Training(**own), metric)
    metrics = ours.task.score(y, answers)
    found = ours.draft(y, metrics)
    assert all(metrics[name] >= floor for name, floor in found.floors.items())
    assert all(metrics[name] <= ceiling for name, ceiling in found.ceilings.items())
    if "limit" in found.watch:
        worse = (found.watch["limit"] - metrics[metric]) * ours.task.headline.better
        assert worse <= 0, "otherwise the monitor would call the first model broken"
    assert found.poor is None

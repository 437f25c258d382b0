"""Every kind's metrics compared with scikit-learn's, its weighted forms, and its models with every algorithm."""

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from kubeloop.config import Loop, kinds
from kubeloop.models import gates
from kubeloop.tasks import intervals, slices
from kubeloop.tasks.multiclass.task import Multiclass
from kubeloop.tasks.port import EvaluationError, Task
from kubeloop.tasks.regression.task import Regression
from kubeloop.tasks.tabular import candidate, export, maker, model_folder, training
from kubeloop.tasks.tabular import holdout as held_out

ROWS = 400
CLASSES = ("low", "mid", "high", "never")
FAST: dict[str, dict[str, Any]] = {
    "lightgbm": {"n_estimators": 30},
    "random_forest": {"n_estimators": 10},
    "hist_gradient_boosting": {"max_iter": 20},
    "logistic_regression": {},
    "ridge": {},
}
LOOP = {"name": "x", "source": {"tables": {"t": {"available_at": "at"}}}, "features": {"service": "v1"}}


def classes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    p = random.dirichlet([1, 1, 1, 0.2], ROWS)
    return np.array([random.choice(4, p=row) for row in p]).astype(float), p


def numbers(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    value = random.normal(50, 10, ROWS)
    y = value + random.normal(0, 4, ROWS)
    return y, np.stack([value, value - 6 - random.random(ROWS), value + 6], axis=1)


MULTI, NUMBER = Multiclass(CLASSES), Regression(0.9)
OURS: dict[str, tuple[Task, Callable[..., tuple[np.ndarray, np.ndarray]]]] = {
    "multiclass": (MULTI, classes),
    "regression": (NUMBER, numbers),
}
THEIRS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "log_loss": lambda y, p: reference.log_loss(y, p, labels=range(4)),
    "macro_f1": lambda y, p: reference.f1_score(y, p.argmax(1), average="macro"),
    "balanced_accuracy": lambda y, p: reference.balanced_accuracy_score(y, p.argmax(1)),
    "accuracy": lambda y, p: reference.accuracy_score(y, p.argmax(1)),
    "top_k": lambda y, p: reference.top_k_accuracy_score(y, p, k=2, labels=range(4)),
    "rmse": lambda y, p: reference.root_mean_squared_error(y, p[:, 0]),
    "mae": lambda y, p: reference.mean_absolute_error(y, p[:, 0]),
    "r2": lambda y, p: reference.r2_score(y, p[:, 0]),
    "pinball": lambda y, p: (
        (reference.mean_pinball_loss(y, p[:, 1], alpha=0.05) + reference.mean_pinball_loss(y, p[:, 2], alpha=0.95)) / 2
    ),
    "coverage": lambda y, p: float(((p[:, 1] <= y) & (y <= p[:, 2])).mean()),
}
EVERY = [(kind, name) for kind, (task, _) in OURS.items() for name in task.metrics if name in THEIRS]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_metric_is_that_of_scikit_learn_and_its_weighted_form_that_of_repeated_rows(kind: str, name: str) -> None:
    task, make = OURS[kind]
    y, p = make()
    assert task.score(y, p)[name] == pytest.approx(THEIRS[name](y, p))
    groups = np.arange(ROWS) % 12
    drawn = np.random.default_rng(1).multinomial(11, np.full(12, 1 / 12), size=5)
    expected = [THEIRS[name](np.repeat(y, row[groups]), np.repeat(p, row[groups], axis=0)) for row in drawn]
    assert task.weighted(name, y, p, groups)(drawn) == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_an_interval_holds_the_truth_about_as_often_as_it_says(kind: str, name: str) -> None:
    task, make = OURS[kind]
    samples = [make(seed) for seed in range(60)]
    truth = np.mean([task.metrics[name].value(y, p) for y, p in samples])
    found = [task.metrics[name].interval(y, p) for y, p in samples]
    inside = np.mean([sure.low <= truth <= sure.high for sure in found])
    assert inside > 0.85, inside
    assert all(sure.low <= sure.value <= sure.high for sure in found)


def test_a_bootstrap_deals_many_rows_into_groups() -> None:
    y, p = numbers()
    many = np.tile(y, 20), np.tile(p, (20, 1))
    small, large = NUMBER.metrics["r2"].interval(y, p), NUMBER.metrics["r2"].interval(*many)
    assert large.value == pytest.approx(small.value)
    assert (large.high - large.low) == pytest.approx((small.high - small.low) / math.sqrt(20), rel=0.3)


def test_windows_together_are_as_sure_as_one_of_all_rows() -> None:
    y, p = numbers()
    parts = [NUMBER.headline.interval(y[at::4], p[at::4]) for at in range(4)]
    mixed, whole = intervals.mixed(parts, [100] * 4), NUMBER.headline.interval(y, p)
    assert mixed.value == pytest.approx(whole.value, rel=0.05)
    assert mixed.high - mixed.low == pytest.approx(whole.high - whole.low, rel=0.2)


@pytest.mark.parametrize(
    ("task", "y", "p", "message"),
    [
        (MULTI, [0.0], [[0.5, 0.5, 0.0]], r"\[n\] and \[n, 4\]"),
        (MULTI, [4.0], [[1.0, 0, 0, 0]], "one of training.classes"),
        (MULTI, [0.0], [[0.5, 0, 0, 0]], "sum to 1"),
        (MULTI, [0.0], [[math.nan, 0, 0, 1]], "between 0 and 1"),
        (NUMBER, [0.0], [1.0], r"\[n\] and \[n, 3\]"),
        (NUMBER, [math.nan], [[0.0, 0, 0]], "labels must be numbers"),
        (NUMBER, [0.0], [[math.inf, 0, 0]], "answers must be numbers"),
    ],
)
def test_what_cannot_be_measured_says_why(task: Task, y: list[float], p: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        task.score(y, p)


@pytest.mark.parametrize(
    ("task", "value", "number"),
    [
        (MULTI, "mid", 1.0),
        (MULTI, "medium", None),
        (MULTI, None, None),
        (Multiclass(["0", "7", "true"]), 7, 1.0),
        (Multiclass(["0", "7", "true"]), 7.0, 1.0),
        (Multiclass(["0", "7", "true"]), True, 2.0),
        (NUMBER, 3, 3.0),
        (NUMBER, "3", None),
        (NUMBER, True, None),
        (NUMBER, math.inf, None),
    ],
)
def test_a_label_from_a_client(task: Task, value: object, number: float | None) -> None:
    if number is None:
        with pytest.raises(ValueError, match="a label must be"):
            task.label(value)
    else:
        assert task.label(value) == number


def table(kind: str, rows: int = 3000) -> pd.DataFrame:
    """Rows with a missing value, an informative category, and a label of the given kind."""
    random = np.random.default_rng(2)
    x, shop = random.normal(size=rows), random.choice(["a", "b", "c", ""], rows)
    weight = np.where(random.random(rows) < 0.1, np.nan, random.normal(size=rows))
    level = x + np.where(shop == "a", 2, 0) + np.nan_to_num(weight, nan=1.5) + random.normal(0, 0.5, rows)
    label = 1000 + 50 * level if kind == "regression" else np.array(CLASSES)[np.digitize(level, [-1, 1.5])]
    return pd.DataFrame(
        {
            "event_id": [f"e{row}" for row in range(rows)],
            "event_timestamp": pd.date_range("2024-01-01", periods=rows, freq="1h", tz="UTC"),
            "label": label,
            "x": x,
            "shop": shop,
            "weight": weight,
        }
    )


def algorithms() -> list[Any]:
    found = [(kind, name, {}) for kind in OURS for name in get_args(kinds.settings(kind).Algorithm)]
    quantile = {"interval": {"method": "quantile", "coverage": 0.8}}
    found += [("regression", name, quantile) for name in ("lightgbm", "hist_gradient_boosting")]
    return [pytest.param(*case, id="-".join([*case[:2], *case[2]])) for case in found]


@pytest.mark.parametrize(("kind", "algorithm", "more"), algorithms())
def test_a_model_is_exported_measured_and_judged(
    kind: str, algorithm: str, more: dict[str, Any], tmp_path: Path
) -> None:
    own = {"classes": CLASSES} if kind == "multiclass" else {}
    settings = {"algorithm": algorithm, "parameters": FAST[algorithm], "threads": 1, **own, **more}
    loop = Loop.model_validate({**LOOP, "task": kind, "training": settings, "gates": {"slice_min_rows": 50}})
    ours, frame = maker.of(loop), table(kind)
    learn, holdout = training.split(ours.task, frame, timedelta(days=20))
    fitted = training.fit(ours, learn, loop.training)
    card, answers = model_folder.write(tmp_path, fitted, export.to_onnx(fitted), learn, holdout, name="x")
    y = ours.task.truths(holdout["label"])
    assert np.array_equal(answers, model_folder.predict(ours.task, tmp_path, holdout), equal_nan=True)
    held_out.write(tmp_path / "holdout.parquet", ours.task, holdout, answers)
    kept = held_out.read(tmp_path / "holdout.parquet", ours.task)
    assert np.array_equal(kept.answers, answers)
    assert np.array_equal(kept.truths, y)
    pd.testing.assert_frame_equal(kept.rows, holdout.reset_index(drop=True))
    if kind == "multiclass":
        assert card.metrics["log_loss"] < 0.75, "the log loss by chance is 1.1"
        assert (answers[:, CLASSES.index("never")] == 0).all(), "a class without rows"
    else:
        assert card.metrics["r2"] > 0.7
        assert card.metrics["coverage"] == pytest.approx(ours.task.coverage, abs=0.06)
    parts = slices.measure(ours.task, holdout, y, answers, ["shop"], 50)
    moments = holdout["event_timestamp"].dt.tz_localize(None).to_numpy()
    shown = ours.show("x", card, maker.HoldOut(y, answers, moments, parts), tmp_path)
    assert "shop = missing" in shown.page
    scored = ours.scored(answers)
    assert all(column.shape == (len(holdout),) for column in scored.values())
    if kind == "multiclass":
        assert list(scored) == ["class", *(f"probability_{name}" for name in CLASSES)]
        assert set(scored["class"]) <= set(CLASSES)
    else:
        assert list(scored) == ["value", "low", "high"]
    assert (shown.confusion is None) == (kind == "regression")
    blocks = gates.time_blocks(moments, timedelta(days=1))
    assert gates.first(ours.task, y, answers, loop.gates).promote == (card.metrics.get("ece", 0) < 0.15)
    same = gates.compare(ours.task, y, answers, answers, loop.gates, blocks=blocks)
    assert not same.promote
    assert "gain +0.0000" in same.reason


def test_a_width_that_follows_the_features_needs_quantiles() -> None:
    frame = table("regression")
    frame["label"] += np.random.default_rng(0).normal(0, 1, len(frame)) * np.where(frame["x"] > 0.5, 200, 5)
    widths = {}
    for method in ("conformal", "quantile"):
        section = {
            "parameters": {"n_estimators": 60, "learning_rate": 0.2},
            "threads": 1,
            "interval": {"method": method},
        }
        loop = Loop.model_validate({**LOOP, "task": "regression", "training": section})
        ours = maker.of(loop)
        learn, holdout = training.split(ours.task, frame, timedelta(days=20))
        answers = training.fit(ours, learn, loop.training).predict(holdout)
        width = answers[:, 2] - answers[:, 1]
        noisy = (holdout["x"] > 0.5).to_numpy()
        widths[method] = width[noisy].mean() / width[~noisy].mean()
    assert widths["conformal"] == pytest.approx(1, abs=1e-3)
    assert widths["quantile"] > 3


@pytest.mark.parametrize(
    ("kind", "column", "named"),
    [
        ("regression", lambda label: label * 2 + 1, "orders the label almost perfectly"),
        ("multiclass", lambda label: label, "alone tells 3 of 3 classes"),
    ],
)
def test_a_column_that_knows_the_label_is_named(kind: str, column: Callable[[Any], Any], named: str) -> None:
    frame = table(kind)
    own = {"classes": CLASSES} if kind == "multiclass" else {}
    ours = maker.make(kind, kinds.settings(kind).Training(**own), next(iter(OURS[kind][0].metrics)))
    found = ours.giveaways(frame[["x", "shop"]].assign(leak=column(frame["label"])), ours.task.truths(frame["label"]))
    assert list(found) == ["leak"]
    assert named in found["leak"]


def test_a_table_whose_file_has_an_index_keeps_its_ids(tmp_path: Path) -> None:
    """pandas writes an index for a selection of rows; a row's earlier position carries no information."""
    loop = Loop.model_validate({**LOOP, "task": "regression", "training": {"parameters": FAST["lightgbm"]}})
    chosen = table("regression")[::2]
    chosen.to_parquet(tmp_path / "rows.parquet")
    candidate.build(loop, tmp_path / "rows.parquet", tmp_path / "model", tmp_path / "held")
    kept = held_out.read(tmp_path / "held", maker.of(loop).task).rows
    newest = chosen["event_timestamp"] > chosen["event_timestamp"].max() - loop.training.holdout
    assert kept["event_id"].tolist() == chosen["event_id"][newest].tolist()

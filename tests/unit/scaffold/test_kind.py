"""The kind of task that `init` derives from a label."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubeloop.scaffold import design, labels, roles
from kubeloop.scaffold.table import ScaffoldError, Table

ROWS = 3000
RANDOM = np.random.default_rng(4)
AMOUNT = RANDOM.gamma(2, 20, ROWS).round(2)


def table(label: Any, folder: Path) -> Table:
    frame = pd.DataFrame({"at": pd.date_range("2024-01-01", periods=ROWS, freq="1h"), "x": AMOUNT, "y": label})
    frame.to_parquet(folder / "t.parquet")
    (folder / "raw").mkdir()
    return Table(folder / "t.parquet", folder / "raw")


@pytest.mark.parametrize(
    ("label", "task", "classes"),
    [
        (np.arange(ROWS) % 2, "binary", ()),
        (np.array(["no", "yes"])[np.arange(ROWS) % 2], "binary", ()),
        (np.array(["a", "b", "c"])[np.arange(ROWS) % 5 % 3], "multiclass", ("a", "b", "c")),
        (np.arange(ROWS) % 5 % 3 + 1, "multiclass", ("1", "2", "3")),
        (np.where(np.arange(ROWS) % 7, np.arange(ROWS) % 5 % 3 + 1.0, np.nan), "multiclass", ("1", "2", "3")),
        (np.arange(ROWS) % 11, "regression", ()),
        (AMOUNT, "regression", ()),
        (np.where(np.arange(ROWS) % 7, AMOUNT, np.nan), "regression", ()),
        (np.where(np.arange(ROWS) % 7, AMOUNT, np.inf), "regression", ()),
    ],
    ids=["0 and 1", "words", "three texts", "three numbers", "gaps", "eleven numbers", "amounts", "gaps", "infinite"],
)
def test_a_label_says_which_kind_of_task_it_is(label: Any, task: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    found = table(label, tmp_path)
    known = labels.label(found, "y", None)
    assert (known.task, tuple(sorted(known.classes))) == (task, classes)
    ((filled, ones, zeros),) = found.query(
        f"SELECT count({known.sql}), count_if({known.side} = 1), count_if({known.side} = 0) FROM {found.name}"  # noqa: S608
    )
    assert (ones, zeros) == (known.positives, known.negatives)
    assert filled == ones + zeros == ROWS - known.unknown
    assert min(ones, zeros) > 0.2 * ROWS, "either side has enough rows to judge a hold-out"


@pytest.mark.parametrize(
    ("task", "kind"), [("multiclass", "multiclass"), ("regression", "regression"), (None, "multiclass")]
)
def test_the_user_decides_where_numbers_could_be_either(task: str | None, kind: str, tmp_path: Path) -> None:
    assert labels.label(table(np.arange(ROWS) % 5, tmp_path), "y", None, task).task == kind


def test_one_value_of_many_is_predicted_against_the_others(tmp_path: Path) -> None:
    found = labels.label(table(np.array(["a", "b", "c"])[np.arange(ROWS) % 3], tmp_path), "y", "b")
    assert (found.task, found.positives) == ("binary", 1000)


def test_a_key_that_is_called_like_an_answer_gets_another_name(tmp_path: Path) -> None:
    found = table(AMOUNT, tmp_path)
    pd.read_parquet(tmp_path / "t.parquet").assign(low=np.arange(ROWS) % 30).to_parquet(tmp_path / "u.parquet")
    (key,) = roles.keys(Table(tmp_path / "u.parquet", tmp_path / "raw"), ["low"], {found.name})
    assert (key.column, key.name) == ("low", "low_field")


def test_a_number_may_lie_on_one_side_of_its_median_for_a_season(tmp_path: Path) -> None:
    """As with a temperature: a hold-out of winter days has no value above the year's median."""
    warm = 15 + 10 * np.sin(2 * np.pi * np.arange(ROWS) / ROWS) + RANDOM.normal(0, 0.1, ROWS)
    wish = design.Wish("y", "at", (), tmp_path / "out", label_delay=timedelta(hours=1))
    case, activity, _ = design.design(table(warm, tmp_path), wish)
    start = case.timeline.train_to - case.timeline.holdout
    assert activity.total("negatives", start, case.timeline.train_to) < 20
    assert case.label.task == "regression"


def test_texts_that_differ_everywhere_are_not_a_label(tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match="must have two values"):
        labels.label(table([f"note {row}" for row in range(ROWS)], tmp_path), "y", None)

"""The hold-out of a training set with a model's answers: it is made once, and evaluation and gate read it."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop.errors import KubeloopError
from kubeloop.tasks.port import Floats, Task
from kubeloop.tasks.tabular.training import truths

_ANSWER = "kubeloop.answer."
"""Prefix of the answers' columns; a feature view's columns have no dots."""


class HoldOutError(KubeloopError, ValueError):
    """A hold-out file is damaged, or of another kind of task."""

    lasting = True


class Answered(NamedTuple):
    """The rows of a hold-out, oldest first as in the training set, and a model's answers to them.

    Attributes:
        rows: event_id, event_timestamp, label and the features [n].
        truths: [n].
        answers: [n], or [n, k].
    """

    rows: pd.DataFrame
    truths: Floats
    answers: Floats


def write(path: Path, task: Task, rows: pd.DataFrame, answers: Floats) -> None:
    """Write a hold-out with the answers to it as one Parquet file.

    Args:
        path: path of the file.
        task: names the answers' columns.
        rows: as `Answered.rows`.
        answers: as `Answered.answers`.
    """
    table = pa.Table.from_pandas(rows, preserve_index=False)
    columns = answers.T if answers.ndim > 1 else [answers]
    for name, column in zip(task.columns, columns, strict=True):
        table = table.append_column(_ANSWER + name, pa.array(column))
    pq.write_table(table, path, compression="zstd")


def read(path: Path, task: Task) -> Answered:
    """Read what `write` wrote.

    Raises:
        HoldOutError: the file cannot be read, or holds the answers of another kind of task.
    """
    try:
        frame: pd.DataFrame = pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise HoldOutError(f"the hold-out {path} cannot be read ({error}); start the run again") from error
    names = [_ANSWER + name for name in task.columns]
    found = [name for name in frame if str(name).startswith(_ANSWER)]
    if found != names:
        raise HoldOutError(f"the hold-out {path} has the answers {found}, and the task gives {names}; train again")
    answers = frame[names].to_numpy()
    rows = frame.drop(columns=names)
    return Answered(rows, truths(task, rows, "the hold-out"), answers[:, 0] if len(names) == 1 else answers)

"""Find the columns that know the label, before a model is praised for it."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

import re
from collections.abc import Sequence
from typing import Any

from kubeloop import sources
from kubeloop.scaffold_columns import Input, Label
from kubeloop.scaffold_names import safe
from kubeloop.scaffold_table import Table, quote

GIVEAWAY = 0.98
"""AUC from which on a single column seems to know the label."""
SAMPLE = 100_000
"""Rows on which columns are held against the label."""

_AFTERWARDS = re.compile(
    r"_(after|outcome|result|resolution|resolved|closed|final|reason)(_age)?$|^(outcome|result)(_|$)"
)


def find(table: Table, target: Label, found: Sequence[Input]) -> list[tuple[str, str]]:
    """Return the columns that seem to know the label, with the reason.

    A column is suspicious when it alone, or the fact that it is filled, ranks a sample of the rows nearly perfectly,
    or when its name says that it came after.
    """
    if not found:
        return []
    columns = ", ".join(f"{item.sql} AS {item.name}" for item in found)
    rows = f"SELECT {target.sql} AS label, {columns} FROM {table.name} WHERE {quote(target.column)} IS NOT NULL"
    with sources.connect({table.name: table.parquet}) as db:
        frame = db.execute(f"FROM ({rows}) USING SAMPLE reservoir({SAMPLE} ROWS) REPEATABLE (7)").df()
    stem = safe(target.column)
    suspicious = []
    for item in found:
        values = frame[item.name]
        best = max(_auc(values, frame["label"]), _auc(values.notna(), frame["label"]))
        if best >= GIVEAWAY:
            suspicious.append((item.column, f"alone predicts the label almost perfectly (AUC {best:.3f})"))
        elif _AFTERWARDS.search(item.name) or (len(stem) > 3 and stem in item.name):
            suspicious.append((item.column, "has the name of something that is known only with the label"))
    return suspicious


def _auc(values: Any, labels: Any) -> float:
    """Return how well a column ranks the label, whichever way round; texts by their share of positives."""
    import pandas as pd
    from scipy.stats import rankdata

    known = values.notna()
    values, truth = values[known], labels[known].to_numpy()
    if not pd.api.types.is_numeric_dtype(values):
        values = pd.Series(truth, index=values.index).groupby(values).transform("mean")
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if min(positives, negatives) < 10:
        return 0.5
    ranks = rankdata(values.to_numpy(dtype=float))
    area = (ranks[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return float(max(area, 1 - area))

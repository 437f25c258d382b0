"""Find the columns that know the label, before a model is praised for it."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

import re
from collections.abc import Sequence

from kubeloop.data import sources
from kubeloop.scaffold.names import safe
from kubeloop.scaffold.roles import Input, Label
from kubeloop.scaffold.table import Table, quote
from kubeloop.tasks.tabular import leaks

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
        frame = db.execute(f"FROM ({rows}) USING SAMPLE reservoir({leaks.SAMPLE} ROWS) REPEATABLE (7)").df()
    labels = frame["label"].to_numpy(dtype="int64")
    stem = safe(target.column)
    suspicious = []
    for item in found:
        best = leaks.ranking(frame, item.name, labels)
        if best >= leaks.GIVEAWAY:
            suspicious.append((item.column, f"alone predicts the label almost perfectly (AUC {best:.3f})"))
        elif _AFTERWARDS.search(item.name) or (len(stem) > 3 and stem in item.name):
            suspicious.append((item.column, "has the name of something that is known only with the label"))
    return suspicious

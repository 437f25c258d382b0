"""Find columns that give away the label, before they make a model look too good."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

import re
from collections.abc import Sequence

from kubeloop.data import sources
from kubeloop.scaffold.labels import Label
from kubeloop.scaffold.names import safe
from kubeloop.scaffold.roles import Input
from kubeloop.scaffold.table import Table
from kubeloop.tasks.tabular import leaks
from kubeloop.tasks.tabular.maker import Maker

_AFTERWARDS = re.compile(
    r"_(after|outcome|result|resolution|resolved|closed|final|reason)(_age)?$|^(outcome|result)(_|$)"
)


def find(table: Table, target: Label, maker: Maker, found: Sequence[Input]) -> list[tuple[str, str]]:
    """Return the columns that seem to give away the label, with the reason.

    A column is suspicious if its value, or the fact that it has one, predicts the label in a sample of the rows, or if
    its name says that it came after the label.
    """
    if not found:
        return []
    columns = ", ".join(f"{item.sql} AS {item.name}" for item in found)
    rows = f"SELECT {target.sql} AS label, {columns} FROM {table.name} WHERE ({target.sql}) IS NOT NULL"
    with sources.connect({table.name: table.parquet}) as db:
        frame = db.execute(f"FROM ({rows}) USING SAMPLE reservoir({leaks.SAMPLE} ROWS) REPEATABLE (7)").df()
    y = maker.task.truths(frame.pop("label"))
    known = maker.giveaways(frame, y)
    stem = safe(target.column)
    suspicious = []
    for item in found:
        if item.name in known:
            suspicious.append((item.column, known[item.name]))
        elif _AFTERWARDS.search(item.name) or (len(stem) > 3 and stem in item.name):
            suspicious.append((item.column, "has a name for something that is known only with the label"))
    return suspicious

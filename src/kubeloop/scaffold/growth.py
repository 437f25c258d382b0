"""Find columns that only grow or only fall, such as an age or an odometer, since they always drift."""
# ruff: noqa: S608 - DuckDB binds no column names; they are quoted by sources.identifier.

from collections.abc import Sequence
from dataclasses import dataclass

from kubeloop.scaffold.roles import Input, Key, Moment
from kubeloop.scaffold.table import Table, quote

SAMPLE = 200_000
"""Approximate number of rows that are checked."""
LEAST_STEPS = 100
SHIFT = 0.5
"""A column drifts from this distance on, in standard deviations between its oldest and newest third. For normal values
it is a Kolmogorov-Smirnov D of 0.2, to which `init` sets `drift.min_effect`."""


@dataclass(frozen=True)
class Growth:
    """A column and its direction, for each value of a key or over the whole table."""

    column: str
    grows: bool
    key: str = ""

    def __str__(self) -> str:
        where = f" for each {self.key!r}" if self.key else ""
        return (
            f"{self.column!r} only {'grows' if self.grows else 'falls'}{where}, so sooner or later every window "
            "counts as drifted, and the model gets values that it never saw. Make it a difference or a rate"
        )


def find(table: Table, when: Moment, keys: Sequence[Key], inputs: Sequence[Input]) -> list[Growth]:
    """Return the numeric columns that grow or fall with time, over the whole table or for each value of a key."""
    found: dict[str, Growth] = {}
    numbers = [item for item in inputs if item.kind == "number" and item.distinct > 2]
    for key in [None, *keys]:
        numbers = [item for item in numbers if item.column not in found]
        for item, grows in _moving(table, when, key, numbers):
            found[item.column] = Growth(item.column, grows, key.column if key else "")
    return list(found.values())


def _moving(table: Table, when: Moment, key: Key | None, numbers: Sequence[Input]) -> list[tuple[Input, bool]]:
    if not numbers:
        return []
    at, share = quote(when.column), -(-table.rows // SAMPLE)
    # If there are many keys, sample whole keys, since the steps are between rows of one key.
    drawn = key.sql if key and key.distinct >= 50 * share else at
    values = ", ".join(f"{item.sql} AS v{place}" for place, item in enumerate(numbers))
    steps = ", ".join(f"v{place} - lag(v{place}) OVER w AS d{place}" for place in range(len(numbers)))
    measures = ", ".join(
        f"count(d{place}), count_if(d{place} > 0), count_if(d{place} < 0), "
        f"avg(v{place}) FILTER (third = 3) - avg(v{place}) FILTER (third = 1), stddev_pop(v{place})"
        for place in range(len(numbers))
    )
    (row,) = table.query(f"""
        WITH drawn AS (
            SELECT {key.sql if key else "1"} AS subject, {at} AS moment, {values}
            FROM {table.name} WHERE hash({drawn}) % {share} = 0
        ), steps AS (
            SELECT *, {steps}, ntile(3) OVER (ORDER BY moment) AS third FROM drawn
            WINDOW w AS (PARTITION BY subject ORDER BY moment)
        )
        SELECT {measures} FROM steps""")
    moving = []
    for place, item in enumerate(numbers):
        taken, up, down, shift, spread = row[5 * place : 5 * place + 5]
        if taken < LEAST_STEPS or not spread or abs(shift or 0) < SHIFT * spread:
            continue
        if min(up, down) <= 0.01 * taken and max(up, down) >= 0.5 * taken:
            moving.append((item, up > down))
    return moving

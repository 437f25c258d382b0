"""Step: the raw tables as they were known."""

from typing import NamedTuple

from kfp import dsl

from components._step import step


@step
def extract_data(loop: str, as_of: str, snapshot: str, raw: dsl.Output[dsl.Dataset]) -> NamedTuple(
    "Outputs", snapshot=str
):
    """Take the raw tables as they were known at a moment.

    Args:
        loop: the use case, as JSON or a reference to it.
        as_of: the moment, ISO 8601.
        snapshot: digest of the raw data, so that a cached result is of the same data; empty when it is not known.
        raw: folder with one Parquet file per table.

    Returns:
        Digest of the raw data.
    """
    from pathlib import Path

    from kubeloop.config import past, settings
    from kubeloop.steps import loops, stages

    found = stages.extract(loops.read(loop, settings()), settings(), past(as_of), Path(raw.path), snapshot)
    raw.metadata.update({"rows": found.rows, "snapshot": found.snapshot})
    return (found.snapshot,)

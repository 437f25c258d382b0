"""Step: the raw tables as they were known."""

from kfp import dsl

from components._step import step


@step
def extract_data(loop: str, as_of: str, snapshot: str, raw: dsl.Output[dsl.Dataset]):
    """Take the raw tables as they were known at a moment.

    Args:
        loop: the use case, as JSON.
        as_of: the moment, ISO 8601.
        snapshot: digest of the raw data, so that a cached result is of the same data.
        raw: folder with one Parquet file a table.
    """
    from pathlib import Path

    from kubeloop import stages
    from kubeloop.config import Loop, instant, settings

    raw.metadata["rows"] = stages.extract(Loop.parse(loop), settings(), instant(as_of), Path(raw.path))
    raw.metadata["snapshot"] = snapshot

"""Step: scores of a batch of events."""

from typing import NamedTuple

from kfp import dsl

from components._step import step


@step
def score_batch(
    loop: str, as_of: str, since: str, clean: dsl.Input[dsl.Dataset], scores: dsl.Output[dsl.Dataset]
) -> NamedTuple("Outputs", rows=int):
    """Score the events of a span of time with the champion, with the features as they were known.

    Args:
        loop: the use case, as JSON or a reference to it.
        as_of: end of the span, ISO 8601.
        since: length of the span, such as 1d.
        clean: folder of validated raw tables.
        scores: Parquet file, one row per event: event_id, event_timestamp, the model's answer, version.

    Returns:
        Events scored.
    """
    from pathlib import Path

    from kubeloop.config import instant, settings
    from kubeloop.steps import batch, loops

    found = batch.score(
        loops.read(loop, settings()), settings(), Path(clean.path), instant(as_of), since, Path(scores.path)
    )
    scores.metadata.update({"rows": found.rows, "version": found.version})
    return (found.rows,)

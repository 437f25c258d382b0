"""Step: update the online store."""

from kfp import dsl

from components._step import step


@step
def materialize_features(loop: str, as_of: str, clean: dsl.Input[dsl.Dataset], rows: dsl.Output[dsl.Metrics]):
    """Compute the feature tables and write the newest row of every key to the online store.

    Args:
        loop: the use case, as JSON or a reference to it.
        as_of: rows that became known later stay out, ISO 8601.
        clean: folder of validated raw tables.
        rows: rows by view, and those written online.
    """
    import json
    from pathlib import Path

    from kubeloop.config import past, settings
    from kubeloop.steps import batch, loops

    for name, value in batch.materialize(
        loops.read(loop, settings()), settings(), Path(clean.path), past(as_of)
    ).items():
        rows.log_metric(name, value)
    Path(rows.path).write_text(json.dumps(rows.metadata))

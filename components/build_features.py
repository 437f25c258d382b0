"""Step: the point-in-time training set."""

from kfp import dsl

from components._step import step


@step
def build_features(loop: str, as_of: str, clean: dsl.Input[dsl.Dataset], training_set: dsl.Output[dsl.Dataset]):
    """Join every labelled event with its Feast features as they were known at the time.

    Args:
        loop: the use case, as JSON or a reference to it.
        as_of: the run's moment, ISO 8601.
        clean: folder of validated raw tables.
        training_set: Parquet file, one row per event.
    """
    from pathlib import Path

    from kubeloop.config import instant, settings
    from kubeloop.steps import loops, stages

    training_set.metadata["rows"] = stages.build_features(
        loops.read(loop, settings()), settings(), Path(clean.path), instant(as_of), Path(training_set.path)
    )

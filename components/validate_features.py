"""Step: Great Expectations on the training set."""

from kfp import dsl

from components._step import step


@step
def validate_features(
    loop: str,
    as_of: str,
    run: str,
    training_set: dsl.Input[dsl.Dataset],
    clean: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
):
    """Validate the training set; bad rows go to the quarantine, a failed expectation stops the run.

    Args:
        loop: the use case, as JSON or a reference to it.
        as_of: the run's moment, ISO 8601.
        run: name of the run; Data Docs and quarantine are kept under it.
        training_set: Parquet file, one row per event.
        clean: the same file without quarantined rows.
        report: what was checked and found.
    """
    from pathlib import Path

    from kubeloop.config import instant, settings
    from kubeloop.steps import loops, stages

    found = stages.validate_training_set(
        loops.read(loop, settings()),
        settings(),
        Path(training_set.path),
        instant(as_of),
        run,
        Path(clean.path),
        Path(report.path),
    )
    clean.metadata["quarantined"] = found["tables"]["training"]["quarantined"]

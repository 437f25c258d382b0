"""Step: Great Expectations on the raw tables."""

from kfp import dsl

from components._step import step


@step
def validate_data(
    loop: str,
    as_of: str,
    run: str,
    raw: dsl.Input[dsl.Dataset],
    clean: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
):
    """Validate the raw tables; bad rows go to the quarantine, a failed expectation stops the run.

    Args:
        loop: the use case, as JSON or a reference to it.
        as_of: the run's moment, ISO 8601.
        run: name of the run; Data Docs and quarantine are kept under it.
        raw: folder of raw tables.
        clean: folder of the tables without quarantined rows.
        report: what was checked and found.
    """
    from pathlib import Path

    from kubeloop.config import instant, settings
    from kubeloop.steps import loops, stages

    found = stages.validate_raw(
        loops.read(loop, settings()),
        settings(),
        Path(raw.path),
        instant(as_of),
        run,
        Path(clean.path),
        Path(report.path),
    )
    clean.metadata["quarantined"] = {name: table["quarantined"] for name, table in found["tables"].items()}

"""Step: registration in MLflow."""

from typing import NamedTuple

from kfp import dsl

from components._step import step


@step
def register_model(
    loop: str,
    as_of: str,
    run: str,
    reason: str,
    snapshot: str,
    model: dsl.Input[dsl.Model],
    training_set: dsl.Input[dsl.Dataset],
    evaluation: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
) -> NamedTuple("Outputs", version=str):
    """Register the model and its lineage in MLflow, whatever the gate decided.

    Args:
        loop: the use case, as JSON or a reference to it.
        as_of: the run's moment, ISO 8601.
        run: name of the run; registering twice for one run makes one version.
        reason: why the run was started.
        snapshot: digest of the raw data.
        model: model folder.
        training_set: Parquet file, one row per event.
        evaluation: folder with figures and reports.
        verdict: the gate's verdict, as JSON.

    Returns:
        The version.
    """
    from pathlib import Path

    from kubeloop.config import past, settings
    from kubeloop.steps import loops, promotion

    version = promotion.register(
        loops.read(loop, settings()),
        settings(),
        model=Path(model.path),
        training_set=Path(training_set.path),
        evaluation=Path(evaluation.path),
        verdict=Path(verdict.path).read_text(),
        run=run,
        as_of=past(as_of),
        reason=reason,
        snapshot=snapshot,
    )
    return (version,)

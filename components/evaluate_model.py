"""Step: evaluation on the hold-out."""

from kfp import dsl

from components._step import step


@step
def evaluate_model(
    loop: str,
    model: dsl.Input[dsl.Model],
    holdout: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    curves: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
):
    """Measure the model on the newest rows: metrics, curves, slices, latency and size.

    Args:
        loop: the use case, as JSON or a reference to it.
        model: model folder.
        holdout: Parquet file, the newest rows with the model's answers.
        evaluation: folder with figures, the report and the hold-out's predictions.
        metrics: metrics of the hold-out.
        curves: ROC curve and confusion matrix, of the kinds of task that have them.
        report: the evaluation report.
    """
    import json
    from pathlib import Path

    from kubeloop.config import settings
    from kubeloop.steps import loops, stages

    found = stages.evaluate(
        loops.read(loop, settings()),
        Path(model.path),
        Path(holdout.path),
        Path(evaluation.path),
        Path(report.path),
    )
    for name, value in found.metrics.items():
        metrics.log_metric(name, value)
    if found.roc:
        curves.log_roc_curve(*found.roc)
    if found.classes:
        curves.log_confusion_matrix(found.classes, found.confusion)
    # kfp's local cache considers an artifact without a file as lost, and repeats the step.
    for artifact in (metrics, curves):
        Path(artifact.path).write_text(json.dumps(artifact.metadata))

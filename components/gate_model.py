"""Step: the gate."""

from kfp import dsl

from components._step import step


@step
def gate_model(
    loop: str,
    run: str,
    model: dsl.Input[dsl.Model],
    holdout: dsl.Input[dsl.Dataset],
    gate: dsl.Output[dsl.Metrics],
    reason: dsl.OutputPath(str),
    verdict: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
) -> bool:
    """Promote the challenger only if it beats the champion on the same newest rows.

    Args:
        loop: the use case, as JSON or a reference to it.
        run: name of the run; a run that has promoted its model keeps its verdict when it is resumed.
        model: model folder of the challenger.
        holdout: Parquet file, the newest rows with the challenger's answers.
        gate: the numbers that the decision is based on.
        reason: why, in one sentence.
        verdict: the whole verdict, as JSON.
        report: the verdict as a page.

    Returns:
        Whether to promote. It is the step's one return value because kfp's local runner reads a condition on a
        named one as unmet, without an error.
    """
    import json
    from pathlib import Path

    from kubeloop.config import settings
    from kubeloop.models import gates_page
    from kubeloop.steps import loops, promotion

    case = loops.read(loop, settings())
    found = promotion.gate(case, settings(), run, Path(model.path), Path(holdout.path))
    for name, value in promotion.numbers(found).items():
        gate.log_metric(name, value)
    Path(gate.path).write_text(json.dumps(gate.metadata))
    Path(reason).write_text(found.reason)
    Path(verdict.path).write_text(json.dumps(found.to_dict()))
    Path(report.path).write_text(gates_page.html(case.name, found))
    return found.promote

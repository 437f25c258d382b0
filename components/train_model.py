"""Step: training."""

from kfp import dsl

from components._step import step


@step
def train_model(
    loop: str,
    training_set: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    holdout: dsl.Output[dsl.Dataset],
):
    """Train on all but the newest rows and export to ONNX, with proof that both predict the same.

    Args:
        loop: the use case, as JSON or a reference to it.
        training_set: Parquet file, one row per event.
        model: model folder: model.onnx, model.json and the reference for drift.
        holdout: Parquet file, the newest rows with the model's answers.
    """
    from pathlib import Path

    from kubeloop.config import settings
    from kubeloop.steps import loops, stages

    here = settings()
    facts = stages.train(loops.read(loop, here), Path(training_set.path), Path(model.path), Path(holdout.path), here)
    model.framework = "onnx"
    model.metadata.update(
        {name: facts[name] for name in ("algorithm", "parameters", "sha256", "trained_from", "trained_to")}
    )

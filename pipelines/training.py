"""The training pipeline: from raw tables to a gated, registered and served model."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.build_features import build_features
from components.deploy_model import deploy_model
from components.evaluate_model import evaluate_model
from components.gate_model import gate_model
from components.register_model import register_model
from components.train_model import train_model
from components.validate_features import validate_features
from kubeloop.config import Loop
from pipelines import kubeflow, opening


class Outputs(NamedTuple):
    """What a run decided."""

    promote: bool
    reason: str
    version: str


def training(config: Loop) -> BaseComponent:
    """Return the training pipeline of a use case, which is the default of its parameter `loop`."""

    @dsl.pipeline(
        name=f"{config.name}-training",
        description=f"Train a model, gate it and deploy it if it is better. {config.description}".rstrip(),
        display_name=f"{config.name}: train, gate, deploy",
        pipeline_config=kubeflow.run_config(config),
    )
    def pipeline(
        as_of: str = "", run: str = "", reason: str = "asked for by hand", loop: str = config.dump()
    ) -> Outputs:
        """Validate, build features, train, evaluate, gate, register and, if the gate says so, deploy.

        Args:
            as_of: the moment whose knowledge the run uses, ISO 8601; now when empty.
            run: unique name of the run; the job's when empty.
            reason: why the run was started.
            loop: the use case, as JSON, or a reference to it.
        """
        first = opening.data(loop, as_of, run)
        features = build_features(loop=first.loop, as_of=first.moment, clean=first.clean)
        checked = validate_features(
            loop=first.loop, as_of=first.moment, run=first.run, training_set=features.outputs["training_set"]
        )
        training_set = checked.outputs["clean"]
        trained = train_model(loop=first.loop, training_set=training_set)
        model, holdout = trained.outputs["model"], trained.outputs["holdout"]
        evaluated = evaluate_model(loop=first.loop, model=model, holdout=holdout)
        gate = gate_model(loop=first.loop, run=first.run, model=model, holdout=holdout)
        registered = register_model(
            loop=first.loop,
            as_of=first.moment,
            run=first.run,
            reason=reason,
            snapshot=first.snapshot,
            verdict=gate.outputs["verdict"],
            model=model,
            training_set=training_set,
            evaluation=evaluated.outputs["evaluation"],
        )
        with dsl.If(gate.outputs["Output"] == True, name="promote"):  # noqa: E712 - kfp's condition syntax
            deployed = deploy_model(loop=first.loop, version=registered.outputs["version"])
        steps = (*first.tasks, features, checked, trained, evaluated, gate, registered, deployed)
        kubeflow.settle(config, steps)
        return Outputs(gate.outputs["Output"], gate.outputs["reason"], registered.outputs["version"])

    return pipeline

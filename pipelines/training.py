"""The training pipeline: from raw tables to a gated, registered and served model."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.build_features import build_features
from components.deploy_model import deploy_model
from components.evaluate_model import evaluate_model
from components.extract_data import extract_data
from components.gate_model import gate_model
from components.register_model import register_model
from components.train_model import train_model
from components.validate_data import validate_data
from components.validate_features import validate_features
from kubeloop.config import Loop


def training(config: Loop, image: str) -> BaseComponent:
    """Return the training pipeline of a use case.

    Args:
        config: names the pipeline and is the default of its parameter `loop`.
        image: image of every step, with a full tag or digest.
    """

    @dsl.pipeline(
        name=f"{config.name}-training",
        description=config.description,
        display_name=f"{config.name}: train, gate, deploy",
    )
    def pipeline(as_of: str, run: str, snapshot: str, reason: str = "manual", loop: str = config.dump()) -> NamedTuple(
        "Outputs", promote=bool, reason=str, version=str
    ):
        """Validate, build features, train, evaluate, gate, register and, if the gate says so, deploy.

        Args:
            as_of: the moment whose knowledge the run uses, ISO 8601.
            run: unique name of the run.
            snapshot: digest of the raw data.
            reason: why the run was started.
            loop: the use case, as JSON.
        """
        extract = extract_data(loop=loop, as_of=as_of, snapshot=snapshot)
        valid = validate_data(loop=loop, as_of=as_of, run=run, raw=extract.outputs["raw"])
        features = build_features(loop=loop, as_of=as_of, clean=valid.outputs["clean"])
        checked = validate_features(loop=loop, as_of=as_of, run=run, training_set=features.outputs["training_set"])
        training_set = checked.outputs["clean"]
        trained = train_model(loop=loop, training_set=training_set)
        evaluated = evaluate_model(loop=loop, model=trained.outputs["model"], training_set=training_set)
        gate = gate_model(loop=loop, run=run, model=trained.outputs["model"], training_set=training_set)
        # The champion that the gate reads is no input of the step, so a cached verdict could be about another one.
        gate.set_caching_options(False)
        registered = register_model(
            loop=loop,
            as_of=as_of,
            run=run,
            reason=reason,
            snapshot=snapshot,
            verdict=gate.outputs["verdict"],
            model=trained.outputs["model"],
            training_set=training_set,
            evaluation=evaluated.outputs["evaluation"],
        )
        tasks = [extract, valid, features, checked, trained, evaluated, gate, registered]
        with dsl.If(gate.outputs["Output"] == True, name="promote"):  # noqa: E712 - kfp's condition syntax
            deployed = deploy_model(loop=loop, version=registered.output)
            deployed.set_caching_options(False)
            tasks.append(deployed)
        for task in tasks:
            task.set_container_image(image)
        outputs = NamedTuple("Outputs", promote=bool, reason=str, version=str)
        return outputs(gate.outputs["Output"], gate.outputs["reason"], registered.output)

    return pipeline

"""The materialization pipeline: validated raw tables into the online store."""

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.begin_run import begin_run
from components.extract_data import extract_data
from components.materialize_features import materialize_features
from components.validate_data import validate_data
from kubeloop.config import Loop
from pipelines import kubeflow


def materialize(config: Loop) -> BaseComponent:
    """Return the materialization pipeline of a use case."""

    @dsl.pipeline(
        name=f"{config.name}-materialize",
        description=f"Bring the online features of {config.name} forward.",
        display_name=f"{config.name}: materialize features",
        pipeline_config=kubeflow.run_config(config),
    )
    def pipeline(as_of: str = "", run: str = "", loop: str = config.dump()):
        """Validate the raw tables and write the newest row of every key to the online store.

        Args:
            as_of: rows that became known later stay out, ISO 8601; now when empty.
            run: unique name of the run; the job's when empty.
            loop: the use case, as JSON.
        """
        begun = begin_run(as_of=as_of, run=run, job=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)
        moment, name = begun.outputs["as_of"], begun.outputs["run"]
        extract = extract_data(loop=loop, as_of=moment, snapshot=begun.outputs["snapshot"])
        valid = validate_data(loop=loop, as_of=moment, run=name, raw=extract.outputs["raw"])
        written = materialize_features(loop=loop, as_of=moment, clean=valid.outputs["clean"])
        kubeflow.settle(config, (begun, extract, valid, written))

    return pipeline

"""The materialization pipeline: write validated raw tables to the online store."""

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.materialize_features import materialize_features
from kubeloop.config import Loop
from pipelines import kubeflow, opening


def materialize(config: Loop) -> BaseComponent:
    """Return the materialization pipeline of a use case."""

    @dsl.pipeline(
        name=f"{config.name}-materialize",
        description=f"Update the online features of {config.name}.",
        display_name=f"{config.name}: materialize features",
        pipeline_config=kubeflow.run_config(config),
    )
    def pipeline(as_of: str = "", run: str = "", loop: str = config.dump()):
        """Validate the raw tables and write the newest row of every key to the online store.

        Args:
            as_of: rows that became known later stay out, ISO 8601; now when empty.
            run: unique name of the run; the job's when empty.
            loop: the use case, as JSON, or a reference to it.
        """
        first = opening.data(loop, as_of, run)
        written = materialize_features(loop=first.loop, as_of=first.moment, clean=first.clean)
        kubeflow.settle(config, (*first.tasks, written))

    return pipeline

"""The batch scoring pipeline: the champion's scores of a span of time, as one Parquet file."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.score_batch import score_batch
from kubeloop.config import Loop
from pipelines import kubeflow, opening


class Outputs(NamedTuple):
    """How many events a run scored."""

    rows: int


def batch_scoring(config: Loop) -> BaseComponent:
    """Return the batch scoring pipeline of a use case."""

    @dsl.pipeline(
        name=f"{config.name}-batch-scoring",
        description=f"Score a batch of events with the champion of {config.name}.",
        display_name=f"{config.name}: score a batch",
        pipeline_config=kubeflow.run_config(config),
    )
    def pipeline(as_of: str = "", since: str = "1d", run: str = "", loop: str = config.dump()) -> Outputs:
        """Score the events of a span of time with the champion.

        Args:
            as_of: end of the span, ISO 8601; now when empty.
            since: length of the span, such as 1d.
            run: unique name of the run; the job's when empty.
            loop: the use case, as JSON, or a reference to it.

        Returns:
            Events scored.
        """
        first = opening.data(loop, as_of, run)
        scored = score_batch(loop=first.loop, as_of=first.moment, since=since, clean=first.clean)
        kubeflow.settle(config, (*first.tasks, scored))
        return Outputs(scored.outputs["rows"])

    return pipeline

"""The batch scoring pipeline: the champion's scores of a span of time, as one Parquet file."""

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.begin_run import begin_run
from components.extract_data import extract_data
from components.score_batch import score_batch
from components.validate_data import validate_data
from kubeloop.config import Loop
from pipelines import kubeflow


def batch_scoring(config: Loop) -> BaseComponent:
    """Return the batch scoring pipeline of a use case."""

    @dsl.pipeline(
        name=f"{config.name}-batch-scoring",
        description=f"Score a batch of events with the champion of {config.name}.",
        display_name=f"{config.name}: score a batch",
        pipeline_config=kubeflow.run_config(config),
    )
    def pipeline(as_of: str = "", since: str = "1d", run: str = "", loop: str = config.dump()) -> int:
        """Score the events of a span of time with the champion.

        Args:
            as_of: end of the span, ISO 8601; now when empty.
            since: length of the span, such as 1d.
            run: unique name of the run; the job's when empty.
            loop: the use case, as JSON.

        Returns:
            Events scored.
        """
        begun = begin_run(as_of=as_of, run=run, job=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)
        moment, name = begun.outputs["as_of"], begun.outputs["run"]
        extract = extract_data(loop=loop, as_of=moment, snapshot=begun.outputs["snapshot"])
        valid = validate_data(loop=loop, as_of=moment, run=name, raw=extract.outputs["raw"])
        scored = score_batch(loop=loop, as_of=moment, since=since, clean=valid.outputs["clean"])
        kubeflow.settle(config, (begun, extract, valid, scored))
        return scored.outputs["Output"]

    return pipeline

"""The backfill pipeline: judge from the payload log what the monitor missed."""

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.judge_windows import judge_windows
from kubeloop.config import Loop
from pipelines import kubeflow, opening


def backfill(config: Loop) -> BaseComponent:
    """Return the backfill pipeline of a use case."""

    @dsl.pipeline(
        name=f"{config.name}-backfill",
        description=f"Judge the windows of {config.name} that the monitor missed.",
        display_name=f"{config.name}: judge missed windows",
        pipeline_config=kubeflow.run_config(config),
    )
    def pipeline(as_of: str = "", run: str = "", loop: str = config.dump()):
        """Have the monitor judge every window of the payload log that was not judged yet.

        Args:
            as_of: windows that end later stay out, ISO 8601; now when empty.
            run: unique name of the run; the job's when empty.
            loop: the use case, as JSON, or a reference to it.
        """
        begun = opening.begin(loop, as_of, run)
        judged = judge_windows(loop=begun.outputs["loop"], as_of=begun.outputs["as_of"])
        kubeflow.settle(config, (begun, judged))

    return pipeline

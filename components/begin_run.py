"""Step: fix the moment, name and use case that all steps of a run share."""

from typing import NamedTuple

from components._step import step


@step
def begin_run(loop: str, as_of: str, run: str, job: str) -> NamedTuple(
    "Outputs", as_of=str, run=str, snapshot=str, loop=str
):
    """Fix the moment, the name, the data and the use case of the run.

    Args:
        loop: the use case, as JSON, or a reference to it.
        as_of: the moment whose knowledge the run uses, ISO 8601; now when empty.
        run: unique name of the run; the job's when empty.
        job: name that Kubeflow Pipelines gave the job.

    Returns:
        The moment, the name, the digest of the raw data, empty where they are not taken in yet, and a reference to the
        use case.
    """
    from kubeloop.config import settings
    from kubeloop.steps import stages

    return stages.begin(settings(), loop, as_of, run, job)

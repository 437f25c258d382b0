"""The first steps of every pipeline over the raw tables: fix moment and name, read the tables, validate them."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineArtifactChannel, PipelineParameterChannel

from components.begin_run import begin_run
from components.extract_data import extract_data
from components.validate_data import validate_data


class Opening(NamedTuple):
    """The first tasks, and their results for the others."""

    tasks: tuple[PipelineTask, ...]
    moment: PipelineParameterChannel
    run: PipelineParameterChannel
    loop: PipelineParameterChannel
    snapshot: PipelineParameterChannel
    clean: PipelineArtifactChannel


def begin(loop: str, as_of: str, run: str) -> PipelineTask:
    """Fix the run's moment, name and use case; later steps get a reference to the use case, not its text."""
    return begin_run(loop=loop, as_of=as_of, run=run, job=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)


def data(loop: str, as_of: str, run: str) -> Opening:
    """Fix the moment and the name, take the raw tables as they were known, and validate them."""
    begun = begin(loop, as_of, run)
    moment, name, kept = begun.outputs["as_of"], begun.outputs["run"], begun.outputs["loop"]
    extract = extract_data(loop=kept, as_of=moment, snapshot=begun.outputs["snapshot"])
    valid = validate_data(loop=kept, as_of=moment, run=name, raw=extract.outputs["raw"])
    return Opening((begun, extract, valid), moment, name, kept, extract.outputs["snapshot"], valid.outputs["clean"])

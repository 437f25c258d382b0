"""The answers of the Kubeflow Pipelines API as plain values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from kubeloop.kubeflow import steps as kfp_steps
from kubeloop.kubeflow.steps import Step, moment


@dataclass(frozen=True)
class Version:
    """One version of an uploaded pipeline."""

    pipeline_id: str
    version_id: str
    name: str


@dataclass(frozen=True)
class Run:
    """A run; `state` is one of KFP's runtime states, the times are UTC."""

    run_id: str
    name: str
    description: str
    state: str
    created: datetime
    finished: datetime | None
    steps: tuple[Step, ...]

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in kfp_steps.OVER


@dataclass(frozen=True)
class Schedule:
    """A recurring run; it cannot be changed, only deleted and created again."""

    schedule_id: str
    name: str
    description: str
    created: datetime


def version(model: Any) -> Version:
    """Read a pipeline version."""
    return Version(str(model.pipeline_id), str(model.pipeline_version_id), str(model.name or model.display_name))


def run(model: Any) -> Run:
    """Read a run with the pipeline's own steps."""
    tasks = (model.run_details.task_details if model.run_details else None) or ()
    state = str(model.state or "RUNTIME_STATE_UNSPECIFIED")
    return Run(
        str(model.run_id),
        str(model.display_name),
        model.description or "",
        state,
        moment(model.created_at) or datetime.now(UTC),
        moment(model.finished_at),
        kfp_steps.read(tasks, state in kfp_steps.OVER),
    )


def schedule(model: Any) -> Schedule:
    """Read a recurring run."""
    created = moment(model.created_at) or datetime.now(UTC)
    return Schedule(str(model.recurring_run_id), str(model.display_name), model.description or "", created)


def where(key: str, operation: str, value: str) -> str:
    """Return a filter of one text; the API decodes it once more than HTTP does."""
    predicate: Mapping[str, str] = {"key": key, "operation": operation, "string_value": value}
    return quote(json.dumps({"predicates": [predicate]}))

"""What the Kubeflow Pipelines API tells, as plain values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

_OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_PLUMBING = ("root", "executor", "condition", "for-loop", "iteration")


@dataclass(frozen=True)
class Version:
    """One version of an uploaded pipeline."""

    pipeline_id: str
    version_id: str
    name: str


@dataclass(frozen=True)
class Step:
    """A step of a run; `state` is one of KFP's runtime states, the times are UTC."""

    name: str
    state: str
    started: datetime | None
    finished: datetime | None


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
        """Whether nothing will happen to it any more."""
        return self.state in _OVER


@dataclass(frozen=True)
class Schedule:
    """A recurring run; it cannot be changed, only deleted and made again."""

    schedule_id: str
    name: str
    description: str
    created: datetime


def version(model: Any) -> Version:
    """Read a pipeline version."""
    return Version(str(model.pipeline_id), str(model.pipeline_version_id), str(model.name or model.display_name))


def run(model: Any) -> Run:
    """Read a run, with the steps that people know: neither drivers nor the graph's own nodes."""
    tasks = (model.run_details.task_details if model.run_details else None) or ()
    # A step that is tried again is one task; the pods of its attempts are not told by name.
    steps = {task.display_name: _step(task) for task in tasks if _is_step(task.display_name)}
    return Run(
        str(model.run_id),
        str(model.display_name),
        model.description or "",
        str(model.state or "RUNTIME_STATE_UNSPECIFIED"),
        _moment(model.created_at) or datetime.now(UTC),
        _moment(model.finished_at),
        tuple(sorted(steps.values(), key=lambda step: (step.started is None, step.started, step.name))),
    )


def schedule(model: Any) -> Schedule:
    """Read a recurring run."""
    created = _moment(model.created_at) or datetime.now(UTC)
    return Schedule(str(model.recurring_run_id), str(model.display_name), model.description or "", created)


def where(key: str, operation: str, value: str) -> str:
    """Return a filter of one text; the API decodes it once more than HTTP does."""
    predicate: Mapping[str, str] = {"key": key, "operation": operation, "string_value": value}
    return quote(json.dumps({"predicates": [predicate]}))


def _step(task: Any) -> Step:
    return Step(str(task.display_name), str(task.state or "PENDING"), _moment(task.start_time), _moment(task.end_time))


def _is_step(name: str | None) -> bool:
    return bool(name) and not str(name).endswith("-driver") and not str(name).startswith(_PLUMBING)


def _moment(value: datetime | None) -> datetime | None:
    """Return a time in UTC; what has not happened yet is told as 1970."""
    if value is None or value.timestamp() <= 0:
        return None
    return value.astimezone(UTC)

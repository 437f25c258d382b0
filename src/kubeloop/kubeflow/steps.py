"""Find the steps of a run in its task details, which are all the nodes of an Argo workflow.

A step `x` has several nodes: `x-driver` prepares its pod, `x` is the step, `x(0)` an attempt at it, `executor` its
pod, and `executor(0)`, `executor(1)` are the attempts at that. The pipeline and its branches have drivers too.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_ATTEMPT = re.compile(r"(.+)\(\d+\)")
_DRIVER = "-driver"
_BRANCH = re.compile(r"root|(condition|condition-branches|for-loop|exit-handler)-\d+|iteration.*")
"""Nodes that have a driver but are not steps: the pipeline itself, and kfp's names for its branches."""
_UNKNOWN = "RUNTIME_STATE_UNSPECIFIED"


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Attributes:
        name: its name in the pipeline.
        state: one of KFP's runtime states; UNKNOWN if the run is over and the end of the step was not reported.
        started: when its pod was requested, UTC.
        finished: when its last attempt ended, UTC.
        attempt: number of its newest attempt, from 1.
    """

    name: str
    state: str
    started: datetime | None
    finished: datetime | None
    attempt: int = 1


def read(tasks: Iterable[Any], run_is_over: bool) -> tuple[Step, ...]:
    """Return the steps of a run in the order in which they began; waiting steps come last.

    Args:
        tasks: the run's task details, as the API's client reads them.
        run_is_over: whether the run has ended; a step that still runs then is out of date.
    """
    whole: dict[str, Any] = {}
    attempts: dict[str, list[Any]] = {}
    pods: dict[str, int] = {}
    for task in tasks:
        name = str(task.display_name or "")
        if match := _ATTEMPT.fullmatch(name):
            attempts.setdefault(match[1], []).append(task)
        elif name == "executor":
            # Every step has a node of this name; the id of its first attempt distinguishes them.
            children = list(_children(task))
            pods |= {children[0]: len(children)} if children else {}
        else:
            whole[name] = task
    found = []
    for driver in whole:
        name = driver.removesuffix(_DRIVER)
        if name == driver or _BRANCH.fullmatch(name):
            continue
        step = _step(name, whole[driver], whole.get(name))
        # Next to its executor an attempt has the drivers of the steps that waited for it as children.
        tried = [sum(pods.get(_first(child), 0) for child in _children(task)) or 1 for task in attempts.get(name, ())]
        if run_is_over and step.state not in OVER:
            step = Step(name, "UNKNOWN", step.started, step.finished)
        found.append(Step(step.name, step.state, step.started, step.finished, max(1, sum(tried))))
    return tuple(sorted(found, key=lambda step: (step.started is None, step.started, step.name)))


def moment(value: datetime | None) -> datetime | None:
    """Return a time in UTC; None for 1970 or year 1, which mean that it has not happened yet."""
    if value is None or value.timestamp() <= 0:
        return None
    return value.astimezone(UTC)


def _step(name: str, driver: Any, task: Any) -> Step:
    if task is None:
        # Until its driver is done, only the driver shows the step.
        state = _state(driver)
        if state != "FAILED":
            return Step(name, state if state == "SKIPPED" else "PENDING", None, None)
        task = driver
    return Step(name, _state(task), moment(task.start_time), moment(task.end_time))


def _state(task: Any) -> str:
    state = str(task.state or "PENDING")
    # Argo's "Omitted" is for a node that waits for a failed one; Kubeflow Pipelines does not know this state.
    return "SKIPPED" if state == _UNKNOWN else state


def _children(task: Any) -> Iterator[str]:
    return (str(child.pod_name) for child in task.child_tasks or () if child.pod_name)


def _first(identity: str) -> str:
    """Return the id of a node's first attempt.

    An id ends with the FNV-1a hash of the node's whole name. The hash of an attempt's id continues it with `(0)`.
    """
    workflow, _, digits = identity.rpartition("-")
    if not digits.isdigit():
        return ""
    found = int(digits)
    for byte in b"(0)":
        found = (found ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f"{workflow}-{found}"

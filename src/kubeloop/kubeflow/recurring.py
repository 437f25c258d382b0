"""Recurring runs: bring those of Kubeflow Pipelines in line with `pipelines.recurring` of loop.yaml."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kubeloop import names
from kubeloop.config import Loop
from kubeloop.config.cluster import Recurring
from kubeloop.kubeflow.api import Api, described
from kubeloop.kubeflow.values import Schedule, Version

_MARK = f"{names.LABEL_DOMAIN}/schedule"


@dataclass(frozen=True)
class Change:
    """One change: a recurring run to create, or one to delete."""

    action: Literal["create", "delete"]
    name: str
    reason: str
    schedule_id: str = ""
    """What to delete."""
    item: Recurring | None = None
    """What to create."""


def plan(api: Api, loop: Loop, versions: Mapping[str, Version]) -> list[Change]:
    """Return what differs between loop.yaml and Kubeflow Pipelines, deletions first.

    Only recurring runs with this loop's mark and the matching name are considered; the others are not ours. The API
    cannot change a recurring run, so a change is a deletion and a creation.

    Args:
        api: the pipelines API.
        loop: the use case.
        versions: the version of each pipeline that is wanted, by `pipelines.recurring[].pipeline`; only its name
            counts, whether it is uploaded or not.

    Raises:
        KfpError: no usable answer.
    """
    wanted = {item.name: item for item in loop.pipelines.recurring}
    kept: set[str] = set()
    changes = []
    for schedule, name, digest in _ours(api, loop):
        item = wanted.get(name)
        if item is None:
            reason = "no longer in loop.yaml"
        elif digest != _digest(loop, item, versions[item.pipeline]):
            reason = "changed"
        elif name in kept:
            reason = "there twice"
        else:
            kept.add(name)
            continue
        changes.append(Change("delete", schedule.name, reason, schedule_id=schedule.schedule_id))
    replaced = {change.name for change in changes}
    for name, item in wanted.items():
        if name not in kept:
            reason = "changed" if _title(loop, name) in replaced else "new"
            changes.append(Change("create", _title(loop, name), reason, item=item))
    return changes


def apply(api: Api, loop: Loop, versions: Mapping[str, Version], changes: list[Change]) -> None:
    """Carry out a plan. After an error, the next plan holds the remaining changes.

    If an answer is lost, the next plan finds the recurring run by its mark; two of one name become one.

    Raises:
        KfpError: no usable answer.
    """
    experiment = ""
    for change in changes:
        if change.item is None:
            api.delete_schedule(change.schedule_id)
            continue
        item, version = change.item, versions[change.item.pipeline]
        experiment = experiment or api.experiment(loop.pipelines.experiment or loop.name, loop.description)
        digest = _digest(loop, item, version)
        mark = f"{_MARK}: {loop.name}/{item.name}@{digest}"
        api.create_schedule(
            change.name,
            version,
            experiment_id=experiment,
            description=described(f"{item.pipeline} of {loop.name}, from loop.yaml", mark),
            parameters=_parameters(item),
            service_account=loop.pipelines.service_account,
            cron=item.cron,
            max_concurrency=item.max_concurrency,
            enabled=item.enabled,
        )


def _ours(api: Api, loop: Loop) -> list[tuple[Schedule, str, str]]:
    prefix = f"{_MARK}: {loop.name}/"
    pattern = re.compile(rf"^{re.escape(prefix)}([a-z0-9-]+)@([0-9a-f]+)$", re.MULTILINE)
    return [
        (schedule, match[1], match[2])
        for schedule in api.schedules(prefix)
        if (match := pattern.search(schedule.description)) and schedule.name == _title(loop, match[1])
    ]


def _title(loop: Loop, name: str) -> str:
    return f"{loop.name}-{name}"


def _digest(loop: Loop, item: Recurring, version: Version) -> str:
    """Return a digest of a recurring run's settings: hex, 16 characters."""
    content: dict[str, Any] = {
        "item": item.model_dump(),
        "version": version.name,
        "service_account": loop.pipelines.service_account,
        "experiment": loop.pipelines.experiment or loop.name,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _parameters(item: Recurring) -> dict[str, str]:
    return {"reason": f"recurring run {item.name}"} if item.pipeline == "training" else {}

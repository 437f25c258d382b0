"""The judge of a rollout: promote, hold or roll back, with reason and evidence.

`session` feeds it what the payload log holds since the last look, `kubeloop judge` a table. It is plain state:
`to_dict` and `from_dict` carry it over a restart, and it has no clock, no file and no server of its own.

Each criterion keeps its own e-process. Harm is proven at K / alpha for each of K criteria, so that all of them
together roll back a harmless version with a probability of at most alpha over the whole rollout (union bound). A
promotion needs every proof (an intersection), each at 1 / alpha. Difference alone is not harm.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from kubeloop.config import Gates
from kubeloop.config.rollout import Rollout
from kubeloop.judge.arms import Arms, Floats, sample_ratio
from kubeloop.judge.criteria import Better, Often, Slow, Spread
from kubeloop.judge.exposures import ExposureError, Exposures
from kubeloop.judge.findings import Finding, Verdict
from kubeloop.tasks.port import Task

__all__ = ["Judge"]

SAMPLE_RATIO_ALPHA = 1e-3
"""Chance that traffic divided as planned is called otherwise."""


class Judge:
    """Weighs one canary against the champion, over all steps of a rollout.

    Args:
        policy: `rollout` of loop.yaml.
        gates: `gates` of loop.yaml: block.
        task: the loop's.
        reference: the champion's headline on its hold-out, which scales the differences of losses.
        answers: the champion's answers [m] or [m, k] from before the rollout, to take their tenths from.
        slices: (column, value) of the slices to judge; they are named before the rollout, since they share alpha.

    Raises:
        ExposureError: a loss needs a reference above zero.
    """

    def __init__(
        self,
        policy: Rollout,
        gates: Gates,
        task: Task,
        *,
        reference: float | None = None,
        answers: Floats | None = None,
        slices: Sequence[tuple[str, str]] = (),
    ) -> None:
        sticky = policy.unit == "entity"
        self._policy = policy
        self._print = json.dumps([policy.model_dump(mode="json"), str(gates.block), task.headline.name, reference])
        self._assigned = Often("assigned", policy.errors, sticky)
        self._errors = Often("errors", policy.errors, sticky)
        self._slow = (
            Slow("latency", policy.latency, sticky, quantile=policy.latency.quantile) if policy.latency else None
        )
        self._labels = Often("labels", policy.labels, sticky) if policy.labels else None
        self._spread = Spread(policy.distribution, sticky) if policy.distribution else None
        self._named = {metric.name: Often(metric.name, metric, sticky) for metric in policy.metrics}
        self._quality: list[Better] = []
        if policy.quality:
            unit = _unit(task, reference)
            judged = slices if policy.quality.slices else ()
            self._quality = [Better("quality", policy.quality, task, gates.block, unit)]
            self._quality += [
                Better(f"quality {column}={value}", policy.quality, task, gates.block, unit, (column, value))
                for column, value in judged
            ]
        if self._spread and answers is not None:
            self._spread.refer(answers)

    def serve(self, rows: Exposures) -> None:
        """Take what was served since the last look, in the order of time: errors, latency and predictions."""
        everything = np.ones(len(rows), dtype=bool)
        self._assigned.add(rows, everything, ~everything)
        if rows.told:
            self._errors.add(rows, everything, rows.failed)
        if self._slow:
            self._slow.time(rows)
        if self._spread:
            self._spread.add(rows)
        for name, criterion in self._named.items():
            if name not in rows.metrics:
                raise ExposureError(
                    f"rollout.metrics names {name}, but the events have no such column; the payload log has none, so "
                    "give a file with events"
                )
            values = rows.metrics[name]
            known = ~(values != values)
            criterion.add(rows, known, values == 1)

    def learn(self, rows: Exposures) -> None:
        """Take predictions whose labels are due, there or not: whole blocks of `gates.block`, in the order of time.

        A row belongs here only once the deadline of its label has passed. Labels counted as they arrive would favour
        the arm whose labels come faster.
        """
        if self._labels:
            answered = rows.answered
            self._labels.add(rows, answered, rows.truths != rows.truths)
        for criterion in self._quality:
            if criterion.of is not None and criterion.of[0] not in rows.slices:
                raise ExposureError(f"the events have no column {criterion.of[0]} to cut {criterion.name} by")
            criterion.add(rows)

    def verdict(self, share: float, *, waited: timedelta = timedelta(0)) -> Verdict:
        """Decide.

        Args:
            share: the canary's share of the traffic now, 0 to 1; 1 where nothing more comes.
            waited: how long the rollout has waited for its proofs.
        """
        findings = self.findings(share)
        odd = sample_ratio(self._assigned.arms.by_share)
        if odd > math.log(1 / SAMPLE_RATIO_ALPHA):
            return Verdict(
                "hold", f"the experiment is not valid: {_division(self._assigned.arms)}", findings, valid=False
            )
        harmful = [one for one in findings if one.harmful]
        if harmful:
            worst = max(harmful, key=lambda one: one.harm / one.harm_limit)
            return Verdict("rollback", str(worst), findings)
        if not self._assigned.arms.total.canary:
            return Verdict("hold", "the canary has no requests yet", findings)
        missing = [one for one in findings if one.proven is False]
        if not missing:
            told = [str(one) for one in findings if one.proven] or ["no harm was found, and nothing has to be proven"]
            return Verdict("promote", "; ".join(told), findings)
        needed = [one.needed for one in missing]
        known = [count for count in needed if count is not None]
        text = f"no harm was found; not proven yet: {', '.join(one.name for one in missing)}"
        if waited >= self._policy.max_wait:
            text = f"rollout.max_wait is over, and rollout.on_timeout is {self._policy.on_timeout}: {text}"
            return Verdict(self._policy.on_timeout, text, findings)
        if len(known) == len(needed):
            text += f"; about {max(known):,} more requests are needed if neither version is worse"
        return Verdict("hold", text, findings, needed=max(known) if len(known) == len(needed) else None)

    def findings(self, share: float) -> tuple[Finding, ...]:
        """Return what every criterion says now.

        Args:
            share: the canary's share of the traffic now, 0 to 1.
        """
        alpha = self._policy.alpha
        criteria = [one for one in (self._errors, self._slow, self._labels, self._spread) if one is not None]
        groups = self._policy.criteria
        found = [one.finding(alpha, groups / alpha, share) for one in (*criteria, *self._named.values())]
        # The metric's part of alpha: all of it for the whole, or half for the whole and half for the slices.
        slices = len(self._quality) - 1
        for number, one in enumerate(self._quality):
            parts = 1 if slices == 0 else 2 if number == 0 else 2 * slices
            found.append(one.finding(alpha, parts * groups / alpha, share))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return everything that the judge remembers, ready for JSON."""
        criteria = {name: criterion.to_dict() for name, criterion in self._criteria().items()}
        return copy.deepcopy({"policy": self._print, "criteria": criteria})

    def load(self, data: Mapping[str, Any]) -> None:
        """Take over the result of `to_dict` of a judge with the same policy.

        Raises:
            ExposureError: it was written under another policy.
        """
        criteria = self._criteria()
        if data["policy"] != self._print or set(data["criteria"]) != set(criteria):
            raise ExposureError("the rollout began with other criteria; abort it, and start it again")
        for name, criterion in criteria.items():
            criterion.load(copy.deepcopy(data["criteria"][name]))

    def _criteria(self) -> dict[str, Often | Spread | Better]:
        own: dict[str, Often | Spread | Better | None] = {
            "assigned": self._assigned, "errors": self._errors, "latency": self._slow, "labels": self._labels,
            "distribution": self._spread,
        }  # fmt: skip
        named: dict[str, Often | Spread | Better] = {name: one for name, one in own.items() if one is not None}
        return {**named, **self._named, **{one.name: one for one in self._quality}}


def _unit(task: Task, reference: float | None) -> float:
    if task.headline.scale == "share":
        return 1.0
    if reference is None or not abs(reference) > 0:
        raise ExposureError(
            f"{task.headline.name} is judged as a share of the champion's value; give the value of its hold-out"
        )
    return abs(reference)


def _division(arms: Arms) -> str:
    worst = max(
        ((share, one) for share, one in arms.by_share.items() if 0 < share < 1),
        key=lambda part: sample_ratio({part[0]: part[1]}),
    )
    share, counts = worst
    found = counts.canary / (counts.canary + counts.champion)
    return (
        f"the canary got {found:.1%} of the requests where {share:.1%} were planned; look for the reason in the router"
    )

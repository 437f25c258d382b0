"""The criteria of a rollout: each remembers what it needs between two looks, and says what it found.

`Often` counts bad events by arm (errors, slow requests, missing labels, a user's own metric), `Spread` the tenths
of the champion's predictions, and `Better` keeps the metric's differences by block. Each is fed rows in the order
of time.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from kubeloop.config.rollout import Distribution, Frequency, Quality
from kubeloop.judge import bets
from kubeloop.judge.arms import Arms, Bools, Counts, Floats, rate_bound
from kubeloop.judge.exposures import Exposures
from kubeloop.judge.findings import Finding
from kubeloop.tasks.port import Task

__all__ = ["Better", "Often", "Slow", "Spread", "missing"]

PARTS = 10
_FIRST = 500
"""Predictions of the champion that its tenths are taken from, if there is no reference."""
_CHUNK, _GROWTH = 250, 10
"""Rows judged with one limit of latency, which is made from the rows before them: 250, and later a tenth of those."""
_TAIL = 5
"""Requests of the champion beyond its quantile, before anything is called slow."""
_PER_DECADE, _FASTEST_S, _DECADES = 200, 1e-5, 9
_AUTOCORRELATION = 0.4
"""Above this, blocks depend on each other too much for the bets (simulated: false alarms exceed alpha from 0.6 on)."""
_STICKY = "Of entities that stay on their version, only harm can be proven."
_MIXTURE = 2.0
"""About what an average over many alternatives loses of the log evidence of the best one."""
_LARGEST = 700.0
"""Logarithm of the largest e-value that is told."""


@dataclass
class Often:
    """How often something bad happens, by arm.

    With `sticky`, units stay on their arm, and each counts once: when it is first seen, and when it is first bad.
    """

    name: str
    policy: Frequency
    sticky: bool = False
    arms: Arms = field(default_factory=Arms)
    seen: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)

    def add(self, rows: Exposures, known: Bools, bad: Bools) -> None:
        """Count rows.

        Args:
            rows: of the two arms.
            known: whether it is known of each if it was bad [n].
            bad: whether it was [n].
        """
        if not self.sticky:
            self.arms.add(rows.canary[known], rows.share[known], bad[known])
            return
        first = known & _new(rows.unit, known, self.seen)
        first_bad = known & bad & _new(rows.unit, known & bad, self.bad)
        self.arms.add(rows.canary[first], rows.share[first], np.zeros(int(first.sum()), dtype=bool))
        for value in np.unique(rows.share[first_bad]):
            here = first_bad & (rows.share == value)
            counts = self.arms.by_share.setdefault(float(value), Counts())
            counts.canary_bad += int((here & rows.canary).sum())
            counts.champion_bad += int((here & ~rows.canary).sum())

    def finding(self, alpha: float, limit: float, share: float) -> Finding:
        """Say what was found.

        Args:
            alpha: of intervals and of what is to be proven.
            limit: e-value that proves harm.
            share: the canary's now, for what is still needed.
        """
        total, policy = self.arms.total, self.policy
        champion = total.champion_bad / total.champion if total.champion else None
        canary = total.canary_bad / total.canary if total.canary else None
        bad = total.champion_bad + total.canary_bad
        # Once every entity has been bad once, the arms are equal whatever the canary does: no proof comes from that.
        provable = policy.margin is not None and not self.sticky
        safety = self.arms.below(policy.margin) if policy.margin is not None and provable else None
        # Two ways to a proof share alpha.
        level = alpha if policy.acceptable is None else alpha / 2
        proven = None if safety is None else safety >= math.log(1 / level)
        if safety is not None and policy.acceptable is not None:
            proven = proven or rate_bound(total.canary_bad, total.canary, level) < policy.acceptable
        return Finding(
            name=self.name,
            measure="share of entities" if self.sticky else "share of requests",
            champion=champion,
            canary=canary,
            effect=canary / champion if champion and canary is not None else None,
            interval=self.arms.interval(alpha) if bad else None,
            harm=_e(self.arms.above(policy.tolerance)),
            harm_limit=limit,
            safety=None if safety is None else _e(safety),
            safety_limit=1 / level,
            proven=proven,
            events=total.champion + total.canary,
            detail=_STICKY if self.sticky else "" if total.canary else "Nothing was counted of the canary.",
            needed=None if proven is None or proven else self._needed(safety or 0.0, level, share),
        )

    def _needed(self, safety: float, alpha: float, share: float) -> int | None:
        """Return about how many requests the cheaper of the two proofs needs if both arms are equally good."""
        total = self.arms.total
        n = total.champion + total.canary
        if not 0 < share < 1 or not n:
            return None
        rate = (total.champion_bad + total.canary_bad) / n
        return missing(self.policy, rate, share, alpha, safety=safety, canary=total.canary)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"arms": self.arms.to_list(), "seen": sorted(self.seen), "bad": sorted(self.bad)}

    def load(self, data: Mapping[str, Any]) -> None:
        """Take over the result of `to_dict`."""
        self.arms, self.seen, self.bad = Arms.from_list(data["arms"]), set(data["seen"]), set(data["bad"])


@dataclass
class Slow(Often):
    """How often a request takes longer than a quantile of the champion's, measured before it came."""

    quantile: float = 0.95
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_PER_DECADE * _DECADES + 1, np.int64))
    """The champion's durations by their logarithm, so that a limit is known to about one percent."""

    def time(self, rows: Exposures) -> None:
        """Count rows by their `seconds`."""
        start = 0
        while start < len(rows):
            # Chunks grow with what is known: the limit of a long rollout hardly moves.
            end = start + max(_CHUNK, int(self.histogram.sum()) // _GROWTH)
            part = rows.take(slice(start, end))
            known = np.isfinite(part.seconds)
            limit = self.limit()
            if limit is not None:
                self.add(part, known, np.where(known, part.seconds, 0.0) > limit)
            np.add.at(self.histogram, _place(part.seconds[known & ~part.canary]), 1)
            start = end

    def limit(self) -> float | None:
        """Return the champion's quantile in seconds; None while it has too few requests beyond it."""
        total = int(self.histogram.sum())
        if total * (1 - self.quantile) < _TAIL:
            return None
        place = int(np.searchsorted(np.cumsum(self.histogram), self.quantile * total))
        return float(_FASTEST_S * 10 ** ((place + 1) / _PER_DECADE))

    def finding(self, alpha: float, limit: float, share: float) -> Finding:
        """See `Often.finding`."""
        found = super().finding(alpha, limit, share)
        seconds = self.limit()
        if seconds is None:
            detail = f"The champion needs {math.ceil(_TAIL / (1 - self.quantile))} requests before anything is slow."
        else:
            detail = f"Slow is more than {1000 * seconds:.3g} ms, the champion's {self.quantile:.4g} quantile."
        return replace(found, detail=detail)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        kept = np.flatnonzero(self.histogram)
        return super().to_dict() | {"histogram": [kept.tolist(), self.histogram[kept].tolist()]}

    def load(self, data: Mapping[str, Any]) -> None:
        """Take over the result of `to_dict`."""
        super().load(data)
        places, counts = data["histogram"]
        self.histogram[:] = 0
        self.histogram[places] = counts


@dataclass
class Spread:
    """How often predictions fall into each tenth of the champion's, by arm and column of the answer."""

    policy: Distribution
    sticky: bool = False
    edges: list[list[float]] = field(default_factory=list)
    """Inner edges of the tenths, for each column; empty while the champion has answered too little."""
    first: list[list[float]] = field(default_factory=list)
    """Answers of the champion that the edges will be taken from."""
    parts: list[list[Arms]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def refer(self, answers: Floats) -> None:
        """Take the tenths from answers of the champion [m] or [m, k], given before the rollout."""
        table = answers.reshape(len(answers), -1)
        self.edges = [_edges(column) for column in table.T]
        self.parts = [[Arms() for _ in range(len(edges) + 1)] for edges in self.edges]
        self.first = []

    def add(self, rows: Exposures) -> None:
        """Count the rows that have answers."""
        known = rows.answered
        if self.sticky:
            known &= _new(rows.unit, known, self.seen)
        kept = rows.take(known)
        table = kept.answers.reshape(len(kept), rows.width)
        if not self.edges:
            # What came until the champion had answered enough is not counted: the tenths must be fixed before.
            ready = int(np.searchsorted(np.cumsum(~kept.canary), _FIRST - len(self.first))) + 1
            self.first += table[:ready][~kept.canary[:ready]].tolist()
            if len(self.first) < _FIRST:
                return
            self.refer(np.asarray(self.first))
            kept, table = kept.take(np.arange(ready, len(kept))), table[ready:]
        for column, edges, arms in zip(table.T, self.edges, self.parts, strict=True):
            place = np.searchsorted(edges, column, side="right")
            for number, one in enumerate(arms):
                here = place == number
                one.add(kept.canary[here], kept.share[here], np.ones(int(here.sum()), dtype=bool))

    def finding(self, alpha: float, limit: float, share: float) -> Finding:  # noqa: ARG002 - as the other criteria
        """See `Often.finding`; the effect is that of the tenth that differs most."""
        every = [one for arms in self.parts for one in arms]
        # Both directions of all tenths: the average of e-processes is one.
        logs = [log for one in every for log in (one.above(self.policy.tolerance), self._under(one))]
        totals = [one.total for one in every]
        shares: list[tuple[float, float, Arms]] = []
        for arms in self.parts:
            n, m = sum(one.total.champion for one in arms), sum(one.total.canary for one in arms)
            shares += [(one.total.champion / n, one.total.canary / m, one) for one in arms] if n and m else []
        worst = max(shares, key=lambda found: abs(found[1] - found[0]), default=None)
        events = sum(total.champion + total.canary for total in totals) // max(1, len(self.parts))
        return Finding(
            name="distribution",
            measure="share of the predictions in the tenth that differs most,",
            champion=worst[0] if worst else None,
            canary=worst[1] if worst else None,
            effect=worst[1] / worst[0] if worst and worst[0] else None,
            interval=worst[2].interval(alpha) if worst else None,
            harm=float(np.mean([_e(log) for log in logs])) if logs else 1.0,
            harm_limit=limit,
            safety=None,
            safety_limit=1 / alpha,
            proven=None,
            events=events,
        )

    def _under(self, one: Arms) -> float:
        """Return the log of the evidence that a tenth holds too few of the canary's predictions."""
        return one.below(1 / self.policy.tolerance)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "edges": self.edges,
            "first": self.first,
            "parts": [[one.to_list() for one in arms] for arms in self.parts],
            "seen": sorted(self.seen),
        }

    def load(self, data: Mapping[str, Any]) -> None:
        """Take over the result of `to_dict`."""
        self.edges, self.first, self.seen = data["edges"], data["first"], set(data["seen"])
        self.parts = [[Arms.from_list(one) for one in arms] for arms in data["parts"]]


@dataclass
class Better:
    """The headline's difference between the arms, by block of time and share.

    Attributes:
        name: of the criterion.
        unit: by how much a difference is divided: 1 for shares, the champion's value for losses.
        of: (column, value) of a slice, None for all rows.
    """

    name: str
    policy: Quality
    task: Task
    block: timedelta
    unit: float = 1.0
    of: tuple[str, str] | None = None
    differences: list[float] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """The champion's and the canary's values, weighted by the rows of the blocks, and those rows."""

    def add(self, rows: Exposures) -> None:
        """Compare the arms in blocks that are complete: the deadline of all of their labels has passed."""
        known = rows.answered & np.isfinite(rows.truths)
        if self.of is not None:
            column, value = self.of
            known &= np.asarray([str(one) == value for one in rows.slices[column]], dtype=bool)
        kept = rows.take(known)
        size = self.block // timedelta(microseconds=1)
        blocks = kept.at.astype("datetime64[us]").astype(np.int64) // size
        # Within one share only: else a canary that grew during the day would be compared with the morning.
        order = np.lexsort((kept.share, blocks))
        blocks, share = blocks[order], kept.share[order]
        for here in np.split(order, np.flatnonzero((np.diff(blocks) != 0) | (np.diff(share) != 0)) + 1):
            self._compare(kept.take(here))

    def _compare(self, rows: Exposures) -> None:
        theirs, ours = rows.take(~rows.canary), rows.take(rows.canary)
        if min(len(theirs), len(ours)) < self.policy.min_rows:
            return
        # Equally many rows of each arm: a metric such as the calibration error depends on the number of rows, and a
        # clipped difference is only centred on zero if both arms vary equally.
        size, rng = min(len(theirs), len(ours)), np.random.default_rng(len(rows))
        values = [self._value(part.take(np.sort(rng.permutation(len(part))[:size]))) for part in (theirs, ours)]
        if not all(map(math.isfinite, values)):
            return
        self.differences.append(self.task.headline.better * (values[1] - values[0]) / self.unit)
        self.sums = [
            self.sums[0] + values[0] * len(rows),
            self.sums[1] + values[1] * len(rows),
            self.sums[2] + len(rows),
        ]

    def _value(self, rows: Exposures) -> float:
        truths, answers = self.task.checked(rows.truths, rows.answers)
        if self.task.undefined(truths):
            return math.nan
        return self.task.headline.value(truths, answers)

    def finding(self, alpha: float, limit: float, share: float) -> Finding:  # noqa: ARG002 - as the other criteria
        """See `Often.finding`."""
        policy, d, rows = self.policy, self.differences, self.sums[2]
        safety = None if policy.margin is None else bets.wealth(d, -policy.margin, policy.bound, worse=False)
        dependent = bets.autocorrelation(d) > _AUTOCORRELATION
        harm = bets.wealth(d, -policy.tolerance, policy.bound, worse=True)
        return Finding(
            name=self.name,
            measure=self.task.headline.name,
            champion=self.sums[0] / rows if rows else None,
            canary=self.sums[1] / rows if rows else None,
            effect=float(np.mean(d)) if d else None,
            interval=bets.interval(d, policy.bound, alpha) if d else None,
            # Bets on blocks that depend on each other prove nothing.
            harm=1.0 if dependent else _e(harm),
            harm_limit=limit,
            safety=None if safety is None else 1.0 if dependent else _e(safety),
            safety_limit=1 / alpha,
            proven=None if safety is None else not dependent and safety >= math.log(1 / alpha),
            events=len(d),
            detail="Neighbouring blocks depend on each other; set gates.block to a longer time." if dependent else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"differences": self.differences, "sums": self.sums}

    def load(self, data: Mapping[str, Any]) -> None:
        """Take over the result of `to_dict`."""
        self.differences, self.sums = list(data["differences"]), list(data["sums"])


def _new(units: Iterable[str], rows: Bools, seen: set[str]) -> Bools:
    """Return where a unit comes for the first time among some rows [n], and remember it."""
    found = np.zeros(len(rows), dtype=bool)
    for place, unit in enumerate(units):
        if rows[place] and unit not in seen:
            seen.add(unit)
            found[place] = True
    return found


def _edges(column: Floats) -> list[float]:
    """Return the inner edges of tenths, between values: answers that many requests share are not on an edge."""
    values = np.unique(column)
    if len(values) == 1:
        return []
    between = (values[1:] + values[:-1]) / 2
    wanted = np.quantile(column, np.arange(1, PARTS) / PARTS)
    found: list[float] = np.unique(between[np.clip(np.searchsorted(values, wanted), 0, len(between) - 1)]).tolist()
    return found


def _place(seconds: Floats) -> npt.NDArray[np.int64]:
    logs = np.log10(np.maximum(seconds, _FASTEST_S) / _FASTEST_S) * _PER_DECADE
    return np.minimum(logs.astype(np.int64), _PER_DECADE * _DECADES)


def missing(
    policy: Frequency, rate: float, share: float, alpha: float, *, safety: float = 0.0, canary: int = 0
) -> int | None:
    """Return about how many more requests prove that two equally good arms are; None if no number does.

    Args:
        policy: margin and acceptable share.
        rate: share of bad requests of both arms.
        share: the canary's share of the requests to come, above 0 and below 1.
        alpha: of each proof.
        safety: log evidence so far.
        canary: requests of the canary so far.
    """
    found = []
    if rate and policy.margin is not None:
        # What a bad event adds to the log evidence if the arms are equal: a Kullback-Leibler divergence.
        theirs = policy.margin * share / (policy.margin * share + 1 - share)
        growth = share * math.log(share / theirs) + (1 - share) * math.log((1 - share) / (1 - theirs))
        found.append((math.log(1 / alpha) + _MIXTURE - safety) / (rate * growth))
    if policy.acceptable is not None:
        wanted = _enough(rate, policy.acceptable, alpha)
        if wanted is not None:
            found.append((wanted - canary) / share)
    return math.ceil(max(0.0, min(found))) if found else None


def _enough(rate: float, acceptable: float, alpha: float) -> int | None:
    """Return how many canary requests prove a share below `acceptable` if `rate` of them are bad; None if none do."""
    if rate >= acceptable:
        return None
    low, high = 1, 1
    while rate_bound(round(rate * high), high, alpha) >= acceptable:
        low, high = high, high * 2
        if high > 2**40:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if rate_bound(round(rate * middle), middle, alpha) < acceptable else (middle, high)
    return high


def _e(log: float) -> float:
    return math.exp(min(log, _LARGEST))

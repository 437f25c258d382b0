"""How much traffic a rollout needs on the user's own rates: simulated, before it starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kubeloop.config.rollout import Rollout
from kubeloop.judge.arms import RATIOS, Floats
from kubeloop.judge.criteria import missing

__all__ = ["Delay", "delays", "proof"]

FACTORS = (100.0, 20.0, 5.0, 2.0)
_PATHS, _AT_ONCE = 100, 200
_LONGEST = 5_000
"""Bad events of a simulated rollout; one that takes more is reported as not found."""


@dataclass(frozen=True)
class Delay:
    """How long harm stays undetected.

    Attributes:
        factor: by which the share of bad requests is multiplied at the canary.
        requests: median of all requests until the rollback, None if more than half of the rollouts do not find it.
        canary: median of those that the canary got.
    """

    factor: float
    requests: int | None
    canary: int | None


def delays(
    policy: Rollout, rate: float, steps: Sequence[tuple[float, int]], *, criteria: int = 1, seed: int = 7
) -> list[Delay]:
    """Simulate rollouts in which the canary fails more often, looked at after each bad event.

    Args:
        policy: alpha and tolerance.
        rate: the champion's share of failed requests, above 0.
        steps: the canary's share and the requests of each step; the last one lasts until harm is found.
        criteria: that share alpha.
        seed: of the simulation.
    """
    rng = np.random.default_rng(seed)
    found = []
    for factor in FACTORS:
        ends = [_until(rng, policy, rate, factor, steps, criteria) for _ in range(_PATHS)]
        totals, ours = np.median([end[0] for end in ends]), np.median([end[1] for end in ends])
        known = math.isfinite(totals)
        found.append(Delay(factor, round(totals) if known else None, round(ours) if known else None))
    return found


def proof(policy: Rollout, rate: float, share: float) -> int | None:
    """Return about how many requests prove that errors are harmless, if both arms have the same rate.

    Args:
        policy: of the rollout.
        rate: share of failed requests of both arms.
        share: the canary's share of the traffic.
    """
    errors = policy.errors
    if errors.margin is None:
        return 0
    level = policy.alpha if errors.acceptable is None else policy.alpha / 2
    return missing(errors, rate, share, level)


def _until(
    rng: np.random.Generator,
    policy: Rollout,
    rate: float,
    factor: float,
    steps: Sequence[tuple[float, int]],
    criteria: int,
) -> tuple[float, float]:
    """Return all requests and the canary's until one simulated rollout is rolled back; infinite if it is not."""
    theirs, ours = min(1.0, rate), min(1.0, rate * factor)
    limit = math.log(criteria / policy.alpha)
    alternatives = np.append(RATIOS[policy.errors.tolerance * 1.05 < RATIOS], policy.errors.tolerance)
    log = np.zeros(len(alternatives))
    at = canary = events = 0.0
    for number, (share, length) in enumerate(steps):
        both = share * ours + (1 - share) * theirs
        last, spent = number == len(steps) - 1, 0.0
        while (last or spent < length) and events < _LONGEST:
            gaps = spent + np.cumsum(rng.geometric(both, _AT_ONCE))
            gaps = gaps if last else gaps[gaps <= length]
            hits = rng.random(len(gaps)) < share * ours / both
            logs = np.vstack([log, log + _paths(hits, share, alternatives)])
            top = logs.max(axis=1)
            evidence = top + np.log(np.mean(np.exp(logs[:, :-1] - top[:, None]), axis=1)) - logs[:, -1]
            crossed = np.flatnonzero(evidence[1:] >= limit)
            if len(crossed):
                return at + gaps[crossed[0]], canary + share * gaps[crossed[0]]
            log, events = logs[-1], events + len(gaps)
            spent = float(gaps[-1]) if len(gaps) == _AT_ONCE else length
        at, canary = at + length, canary + share * length
    return math.inf, math.inf


def _paths(hits: "np.ndarray[tuple[int], np.dtype[np.bool_]]", share: float, ratios: Floats) -> Floats:
    steps = np.where(hits[:, None], np.log(ratios), 0.0) - np.log(ratios * share + 1 - share)
    return np.asarray(np.cumsum(steps, axis=0))

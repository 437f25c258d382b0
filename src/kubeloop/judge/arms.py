"""Which arm do the bad events fall on? Sequential evidence that needs nothing but our own coin.

A router gives each request to the canary with a known probability, its *share* w. If the canary has bad events r
times as often as the champion, a bad event at that moment is the canary's with probability

    p_r(w) = r w / (r w + 1 - w)

whatever the rate of bad events is: it may drift, burst or follow the hours of the day, since only the coin is used.
The likelihood ratio of two values of r is therefore a nonnegative martingale (Wald 1945), so is its average over
many alternatives (the method of mixtures: Robbins, Ann. Math. Stat. 41, 1970), and by Ville's inequality (1939) it
exceeds 1/alpha with a probability of at most alpha, however often one looks. Such a process is called an
e-process (Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 38,
2023). The share may change between requests, so one process spans all steps of a rollout.

The unit that is assigned must be the unit that is counted: with entities that stay on their arm, count each entity
once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Arms", "Counts", "rate_bound", "sample_ratio"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

STEP = 8
"""Alternatives per doubling of the ratio."""
RATIOS: Floats = 2.0 ** (np.arange(-6 * STEP, 6 * STEP + 1) / STEP)
"""Ratios that are taken as alternatives, 1/64 to 64."""
_FINE: Floats = 2.0 ** (np.arange(-10 * 64, 10 * 64 + 1) / 64)
_EXPONENTS: Floats = np.geomspace(0.05, 8.0, 24)
_HALVINGS = 60
_CONCENTRATION = 100.0
"""Events that the prior of `sample_ratio` is worth: it expects shares within some percent of the plan."""


@dataclass
class Counts:
    """Events of one share: of the champion and of the canary, and how many of each were bad."""

    champion: int = 0
    canary: int = 0
    champion_bad: int = 0
    canary_bad: int = 0


@dataclass
class Arms:
    """Everything that a criterion of bad events has to remember: counts for each share, in any order of arrival."""

    by_share: dict[float, Counts] = field(default_factory=dict)

    def add(self, canary: Bools, share: Floats, bad: Bools) -> None:
        """Count events.

        Args:
            canary: whether each was given to the canary [n].
            share: the probability with which it was, at that moment [n], 0 to 1.
            bad: whether each was bad [n].
        """
        for value in np.unique(share):
            here = share == value
            ours, theirs = here & canary, here & ~canary
            found = self.by_share.setdefault(float(value), Counts())
            found.champion += int(theirs.sum())
            found.canary += int(ours.sum())
            found.champion_bad += int((theirs & bad).sum())
            found.canary_bad += int((ours & bad).sum())

    @property
    def total(self) -> Counts:
        """All shares together."""
        parts = self.by_share.values()
        return Counts(
            sum(part.champion for part in parts),
            sum(part.canary for part in parts),
            sum(part.champion_bad for part in parts),
            sum(part.canary_bad for part in parts),
        )

    def above(self, tolerance: float) -> float:
        """Return the log of the evidence that the canary has bad events more than `tolerance` times as often.

        It is a test supermartingale for every true ratio up to `tolerance`: the factor of an event grows with the true
        ratio, and has mean 1 at `tolerance`.
        """
        return self._against(tolerance, RATIOS[tolerance * 1.05 < RATIOS])

    def below(self, margin: float) -> float:
        """Return the log of the evidence that the canary has bad events less than `margin` times as often."""
        return self._against(margin, RATIOS[margin / 1.05 > RATIOS])

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return a confidence sequence of the ratio: it holds at all times together with probability 1 - alpha.

        It is the set of ratios that the mixture over all alternatives has not refuted; an end that lies beyond 1/1024
        or 1024 is 0 or infinite.
        """
        best = _mean(self._log(RATIOS))
        kept = _FINE[best - self._log(_FINE) < -np.log(alpha)]
        if not len(kept):
            return float(RATIOS[0]), float(RATIOS[-1])
        low, high = float(kept[0]), float(kept[-1])
        return (0.0 if low == _FINE[0] else low), (np.inf if high == _FINE[-1] else high)

    def to_list(self) -> list[list[float]]:
        """Return plain values, ready for JSON."""
        return [[s, c.champion, c.canary, c.champion_bad, c.canary_bad] for s, c in sorted(self.by_share.items())]

    @classmethod
    def from_list(cls, rows: Iterable[Iterable[Any]]) -> "Arms":
        """Read the result of `to_list`."""
        return cls({float(s): Counts(int(a), int(b), int(c), int(d)) for s, a, b, c, d in rows})

    def _against(self, null: float, alternatives: Floats) -> float:
        if not len(alternatives):
            return 0.0
        return _mean(self._log(alternatives)) - float(self._log(np.array([null]))[0])

    def _log(self, ratios: Floats) -> Floats:
        """Return the log likelihood of ratios [m], but for a constant."""
        found = np.zeros(len(ratios))
        for share, counts in self.by_share.items():
            bad = counts.canary_bad + counts.champion_bad
            found += counts.canary_bad * np.log(ratios) - bad * np.log(ratios * share + 1 - share)
        return found


def rate_bound(bad: int, n: int, alpha: float) -> float:
    """Return an upper bound of the average rate of bad events, valid at all times together.

    The rate may change from event to event: for each exponent l > 0, exp((1 - exp(-l)) V - l S) is a nonnegative
    supermartingale, where S counts bad events and V sums their conditional probabilities (Howard et al., "Time-uniform
    Chernoff bounds via nonnegative supermartingales", Probability Surveys 17, 2020, sub-Poisson case). The bound
    inverts its average over many exponents. Without bad events it is about 4/n at alpha 0.05.

    Args:
        bad: bad events.
        n: all events.
        alpha: probability with which the bound may ever be below the average rate.
    """
    if not n:
        return 1.0
    low, high = 0.0, float(n)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _mean((1 - np.exp(-_EXPONENTS)) * middle - _EXPONENTS * bad) < -np.log(alpha):
            low = middle
        else:
            high = middle
    return min(1.0, high / n)


def sample_ratio(counts: Mapping[float, Counts]) -> float:
    """Return the log of the evidence that the traffic was not divided as planned.

    It is an e-process: for each share a Bayes factor of a beta mixture, centred on the plan, against the plan
    (Lindon & Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022, with two arms).

    Args:
        counts: units that were assigned, whether or not they were answered, for each planned share.
    """
    from scipy.special import betaln

    found = 0.0
    for share, part in counts.items():
        if not 0 < share < 1:
            continue
        a, b = _CONCENTRATION * share, _CONCENTRATION * (1 - share)
        found += float(betaln(a + part.canary, b + part.champion) - betaln(a, b))
        found -= part.canary * np.log(share) + part.champion * np.log(1 - share)
    return found


def _mean(logs: Floats) -> float:
    """Return the log of the mean of exp."""
    top = float(logs.max())
    return top + float(np.log(np.mean(np.exp(logs - top))))

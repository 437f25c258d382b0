"""Is the canary's metric worse? Bets on the differences of blocks of time, which later labels settle one by one.

Rows of one day share what happened that day, so rows are not independent and a test that counts rows is wrong;
blocks are the unit (`gates.block`). Let d be the canary's metric minus the champion's in a block, positive where
the canary is better, clipped to [-bound, bound]. A gambler who stakes a fixed share of the wealth on d being below
m multiplies it by 1 + s (m - d) in each block. If the mean of d, given the past, is at least m, the wealth is a
nonnegative supermartingale, and exceeds 1/alpha with a probability of at most alpha (Waudby-Smith & Ramdas,
"Estimating means of bounded random variables by betting", JRSS B 86, 2024; the average over fixed stakes is the
portfolio of Orabona & Jun, IEEE Trans. Inf. Theory 70, 2024).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["autocorrelation", "interval", "wealth"]

Floats = npt.NDArray[np.float64]

_STAKES: Floats = np.geomspace(1 / 64, 0.98, 24)
"""Shares of the largest stake that the wealth survives."""
_GRID, _AT_ONCE = 401, 100
_ENOUGH = 8
"""With fewer blocks an autocorrelation is noise."""


def wealth(differences: Sequence[float], null: float, bound: float, *, worse: bool) -> float:
    """Return the log of the evidence that the mean difference lies on one side of `null`.

    Args:
        differences: of the blocks [b], in time.
        null: mean difference that the evidence is against.
        bound: differences are clipped to plus and minus this.
        worse: whether it is bet on a mean below `null` (True) or above it.
    """
    return float(_wealth(differences, np.array([null]), bound, worse=worse)[0])


def interval(differences: Sequence[float], bound: float, alpha: float) -> tuple[float, float]:
    """Return a confidence sequence of the mean of the clipped differences: valid at all times together.

    Each end is refuted by its own gambler at alpha / 2.
    """
    # Without the outermost, which no bet refutes.
    means = np.linspace(-bound, bound, _GRID)[1:-1]
    limit = np.log(2 / alpha)
    above, below = (_wealth(differences, means, bound, worse=worse) for worse in (True, False))
    kept = means[(above < limit) & (below < limit)]
    if not len(kept):
        middle = float(np.clip(differences, -bound, bound).mean())
        return middle, middle
    return float(kept[0]), float(kept[-1])


def _wealth(differences: Sequence[float], nulls: Floats, bound: float, *, worse: bool) -> Floats:
    """Return the log evidence against each of `nulls` [m]."""
    d = np.clip(np.asarray(differences, dtype=np.float64), -bound, bound)
    logs = np.zeros((len(nulls), len(_STAKES)))
    # The largest loss of a stake of 1: then nothing is left.
    largest = bound - nulls if worse else bound + nulls
    stakes = _STAKES / np.maximum(largest, 1e-12)[:, None]
    for start in range(0, len(d), _AT_ONCE):
        gains = d[start : start + _AT_ONCE] - nulls[:, None]
        logs += np.log1p(stakes[:, :, None] * (-gains if worse else gains)[:, None, :]).sum(axis=2)
    top = logs.max(axis=1)
    found = top + np.log(np.mean(np.exp(logs - top[:, None]), axis=1))
    return np.asarray(np.where(largest > 0, found, 0.0))


def autocorrelation(differences: Sequence[float]) -> float:
    """Return the correlation of neighbouring blocks' differences; 0 for fewer than eight blocks.

    Blocks that depend on each other make the bets too sure: take larger ones.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < _ENOUGH:
        return 0.0
    centred = d - d.mean()
    total = float((centred**2).sum())
    return float((centred[1:] * centred[:-1]).sum() / total) if total else 0.0

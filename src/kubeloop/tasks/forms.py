"""Weighted forms of metrics that several kinds of task share."""

import numpy as np
import numpy.typing as npt

from kubeloop.tasks.port import Floats, Groups, Weighted

__all__ = ["mean"]


def mean(losses: Floats, groups: Groups) -> Weighted:
    """Return the mean of a loss [n] as a function of group weights [r, g]."""
    sums, counts = np.bincount(groups, weights=losses), np.bincount(groups)

    def measure(weights: npt.ArrayLike) -> Floats:
        shares = np.asarray(weights, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray(shares @ sums / (shares @ counts))

    return measure

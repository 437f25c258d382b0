"""What the judge sees of each request of a rollout."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import numpy.typing as npt

from kubeloop.errors import KubeloopError

__all__ = ["ExposureError", "Exposures", "failures"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_SERVER_ERROR = 500
_OTHERS = ("slices", "metrics", "failed")


class ExposureError(KubeloopError, ValueError):
    """The events of a rollout cannot be judged; the message says what is wrong with them."""

    lasting = True


def failures(status: npt.ArrayLike) -> Bools:
    """Return which HTTP statuses [n] are failures; 0 is a timeout or a lost connection, NaN an answer."""
    found = np.asarray(status, dtype=np.float64)
    return np.asarray((found == 0) | (found >= _SERVER_ERROR))


@dataclass(frozen=True)
class Exposures:
    """Requests that were given to one of two arms, one row each.

    A request with several rows is one unit: its first row stands for it among predictions, and it failed as a whole.

    Attributes:
        at: when each was assigned, UTC [n].
        canary: whether it was given to the canary [n].
        share: the probability with which it was, 0 to 1 [n].
        unit: what was assigned, as text: the request's id, or the entity's where entities stay on their arm [n].
        failed: whether the arm failed to answer it, also if another arm answered in its place [n]; empty where the
            events do not say.
        seconds: how long the arm took, NaN where unknown [n].
        answers: of the model [n] or [n, k], NaN where there is none.
        truths: label of each as truth of the task, NaN where there is none yet [n].
        slices: values of the columns of `gates.slices`, [n] each.
        metrics: 1 where a metric of the user's own is bad, 0 where not, NaN where unknown, [n] each.
    """

    at: npt.NDArray[np.datetime64]
    canary: Bools
    share: Floats
    unit: npt.NDArray[np.object_]
    failed: Bools
    seconds: Floats
    answers: Floats
    truths: Floats
    slices: Mapping[str, npt.NDArray[np.object_]] = field(default_factory=dict)
    metrics: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.at)
        for name, values in self._columns().items():
            if len(values) != n and not (name == "failed" and not len(values)):
                raise ExposureError(f"{name} has {len(values)} rows, at has {n}")
        if n and not (np.isfinite(self.share).all() and self.share.min() >= 0 and self.share.max() <= 1):
            raise ExposureError("share is the probability of the canary, a number from 0 to 1, in every row")
        if bool((self.canary & (self.share == 0)).any() or (~self.canary & (self.share == 1)).any()):
            raise ExposureError("a row was given to an arm whose share was 0")

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice) -> "Exposures":
        """Return some of the rows, by a mask [n], by positions, or a stretch of them."""
        return replace(
            self,
            **{one.name: getattr(self, one.name)[rows] for one in fields(self) if one.name not in _OTHERS},
            failed=self.failed[rows] if self.told else self.failed,
            slices={name: values[rows] for name, values in self.slices.items()},
            metrics={name: values[rows] for name, values in self.metrics.items()},
        )

    @property
    def told(self) -> bool:
        """Whether the events say which requests failed."""
        return len(self.failed) == len(self)

    @property
    def width(self) -> int:
        """Numbers of an answer."""
        return 1 if self.answers.ndim == 1 else int(self.answers.shape[1])

    @property
    def answered(self) -> Bools:
        """Rows with an answer [n]."""
        return np.asarray(np.isfinite(self.answers.reshape(len(self), self.width)).all(axis=1))

    def _columns(self) -> dict[str, npt.NDArray[np.generic]]:
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _OTHERS} | {
            "failed": self.failed
        }
        return {**own, **self.slices, **self.metrics}

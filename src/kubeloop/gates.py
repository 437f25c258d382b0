"""Decide whether a challenger may become the champion, from a paired bootstrap over blocks of time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from kubeloop import config, evaluation
from kubeloop.errors import KubeloopError

MIN_BLOCKS = 5
"""With fewer blocks the interval says more about the draw than about the models."""

_CELLS = 1_000_000
_TOLD = 3
"""Warnings that a reason repeats in full: it stands in logs, tags and commits."""


class GateError(KubeloopError, ValueError):
    """Two models cannot be compared on these rows; the message says what to change."""

    lasting = True


@dataclass(frozen=True)
class Check:
    """One condition of a verdict; `value` is None where it is undefined, which fails."""

    name: str
    passed: bool
    value: float | None
    limit: float


@dataclass(frozen=True)
class Verdict:
    """The decision, with what it rests on.

    `difference` and `interval` are oriented so that positive means that the challenger is better; they and `champion`
    are None when there was no champion. `warnings` are the challenger's own, see `warned`.
    """

    promote: bool
    reason: str
    metric: str
    champion: float | None
    challenger: float | None
    difference: float | None
    interval: tuple[float, float] | None
    confidence: float
    checks: tuple[Check, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """Read what `to_dict` wrote, also after a trip through JSON."""
        interval = data["interval"]
        return cls(
            **{
                **data,
                "interval": None if interval is None else (interval[0], interval[1]),
                "checks": tuple(Check(**check) for check in data["checks"]),
                "warnings": tuple(data.get("warnings", ())),
            }
        )


def compare(
    y: npt.ArrayLike,
    champion: npt.ArrayLike,
    challenger: npt.ArrayLike,
    gates: config.Gates,
    *,
    blocks: npt.ArrayLike,
    slices: Mapping[str, Any] | None = None,
    seed: int = 7,
) -> Verdict:
    """Judge a challenger against the champion on the same rows.

    The challenger is promoted only if the lower end of the interval of its gain exceeds `gates.min_gain`, every floor
    and ceiling holds for it, and no slice loses more than `gates.slice_tolerance`. Slices with one class have no auc
    or pr_auc and are not judged by them.

    Args:
        y: labels [n], 0 or 1.
        champion: its probabilities [n].
        challenger: its probabilities [n].
        gates: the policy.
        blocks: block of each row [n], see `time_blocks`.
        slices: data frame or mapping with the columns that `gates.slices` names, [n] each.
        seed: of the bootstrap.

    Raises:
        GateError: the rows hold one class or one block.
        EvaluationError: labels or predictions are not valid, or a slice column is missing.
    """
    labels, old = evaluation.checked(y, champion)
    _, new = evaluation.checked(y, challenger)
    before, after = evaluation.score(labels, old), evaluation.score(labels, new)
    difference, low, high = difference_interval(
        labels, old, new, gates.metric, blocks, gates.resamples, gates.confidence, seed
    )
    count = len(np.unique(np.asarray(blocks)))
    checks = (
        Check("blocks", count >= MIN_BLOCKS, count, MIN_BLOCKS),
        Check("gain", low > gates.min_gain, low, gates.min_gain),
        *_limits(after, gates),
        *_slice_checks(labels, old, new, gates, {} if slices is None else slices),
    )
    summary = (
        f"{gates.metric} {after[gates.metric]:.4f} against the champion's {before[gates.metric]:.4f}, "
        f"gain {difference:+.4f} ({gates.confidence:.0%} interval {low:+.4f} to {high:+.4f}, {count} blocks)"
    )
    return Verdict(
        promote=all(check.passed for check in checks),
        reason=_reason(summary, checks),
        metric=gates.metric,
        champion=_defined(before[gates.metric]),
        challenger=_defined(after[gates.metric]),
        difference=difference,
        interval=(low, high),
        confidence=gates.confidence,
        checks=checks,
    )


def first(y: npt.ArrayLike, challenger: npt.ArrayLike, gates: config.Gates) -> Verdict:
    """Judge a model that has no champion to beat: floors and ceilings only.

    Args:
        y: labels [n], 0 or 1.
        challenger: its probabilities [n].
        gates: the policy.

    Raises:
        GateError: the rows hold one class.
        EvaluationError: labels or predictions are not valid.
    """
    labels, new = evaluation.checked(y, challenger)
    _demand_two_classes(labels)
    values = evaluation.score(labels, new)
    checks = tuple(_limits(values, gates))
    return Verdict(
        promote=all(check.passed for check in checks),
        reason=_reason(f"first model, {gates.metric} {values[gates.metric]:.4f}", checks),
        metric=gates.metric,
        champion=None,
        challenger=_defined(values[gates.metric]),
        difference=None,
        interval=None,
        confidence=gates.confidence,
        checks=checks,
    )


def warned(verdict: Verdict, warnings: Sequence[str], gates: config.Gates) -> Verdict:
    """Repeat what to look at before the challenger is believed; it is refused for that only if the policy says so."""
    if not warnings:
        return verdict
    told = " ".join(f"Warning: {text}." for text in warnings[:_TOLD])
    if len(warnings) > _TOLD:
        told += f" Warnings in the model's card: {len(warnings)}."
    reason, checks = verdict.reason, verdict.checks
    if gates.refuse_on_warning:
        checks = (*checks, Check("warnings", False, len(warnings), 0))
        if verdict.promote:
            reason = f"Rejected: gates.refuse_on_warning is set. But for that: {reason}"
    return replace(
        verdict,
        promote=verdict.promote and not gates.refuse_on_warning,
        reason=f"{reason} {told}",
        checks=checks,
        warnings=tuple(warnings),
    )


def difference_interval(
    y: npt.ArrayLike,
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    metric: str,
    blocks: npt.ArrayLike,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 7,
) -> tuple[float, float, float]:
    """Return how much better b is than a, with a percentile bootstrap interval.

    Whole blocks are drawn with replacement (Efron & Tibshirani 1993, ch. 8; the cluster bootstrap of Field & Welsh
    2007), since rows of one block share what happened that day; both models are measured on the same draw. A hold-out
    has few blocks, for which the plain interval is too narrow. So of B blocks B-1 are drawn, which makes the variance
    unbiased (Rao & Wu 1988), and the percentiles are widened as Student's t with B-1 degrees of freedom is wider than
    the normal (Hesterberg 2015). Draws that leave one class are dropped.

    Args:
        y: labels [n], 0 or 1.
        a: probabilities [n].
        b: probabilities [n].
        metric: auc, pr_auc, log_loss or brier.
        blocks: block of each row [n].
        resamples: draws.
        confidence: of the two-sided interval.
        seed: of the draws.

    Returns:
        (difference, low, high), positive where b is better, also for losses.

    Raises:
        GateError: fewer than two blocks, one class, or too few draws with both classes.
        EvaluationError: labels or predictions are not valid, or the metric has no weighted form.
    """
    labels, _ = evaluation.checked(y, a)
    _, codes = np.unique(np.asarray(blocks), return_inverse=True)
    if codes.shape != labels.shape:
        raise GateError(f"{len(codes)} blocks for {len(labels)} rows; give each row its block")
    _demand_two_classes(labels)
    count = int(codes.max()) + 1
    if count < 2:
        raise GateError("all rows lie in one block; lengthen training.holdout or shorten gates.block")
    before = evaluation.weighted(metric, labels, a, codes)
    after = evaluation.weighted(metric, labels, b, codes)
    direction = evaluation.DIRECTION[metric]
    difference = direction * float((after(np.ones((1, count))) - before(np.ones((1, count))))[0])
    draws = np.concatenate(
        [direction * (after(weights) - before(weights)) for weights in _draws(count, len(labels), resamples, seed)]
    )
    draws = draws[~np.isnan(draws)]
    if len(draws) < resamples / 2:
        raise GateError("most resamples hold one class; lengthen training.holdout or gates.block")
    tail = float(ndtr(stdtrit(count - 1, (1 - confidence) / 2)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return difference, float(low), float(high)


def time_blocks(timestamps: npt.ArrayLike, block: timedelta) -> npt.NDArray[np.int64]:
    """Return the block of each moment [n]: whole `block`s since 1970-01-01 UTC.

    Args:
        timestamps: a column of UTC timestamps, or anything numpy reads as datetime64.
        block: `gates.block`.
    """
    moments = np.asarray(timestamps, dtype="datetime64[us]").astype(np.int64)
    return np.asarray(moments // (block // timedelta(microseconds=1)))


def _draws(count: int, rows: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield how often each block was drawn [r, count], in chunks that keep `rows` x r small enough for the cache."""
    random = np.random.default_rng(seed)
    chunk = max(1, _CELLS // max(rows, count))
    for start in range(0, resamples, chunk):
        yield random.multinomial(count - 1, np.full(count, 1 / count), size=min(chunk, resamples - start))


def _limits(values: Mapping[str, float], gates: config.Gates) -> Iterator[Check]:
    for floor, limit in gates.floors.items():
        yield Check(f"floor {floor}", values[floor] >= limit, _defined(values[floor]), limit)
    for ceiling, limit in gates.ceilings.items():
        yield Check(f"ceiling {ceiling}", values[ceiling] <= limit, _defined(values[ceiling]), limit)


def _slice_checks(
    y: evaluation.Floats,
    old: evaluation.Floats,
    new: evaluation.Floats,
    gates: config.Gates,
    frame: Mapping[str, Any],
) -> Iterator[Check]:
    direction = evaluation.DIRECTION[gates.metric]
    for column, value, rows in evaluation.members(frame, gates.slices, gates.slice_min_rows):
        ones = np.ones((1, len(rows)))
        before, after = (float(evaluation.weighted(gates.metric, y[rows], p[rows])(ones)[0]) for p in (old, new))
        change = direction * (after - before)
        if not math.isnan(change):
            yield Check(f"slice {column}={value}", change >= -gates.slice_tolerance, change, -gates.slice_tolerance)


def _reason(summary: str, checks: tuple[Check, ...]) -> str:
    failed = [_complaint(check) for check in checks if not check.passed]
    return f"Rejected: {'; '.join(failed)}; {summary}." if failed else f"Promoted: {summary}; every check holds."


def _complaint(check: Check) -> str:
    kind, _, name = check.name.partition(" ")
    if check.value is None:
        return f"{name} is undefined on these rows"
    value, limit = f"{check.value:.4f}", f"{check.limit:.4f}"
    return {
        "blocks": f"the hold-out spans {check.value:.0f} blocks of time and the gate needs {check.limit:.0f}",
        "gain": f"the gain is not proven, its lower end {value} does not exceed {limit}",
        "floor": f"{name} {value} is under its floor {limit}",
        "ceiling": f"{name} {value} is over its ceiling {limit}",
        "slice": f"slice {name} changes by {value}, more than {limit} allows",
    }[kind]


def _demand_two_classes(labels: evaluation.Floats) -> None:
    reason = evaluation.undefined(labels)
    if reason:
        raise GateError(f"the hold-out cannot judge a model: {reason}; lengthen training.holdout")


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

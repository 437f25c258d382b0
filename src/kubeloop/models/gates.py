"""Decide whether a challenger may become the champion, from a paired bootstrap over blocks of time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from kubeloop import config
from kubeloop.errors import KubeloopError
from kubeloop.tasks import intervals
from kubeloop.tasks import slices as cuts
from kubeloop.tasks.port import Floats, Task

MIN_BLOCKS = 5
"""With fewer blocks, the interval depends more on the draw than on the models."""

_CELLS = 1_000_000
_ERRORS = 400
"""Draws for a standard error, whose own error is then below 4 %."""
_TOLD = 3
"""Most warnings that a reason repeats in full, since it is written to logs, tags and commits."""


class GateError(KubeloopError, ValueError):
    """Two models cannot be compared on these rows; the message says what to change."""

    lasting = True


@dataclass(frozen=True)
class Check:
    """One condition of a verdict; an undefined `value` is None, which fails.

    `interval` is that of the value, if it has one; `positives` counts its rows of class 1, None if there is no such
    class; `note` says why a slice was not judged.
    """

    name: str
    passed: bool
    value: float | None
    limit: float
    interval: tuple[float, float] | None = None
    positives: int | None = None
    note: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Check":
        """Read a check of `Verdict.to_dict`, including one from before checks had intervals."""
        return cls(**{**data, "interval": _pair(data.get("interval"))})


@dataclass(frozen=True)
class Verdict:
    """The decision and its evidence.

    `difference` and `interval` are oriented so that positive means that the challenger is better; they and `champion`
    are None if there was no champion. `champion_interval` and `challenger_interval` are the metric's 95 % intervals,
    None in verdicts from before they were measured. `rows` and `positives` count the rows that were judged.
    `warnings` are the challenger's, see `warned`.
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
    champion_interval: tuple[float, float] | None = None
    challenger_interval: tuple[float, float] | None = None
    rows: int | None = None
    positives: int | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """Read the result of `to_dict`, also after a round trip through JSON."""
        pairs = {name: _pair(data.get(name)) for name in ("interval", "champion_interval", "challenger_interval")}
        checks = tuple(Check.from_dict(check) for check in data["checks"])
        return cls(**{**data, **pairs, "checks": checks, "warnings": tuple(data.get("warnings", ()))})


def compare(
    task: Task,
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
    and ceiling holds for it, and no slice is shown to lose more than `gates.slice_tolerance`.

    Args:
        task: the loop's.
        y: truths [n].
        champion: its answers [n], or [n, k].
        challenger: its answers, of the same shape.
        gates: the policy.
        blocks: block of each row [n], see `time_blocks`.
        slices: data frame or mapping with the columns that `gates.slices` names, [n] each.
        seed: of the bootstrap.

    Raises:
        GateError: the rows cannot tell a good model from a bad one, or lie in one block.
        EvaluationError: truths or answers are not valid, or a slice column is missing.
    """
    truths, old = task.checked(y, champion)
    _, new = task.checked(y, challenger)
    before, after = task.headline.interval(truths, old), task.headline.interval(truths, new)
    difference, low, high = difference_interval(
        task, truths, old, new, task.headline.name, blocks, gates.resamples, gates.confidence, seed
    )
    count = len(np.unique(np.asarray(blocks)))
    checks = (
        Check("blocks", count >= MIN_BLOCKS, count, MIN_BLOCKS),
        Check("gain", low > gates.min_gain, low, gates.min_gain),
        *_limits(task, truths, new, gates),
        *_slice_checks(task, truths, old, new, gates, np.asarray(blocks), {} if slices is None else slices, seed),
    )
    summary = (
        f"{task.headline.name} {after.value:.4f} against the champion's {before.value:.4f}, "
        f"gain {difference:+.4f} ({gates.confidence:.0%} interval {low:+.4f} to {high:+.4f}, {count} blocks, "
        f"{task.support(truths)})"
    )
    return Verdict(
        promote=all(check.passed for check in checks),
        reason=_reason(summary, checks),
        metric=task.headline.name,
        champion=_defined(before.value),
        challenger=_defined(after.value),
        difference=difference,
        interval=(low, high),
        confidence=gates.confidence,
        checks=checks,
        champion_interval=_sure(before),
        challenger_interval=_sure(after),
        rows=len(truths),
        positives=task.positives(truths),
    )


def first(task: Task, y: npt.ArrayLike, challenger: npt.ArrayLike, gates: config.Gates) -> Verdict:
    """Judge a model that has no champion to beat: floors and ceilings only.

    Args:
        task: the loop's.
        y: truths [n].
        challenger: its answers [n], or [n, k].
        gates: the policy.

    Raises:
        GateError: the rows cannot tell a good model from a bad one.
        EvaluationError: truths or answers are not valid.
    """
    truths, new = task.checked(y, challenger)
    _demand_variety(task, truths)
    found = task.headline.interval(truths, new)
    checks = tuple(_limits(task, truths, new, gates))
    sure = _sure(found)
    reach = f"95% interval {sure[0]:.4f} to {sure[1]:.4f}, " if sure else ""
    return Verdict(
        promote=all(check.passed for check in checks),
        reason=_reason(f"first model, {task.headline.name} {found.value:.4f} ({reach}{task.support(truths)})", checks),
        metric=task.headline.name,
        champion=None,
        challenger=_defined(found.value),
        difference=None,
        interval=None,
        confidence=gates.confidence,
        checks=checks,
        challenger_interval=sure,
        rows=len(truths),
        positives=task.positives(truths),
    )


def warned(verdict: Verdict, warnings: Sequence[str], gates: config.Gates) -> Verdict:
    """Repeat the challenger's warnings in the reason; reject it for them only if the policy says so."""
    if not warnings:
        return verdict
    told = " ".join(f"Warning: {text}." for text in warnings[:_TOLD])
    if len(warnings) > _TOLD:
        told += f" Warnings in the model's card: {len(warnings)}."
    reason, checks = verdict.reason, verdict.checks
    if gates.refuse_on_warning:
        checks = (*checks, Check("warnings", False, len(warnings), 0))
        if verdict.promote:
            reason = f"Rejected: gates.refuse_on_warning is set. Without it: {reason}"
    return replace(
        verdict,
        promote=verdict.promote and not gates.refuse_on_warning,
        reason=f"{reason} {told}",
        checks=checks,
        warnings=tuple(warnings),
    )


def difference_interval(
    task: Task,
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
    the normal (Hesterberg 2015). Draws that leave the metric undefined, such as those of one class, are dropped.

    Args:
        task: the loop's.
        y: truths [n].
        a: answers [n], or [n, k].
        b: answers, of the same shape.
        metric: one of the task's with a weighted form.
        blocks: block of each row [n].
        resamples: draws.
        confidence: of the two-sided interval.
        seed: of the draws.

    Returns:
        (difference, low, high), positive where b is better, also for losses.

    Raises:
        GateError: fewer than two blocks, truths that are all the same, or too few draws with a defined metric.
        EvaluationError: truths or answers are not valid, or the metric has no weighted form.
    """
    difference, draws, count = _differences(task, y, a, b, metric, blocks, resamples, seed)
    tail = float(ndtr(stdtrit(count - 1, (1 - confidence) / 2)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return difference, float(low), float(high)


def _differences(
    task: Task,
    y: npt.ArrayLike,
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    metric: str,
    blocks: npt.ArrayLike,
    resamples: int,
    seed: int,
) -> tuple[float, Floats, int]:
    """Return how much better b is than a, the same of each draw of blocks, and the number of blocks."""
    truths, _ = task.checked(y, a)
    _, codes = np.unique(np.asarray(blocks), return_inverse=True)
    if codes.shape != truths.shape:
        raise GateError(f"{len(codes)} blocks for {len(truths)} rows; give each row its block")
    _demand_variety(task, truths)
    count = int(codes.max()) + 1
    if count < 2:
        raise GateError("all rows lie in one block; lengthen training.holdout or shorten gates.block")
    before = task.weighted(metric, truths, a, codes)
    after = task.weighted(metric, truths, b, codes)
    direction = task.metrics[metric].better
    # Zero is added, since a loss of nothing would be written as -0.
    difference = direction * float((after(np.ones((1, count))) - before(np.ones((1, count))))[0]) + 0.0
    draws = np.concatenate(
        [
            direction * (after(weights) - before(weights)) + 0.0
            for weights in _draws(count, len(truths), resamples, seed)
        ]
    )
    draws = draws[~np.isnan(draws)]
    if len(draws) < resamples / 2:
        raise GateError("most resamples leave the metric undefined; lengthen training.holdout or gates.block")
    return difference, draws, count


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


def _limits(task: Task, y: Floats, p: Floats, gates: config.Gates) -> Iterator[Check]:
    """Yield the checks that need only one model.

    Floors and ceilings apply to the best estimate. A limit is the user's requirement, so a margin belongs in the
    limit. Too few rows of a class fail at once, since the estimate then says nothing.
    """
    positives, scarce = task.positives(y), task.scarce(y)
    if scarce is not None:
        yield Check("class", scarce >= intervals.FEW, scarce, intervals.FEW)
    for floor, limit in gates.floors.items():
        value = task.limited(floor, y, p)
        reach = _sure(task.metrics[floor].interval(y, p)) if floor == task.headline.name else None
        yield Check(f"floor {floor}", value >= limit, _defined(value), limit, reach, positives)
    for ceiling, limit in gates.ceilings.items():
        value = task.limited(ceiling, y, p)
        yield Check(f"ceiling {ceiling}", value <= limit, _defined(value), limit, positives=positives)


def _slice_checks(
    task: Task,
    y: Floats,
    old: Floats,
    new: Floats,
    gates: config.Gates,
    blocks: npt.NDArray[Any],
    frame: Mapping[str, Any],
    seed: int,
) -> Iterator[Check]:
    """Yield a check for each slice, which fails if a loss beyond the tolerance is proven.

    The loss has to be proven, not its absence. Otherwise a challenger would have to prove for each of perhaps fifty
    small slices that it loses less than the tolerance, and no hold-out is large enough for that. Another check proves
    the gain as a whole. Each of S slices that can be judged has an interval of confidence
    1 - (1 - gates.confidence) / S (Bonferroni): the chance to reject a challenger whose slices do not lose too much is
    at most (1 - gates.confidence) / 2, for any S. A percentile bootstrap cannot reach such tails, so the interval is
    Student's t with the standard error of the draws and one degree of freedom less than the slice has blocks (Efron &
    Tibshirani 1993, ch. 12).
    """
    found = list(cuts.members(frame, gates.slices, gates.slice_min_rows))
    measured = [_slice_change(task, y[rows], old[rows], new[rows], gates, blocks[rows], seed) for _, _, rows in found]
    judged = sum(not note for *_, note in measured)
    for (column, value, rows), (change, error, count, note) in zip(found, measured, strict=True):
        name, positives = f"slice {column}={value}", task.positives(y[rows])
        limit = -task.tolerance(gates.slice_tolerance, y[rows], old[rows])
        if note:
            yield Check(name, True, _defined(change), limit, None, positives, note)
            continue
        reach = error * float(stdtrit(count - 1, 1 - (1 - gates.confidence) / (2 * judged)))
        interval = change - reach, change + reach
        yield Check(name, interval[1] >= limit, change, limit, interval, positives)


def _slice_change(
    task: Task,
    y: Floats,
    old: Floats,
    new: Floats,
    gates: config.Gates,
    blocks: npt.NDArray[Any],
    seed: int,
) -> tuple[float, float, int, str]:
    """Return a slice's change, its standard error, its blocks, and why it cannot be judged (empty if it can)."""
    count = len(np.unique(blocks))
    reason = (task.undefined(y) or task.few(y)) if task.headline.scale == "share" else None
    if reason is None and count < MIN_BLOCKS:
        reason = f"too few to judge: {count} blocks of time, but {MIN_BLOCKS} are needed"
    if reason is None:
        try:
            change, draws, _ = _differences(
                task, y, old, new, task.headline.name, blocks, min(_ERRORS, gates.resamples), seed
            )
        except GateError as error:
            reason = f"too few to judge: {error}"
        else:
            return change, float(draws.std(ddof=1)), count, ""
    before, after = (task.headline.value(y, p) for p in (old, new))
    return task.headline.better * (after - before), math.nan, count, reason


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
        "class": f"the hold-out has {check.value:.0f} rows outside its most frequent class and the gate needs "
        f"{check.limit:.0f}",
        "gain": f"the gain is not proven: the lower end {value} of its interval does not exceed {limit}",
        "floor": f"{name} {value} is below its floor {limit}",
        "ceiling": f"{name} {value} is above its ceiling {limit}",
        "slice": f"slice {name} changes by {value}{_between(check)}, shown to be more than {limit} allows",
    }[kind]


def _between(check: Check) -> str:
    return f" ({check.interval[0]:+.4f} to {check.interval[1]:+.4f})" if check.interval else ""


def _sure(found: intervals.Estimate) -> tuple[float, float] | None:
    return None if math.isnan(found.low) else (found.low, found.high)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _demand_variety(task: Task, truths: Floats) -> None:
    reason = task.undefined(truths)
    if reason:
        raise GateError(f"the hold-out cannot judge a model: {reason}; lengthen training.holdout")


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

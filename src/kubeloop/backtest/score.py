"""Measure the models of a policy on the rows that they served, with intervals over blocks of time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from kubeloop.backtest.history import History, moment_of, version
from kubeloop.backtest.walk import Retraining, Walk
from kubeloop.monitoring.windows import micros

_CELLS = 2_000_000


@dataclass(frozen=True)
class Worst:
    """The worst window of a policy, among those with `drift.min_rows` labels that differ."""

    start: datetime
    value: float
    rows: int
    positives: int | None


@dataclass(frozen=True, eq=False)
class Measured:
    """A policy's live metric, its value in each draw of blocks, and its worst window."""

    walk: Walk
    value: float
    draws: npt.NDArray[np.float64]
    worst: Worst | None


def measure(walk: Walk, history: History) -> Measured:
    """Measure what a policy served.

    Whole windows are drawn with replacement, since the rows of a week are not independent. Every policy gets the same
    draws, so that two policies are compared pair by pair. A draw has one block less than there are, as in
    `gates.difference_interval`.
    """
    y, p, codes = _labelled(history, served_scores(walk, history))
    loop = history.loop
    count = len(history.span.ends(loop.drift.window))
    weigh = history.task.weighted(loop.gates.metric, y, p, codes)
    random = np.random.default_rng(loop.training.seed)
    chunk = max(1, _CELLS // len(y))
    draws = [
        weigh(random.multinomial(count - 1, np.full(count, 1 / count), size=min(chunk, loop.gates.resamples - start)))
        for start in range(0, loop.gates.resamples, chunk)
    ]
    return Measured(walk, float(weigh(np.ones((1, count)))[0]), np.concatenate(draws), _worst(history, y, p, codes))


def interval(draws: npt.NDArray[np.float64], blocks: int, confidence: float) -> tuple[float, float]:
    """Return the percentile interval of draws, widened by Student's t for few blocks."""
    tail = float(ndtr(stdtrit(blocks - 1, (1 - confidence) / 2)))
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def served_scores(walk: Walk, history: History) -> npt.NDArray[np.float32]:
    """Return the prediction for each row of the history [n] or [n, k]; NaN before the first model served."""
    models = [(since, history.model(name).scores) for since, name in walk.served]
    scores = np.full_like(models[0][1], np.nan)
    for since, answers in models:
        first = history.rows(since, history.span.until).start
        scores[first:] = answers[first:]
    return scores


def oracle(history: History, name: str) -> Walk:
    """Return the predictions if the best model of each window had been known at the window's beginning.

    The candidates are the models of all earlier windows' ends, so no policy that retrains at these moments has more to
    choose from. The choice uses the labels of the rows that it is measured on, so part of its lead is chance.
    """
    loop, span = history.loop, history.span
    starts = [span.start, *span.ends(loop.drift.window)[:-1]]
    names = [found for moment in starts if history.has(found := version(loop, moment))]
    direction = history.task.headline.better
    served: list[tuple[datetime, str]] = []
    scores = {found: history.model(found).scores for found in names}
    for start in starts:
        rows = history.rows(start, start + loop.drift.window)
        labels = history.labels[rows]
        seen = ~np.isnan(labels)
        there = [found for found in names if moment_of(found) <= start]
        best = served[-1][1] if served else there[0]
        if seen.any() and history.task.undefined(labels[seen]) is None:
            best = max(there, key=lambda found: direction * _value(history, labels[seen], scores[found][rows][seen]))
        if not served or served[-1][1] != best:
            served.append((start, best))
    taken = {found for _, found in served}
    made = [
        Retraining(
            moment_of(found),
            "oracle",
            "",
            found,
            "promoted" if found in taken else "rejected",
            "",
        )
        for found in names[1:]
    ]
    return Walk(name, tuple(served), tuple(made))


def _labelled(
    history: History, scores: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return labels, scores and window number of the rows that count: served, labelled, and in a whole window."""
    span, window = history.span, history.loop.drift.window
    rows = history.rows(span.start, span.ends(window)[-1])
    labels = history.labels[rows]
    seen = ~np.isnan(labels)
    length = micros(span.start + window) - micros(span.start)
    codes = (history.moments[rows] - micros(span.start)) // length
    return labels[seen], scores[rows][seen].astype(np.float64), codes[seen].astype(np.intp)


def _worst(
    history: History, y: npt.NDArray[np.float64], p: npt.NDArray[np.float64], codes: npt.NDArray[np.intp]
) -> Worst | None:
    loop = history.loop
    found = []
    for code in np.unique(codes):
        here = codes == code
        if here.sum() >= loop.drift.min_rows and history.task.undefined(y[here]) is None:
            start = history.span.start + int(code) * loop.drift.window
            found.append(
                Worst(start, _value(history, y[here], p[here]), int(here.sum()), history.task.positives(y[here]))
            )
    direction = history.task.headline.better
    return min(found, key=lambda worst: direction * worst.value, default=None)


def _value(history: History, y: npt.ArrayLike, p: npt.ArrayLike) -> float:
    return history.task.headline.value(*history.task.checked(y, p))


def better(of: Measured, than: Measured, direction: float) -> tuple[float, npt.NDArray[np.float64]]:
    """Return by how much one policy is better than another, in total and in each draw; positive is better."""
    return direction * (of.value - than.value), direction * (of.draws - than.draws)


def chosen(measured: Sequence[Measured], direction: float, blocks: int, confidence: float) -> Measured:
    """Return the policy with the fewest retrainings among those that are not significantly worse than the best."""
    best = max(measured, key=lambda one: direction * one.value)
    as_good = [
        one for one in measured if one is best or interval(better(one, best, direction)[1], blocks, confidence)[1] >= 0
    ]
    return min(as_good, key=lambda one: (len(one.walk.retrainings), -direction * one.value))

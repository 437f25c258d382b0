"""Measure how often a multiclass or regression metric raises an alarm, rightly and wrongly, on generated streams.

Only labels are judged here, since the judgement of inputs does not depend on the kind of task. A stream is a year of 52
windows of 300 rows with a hold-out of 2,000 rows. A harmful change begins in the middle of it and gives a share of the
rows the answers of other rows.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from kubeloop.config import Drift, kinds
from kubeloop.monitoring import performance, policy
from kubeloop.monitoring.policy import Episode, Vote
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.multiclass.task import Multiclass
from kubeloop.tasks.port import Task
from kubeloop.tasks.regression.task import Regression
from kubeloop.tasks.tabular import maker
from kubeloop.tasks.tabular.maker import Maker

_WEEKS, _CHANGE, _ROWS, _HELD_OUT = 52, 26, 300, 2_000
_START, _WEEK = datetime(2024, 1, 1, tzinfo=UTC), timedelta(weeks=1)
_COOLDOWN = 3 * _WEEK
_CLASSES = ("early", "on time", "late", "lost")

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Floats, Floats]]
"""Returns truths [n] and answers [n, k]."""


@dataclass(frozen=True)
class Year:
    """The windows of one stream in which episodes opened."""

    opened: list[int]
    harmed: bool

    @property
    def false(self) -> int:
        """Episodes before the change."""
        return sum(1 for week in self.opened if not self.harmed or week < _CHANGE)

    @property
    def delay(self) -> int | None:
        """Windows from the change to the first episode after it, from 1."""
        return next((week - _CHANGE + 1 for week in self.opened if self.harmed and week >= _CHANGE), None)


def classes(random: np.random.Generator, rows: int) -> tuple[Floats, Floats]:
    """Draw labels of four classes, the rarest in one row of twenty, and a calibrated model's probabilities."""
    logits = random.normal([0.5, 1.5, 0.5, -0.5], 1.2, (rows, len(_CLASSES)))
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = (random.random((rows, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(max=len(_CLASSES) - 1)
    seen = np.exp(logits + random.normal(0, 0.3, logits.shape))
    return y.astype(np.float64), seen / seen.sum(axis=1, keepdims=True)


def numbers(random: np.random.Generator, rows: int) -> tuple[Floats, Floats]:
    """Draw labels with a long upper tail, and a model's values with 90 % intervals."""
    middle = random.normal(3, 0.6, rows)
    y = np.exp(middle + random.normal(0, 0.5, rows))
    seen = middle + random.normal(0, 0.1, rows)
    answers = np.exp(seen[:, None] + 0.51 * np.array([0.245, -1.645, 1.645]))
    return y, answers


def table(years: int) -> str:
    """Return the alarms as a Markdown table."""
    lines = ["| task and metric | stream | false episodes a year | caught | windows |", "|---|---|---|---|---|"]
    tasks: list[tuple[Task, Draw]] = [(Multiclass(_CLASSES, one), classes) for one in ("log_loss", "balanced_accuracy")]
    tasks += [(Regression(metric=one), numbers) for one in ("rmse", "mae")]
    for task, draw in tasks:
        for name, share in (("nothing changes", 0.0), ("a quarter of the answers", 0.25), ("half of them", 0.5)):
            found = [_year(task, draw, share, seed) for seed in range(years)]
            delays = [year.delay for year in found if year.delay is not None]
            caught = f"{len(delays) / years:.0%} | {statistics.median(delays):g}" if delays else "0% | –"
            false = sum(year.false for year in found) / years
            lines.append(
                f"| {task.kind}, {task.headline.name} | {name} | {false:.2f} | {caught if share else '– | –'} |"
            )
    return "\n".join(lines)


def _maker(task: Task) -> Maker:
    training = {"classes": _CLASSES} if isinstance(task, Multiclass) else {}
    return maker.make(task.kind, kinds.settings(task.kind).Training(**training), task.headline.name)


def _year(task: Task, draw: Draw, share: float, seed: int) -> Year:
    random = np.random.default_rng(seed)
    y, answers = draw(random, _HELD_OUT)
    measured, name = task.score(y, answers), task.headline.name
    holdout = Estimate(*(measured[f"{name}{end}"] for end in ("", "_low", "_high")))
    drift = Drift(**_maker(task).draft(y, measured).watch, cooldown=_COOLDOWN)
    votes: list[Vote] = []
    episodes: list[Episode] = []
    opened = []
    for week in range(_WEEKS):
        y, answers = draw(random, _ROWS)
        if week >= _CHANGE:
            harmed = random.random(_ROWS) < share
            answers[harmed] = answers[random.permutation(_ROWS)][harmed]
        start, end = _START + week * _WEEK, _START + (week + 1) * _WEEK
        status, metrics = performance.measure(task, y, answers, 50)
        if status != "judged" or metrics is None:
            continue
        live = Estimate(*(metrics[f"{name}{end}"] for end in ("", "_low", "_high")))
        votes.append(Vote(start, end, policy.performance(task.headline, live, holdout, drift).drifted))
        episodes = [_ended(episode, end, drift) for episode in episodes]
        episode = policy.propose("s", "1", "performance", votes, end, episodes, drift)
        if episode is not None:
            episodes.append(episode)
            opened.append(week)
    return Year(opened, share > 0)


def _ended(episode: Episode, now: datetime, drift: Drift) -> Episode:
    over = policy.end(episode, None, now, drift) if episode.closed_at is None else None
    return replace(episode, closed_at=over[0], outcome=over[1]) if over else episode

"""The policy: decide when a window has drifted, and when drifted windows open an episode. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from kubeloop.config import Drift, duration_text
from kubeloop.monitoring.detector.port import Score, correct
from kubeloop.tasks import intervals
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.port import Metric

Kind = Literal["drift", "performance", "schedule"]

_NAMED = 3


@dataclass(frozen=True)
class Judged:
    """A detector's score and the policy's verdict on it."""

    score: Score
    p_adjusted: float
    importance: float
    drifted: bool


@dataclass(frozen=True)
class WindowVerdict:
    """Whether a window drifted; `importance` is the share of the model that its drifted features carry."""

    drifted: bool
    importance: float
    prediction_drifted: bool
    judged: tuple[Judged, ...]

    @property
    def features(self) -> tuple[Judged, ...]:
        """Return what drifted, the model's score included, the most harmful (importance times effect) first."""
        found = [j for j in self.judged if j.drifted]
        return tuple(sorted(found, key=lambda j: (-j.importance * j.score.effect, -j.score.effect, j.score.feature)))


@dataclass(frozen=True)
class PerformanceVerdict:
    """Whether the live model falls short; `reason` is empty when it does not."""

    drifted: bool
    reason: str


@dataclass(frozen=True)
class Vote:
    """What episodes need to know of one judged window of the live version."""

    start: datetime
    end: datetime
    drifted: bool
    features: tuple[tuple[str, float, float], ...] = ()
    """Name, effect and importance of what drifted."""
    reason: str = ""


@dataclass(frozen=True)
class Episode:
    """A period of drift that needs a retraining or a person's decision.

    `opened_at` is in event time. `closed_at` is None while it is open; `outcome` then says why it ended:
    `replaced` (another version took over), `refused` (the trigger would not start a run) or `expired`
    (the cooldown passed and the same version still serves).
    """

    id: str
    service: str
    version: str
    kind: Kind
    window_end: datetime
    opened_at: datetime
    features: tuple[str, ...]
    reason: str
    closed_at: datetime | None = None
    outcome: str | None = None


def judge(scores: Sequence[Score], importance: Mapping[str, float], drift: Drift) -> WindowVerdict:
    """Judge one window of one model version.

    A feature drifts if its Holm-corrected p-value is below `alpha` and its effect reaches `min_effect`: with many rows
    every p-value is small, and with many features some are. The window drifts when the drifted features carry
    `min_importance` of the model, or when the model's own score drifts by both.

    Args:
        scores: one per feature, and one of kind `score` for each number of the model's answers.
        importance: share of the model that each feature carries; 0 for a feature that is not named.
    """
    judged = tuple(
        Judged(
            score=score,
            p_adjusted=adjusted,
            importance=0.0 if score.kind == "score" else float(importance.get(score.feature, 0.0)),
            drifted=bool(adjusted < drift.alpha and score.effect >= drift.min_effect),
        )
        for score, adjusted in zip(scores, correct([s.p_value for s in scores], "holm"), strict=True)
    )
    carried = sum(j.importance for j in judged if j.drifted)
    of_model = any(j.drifted and j.score.kind == "score" for j in judged)
    some = any(j.drifted for j in judged)
    return WindowVerdict(
        drifted=some and (of_model or carried >= drift.min_importance),
        importance=carried,
        prediction_drifted=of_model,
        judged=judged,
    )


def performance(metric: Metric, found: Estimate, reference: Estimate | None, drift: Drift) -> PerformanceVerdict:
    """Judge one window's labelled rows by a metric, by itself and, if it is known, against that of the hold-out.

    The model falls short if chance does not explain it: if the whole interval is beyond `limit`, or if the whole
    interval of the loss against the hold-out, which is uncertain too, is above `max_drop`. A model whose metric is
    exactly at a limit is reported in 2.5 % of windows for each limit; a better model is reported in fewer.

    Args:
        metric: the headline.
        found: the metric of the window, with its 95 % interval.
        reference: the metric of the hold-out, also with its interval.
        drift: the policy.
    """
    limit, under = drift.limit, "under the floor" if metric.better > 0 else "over the ceiling"
    if limit is None and metric.name == "auc":
        limit = drift.min_auc
    if limit is not None and _best(metric, found) < metric.better * limit:
        return PerformanceVerdict(True, f"{metric.title} {found}, {under} of {limit:.3f}")
    if reference is None:
        return PerformanceVerdict(False, "")
    drop = drift.max_drop
    if drop is None:
        drop = drift.max_auc_drop if metric.name == "auc" else metric.drop(reference.value)
    if _best(metric, intervals.difference(found, reference)) < -drop:
        worse = "under" if metric.better > 0 else "over"
        text = f"{metric.title} {found}, more than {drop:.3f} {worse} the {reference.value:.3f} of its hold-out"
        return PerformanceVerdict(True, text)
    return PerformanceVerdict(False, "")


def _best(metric: Metric, found: Estimate) -> float:
    """Return the better end of an interval, with the sign set so that more is better."""
    return found.high if metric.better > 0 else -found.low


def propose(
    service: str,
    version: str,
    kind: Kind,
    votes: Sequence[Vote],
    opened_at: datetime,
    past: Sequence[Episode],
    drift: Drift,
) -> Episode | None:
    """Return the episode that the newest vote opens, or None.

    An episode opens when `votes` of the last `of` judged windows of the live version drifted. Only one episode per
    service is open, and windows that began before the last one ended do not vote again.

    Args:
        votes: the judged windows of the live version in order of time, the newest last.
        opened_at: event time at which the newest window was judged.
        past: the service's earlier episodes, in any order.
    """
    if any(e.closed_at is None for e in past):
        return None
    ended = max((e.closed_at for e in past if e.closed_at is not None), default=None)
    counted = [v for v in votes if ended is None or v.start >= ended][-drift.of :]
    against = [v for v in counted if v.drifted]
    if len(against) < drift.votes:
        return None
    last = counted[-1]
    return Episode(
        id=f"{service}-{last.end:%Y%m%dt%H%M%Sz}",
        service=service,
        version=version,
        kind=kind,
        window_end=last.end,
        opened_at=opened_at,
        features=tuple(name for name, _, _ in _worst(against)),
        reason=_reason(version, kind, counted, against),
    )


def end(episode: Episode, replaced_at: datetime | None, now: datetime, drift: Drift) -> tuple[datetime, str] | None:
    """Return when and why an open episode ended, or None while it is open.

    Args:
        replaced_at: event time of the first ordinary traffic of a version that was new after the episode opened.
        now: the service's watermark.
    """
    rest = drift.cooldown
    if episode.kind == "schedule":
        # It must not block the next one, which opens at a window's end.
        rest = min(rest, drift.window)
    over = episode.opened_at + rest
    if replaced_at is not None and replaced_at <= over:
        return replaced_at, "replaced"
    return (over, "expired") if now >= over else None


def _worst(votes: Sequence[Vote]) -> list[tuple[str, float, float]]:
    """Return each drifted feature once, with its newest effect, in the order of the newest vote that names it."""
    found: dict[str, tuple[str, float, float]] = {}
    for vote in reversed(votes):
        for feature in vote.features:
            found.setdefault(feature[0], feature)
    return sorted(found.values(), key=lambda f: (-f[1] * f[2], -f[1], f[0]))


def _reason(version: str, kind: Kind, counted: Sequence[Vote], against: Sequence[Vote]) -> str:
    length = duration_text(counted[-1].end - counted[-1].start)
    spans = ", ".join(f"{v.start:%Y-%m-%d %H:%M}".removesuffix(" 00:00") for v in against)
    where = f"in {len(against)} of the last {len(counted)} windows of model version {version} ({length} from {spans})"
    if kind == "performance":
        return f"The model fell short {where}; the newest has {against[-1].reason}."
    worst = _worst(against)
    named = ", ".join(f"{name} (effect {effect:.2f})" for name, effect, _ in worst[:_NAMED])
    more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    share = sum(importance for _, _, importance in worst)
    return f"{named}{more} drifted, {share:.0%} of the model's importance, {where}."

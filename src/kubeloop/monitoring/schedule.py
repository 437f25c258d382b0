"""Retraining by the calendar: at the first window's end in a span without a retraining. No I/O."""

from collections.abc import Sequence
from datetime import datetime

from kubeloop.config import Drift, duration_text
from kubeloop.monitoring.policy import Episode


def propose(
    service: str,
    version: str,
    end: datetime,
    since: datetime,
    past: Sequence[Episode],
    drift: Drift,
) -> Episode | None:
    """Return the episode that the calendar opens at a window's end, or None.

    Spans of `drift.retrain_every` are counted from `since`. A span is done if any kind of episode started a run in it;
    an episode that the trigger refused does not count. So the calendar keeps its dates, however late a window ends.

    Args:
        service: the inference service.
        version: the live version.
        end: end of the window.
        since: start of the first window ever judged.
        past: the service's earlier episodes, in any order.
        drift: the policy.
    """
    every = drift.retrain_every
    if every is None or any(e.closed_at is None for e in past):
        return None
    last = max((e.opened_at for e in past if e.outcome != "refused"), default=since)
    if (end - since) // every <= (last - since) // every:
        return None
    return Episode(
        id=f"{service}-{end:%Y%m%dt%H%M%Sz}-schedule",
        service=service,
        version=version,
        kind="schedule",
        window_end=end,
        opened_at=end,
        features=(),
        reason=f"Retrained at least once in {duration_text(every)}, as drift.retrain_every says.",
    )

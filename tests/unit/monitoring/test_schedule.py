from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kubeloop.config import Drift
from kubeloop.monitoring import policy, schedule
from kubeloop.monitoring.policy import Episode

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MONTHLY = Drift(retrain_every=30 * DAY)


def propose(day: float, *past: Episode, drift: Drift = MONTHLY) -> Episode | None:
    return schedule.propose("shop", "3", START + day * DAY, START, past, drift)


def episode(day: float, **values: object) -> Episode:
    at = START + day * DAY
    found = Episode("e", "shop", "3", "drift", at, at, (), "", closed_at=at + DAY, outcome="replaced")
    return replace(found, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("day", "past", "opens"),
    [
        (28, (), False),
        (35, (), True),
        # This span already had its episode, from the calendar or from drift.
        (42, (episode(35),), False),
        (63, (episode(35),), True),
        # The calendar keeps its dates: day 63 was late, and day 91 still opens the next episode.
        (91, (episode(63),), True),
        # An episode that the trigger refused has started nothing.
        (42, (episode(35, outcome="refused"),), True),
        (63, (episode(42, closed_at=None, outcome=None),), False),
    ],
)
def test_the_first_windows_end_of_a_span_opens_an_episode(day: int, past: tuple[Episode, ...], opens: bool) -> None:
    found = propose(day, *past)
    assert (found is not None) == opens
    if found:
        assert (found.kind, found.opened_at) == ("schedule", START + day * DAY)
        assert "30d" in found.reason


def test_without_the_setting_there_is_no_calendar() -> None:
    assert propose(400, drift=Drift()) is None


def test_an_episode_of_the_calendar_is_over_before_the_next() -> None:
    """Spans are not whole numbers of windows, so the next episode may open one window later."""
    weekly = Drift(retrain_every=10 * DAY, window=7 * DAY, cooldown=21 * DAY, max_cooldown=21 * DAY)
    opened = episode(7, kind="schedule", closed_at=None, outcome=None)
    assert policy.end(opened, None, START + 13 * DAY, weekly) is None
    assert policy.end(opened, None, START + 14 * DAY, weekly) == (START + 14 * DAY, "expired")
    assert policy.end(replace(opened, kind="drift"), None, START + 14 * DAY, weekly) is None

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from kubeloop.config import Drift
from kubeloop.trigger.event import DriftEvent

DAY_ZERO = datetime(2013, 7, 1, tzinfo=UTC)


class Clock:
    """A wall clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def policy() -> Drift:
    return Drift(cooldown=timedelta(days=14), max_cooldown=timedelta(days=56))


@pytest.fixture
def episode() -> Callable[..., DriftEvent]:
    """Make the event of an episode that opens on a day of event time."""

    def make(day: int = 0, *, service: str = "flights", kind: str = "drift", name: str | None = None) -> DriftEvent:
        moment = DAY_ZERO + timedelta(days=day)
        return DriftEvent(
            service=service,
            episode=name or f"{service}-{moment.isoformat()}",
            opened_at=moment,
            as_of=moment,
            kind=kind,  # type: ignore[arg-type]
            features=("dep_delay", "wind_speed"),
            reason="PSI of dep_delay",
        )

    return make

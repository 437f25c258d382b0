"""The policies that a backtest compares, as data."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from kubeloop.config import Loop, duration_text
from kubeloop.config.types import duration

_DAY = timedelta(days=1)
FROZEN = "frozen"
ORACLE = "oracle"
MONTHLY = "every month"
DRIFT = "on drift"
EITHER = "on drift or performance"


@dataclass(frozen=True)
class Policy:
    """A rule for when to retrain; `settings` are the settings of loop.yaml that it changes, by section."""

    name: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    oracle: bool = False

    def apply(self, loop: Loop) -> Loop:
        """Return the use case under this policy.

        Raises:
            ConfigError: the settings do not fit the others.
        """
        return Loop.parse(loop.dump(), self.settings)

    def looks(self, loop: Loop) -> bool:
        """Return whether it reads the monitor's drift tests."""
        return "drift" in self.apply(loop).drift.retrain_on


def known(loop: Loop) -> list[Policy]:
    """Return the policies; the others are compared with the first.

    Calendars follow the windows' ends, so that all policies share their models: "every month" is the first end of a
    window in each 30 days.
    """
    drift = loop.drift
    found = [Policy(FROZEN, _drift(retrain_on=[], retrain_every=None))]
    for name, days in (("every week", 7), (MONTHLY, 30), ("every quarter", 91)):
        found.append(Policy(name, _drift(retrain_on=[], retrain_every=f"{days}d")))
    found += [
        Policy(DRIFT, _drift(retrain_on=["drift"], retrain_every=None)),
        Policy("on performance", _drift(retrain_on=["performance"], retrain_every=None)),
        Policy(EITHER, _drift(retrain_on=["drift", "performance"], retrain_every=None)),
        Policy(f"{EITHER}, or a quarter", _drift(retrain_on=["drift", "performance"], retrain_every="91d")),
    ]
    for cooldown in (drift.cooldown / 3, drift.cooldown * 2):
        text = _text(max(cooldown, drift.window))
        if duration(text) == drift.cooldown:
            continue
        longest = duration_text(max(duration(text), drift.max_cooldown))
        settings = _drift(retrain_on=["drift", "performance"], retrain_every=None, cooldown=text, max_cooldown=longest)
        found.append(Policy(f"{EITHER}, cooldown {text}", settings))
    window = duration_text(2 * drift.window)
    settings = _drift(retrain_on=["drift", "performance"], retrain_every=None, window=window)
    found.append(Policy(f"{EITHER}, windows of {window}", settings))
    half = loop.training.window / 2
    if half >= 2 * loop.training.holdout:
        settings = _drift(retrain_on=[], retrain_every="30d") | {"training": {"window": _text(half)}}
        found.append(Policy(f"{MONTHLY}, on the last {_text(half)}", settings))
    return [*found, Policy(ORACLE, oracle=True)]


def _drift(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"drift": settings}


def _text(span: timedelta) -> str:
    """Write a span in whole days if it has any, as a person would choose it."""
    return duration_text(
        max(span // _DAY, 1) * _DAY if span >= _DAY else span // timedelta(seconds=1) * timedelta(seconds=1)
    )

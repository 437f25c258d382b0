"""Retrain by hand: run the training pipeline once, through the ledger like every run."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from kubeloop import access, addresses, features
from kubeloop.config import Loop, Settings, past
from kubeloop.session import requests, services
from kubeloop.session import run as session
from kubeloop.steps import stages


def run(
    loop: Loop,
    settings: Settings,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    *,
    reason: str,
    as_of: str | None,
) -> dict[str, Any]:
    """Run the training pipeline once, through the ledger, and return the run's record.

    The same moment, data, features, configuration and reason give the same run: a repeated request follows the active
    run or reports its verdict again. A failed run is started again.

    It uses the running services, or starts them for the duration of the run.

    Args:
        loop: the use case.
        settings: the place.
        environment: variables for the services, besides the settings.
        say: called with a sentence about each event.
        reason: stored with the version.
        as_of: the run uses what was known at this moment, ISO 8601; by default that of the newest label in the raw
        data.
    """
    session.prepare(loop, settings, say)
    moment = past(as_of) if as_of else newest_label(loop, settings)
    repo = stages.digest(settings.home / loop.features.repo)
    what = "\n".join((reason, loop.digest(), repo, stages.digest(settings.raw)))
    episode = f"manual-{moment:%Y%m%dT%H%M%S}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"
    with contextlib.ExitStack() as stack:
        try:
            trigger, check = addresses.address(settings, "trigger"), _nothing
        except addresses.ServiceError:
            own = stack.enter_context(services.Services(loop, settings, environment, say))
            own.start_all((loop.replay.train_to if loop.replay else moment).isoformat())
            session.resume_serving(loop, settings, say)
            trigger, check = own.url("trigger"), own.check
        name = requests.request(trigger, loop, episode, moment, reason, access.header(settings.token_file))
        if requests.record(trigger, name)["outcome"]:
            say(f"Run {name} has already decided this, and nothing has changed. Give another --reason for a new run.")
        else:
            say(f"Run {name} with what was known on {moment:%Y-%m-%d %H:%M}.")
        return requests.follow(settings, trigger, name, say, check)


def _nothing() -> None:
    """Services that another process started are that process's responsibility."""


def newest_label(loop: Loop, settings: Settings) -> datetime:
    """Return the moment at which the newest label of the raw data became known.

    Raises:
        session.SessionError: no event has a label.
    """
    moment = features.newest_label(settings.home / loop.features.repo, settings.raw)
    if moment is None:
        raise session.SessionError("no event has a label yet; give --as-of once there are labels")
    return moment

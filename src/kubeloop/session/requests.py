"""Request a pipeline run from the trigger, and follow it step by step."""

import itertools
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from kubeloop import paths
from kubeloop.config import Loop, Settings
from kubeloop.data.validation_report import HELD
from kubeloop.errors import KubeloopError
from kubeloop.payloads import cloudevents

_NEWS = re.compile(
    r"Task \S*'([\w-]+)'\S* (?:finished with status \S*?(SUCCESS|FAILURE|CACHED)|was cached)"
    rf"|(?P<held>{HELD} .*)"
)
_POLL_S = 0.2
NOBODY: Mapping[str, str] = {}
"""The login of a service that requires none."""


class RunError(KubeloopError):
    """The trigger does not start the run; the message says why."""

    lasting = False


def request(
    trigger: str, loop: Loop, episode: str, as_of: datetime, reason: str, login: Mapping[str, str] = NOBODY
) -> str:
    """Ask the trigger for one run of an episode, and return the run's name.

    A repeated request finds the same run. If that run failed, or was refused because another one was active, a new run
    is requested, as the episode's next request.

    Args:
        trigger: URL of the trigger.
        loop: the use case.
        episode: why it is requested; the run's name is derived from it.
        as_of: the run uses what was known at this moment.
        reason: stored with the version.
        login: the header with the trigger's token (`access.header`).

    Raises:
        RunError: the trigger refuses, because another run is active.
    """
    for number in itertools.count(1):
        identity = f"{loop.name}-{episode}" + (f"-{number}" if number > 1 else "")
        decision = _ask(trigger, loop, identity, as_of, reason, login)
        name = decision["run_name"]
        if not decision["duplicate"]:
            if not name:
                raise RunError(f"the trigger does not start a run: {decision['reason']}")
            return str(name)
        if name and record(trigger, name)["outcome"] != "failed":
            return str(name)
    raise AssertionError("an episode has no last request")


def _ask(
    trigger: str, loop: Loop, identity: str, as_of: datetime, reason: str, login: Mapping[str, str]
) -> dict[str, Any]:
    event = cloudevents.drift_event(
        source="kubeloop/cli",
        service=loop.name,
        episode=identity,
        opened_at=as_of,
        as_of=as_of,
        kind="manual",
        features=(),
        reason=reason,
    )
    headers = {"content-type": cloudevents.STRUCTURED, **login}
    # A proxy from the environment must not see the token.
    response = httpx.post(f"{trigger}/events", json=event, headers=headers, timeout=30, trust_env=not login)
    decision: dict[str, Any] = response.json()
    if response.status_code != 202:
        raise RunError(f"the trigger refuses the event: {decision.get('error', response.text)}")
    return decision


def record(trigger: str, run_name: str) -> dict[str, Any]:
    """Return the ledger's record of a run; `outcome` is None until it is over."""
    found: dict[str, Any] = httpx.get(f"{trigger}/runs/{run_name}", timeout=30).json()
    return found


def follow(
    settings: Settings,
    trigger: str,
    run_name: str,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Report each step of a run as it finishes, and return the run's record once it is over.

    Args:
        settings: the place.
        trigger: URL of the trigger.
        run_name: the run.
        say: called with a sentence about each step.
        check: called while waiting; it raises an error if waiting is pointless.
    """
    steps = Steps(log(settings, run_name))
    while True:
        check()
        found = record(trigger, run_name)
        for line in steps.news():
            say(line)
        if found.get("outcome"):
            return found
        time.sleep(_POLL_S)


def log(settings: Settings, run_name: str) -> Path:
    """Return the log of a run, by the name that the trigger gave it."""
    return paths.inside(settings.runs, run_name, "log.txt", what="the run")


class Steps:
    """Reads the finished steps, and the rows that validation quarantined, from a run's growing log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = 0
        self._since = time.monotonic()

    def news(self) -> list[str]:
        """Return sentences about the steps that finished since the last call, and before each about its quarantine."""
        if not self._log.is_file():
            return []
        with self._log.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._offset += whole
        found = []
        for match in _NEWS.finditer(text[:whole].decode(errors="replace")):
            if held := match["held"]:
                found.append(f"    {held.strip()}")
                continue
            step, status = match[1], match[2] or "CACHED"
            took, self._since = time.monotonic() - self._since, time.monotonic()
            word = {"SUCCESS": f"done in {took:.1f} s", "FAILURE": "failed", "CACHED": "kept from before"}[status]
            found.append(f"  {step.replace('-', ' ')}: {word}")
        return found

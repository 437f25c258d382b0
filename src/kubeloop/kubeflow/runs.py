"""One run a name: Kubeflow Pipelines starts a run for every request, so ours are found by a mark before and after."""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubeloop import names
from kubeloop.config import Loop
from kubeloop.kubeflow.api import Api, described
from kubeloop.kubeflow.errors import NoAnswerError
from kubeloop.kubeflow.values import Run, Version
from kubeloop.stores.bucket import Bucket

_log = logging.getLogger(__name__)
_LOOKS_S = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Attempt:
    """The run that counts for a name, and its number from 1 on."""

    run: Run
    number: int


class Runs:
    """The runs of one use case by name and attempt.

    The API has no idempotency key and its run names are not unique. A run carries its key in its description, which
    can be filtered: `kubeloop.io/run: <loop>/<name>/<attempt>`. Before a start the key is searched for, and again
    after one, whether its answer came or not. Where two starts crossed, or a lost one came through late, each
    onlooker picks the same run of those found and ends the others, so that one goes on. What a second run does before
    it is ended is harmless: the gate and the registry know a run by its name and answer it as they did the first.

    All attempts have one name in KFP as well: it is an input of the first step, so that an attempt finds in KFP's cache
    what those before it have finished.
    """

    def __init__(self, api: Api, loop: Loop, looks_s: Sequence[float] = _LOOKS_S) -> None:
        self._api = api
        self._loop = loop
        self._looks_s = looks_s

    def find(self, name: str) -> Attempt | None:
        """Return the run that counts for a name, after ending those that do not; None when there is none.

        Raises:
            KfpError: no usable answer.
        """
        prefix = f"{names.RUN}: {self._loop.name}/{name}/"
        pattern = re.compile(rf"^{re.escape(prefix)}(\d+)$", re.MULTILINE)
        found = [
            Attempt(run, int(match[1]))
            for run in self._api.runs(prefix)
            # Whoever clones a run in the Kubeflow UI copies its description as well, but not its name.
            if (match := pattern.search(run.description)) and run.name in (name, _older_title(name, match[1]))
        ]
        if not found:
            return None
        chosen = min(found, key=_rank)
        for other in found:
            if other is not chosen and not other.run.is_over and other.run.state != "CANCELING":
                self._api.terminate(other.run.run_id)
        return chosen

    def start(
        self, name: str, attempt: int, version: Version, parameters: Mapping[str, Any], reason: str = ""
    ) -> Attempt:
        """Start an attempt, unless the name's run is going on, has succeeded or has had this attempt or a later one.

        Raises:
            RefusedError: the run cannot be started as it is.
            KfpError: no usable answer; the run may have started all the same, which `find` tells.
        """
        found = self.find(name)
        if found and (not found.run.is_over or found.run.state == "SUCCEEDED" or found.number >= attempt):
            return found
        experiment = self._api.experiment(self._loop.pipelines.experiment or self._loop.name, self._loop.description)
        key = f"{names.RUN}: {self._loop.name}/{name}/{attempt}"
        try:
            made = self._api.create_run(
                name,
                version,
                experiment_id=experiment,
                description=described(reason, key),
                parameters=parameters,
                service_account=self._loop.pipelines.service_account,
            )
        except NoAnswerError:
            for wait in self._looks_s:
                time.sleep(wait)
                found = self.find(name)
                if found and found.number >= attempt:
                    return found
            raise
        return self.find(name) or Attempt(made, attempt)


def verdict(bucket: Bucket, name: str) -> dict[str, Any] | None:
    """Return what a run of the training pipeline decided (promote, reason, version); None when it said nothing.

    Raises:
        BucketError: the bucket does not answer.
    """
    content = bucket.get(names.outcome(name))
    if content is None:
        return None
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        _log.error("%s in the bucket is no JSON object", names.outcome(name))
        return None
    return found


def _older_title(name: str, attempt: str) -> str:
    """Return what an older release called an attempt: one that runs during an upgrade is still ours."""
    return f"{name} (attempt {attempt})"


def _rank(attempt: Attempt) -> tuple[int, int, object, str]:
    """Order the runs of a name: the one that counts comes first, and stays first while states go on.

    A success counts most, then what goes on, oldest first; of those that failed the newest attempt, and an end of its
    own before one that was ordered.
    """
    run = attempt.run
    if run.state == "SUCCEEDED":
        return (0, 0, run.created, run.run_id)
    if not run.is_over:
        return (2 if run.state == "CANCELING" else 1, attempt.number, run.created, run.run_id)
    return (3, -attempt.number, (run.state == "CANCELED", run.created), run.run_id)

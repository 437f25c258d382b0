"""Start one run per name: Kubeflow Pipelines starts a run for every request, so we find ours by a mark."""

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
    """The run that counts for a name, and the number of its attempt, from 1."""

    run: Run
    number: int


class Runs:
    """The runs of one use case by name and attempt.

    The API has no idempotency key, and its run names are not unique. So a run has its key in its description, which
    can be filtered: `kubeloop.io/run: <loop>/<name>/<attempt>`. The key is searched before a start and after it,
    whether an answer came or not. If two starts crossed, or a lost one arrived late, every client picks the same one of
    the runs and ends the others. A second run does no harm before it is ended: the gate and the registry identify a
    run by its name and give it the same answer as the first.

    All attempts also have one name in KFP: it is an input of the first step, so that an attempt finds the finished
    work of earlier attempts in KFP's cache.
    """

    def __init__(self, api: Api, loop: Loop, looks_s: Sequence[float] = _LOOKS_S) -> None:
        self._api = api
        self._loop = loop
        self._looks_s = looks_s

    def find(self, name: str) -> Attempt | None:
        """End the runs of a name that do not count, and return the one that does; None if there is none.

        Raises:
            KfpError: no usable answer.
        """
        prefix = f"{names.RUN}: {self._loop.name}/{name}/"
        pattern = re.compile(rf"^{re.escape(prefix)}(\d+)$", re.MULTILINE)
        found = [
            Attempt(run, int(match[1]))
            for run in self._api.runs(prefix)
            # A clone of a run in the Kubeflow UI has the same description but another name.
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
        """Start an attempt, unless the name's run is running, has succeeded or has had this attempt or a later one.

        Raises:
            RefusedError: the run cannot be started with these parameters.
            KfpError: no usable answer; the run may have started nevertheless, so check with `find`.
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
    """Return the decision of a training run (promote, reason, version); None if it recorded none.

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
        _log.error("%s in the bucket is not a JSON object", names.outcome(name))
        return None
    return found


def _older_title(name: str, attempt: str) -> str:
    """Return the name that an older release gave an attempt, since one that runs during an upgrade is still ours."""
    return f"{name} (attempt {attempt})"


def _rank(attempt: Attempt) -> tuple[int, int, object, str]:
    """Order the runs of a name: the one that counts comes first, and stays first when states change.

    A success comes first, then running runs, oldest first, then failed runs, newest attempt first; a failure comes
    before a run that was ended on request.
    """
    run = attempt.run
    if run.state == "SUCCEEDED":
        return (0, 0, run.created, run.run_id)
    if not run.is_over:
        return (2 if run.state == "CANCELING" else 1, attempt.number, run.created, run.run_id)
    return (3, -attempt.number, (run.state == "CANCELED", run.created), run.run_id)

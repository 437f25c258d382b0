"""Keep why a step failed in the bucket, since the pipelines API only says which pod failed."""

import json
import logging
from typing import NamedTuple

from kubeloop import names
from kubeloop.config import Settings
from kubeloop.errors import KubeloopError
from kubeloop.stores.bucket import Bucket

_log = logging.getLogger(__name__)

_LONGEST = 4000


class Failure(NamedTuple):
    """Why a run failed, in which step, and whether another attempt would fail again."""

    error: str
    lasting: bool
    step: str = ""

    @classmethod
    def of(cls, error: BaseException, step: str = "") -> "Failure":
        """Return the failure for an error; one that is not ours may pass."""
        lasting = isinstance(error, KubeloopError) and error.lasting
        return cls(str(error) or type(error).__name__, lasting, step)

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(self._replace(error=self.error[:_LONGEST])._asdict())

    @classmethod
    def parse(cls, text: str | bytes) -> "Failure":
        """Read what `dump` returns."""
        content = json.loads(text)
        # A step with an older image writes `final`.
        return cls(content["error"], bool(content.get("lasting", content.get("final"))), content.get("step", ""))


def tell(settings: Settings, failure: Failure) -> None:
    """Put why a step failed into the bucket, under its run.

    Does nothing without a bucket or without a run of Kubeflow Pipelines, as on a laptop.
    """
    if settings.bucket and settings.run_id:
        keep(settings, names.failure(settings.run_id), failure)


def read(bucket: Bucket, run_id: str) -> Failure | None:
    """Return why a run of Kubeflow Pipelines failed; None if no step recorded it.

    Raises:
        BucketError: the bucket does not answer.
    """
    return look(bucket, names.failure(run_id))


def keep(settings: Settings, name: str, failure: Failure) -> None:
    """Put a failure into the bucket; if the bucket does not answer, log that, since the failure matters more."""
    try:
        Bucket.open(settings).put(name, failure.dump().encode())
    except KubeloopError as away:
        _log.error("the reason is only in this log: %s", away)


def look(bucket: Bucket, name: str) -> Failure | None:
    """Return the failure stored under a name; None if there is none.

    Raises:
        BucketError: the bucket does not answer.
    """
    content = bucket.get(name)
    return Failure.parse(content) if content else None

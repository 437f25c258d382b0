"""Why a step failed, kept where others look for it: the pipelines API tells no more than which pod it was."""

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
    """Why a run failed, whether another attempt would meet it again, and in which step it was."""

    error: str
    lasting: bool
    step: str = ""

    @classmethod
    def of(cls, error: BaseException, step: str = "") -> "Failure":
        """Return what is known of an error; those that are not ours may pass."""
        lasting = isinstance(error, KubeloopError) and error.lasting
        return cls(str(error) or type(error).__name__, lasting, step)

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(self._replace(error=self.error[:_LONGEST])._asdict())

    @classmethod
    def parse(cls, text: str | bytes) -> "Failure":
        """Read what `dump` returns."""
        content = json.loads(text)
        # A step whose image is older than this says `final`.
        return cls(content["error"], bool(content.get("lasting", content.get("final"))), content.get("step", ""))


def tell(settings: Settings, failure: Failure) -> None:
    """Put why a step failed into the bucket, under the run that it is part of.

    Nothing is put where there is no bucket, or no run of Kubeflow Pipelines, as on a laptop.
    """
    if settings.bucket and settings.run_id:
        keep(settings, names.failure(settings.run_id), failure)


def read(bucket: Bucket, run_id: str) -> Failure | None:
    """Return why a run of Kubeflow Pipelines failed; None when no step said.

    Raises:
        BucketError: the bucket does not answer.
    """
    return look(bucket, names.failure(run_id))


def keep(settings: Settings, name: str, failure: Failure) -> None:
    """Put a failure into the bucket; a bucket that is away is logged, since the failure itself matters more."""
    try:
        Bucket.open(settings).put(name, failure.dump().encode())
    except KubeloopError as away:
        _log.error("the reason is told here alone: %s", away)


def look(bucket: Bucket, name: str) -> Failure | None:
    """Return the failure of a name; None when there is none.

    Raises:
        BucketError: the bucket does not answer.
    """
    content = bucket.get(name)
    return Failure.parse(content) if content else None

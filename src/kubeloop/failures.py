"""Says why a step failed where the trigger looks: the pipelines API tells no more than which step it was."""

import functools
import json
import logging
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

from kubeloop import config, names
from kubeloop.bucket import Bucket, BucketError

_log = logging.getLogger(__name__)

LASTING = (
    *("ConfigError", "FeatureError", "ParameterError", "StageError", "SuiteError", "SupersededError"),
    "ValidationFailed",
)
"""Errors that data, configuration and decisions make: another attempt would meet the same ones."""

_LONGEST = 4000

P = ParamSpec("P")
R = TypeVar("R")


class Failure(NamedTuple):
    """Why a run failed, and whether another attempt would fail in the same way."""

    error: str
    final: bool


def told(step: Callable[P, R]) -> Callable[P, R]:
    """Wrap a step of a pipeline: what it fails with is put into the bucket as well, under the run that it is part of.

    Nothing is put where there is no bucket, or no run of Kubeflow Pipelines, as on a laptop.
    """

    @functools.wraps(step)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return step(*args, **kwargs)
        except Exception as error:
            settings = config.settings()
            if settings.bucket and settings.run_id:
                failure = Failure(str(error)[:_LONGEST], type(error).__name__ in LASTING)
                try:
                    content = json.dumps(failure._asdict()).encode()
                    Bucket.open(settings).put(names.failure(settings.run_id), content)
                except BucketError as away:
                    _log.error("the reason is told here alone: %s", away)
            raise

    return wrapped


def read(bucket: Bucket, run_id: str) -> Failure | None:
    """Return why a run of Kubeflow Pipelines failed; None when no step said.

    Raises:
        BucketError: the bucket does not answer.
    """
    content = bucket.get(names.failure(run_id))
    return Failure(**json.loads(content)) if content else None

"""Says why a step failed where the trigger looks: the pipelines API tells no more than which pod it was."""

import json
import logging
from typing import NamedTuple

from kubeloop import names
from kubeloop.bucket import Bucket, BucketError
from kubeloop.config import Settings

_log = logging.getLogger(__name__)

LASTING = (
    *("ConfigError", "EncodingError", "EvaluationError", "FeatureError", "GateError", "LoopError", "ParameterError"),
    *("StageError", "SuiteError", "SupersededError", "TrainingError", "ValidationFailed"),
)
"""Errors that data, configuration and decisions make: another attempt would meet the same ones."""

_LONGEST = 4000


class Failure(NamedTuple):
    """Why a run failed, whether another attempt would fail in the same way, and in which step it was."""

    error: str
    final: bool
    step: str = ""


def lasting(error: Exception) -> bool:
    """Return whether another attempt would fail in the same way."""
    return type(error).__name__ in LASTING


def tell(settings: Settings, failure: Failure) -> None:
    """Put why a step failed into the bucket, under the run that it is part of.

    Nothing is put where there is no bucket, or no run of Kubeflow Pipelines, as on a laptop.
    """
    if not (settings.bucket and settings.run_id):
        return
    content = json.dumps(failure._replace(error=failure.error[:_LONGEST])._asdict()).encode()
    try:
        Bucket.open(settings).put(names.failure(settings.run_id), content)
    except BucketError as away:
        _log.error("the reason is told here alone: %s", away)


def read(bucket: Bucket, run_id: str) -> Failure | None:
    """Return why a run of Kubeflow Pipelines failed; None when no step said.

    Raises:
        BucketError: the bucket does not answer.
    """
    content = bucket.get(names.failure(run_id))
    return Failure(**json.loads(content)) if content else None

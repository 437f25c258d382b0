"""The trigger's runner on a cluster: each attempt of a run is a run of the training pipeline in Kubeflow Pipelines."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from kubeloop import failures
from kubeloop.config import ConfigError, Loop, Settings, duration_text
from kubeloop.kubeflow.api import Api
from kubeloop.kubeflow.errors import RefusedError
from kubeloop.kubeflow.runs import Attempt, Runs, verdict
from kubeloop.kubeflow.values import Run
from kubeloop.stores.bucket import Bucket
from kubeloop.trigger.runners import Parameters, RunState

_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class KfpRunner:
    """Starts the newest uploaded version of the training pipeline, and reads its verdict from the bucket.

    A failed run's next attempt is a separate run, not KFP's retry. If the answer to a retry is lost, nothing shows
    whether it took place, but a run records its attempt. Finished steps come from KFP's cache. Both methods raise an
    OSError if the pipelines API or the bucket gives no usable answer.
    """

    def __init__(self, settings: Settings, loop: Loop, *, clock: Callable[[], datetime] = _now) -> None:
        if not settings.bucket:
            raise ConfigError(
                "KUBELOOP_BUCKET is not set, but the verdict of a run is read from there; write s3://bucket"
            )
        self._loop = loop
        self._pipeline = f"{loop.name}-training"
        self._api = Api.open(settings)
        self._runs = Runs(self._api, loop)
        self._bucket = Bucket.open(settings)
        self._clock = clock

    def find(self, run_name: str) -> RunState | None:
        """Return the state of the run; a run that takes longer than `pipelines.deadline` is ended."""
        attempt = self._runs.find(run_name)
        return self._state(run_name, attempt) if attempt else None

    def start(self, run_name: str, parameters: Parameters) -> RunState:
        """Start an attempt; see `Runner.start`."""
        number = parameters["attempt"]
        pipeline = self._api.pipeline(self._pipeline)
        version = self._api.version(pipeline) if pipeline else None
        if version is None:
            return RunState("failed", number, error=f"{self._pipeline} is not uploaded; run `kubeloop schedule` once")
        given = {
            "as_of": parameters["as_of"],
            "run": run_name,
            "reason": parameters["reason"],
            "loop": self._loop.dump(),
        }
        try:
            attempt = self._runs.start(run_name, number, version, given, parameters["reason"])
        except RefusedError as error:
            return RunState("failed", number, error=str(error), lasting=True)
        return self._state(run_name, attempt)

    def _state(self, run_name: str, attempt: Attempt) -> RunState:
        run, number = attempt.run, attempt.number
        match run.state:
            case "SUCCEEDED":
                return RunState("succeeded", number, result=verdict(self._bucket, run_name))
            case "FAILED" | "SKIPPED":
                said = failures.read(self._bucket, run.run_id)
                error = self._reason(run, said.step if said else "") + (f": {said.error}" if said else "")
                return RunState("failed", number, error=error, lasting=said is not None and said.lasting)
            case "CANCELED" if self._is_late(run, run.finished):
                return RunState("failed", number, error=self._reason(run))
            case "CANCELED":
                return RunState("failed", number, error="ended by hand in Kubeflow Pipelines", lasting=True)
        if run.state != "CANCELING" and self._is_late(run, self._clock()):
            _log.warning("%s: attempt %d %s; ending it", run_name, number, self._overrun())
            self._api.terminate(run.run_id)
        return RunState("running", number)

    def _reason(self, run: Run, step: str = "") -> str:
        if self._is_late(run, run.finished):
            return self._overrun()
        if step:
            # A pod may run several steps, and the pipelines API knows only the pod.
            return f"failed in {step}"
        whole = self._api.run(run.run_id) or run
        steps = [step.name for step in whole.steps if step.state == "FAILED"]
        return f"failed in {', '.join(steps)}" if steps else "failed in Kubeflow Pipelines, which does not name a step"

    def _is_late(self, run: Run, moment: datetime | None) -> bool:
        # Kubeflow Pipelines reports whole seconds.
        limit = self._loop.pipelines.deadline - timedelta(seconds=1)
        return moment is not None and moment - run.created >= limit

    def _overrun(self) -> str:
        return f"outlived pipelines.deadline ({duration_text(self._loop.pipelines.deadline)})"

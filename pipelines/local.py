"""Run a pipeline on this machine with kfp's local runner, and store a report that survives a kill."""

import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl.base_component import BaseComponent

from kubeloop import paths
from kubeloop.config import Settings
from kubeloop.errors import KubeloopError
from kubeloop.failures import Failure
from kubeloop.stores import kept, whole
from pipelines import warm


def run(pipeline: BaseComponent, arguments: Mapping[str, Any], *, name: str, settings: Settings) -> dict[str, Any]:
    """Run a pipeline, one process per step, and return its outputs.

    A step that finished in an earlier attempt with the same inputs is not repeated. `run.json` in the run's
    folder holds the state at any moment, written in one piece.

    Raises:
        RunError: a step failed, or could not be run; `run.json` records it.
    """
    folder = paths.inside(settings.runs, name, what="the run")
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "name": name,
        "status": "running",
        "pid": os.getpid(),
        "arguments": {key: value for key, value in arguments.items() if key != "loop"},
        "started_at": _now(),
        "finished_at": None,
        "result": None,
        "error": None,
    }
    _write(folder, report)
    signal.signal(signal.SIGTERM, _interrupt)
    told: list[Failure] = []
    try:
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(settings.state / "pipeline"),
            # In a copy of a state folder, the finished steps name files of the original.
            cache_root=str(settings.state / "pipeline-cache" / hashlib.sha256(bytes(settings.state)).hexdigest()[:8]),
            enable_caching=True,
            raise_on_error=True,
        )
        with _executable(told):
            result = dict(pipeline(**arguments).outputs)
    except KeyboardInterrupt:
        _write(folder, report | _failed(Failure("interrupted", lasting=False)))
        raise
    except BaseException as error:
        # kfp reports which step failed, and the step itself has reported why.
        failure = told[0] if told else Failure.of(error)
        _write(folder, report | _failed(failure))
        raise RunError(failure) from error
    _write(folder, report | {"status": "succeeded", "result": result, "finished_at": _now()})
    return result


class RunError(KubeloopError):
    """The run failed; its step reports whether it would fail again."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.lasting = failure.lasting


@contextlib.contextmanager
def _executable(told: list[Failure]) -> Iterator[None]:
    """Have kfp run each step with a warm interpreter instead of this program's own one.

    Args:
        told: receives the error that ended a step, if there was one.
    """
    cold = sys.executable
    with warm.interpreter() as stand_in:
        sys.executable = stand_in
        try:
            yield
        finally:
            sys.executable = cold
            said = Path(stand_in).with_name(warm.FAILURE)
            if said.is_file():
                told.append(Failure.parse(said.read_text()))


def _failed(failure: Failure) -> dict[str, Any]:
    return {"status": "failed", "error": failure.error, "lasting": failure.lasting, "finished_at": _now()}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _write(folder: Path, report: dict[str, Any]) -> None:
    whole.write(folder / "run.json", kept.dumps(report))

"""Run a pipeline on this machine with kfp's local runner, and keep a report of it that survives a kill."""

import contextlib
import io
import itertools
import json
import os
import re
import signal
import sys
import textwrap
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from kfp import local
from kfp.dsl.base_component import BaseComponent

from kubeloop import failures, paths
from kubeloop.config import Settings
from pipelines import warm

_LOG_LINE = re.compile(r"\s*(\d\d:\d\d:\d\d\.\d+ - |---)")


def run(pipeline: BaseComponent, arguments: Mapping[str, Any], *, name: str, settings: Settings) -> dict[str, Any]:
    """Run a pipeline, one process a step, and return its outputs.

    A step that finished in an earlier attempt with the same inputs is not repeated. `run.json` in the run's
    folder holds the state at any moment, written in one piece.

    Raises:
        Exception: whatever stopped the pipeline, after `run.json` has said so.
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
    output = _Remember(sys.stdout)
    try:
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(settings.state / "pipeline"),
            cache_root=str(settings.state / "pipeline-cache"),
            enable_caching=True,
            raise_on_error=True,
        )
        with contextlib.redirect_stdout(output), _executable():
            result = dict(pipeline(**arguments).outputs)
    except BaseException as error:
        kind, message = output.reason()
        if isinstance(error, KeyboardInterrupt):
            kind, message = "", "interrupted"
        failed = {"status": "failed", "error": message or str(error), "final": kind in failures.LASTING}
        _write(folder, report | failed | {"finished_at": _now()})
        raise
    _write(folder, report | {"status": "succeeded", "result": result, "finished_at": _now()})
    return result


@contextlib.contextmanager
def _executable() -> Iterator[None]:
    """Have kfp, which runs each step with this program's interpreter, run it with a warm one."""
    cold = sys.executable
    with warm.interpreter() as stand_in:
        sys.executable = stand_in
        try:
            yield
        finally:
            sys.executable = cold


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Remember(io.TextIOBase):
    """Pass a stream on and remember its end: a step's reason to fail is only in what it printed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=500)

    def write(self, text: str) -> int:
        """Pass text on."""
        self._lines.extend(text.splitlines())
        return self._stream.write(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._stream.flush()

    def reason(self) -> tuple[str, str]:
        """Return the class and the message of the last exception printed; both are empty when there was none."""
        lines = textwrap.dedent("\n".join(line for line in self._lines if line.strip())).splitlines()
        starts = [number for number, line in enumerate(lines) if line.strip().startswith("Traceback (most recent")]
        if not starts:
            return "", ""
        indent = lines[starts[-1]].index("T")
        block = [line[indent:] for line in lines[starts[-1] + 1 :]]
        first = next((number for number, line in enumerate(block) if line and not line[0].isspace()), len(block))
        rest = list(itertools.takewhile(lambda line: not _LOG_LINE.match(line), block[first:]))
        if not rest:
            return "", ""
        kind, _, message = rest[0].partition(": ")
        return kind.rpartition(".")[2], "\n".join([message or rest[0], *rest[1:]]).strip()


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _write(folder: Path, report: dict[str, Any]) -> None:
    part = folder / "run.json.part"
    part.write_text(json.dumps(report, indent=2))
    part.replace(folder / "run.json")

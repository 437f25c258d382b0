"""What a step costs beyond its work: kfp's local runner with cold and warm processes, beside a bare process."""

import argparse
import contextlib
import io
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from kfp import dsl, local

from components._step import step
from pipelines import warm

IMPORTS = "import great_expectations, feast, mlflow"


@step
def idle(number: int) -> int:
    """Return a number."""
    return number


@step
def importing(number: int) -> int:
    """Import what the steps of the training pipeline import, and return a number."""
    import feast  # noqa: F401
    import great_expectations  # noqa: F401
    import mlflow  # noqa: F401

    return number


def pipeline(component: Callable[..., object], steps: int) -> Callable[[], object]:
    """Return a pipeline of some steps, one after the other."""

    @dsl.pipeline(name="overhead")
    def chain() -> None:
        last = None
        for number in range(steps):
            task = component(number=number)
            if last is not None:
                task.after(last)
            last = task

    return chain


def per_step(component: Callable[..., object], steps: int) -> float:
    """Return the seconds a step of a local run takes."""
    chain = pipeline(component, steps)
    started = time.perf_counter()
    # kfp tells the story of every step.
    with contextlib.redirect_stdout(io.StringIO()):
        chain()
    return (time.perf_counter() - started) / steps


def bare(code: str, repeats: int) -> float:
    """Return the seconds that a Python process with this code takes."""
    started = time.perf_counter()
    for _ in range(repeats):
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return (time.perf_counter() - started) / repeats


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    # kfp warns that a step's image cannot be honoured here; the step needs none.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
    seconds: dict[str, list[float]] = {}
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder, enable_caching=False)
        for _ in range(options.rounds):
            found = {
                "bare process": bare("pass", options.steps),
                "kfp step": per_step(idle, options.steps),
                "bare process, libraries": bare(IMPORTS, 2),
                "kfp step, libraries": per_step(importing, 2),
            }
            cold = sys.executable
            with warm.interpreter() as stand_in:
                sys.executable = stand_in
                # The first one waits until the libraries are there.
                per_step(importing, 1)
                found["kfp step, warm"] = per_step(idle, options.steps)
                found["kfp step, warm, libraries"] = per_step(importing, 2)
                sys.executable = cold
            for name, value in found.items():
                seconds.setdefault(name, []).append(value)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\nseconds a step, median of {options.rounds} rounds")
    for name, value in middle.items():
        print(f"  {name:28} {value:6.3f}")
    ratio = middle["kfp step, libraries"] / middle["kfp step, warm, libraries"]
    print(f"  a warm step with its libraries is {ratio:.1f} times faster than a cold one")
    if options.json:
        options.json.write_text(json.dumps({"seconds": middle, "cold_over_warm": ratio}, indent=2))


if __name__ == "__main__":
    main()

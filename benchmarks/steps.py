"""Measure what a step costs beyond its work: kfp's local runner, cold and warm, and the same function without it."""

import argparse
import contextlib
import inspect
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
from typing import Any

from kfp import dsl, local

from components._step import step
from pipelines import warm


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
    """Return the seconds that a step of a local run takes."""
    chain = pipeline(component, steps)
    started = time.perf_counter()
    # kfp logs every step at length.
    with contextlib.redirect_stdout(io.StringIO()):
        chain()
    return (time.perf_counter() - started) / steps


def source(component: Any) -> str:
    """Return a program that calls a component's function without kfp."""
    lines = inspect.getsource(component.python_func).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("@"))


def bare(component: Any, repeats: int) -> float:
    """Return the seconds that a Python process takes which calls the function and ends."""
    code = f"{source(component)}\n{component.python_func.__name__}(1)"
    started = time.perf_counter()
    for _ in range(repeats):
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return (time.perf_counter() - started) / repeats


def called(component: Any) -> float:
    """Return the seconds that a call of the function takes in a process that has called it before."""
    name = component.python_func.__name__
    code = f"{source(component)}\n{name}(1)\nimport timeit\nprint(timeit.timeit(lambda: {name}(1), number=1000) / 1000)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, print and store."""
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
                "bare call": called(idle),
                "bare process": bare(idle, options.steps),
                "kfp step": per_step(idle, options.steps),
                "bare call, libraries": called(importing),
                "bare process, libraries": bare(importing, 2),
                "kfp step, libraries": per_step(importing, 2),
            }
            cold = sys.executable
            with warm.interpreter() as stand_in:
                sys.executable = stand_in
                # Between two steps it imports one library, and the last step waits for the last library.
                per_step(idle, len(warm.LIBRARIES) + 1)
                found["kfp step, warm"] = per_step(idle, options.steps)
                found["kfp step, warm, libraries"] = per_step(importing, 2)
                sys.executable = cold
            for name, value in found.items():
                seconds.setdefault(name, []).append(value)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\nseconds a step, median of {options.rounds} rounds")
    for name, value in middle.items():
        print(f"  {name:28} {value:10.3g}")
    cold_over_warm = middle["kfp step, libraries"] / middle["kfp step, warm, libraries"]
    over_process, over_call = {}, {}
    for name in ("kfp step", "kfp step, libraries", "kfp step, warm", "kfp step, warm, libraries"):
        same = ", libraries" if name.endswith("libraries") else ""
        over_process[name] = middle[name] / middle[f"bare process{same}"]
        over_call[name] = middle[name] - middle[f"bare call{same}"]
    print("\nbeside the same function          in a Python process of its own   called where all is imported")
    for name, ratio in over_process.items():
        print(f"  {name:28} {ratio:24.2f} times {over_call[name]:22.3f} s more")
    print(f"  a warm step with its libraries is {cold_over_warm:.1f} times faster than a cold one")
    if options.json:
        figures = {"over_bare_process": over_process, "seconds_over_bare_call": over_call}
        options.json.write_text(json.dumps({"seconds": middle, "cold_over_warm": cold_over_warm} | figures, indent=2))


if __name__ == "__main__":
    main()

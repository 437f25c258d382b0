"""The program of a step's pod: `python -m pipelines.pod` runs the steps of a group one after another, as kfp would.

Each attempt of a step is a separate process, so that its memory is freed and a killed step can be tried again. After a
passing error the step is tried again as loop.yaml says, since Argo repeats a pod only if its node is lost. The error
of the last attempt is put into the bucket for the trigger; the exit codes are those of kubeloop/errors.py.
"""

import argparse
import collections
import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kfp.dsl.executor import Executor

from kubeloop import config, errors, failures
from kubeloop.failures import Failure
from kubeloop.node.processes import die_with_parent
from pipelines.exchange import Exchange
from pipelines.plan import Member, Plan

LONGEST_PAUSE_S = 3600.0

_HEAVY: Mapping[str, tuple[str, ...]] = {
    "validate_data": ("pandas", "great_expectations"),
    "validate_features": ("pandas", "great_expectations"),
    "build_features": ("pandas", "feast"),
    "materialize_features": ("pandas", "feast"),
    "train_model": ("pandas", "lightgbm", "onnxruntime"),
    "evaluate_model": ("pandas", "onnxruntime"),
    "gate_model": ("pandas", "onnxruntime", "mlflow"),
    "register_model": ("mlflow",),
    "deploy_model": ("mlflow",),
    "score_batch": ("pandas", "feast", "mlflow"),
}
"""Libraries that take seconds to import, by step."""


def main() -> int:
    """Run the group that the command line describes, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.pod", description=__doc__)
    parser.add_argument("--plan", required=True, help="the steps, as JSON; see pipelines/plan.py")
    parser.add_argument(
        "--executor_input", required=True, help="the input of Kubeflow's launcher for a component, as JSON"
    )
    options = parser.parse_args()
    # Great Expectations alone logs a hundred lines about itself, and people read this log in the Kubeflow UI.
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("kubeloop").setLevel(logging.INFO)
    plan = Plan.parse(options.plan)
    return run(plan, Exchange(plan, json.loads(options.executor_input)))


def run(plan: Plan, exchange: Exchange) -> int:
    """Run the steps in order; the first that fails for good ends the group."""
    total = len(plan.members)
    for number, member in enumerate(plan.members, start=1):
        title = f"{member.step} ({number} of {total})" if total > 1 else member.step
        if member.when and exchange.value(member.when.source) != member.when.value:
            _say(f"{title}: skipped, as {member.when.source.step or 'the run'} decided")
            exchange.skip(member)
            continue
        _say(title)
        began = time.monotonic()
        _import_shared(plan, number - 1)
        failure = _persist(member, exchange)
        took = time.monotonic() - began
        if failure:
            _say(f"{title}: failed after {took:.1f} s: {failure.error}")
            failures.tell(config.settings(), failure)
            return errors.LASTING if failure.lasting else errors.PASSING
        _say(f"{title}: done in {took:.1f} s")
    exchange.finish()
    return 0


def _persist(member: Member, exchange: Exchange) -> Failure | None:
    """Try a step until it succeeds, its error is lasting or its retries are used up."""
    with exchange.traces(member) as clear:
        for attempt in range(1, member.retries + 2):
            failure = _attempt(member, exchange)
            if failure is None or failure.lasting or attempt > member.retries:
                return failure
            pause = min(member.backoff_s * 2 ** (attempt - 1), LONGEST_PAUSE_S)
            _say(
                f"{member.step}: attempt {attempt} of {member.retries + 1} failed: {failure.error}; "
                f"trying again in {pause:g} s"
            )
            clear()
            time.sleep(pause)
    raise AssertionError("the last attempt returns")


def _attempt(member: Member, exchange: Exchange) -> Failure | None:
    """Run a step once in a separate process, and read its outputs."""
    with tempfile.TemporaryDirectory(prefix="kubeloop-step-") as folder:
        output, word = Path(folder) / "executor_output.json", Path(folder) / "failure.json"
        given = exchange.executor_input(member, output)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        child = os.fork()
        if not child:
            _become(member, given, word, parent)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if word.is_file():
            return Failure.parse(word.read_text())
        if status < 0:
            name = signal.Signals(-status).name
            hint = "; does it need more memory?" if -status == signal.SIGKILL else ""
            return Failure(f"its process was ended by {name}{hint}", lasting=False, step=member.step)
        if status:
            return Failure(f"its process ended with status {status}", lasting=False, step=member.step)
        exchange.take(member, json.loads(output.read_text()))
    return None


def _become(member: Member, given: dict[str, Any], word: Path, parent: int) -> None:
    """Run one attempt in this process: run the component, and exit with its status."""
    status = 1
    try:
        # If the pod's program ends, a step must not continue and deploy.
        die_with_parent(parent)
        component = importlib.import_module(f"components.{member.function}")
        Executor(given, getattr(component, member.function)).execute()
        status = 0
    except Exception as error:  # noqa: BLE001 - the parent decides about another attempt
        traceback.print_exc()
        word.write_text(Failure.of(error, member.step).dump())
    except BaseException:  # noqa: BLE001 - as the interpreter does at the end of a program
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        # The step must not run the parent's exit handlers.
        os._exit(status)


def _import_shared(plan: Plan, position: int) -> None:
    """Import what the next step and a later one need: their processes are forks of this one."""
    wanted = _HEAVY.get(plan.members[position].function, ())
    later = collections.Counter(name for member in plan.members[position + 1 :] for name in _libraries(member))
    for name in wanted:
        if later[name]:
            # The step will report what is missing.
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def _libraries(member: Member) -> Iterator[str]:
    yield from _HEAVY.get(member.function, ())


def _say(text: str) -> None:
    print(f"==== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

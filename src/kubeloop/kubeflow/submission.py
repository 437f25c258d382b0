"""Compile, upload and start pipelines on Kubeflow Pipelines, and follow a run to its end."""

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from kubeloop import names
from kubeloop.config import Loop, Settings, inherited
from kubeloop.errors import KubeloopError
from kubeloop.kubeflow.api import DESCRIPTION_LIMIT, Api
from kubeloop.kubeflow.errors import KfpError, MissingError, NoAnswerError
from kubeloop.kubeflow.runs import Runs
from kubeloop.kubeflow.values import Run, Version

_PATIENCE_S = 300.0


class SubmissionError(KubeloopError):
    """A pipeline cannot be compiled or started as requested; the message says what to change."""

    lasting = True


@dataclass(frozen=True)
class Package:
    """A compiled pipeline; its version is named after its bytes."""

    pipeline: str
    path: Path

    @property
    def version(self) -> str:
        """The name of the version: the same bytes are the same version, and are uploaded once."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:12]

    @cached_property
    def documents(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The pipeline spec, and the platform spec, which may be empty."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        spec, *platform = yaml.load_all(self.path.read_text(), Loader=loader)
        return spec, platform[0] if platform else {}

    @property
    def inputs(self) -> dict[str, str]:
        """The pipeline's parameters with their types, as KFP names those."""
        root = self.documents[0]["root"].get("inputDefinitions", {})
        return {name: item["parameterType"] for name, item in root.get("parameters", {}).items()}


def compile_all(loop: Loop, settings: Settings, folder: Path) -> dict[str, Package]:
    """Compile every pipeline into a folder, in the core environment, and return them by name.

    Raises:
        SubmissionError: a pipeline does not compile.
    """
    (source := folder / "loop.yaml").write_text(loop.dump())
    command = [str(settings.core_python), "-m", "pipelines", "compile", "--out", str(folder), "--loop", str(source)]
    try:
        done = subprocess.run(command, cwd=settings.home, env=inherited(), capture_output=True, text=True, check=False)
    except OSError as error:
        raise SubmissionError(
            f"cannot compile ({error}); KUBELOOP_CORE_PYTHON must name the core interpreter"
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SubmissionError(f"the pipelines do not compile: {last}; `python -m pipelines compile` shows where")
    return {name: Package(name, folder / f"{loop.name}-{name}.yaml") for name in names.PIPELINES}


def check(loop: Loop) -> None:
    """Refuse a use case whose pipelines could not serve their models.

    Raises:
        SubmissionError: it delivers to processes of one machine, which a step in a cluster cannot reach.
    """
    if loop.delivery.applier == "local":
        raise SubmissionError(
            "this loop.yaml serves on one machine (`delivery.applier: local`), which a step in the cluster cannot "
            "reach. Use the loop that the chart installed, with the cluster's images and Secrets: add "
            "`--release kubeloop --namespace kubeloop`, the Helm release and its namespace"
        )


def upload(api: Api, loop: Loop, package: Package) -> Version:
    """Upload a package as a version of its pipeline, unless the same bytes exist, and return the version.

    Raises:
        KfpError: no usable answer, or the package is not valid.
    """
    name = f"{loop.name}-{package.pipeline}"
    description = (package.documents[0]["pipelineInfo"].get("description") or "")[:DESCRIPTION_LIMIT]
    pipeline_id = api.pipeline(name) or api.create_pipeline(name, description)
    return api.upload(pipeline_id, package.version, package.path, edition(loop)[:DESCRIPTION_LIMIT])


def edition(loop: Loop) -> str:
    """Return the description of a pipeline's version, whose name is only a digest."""
    return f"Image {loop.pipelines.images.core}, configuration {loop.digest()[:12]}"


def arguments(package: Package, given: Sequence[str], run_name: str) -> dict[str, Any]:
    """Return a run's parameters from `name=value` texts, each value with its parameter's type.

    Raises:
        SubmissionError: a text is not of that form, names no parameter, or has a value of another type.
    """
    inputs = package.inputs
    found: dict[str, Any] = {"run": run_name} if "run" in inputs else {}
    for text in given:
        name, is_pair, value = text.partition("=")
        if not is_pair:
            raise SubmissionError(f"--param {text}: write name=value")
        if name == "run":
            raise SubmissionError("--param run: give the run's name with --name")
        if name not in inputs:
            raise SubmissionError(f"--param {name}: {package.pipeline} has {', '.join(sorted(inputs)) or 'none'}")
        found[name] = _typed(name, value, inputs[name])
    return found


def follow(
    api: Api,
    runs: Runs,
    name: str,
    say: Callable[[str], None],
    *,
    poll_s: float = 2.0,
    patience_s: float = _PATIENCE_S,
) -> Iterator[Run]:
    """Yield a run's state repeatedly, the last time when it is over.

    Args:
        api: the pipelines API.
        runs: the use case's runs.
        name: the run's name.
        say: called when the API stops answering and when it answers again.
        poll_s: seconds between two requests.
        patience_s: seconds without an answer after which this ends with an error.

    Raises:
        KfpError: no usable answer for too long; the run continues.
    """
    run_id, silent_since = "", None
    while True:
        try:
            if not run_id:
                run_id = _chosen(runs, name)
            run = api.run(run_id)
            if run is None:
                raise MissingError(f"run {name} was deleted in Kubeflow Pipelines")
            if run.is_over and (counting := _chosen(runs, name)) != run_id:
                # A second run of the name was ended, and it was this one.
                run_id = counting
                continue
        except NoAnswerError as error:
            now = time.monotonic()
            if silent_since is None:
                silent_since = now
                say(f"{error}; trying again for {patience_s:.0f} s")
            if now - silent_since > patience_s:
                raise
        else:
            if silent_since is not None:
                silent_since = None
                say("the pipelines API answers again")
            yield run
            if run.is_over:
                return
        time.sleep(poll_s)


def link(settings: Settings, run_id: str) -> str:
    """Return the address of a run in the Kubeflow UI; empty when KUBELOOP_KFP_UI is not set."""
    return f"{settings.kfp_ui.rstrip('/')}/#/runs/details/{run_id}" if settings.kfp_ui else ""


def _chosen(runs: Runs, name: str) -> str:
    attempt = runs.find(name)
    if attempt is None:
        raise KfpError(f"Kubeflow Pipelines knows no run {name}; was it deleted?")
    return attempt.run.run_id


def _typed(name: str, value: str, kind: str) -> Any:
    if kind == "STRING":
        return value
    wanted: Mapping[str, tuple[type, ...]] = {
        "NUMBER_INTEGER": (int,),
        "NUMBER_DOUBLE": (int, float),
        "BOOLEAN": (bool,),
        "LIST": (list,),
        "STRUCT": (dict,),
    }
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, wanted[kind]) or (isinstance(found, bool) and kind != "BOOLEAN"):
        raise SubmissionError(f"--param {name}={value}: the value must be a JSON {kind.lower().replace('_', ' ')}")
    return found

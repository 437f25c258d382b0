"""The commands of Kubeflow Pipelines: `kubeloop submit`, `kubeloop schedule` and `kubeloop pipelines objects`."""

import json
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kubeloop import config, errors, names
from kubeloop.cli.sources import Context, Installed, LoopName, Namespace, Release, ReleaseNamespace, Source
from kubeloop.config import Loop, Settings

if TYPE_CHECKING:
    from kubeloop.kubeflow.api import Api
    from kubeloop.kubeflow.runs import Attempt, Runs
    from kubeloop.kubeflow.steps import Step
    from kubeloop.kubeflow.values import Run

_OUT = Console(highlight=False)
_ERR = Console(stderr=True, highlight=False)
_WORDS = {
    "PENDING": "waits",
    "RUNNING": "runs",
    "SUCCEEDED": "done",
    "SKIPPED": "skipped",
    "FAILED": "failed",
    "CANCELING": "ending",
    "CANCELED": "ended",
    "PAUSED": "paused",
}
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "red", "RUNNING": "cyan"}

Folder = Annotated[
    Path, typer.Option("--dir", "-C", help="Folder with loop.yaml and the feature repo.", show_default="this folder")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine instead of text.")]
HERE = Path()


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(submit)
    app.command()(schedule)
    pipelines = typer.Typer(help="Print what kubeloop gives to Kubeflow Pipelines.", no_args_is_help=True)
    pipelines.command()(objects)
    # With only one command, typer would leave out its name.
    pipelines.callback()(_nothing)
    app.add_typer(pipelines, name="pipelines")


def submit(
    pipeline: Annotated[
        str, typer.Argument(help=f"{', '.join(names.PIPELINES[:-1])} or {names.PIPELINES[-1]}.")
    ] = "training",
    param: Annotated[list[str] | None, typer.Option(help="A parameter as name=value; repeat for more.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's name.", show_default="the pipeline and the time")] = None,
    follow: Annotated[bool, typer.Option(help="Watch the run to its end.")] = True,
    folder: Folder = HERE,
    installed: Installed = None,
    release: Release = None,
    namespace: Namespace = None,
    context: Context = None,
    loop_name: LoopName = None,
    as_json: Json = False,
) -> None:
    """Run a pipeline on Kubeflow Pipelines; each name runs once.

    The command compiles the pipelines, uploads what changed, starts the run and follows its steps. If a run with this
    name exists, even one that the trigger started, the command follows it and starts nothing.
    """
    from kubeloop.kubeflow import submission
    from kubeloop.kubeflow.api import Api
    from kubeloop.kubeflow.runs import Runs, verdict
    from kubeloop.stores.bucket import Bucket

    settings = config.settings(folder)
    source = Source(installed, release, namespace, context, loop_name)
    loop = source.read(settings)
    if pipeline not in names.PIPELINES:
        _fail(f"there is no pipeline {pipeline}; the pipelines are {', '.join(names.PIPELINES)}")
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    run_name = name or f"{loop.name[:27]}-{pipeline}-{stamp}"
    if not _NAME.fullmatch(run_name):
        _fail(f"--name {run_name}: use at most 63 lower-case letters, digits and dashes, and start with a letter")
    attempt = None
    again = f"`kubeloop submit {pipeline}{source.options()} --name {run_name}`"
    try:
        submission.check(loop)
        api = Api.open(settings)
        runs = Runs(api, loop)
        attempt = runs.find(run_name) or _start(api, runs, loop, settings, pipeline, run_name, param or [])
        address = submission.link(settings, attempt.run.run_id)
        if not as_json:
            _OUT.print(f"Run {run_name} of {loop.name}-{pipeline} {address}".rstrip(), soft_wrap=True)
        run = _watch(api, runs, run_name, as_json) if follow else attempt.run
        decided = verdict(Bucket.open(settings), run_name) if run.state == "SUCCEEDED" and settings.bucket else None
    except KeyboardInterrupt:
        stopped = "no longer following; the run continues" if attempt else "stopped before the run had started"
        _fail(f"{stopped}. {again} follows it again", 130)
    except OSError as error:
        _fail(f"{error}\n{again} finds the run and continues from there", errors.exit_code(error))
    if as_json:
        print(json.dumps(_record(run, address, decided), indent=2, default=str))
    elif follow:
        _tell(run, decided)
    else:
        _OUT.print(escape(f"{again} follows it"), soft_wrap=True)
    if run.is_over and run.state != "SUCCEEDED":
        raise typer.Exit(1)


def schedule(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference and change nothing.")] = False,
    folder: Folder = HERE,
    installed: Installed = None,
    release: Release = None,
    namespace: Namespace = None,
    context: Context = None,
    loop_name: LoopName = None,
    as_json: Json = False,
) -> None:
    """Bring the recurring runs of Kubeflow Pipelines in line with `pipelines.recurring` of loop.yaml.

    The command uploads the training pipeline, whose newest version the trigger starts, and every recurring pipeline.
    It does not touch recurring runs that others made.
    """
    from kubeloop.kubeflow import recurring, submission
    from kubeloop.kubeflow.api import Api
    from kubeloop.kubeflow.values import Version

    settings = config.settings(folder)
    source = Source(installed, release, namespace, context, loop_name)
    loop = source.read(settings)
    again = f"`kubeloop schedule{source.options()}`"
    try:
        submission.check(loop)
        api = Api.open(settings)
        with tempfile.TemporaryDirectory(prefix="kubeloop-") as scratch:
            packages = submission.compile_all(loop, settings, Path(scratch))
            wanted: set[str] = {"training", *(item.pipeline for item in loop.pipelines.recurring)}
            versions = {
                name: Version("", "", package.version) if dry_run else submission.upload(api, loop, package)
                for name, package in packages.items()
                if name in wanted
            }
        changes = recurring.plan(api, loop, versions)
        if not dry_run:
            recurring.apply(api, loop, versions, changes)
    except OSError as error:
        _fail(f"{error}\nRun {again} again to finish", errors.exit_code(error))
    if as_json:
        rows = [{"action": item.action, "name": item.name, "reason": item.reason} for item in changes]
        print(json.dumps({"applied": not dry_run, "changes": rows}, indent=2))
        return
    for item in changes:
        colour = {"create": "green", "delete": "red"}[item.action]
        _OUT.print(f"[{colour}]{item.action}[/] {item.name}: {item.reason}")
    if not changes:
        _OUT.print(f"{len(loop.pipelines.recurring)} recurring runs; all match loop.yaml")
    elif dry_run:
        _OUT.print(escape(f"Nothing was changed; {again} applies these changes."), soft_wrap=True)


def objects(
    folder: Folder = HERE,
    installed: Installed = None,
    release: Release = None,
    release_namespace: ReleaseNamespace = None,
    context: Context = None,
    loop_name: LoopName = None,
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of the objects.", show_default="KUBELOOP_NAMESPACE")
    ] = None,
) -> None:
    """Print Pipeline and PipelineVersion objects as YAML, for an installation that keeps pipelines in Git."""
    from kubeloop.kubeflow import resources, submission

    settings = config.settings(folder)
    loop = Source(installed, release, release_namespace, context, loop_name).read(settings)
    submission.check(loop)
    with tempfile.TemporaryDirectory(prefix="kubeloop-") as scratch:
        packages = submission.compile_all(loop, settings, Path(scratch))
        found = resources.build(loop, packages.values(), namespace or settings.namespace)
    yaml.safe_dump_all(found, sys.stdout, sort_keys=False, width=120)


def _nothing() -> None:
    """Print what kubeloop gives to Kubeflow Pipelines."""


def _start(
    api: "Api", runs: "Runs", loop: Loop, settings: Settings, pipeline: str, run_name: str, param: list[str]
) -> "Attempt":
    from kubeloop.kubeflow import submission

    with tempfile.TemporaryDirectory(prefix="kubeloop-") as scratch:
        package = submission.compile_all(loop, settings, Path(scratch))[pipeline]
        parameters = submission.arguments(package, param, run_name)
        version = submission.upload(api, loop, package)
    return runs.start(run_name, 1, version, parameters, "submitted by hand")


def _watch(api: "Api", runs: "Runs", run_name: str, quiet: bool) -> "Run":
    """Show a run until it is over, and return it."""
    from kubeloop.kubeflow import submission

    console = _ERR if quiet else _OUT
    with _screen(console) as show:
        for state in submission.follow(api, runs, run_name, lambda text: console.print(escape(text), soft_wrap=True)):
            run = state
            show(state)
    return run


@contextmanager
def _screen(console: Console) -> Iterator[Any]:
    """Yield a function that shows a run: as a live table in a terminal, else as one line per changed step."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda run: live.update(_table(run))
        return
    seen: dict[str, tuple[str, int]] = {}

    def lines(run: "Run") -> None:
        for step in run.steps:
            if step.state != "PENDING" and seen.get(step.name) != (step.state, step.attempt):
                seen[step.name] = (step.state, step.attempt)
                console.print(f"  {escape(_phrase(step))}", soft_wrap=True)

    yield lines


def _table(run: "Run") -> Group:
    grid = Table("step", "state", "time", box=None, pad_edge=False)
    for step in run.steps:
        grid.add_row(step.name.replace("-", " "), _coloured(step.state).append(_again(step)), _took(step))
    return Group(grid, Text.assemble("run ", _coloured(run.state)))


def _coloured(state: str) -> Text:
    return Text(_WORDS.get(state, state.lower()), style=_COLOURS.get(state, ""))


def _phrase(step: "Step") -> str:
    took = f" in {_took(step)}" if step.finished else ""
    return f"{step.name.replace('-', ' ')}: {_WORDS.get(step.state, step.state.lower())}{took}{_again(step)}"


def _again(step: "Step") -> str:
    return f" (attempt {step.attempt})" if step.attempt > 1 else ""


def _took(step: "Step") -> str:
    if step.started is None:
        return ""
    end = step.finished.timestamp() if step.finished else time.time()
    return f"{max(0.0, end - step.started.timestamp()):.0f} s"


def _tell(run: "Run", decided: dict[str, Any] | None) -> None:
    """Print how a run ended."""
    if run.state == "SUCCEEDED":
        verdict = ""
        if decided is not None:
            word = "promoted" if decided.get("promote") else "rejected"
            verdict = f": version {decided.get('version')} {word}, {decided.get('reason')}"
        _OUT.print(f"[green]succeeded[/]{escape(verdict)}", soft_wrap=True)
        return
    failed = [step.name for step in run.steps if step.state == "FAILED"]
    where = f" in {', '.join(failed)}" if failed else ""
    word = _WORDS.get(run.state, run.state.lower())
    advice = "the Kubeflow UI has the logs; a new --name starts another run"
    _OUT.print(f"[red]{word}[/]{escape(where)}; {advice}", soft_wrap=True)


def _record(run: "Run", address: str, decided: dict[str, Any] | None) -> dict[str, Any]:
    steps = [asdict(step) for step in run.steps]
    return {
        "name": run.name,
        "run_id": run.run_id,
        "state": run.state,
        "link": address,
        "created": run.created,
        "finished": run.finished,
        "steps": steps,
        "result": decided,
    }


def _fail(message: object, code: int = errors.LASTING) -> NoReturn:
    _ERR.print(f"[red]error:[/] {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(code)

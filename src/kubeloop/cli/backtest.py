"""The command `kubeloop backtest`: compare retraining policies on your own history."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from kubeloop import config
from kubeloop.config import ConfigError

_OUT = Console(highlight=False)
_WIDE = 170
"""Width of the output to a file or a pipe, where lines are not wrapped."""
_ERR = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(backtest)


def backtest(
    folder: Annotated[
        Path,
        typer.Option("--dir", "-C", help="Folder with loop.yaml and the feature repo.", show_default="this folder"),
    ] = Path(),
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="When serving begins; the first model learns from what was known then.",
            show_default="replay.train_to, or after two fifths of the table",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="When the backtest ends.", show_default="replay.until, or the newest label")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--policy", help="Policy to try; repeat for more.", show_default="all")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes.", min=1, show_default="one per core")] = None,
    apply: Annotated[
        str | None,
        typer.Option(help="Write this policy into loop.yaml; `suggested` writes the one that the backtest suggests."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine instead of text.")] = False,
) -> None:
    """Compare retraining policies on your own history, without serving anything.

    Each policy runs through the history in virtual time. At each moment it sees only what was known then; the loop's
    own monitor, cooldowns and gate decide. The first line of the table is a model that is never retrained. A policy
    is worth its retrainings if the whole interval of its difference to that line is above zero. If you stop the
    command, run it again to continue.
    """
    from kubeloop.backtest import history, policies, run
    from kubeloop.session import environments

    settings = config.settings(folder)
    config.adopt(settings)
    loop = config.load(settings.loop_file)
    wanted = _wanted(policies.known(loop), only or [])
    settings.state.mkdir(parents=True, exist_ok=True)
    span = history.plan(loop, settings, _moment(start), _moment(until))
    try:
        environments.ensure(loop, settings, lambda text: _ERR.print(f"[dim]{escape(text)}[/]", soft_wrap=True))
        with _Bar(_ERR) as bar:
            found = run.run(
                loop, settings, wanted, span, workers=workers or os.cpu_count() or 1, say=bar.say, progress=bar.progress
            )
    except KeyboardInterrupt:
        _ERR.print("[red]stopped:[/] finished work is kept; run the same command again to continue")
        raise typer.Exit(130) from None
    changes = _apply(settings.loop_file, wanted, found, apply) if apply else None
    if as_json:
        print(json.dumps(found | ({} if changes is None else {"applied": changes}), indent=2))
        return
    _tell(found, found["suggested"] if apply == "suggested" else apply or "")
    for line in changes or []:
        _OUT.print(f"[green]loop.yaml[/] {escape(line)}")
    if changes == []:
        _OUT.print("loop.yaml already has these settings.")


def _apply(path: Path, wanted: list[Any], found: dict[str, Any], name: str) -> list[str]:
    """Write a policy into loop.yaml and return what changed."""
    from kubeloop.backtest import apply
    from kubeloop.report import tradeoff_words
    from kubeloop.stores import whole

    name = found["suggested"] if name == "suggested" else name
    policy = next((policy for policy in wanted if policy.name == name and not policy.oracle), None)
    if policy is None:
        raise ConfigError(f"--apply {name!r} is not a policy that was tried, or the loop cannot follow it")
    edit = apply.apply(path.read_text(), policy.settings, tradeoff_words.evidence(found, name))
    if edit.changes:
        whole.write(path, edit.text)
    return edit.changes


def _wanted(known: list[Any], names: list[str]) -> list[Any]:
    found = [policy for policy in known if policy.name in names]
    if unknown := set(names) - {policy.name for policy in known}:
        listed = ", ".join(repr(policy.name) for policy in known)
        raise ConfigError(f"there is no policy {', '.join(map(repr, sorted(unknown)))}; there are {listed}")
    if not names:
        return known
    return found if found[0] is known[0] else [known[0], *found]


def _moment(text: str | None) -> Any:
    return None if text is None else config.past(text)


class _Bar:
    """Shows the current work and how much is left; prints plain lines if there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "_Bar":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(f"[dim]{escape(text)}[/]", soft_wrap=True)

    def progress(self, what: str, done: int, whole: int) -> None:
        """Show the progress of one task."""
        if not self._console.is_terminal:
            if done in (0, whole) or done % max(1, whole // 5) == 0:
                self.say(f"{what}: {done} of {whole}")
            return
        if not done:
            for task in self._tasks.values():
                self._bar.update(task, visible=False)
            self._tasks[what] = self._bar.add_task(what, total=whole)
        self._bar.update(self._tasks[what], completed=done, total=whole)


def _tell(found: dict[str, Any], applied: str) -> None:
    from kubeloop.report import tradeoff_words

    metric, confidence = found["metric"], found["confidence"]
    table = Table(box=None, pad_edge=False)
    table.add_column("policy")
    for column in (f"live {metric}", f"{confidence:.0%} interval", "against the first", "retrainings", "promoted"):
        table.add_column(column, justify="right")
    table.add_column("worst window")
    for row in found["policies"]:
        table.add_row(*map(escape, tradeoff_words.cells(row)), style="dim" if row["oracle"] else None)
    (_OUT if _OUT.is_terminal else Console(width=_WIDE, highlight=False)).print(table)
    for sentence in tradeoff_words.sentences(found, applied):
        _OUT.print(f"\n{escape(sentence)}", soft_wrap=not _OUT.is_terminal)
    _OUT.print("\n`kubeloop report --open` shows the result as a chart; docs/backtest.md says how to read it.\n")

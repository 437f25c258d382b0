"""The command `kubeloop init`: ask what is missing, write the use case, say what was chosen."""

import json
import os
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from kubeloop import config
from kubeloop.config import ConfigError

if TYPE_CHECKING:
    from kubeloop.scaffold import Result

_OUT = Console(highlight=False)
_ERR = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(init)


def init(
    table: Annotated[Path, typer.Argument(help="Parquet or CSV file: one row a thing to predict.")],
    label: Annotated[str | None, typer.Option(help="Column to predict; two values, or empty while unknown.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column with the moment of a prediction.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Column that says whom it is about; repeat for more.")] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="The table is about one thing: it has no key.")] = False,
    into: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="the table's name")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the loop.", show_default="the table's name")] = None,
    label_delay: Annotated[
        str | None, typer.Option(help="How long after its moment a label is known, such as 1d.")
    ] = None,
    label_known_at: Annotated[
        str | None, typer.Option(help="Column that says when each label became known, instead of --label-delay.")
    ] = None,
    where: Annotated[str, typer.Option(help="SQL condition; other rows are not used, now and later.")] = "",
    exclude: Annotated[list[str] | None, typer.Option(help="Column to leave out; repeat for more.")] = None,
    positive: Annotated[str | None, typer.Option(help="The label's value to predict, where it is not 1.")] = None,
    event_id: Annotated[str | None, typer.Option("--id", help="Column that names a row, if there is one.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take the likely columns without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine instead of text.")] = False,
) -> None:
    """Write a working use case for your own table.

    It needs a label, a timestamp and, where it is about more than one thing, keys. Names that are left out are
    proposed in a terminal.
    """
    from kubeloop import scaffold
    from kubeloop.scaffold_table import Table

    os.environ.update(config.QUIET)
    with tempfile.TemporaryDirectory(prefix="kubeloop-init-") as folder:
        scratch = Path(folder)
        (scratch / "raw").mkdir()
        data = Table(table, scratch / "raw", where)
        ask = sys.stdin.isatty() and not as_json and not yes
        chosen_label = label or _choose("label", data.likely_label(), data.possible_labels(), ask, yes)
        chosen_moment = timestamp or _choose("timestamp", data.likely_moment(), data.possible_moments(), ask, yes)
        others = (chosen_label, chosen_moment)
        possible = [found for found in data.possible_keys() if found not in others]
        keys = key or ([] if no_key else _keys(data.likely_key(others), possible, ask, yes))
        delay = _duration(label_delay)
        if ask and delay is None and label_known_at is None:
            delay, label_known_at = _ask_delay(data.columns, scaffold.likely_delay(data, chosen_moment))
        wish = scaffold.Wish(
            label=chosen_label,
            timestamp=chosen_moment,
            keys=tuple(keys),
            into=into or Path(data.name),
            name=name or "",
            label_delay=delay,
            label_known_at=label_known_at,
            exclude=tuple(exclude or ()),
            positive=positive,
            event_id=event_id,
            force=force,
        )
        result = scaffold.write(data, wish, scratch, lambda text: _ERR.print(f"[dim]{text}[/]"))
    if as_json:
        print(json.dumps(asdict(result), indent=2, default=str))
    else:
        _tell(result)


def _duration(text: str | None) -> timedelta | None:
    if text is None:
        return None
    try:
        return config.duration(text)
    except ValueError as error:
        raise ConfigError(f"--label-delay {error}") from error


def _ask_delay(columns: Collection[str], likely: timedelta) -> tuple[timedelta | None, str | None]:
    """Ask when labels become known; return how long it takes, or the column that says it."""
    question = "How long after its moment is a label known? Such as 1d, or the column that says when"
    answer: str = typer.prompt(question, default=config.duration_text(likely))
    return (None, answer) if answer in columns else (_duration(answer), None)


def _keys(likely: str | None, candidates: Sequence[str], ask: bool, yes: bool) -> list[str]:
    """Return the key, or none where nothing in the table could be one.

    Raises:
        ConfigError: there is nobody to ask, and there are candidates.
    """
    if ask:
        if candidates:
            _OUT.print(f"Candidates for the key: {escape(_listed(candidates))}")
        answer: str = typer.prompt("Which column is the key? Empty where the table is about one thing", likely or "")
        return [answer] if answer else []
    if yes or not candidates:
        return [likely] if likely else []
    raise ConfigError(f"name the key with --key (candidates: {_listed(candidates)}), or say --no-key")


def _choose(role: str, likely: str | None, candidates: Sequence[str], ask: bool, yes: bool) -> str:
    """Return the column for a role, from the user or, with --yes, the likely one.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if ask:
        if candidates:
            _OUT.print(f"Candidates for the {role}: {escape(_listed(candidates))}")
        answer: str = typer.prompt(f"Which column is the {role}?", default=likely)
        return answer
    if yes and likely is not None:
        return likely
    found = f"candidates: {_listed(candidates)}" if candidates else "no column looks like one"
    raise ConfigError(f"name the {role} with --{role} ({found})")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:30])


def _tell(result: "Result") -> None:
    grid = Grid(box=None, show_header=False, pad_edge=False)
    for what, value in result.chosen.items():
        grid.add_row(f"[bold]{what}[/]", escape(value))
    _OUT.print(grid)
    for text in result.notes:
        _OUT.print(f"[dim]not used:[/] {escape(text)}", soft_wrap=True)
    for text in result.assumptions:
        _OUT.print(f"[yellow]assumed:[/] {escape(text)}", soft_wrap=True)
    for text in result.warnings:
        _OUT.print(f"[yellow]look:[/] {escape(text)}", soft_wrap=True)
    _OUT.print(f"\n{len(result.files)} files in {escape(str(result.folder))}, README.md and loop.yaml first. Next:\n")
    for line in result.next:
        _OUT.print(f"    {escape(line)}", soft_wrap=True)

"""The command `kubeloop init`: ask for what is missing, write the use case, print what was chosen."""

import json
import os
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from kubeloop import config
from kubeloop.cli import called
from kubeloop.config import ConfigError
from kubeloop.config.reading import Column, Read

if TYPE_CHECKING:
    from kubeloop.scaffold.design import Result

_OUT = Console(highlight=False)
_ERR = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(init)


def init(
    table: Annotated[Path, typer.Argument(help="Parquet, Feather, CSV, JSON or Excel file: one row per prediction.")],
    label: Annotated[
        str | None, typer.Option(help="Column to predict; its cells are empty until the label is known.")
    ] = None,
    timestamp: Annotated[
        str | None, typer.Option(help="Column with the moment of the prediction; DATE+TIME for two columns.")
    ] = None,
    key: Annotated[list[str] | None, typer.Option(help="Entity key, e.g. customer_id; repeat for more.")] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="The table is about a single entity, so it has no key.")
    ] = False,
    into: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="the table's name")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the loop.", show_default="the table's name")] = None,
    label_delay: Annotated[
        str | None, typer.Option(help="How long after the prediction its label is known, such as 1d.")
    ] = None,
    label_known_at: Annotated[
        str | None, typer.Option(help="Column with the time at which each label became known; replaces --label-delay.")
    ] = None,
    where: Annotated[str, typer.Option(help="SQL condition; rows that do not meet it are never used.")] = "",
    exclude: Annotated[list[str] | None, typer.Option(help="Column to leave out; repeat for more.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="binary|multiclass|regression",
            help="Kind of label.",
            show_default="found from the label: two values, up to fifty classes, or a number",
        ),
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="The label's value that counts as positive, if it is not 1.")
    ] = None,
    event_id: Annotated[str | None, typer.Option("--id", help="Column with a unique row ID, if there is one.")] = None,
    date_format: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[COLUMN=]FORMAT", help="How times are written: %d/%m/%Y, excel, epoch_s; repeat for more."
        ),
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Time zone of times without an offset.", show_default="UTC")
    ] = None,
    decimal: Annotated[
        list[str] | None,
        typer.Option(metavar="[COLUMN=]point|comma", help="Decimal separator; repeat for more columns."),
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[COLUMN=]WORD", help="Word for a missing value; COLUMN= for no such word. Repeat for more."
        ),
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of a text file.", show_default="UTF-8")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Field separator of a CSV file.")] = None,
    skip_rows: Annotated[int | None, typer.Option(help="Lines before the names of the columns.")] = None,
    sheet: Annotated[str | None, typer.Option(help="Sheet of a workbook.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Use the likely columns without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine instead of text.")] = False,
) -> None:
    """Write a working use case for your own table.

    The table needs a label, a timestamp and, if it is about more than one entity, keys. In a terminal, the command
    proposes the names that you leave out.
    """
    from kubeloop.reading import infer
    from kubeloop.scaffold import design
    from kubeloop.scaffold.table import Table

    os.environ.update(config.QUIET)
    with tempfile.TemporaryDirectory(prefix="kubeloop-init-") as folder:
        scratch = Path(folder)
        (scratch / "raw").mkdir()
        asked = infer.Asked(
            read=_read(encoding, delimiter, skip_rows, sheet, timezone),
            formats=_formats(date_format or ()),
            decimals=_decimals(decimal or ()),
            missing=_words(missing or ()),
            exclude=tuple(exclude or ()),
            timestamp=timestamp,
        )
        data = Table(table, scratch / "raw", where, asked)
        ask = sys.stdin.isatty() and not as_json and not yes
        chosen_label = label or _choose("label", data.likely_label(), data.possible_labels(), ask, yes)
        chosen_moment = timestamp or _choose("timestamp", data.likely_moment(), data.possible_moments(), ask, yes)
        others = (chosen_label, chosen_moment)
        possible = [found for found in data.possible_keys() if found not in others]
        keys = key or ([] if no_key else _keys(data.likely_key(others), possible, ask, yes))
        delay = _duration(label_delay)
        if ask and delay is None and label_known_at is None:
            delay, label_known_at = _ask_delay(data.columns, design.likely_delay(data, chosen_moment))
        wish = design.Wish(
            label=chosen_label,
            timestamp=chosen_moment,
            keys=tuple(keys),
            into=into or Path(data.name),
            name=name or "",
            label_delay=delay,
            label_known_at=label_known_at,
            exclude=tuple(exclude or ()),
            positive=positive,
            task=task,
            event_id=event_id,
            force=force,
        )
        result = design.write(data, wish, scratch, lambda text: _ERR.print(f"[dim]{text}[/]"))
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


def _read(
    encoding: str | None, delimiter: str | None, skip: int | None, sheet: str | None, timezone: str | None
) -> Read:
    words = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}
    said = {
        "encoding": encoding,
        "delimiter": words.get(delimiter or "", delimiter),
        "skip": skip,
        "sheet": sheet,
        "timezone": timezone,
    }
    try:
        return Read.model_validate({name: value for name, value in said.items() if value is not None})
    except ValidationError as error:
        option = {"skip": "skip-rows"}.get(str(error.errors()[0]["loc"][0]), error.errors()[0]["loc"][0])
        raise ConfigError(f"--{option}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _split(text: str) -> tuple[str, str]:
    """Split COLUMN=VALUE; the column is empty if only a value was given."""
    column, found, value = text.rpartition("=")
    return (column, value) if found else ("", text)


def _formats(said: Sequence[str]) -> dict[str, str]:
    found = dict(map(_split, said))
    for name, text in found.items():
        try:
            Column(kind="time", format=text)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"--date-format {name and f'of {name!r}: '}{reason}") from error
    return found


def _decimals(said: Sequence[str]) -> dict[str, Literal[".", ","]]:
    signs: dict[str, Literal[".", ","]] = {"point": ".", ".": ".", "comma": ",", ",": ","}
    found = {}
    for column, value in map(_split, said):
        if value not in signs:
            raise ConfigError(f"--decimal is {value!r}; write point or comma, or COLUMN=point or COLUMN=comma")
        found[column] = signs[value]
    return found


def _words(said: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for column, word in map(_split, said):
        found[column] = (*found.get(column, ()), *filter(None, [word]))
    return found


def _ask_delay(columns: Collection[str], likely: timedelta) -> tuple[timedelta | None, str | None]:
    """Ask when labels become known; return the delay, or the column with the time."""
    question = "How long after a prediction is its label known? A duration such as 1d, or a column with the time"
    answer: str = typer.prompt(question, default=config.duration_text(likely))
    return (None, answer) if answer in columns else (_duration(answer), None)


def _keys(likely: str | None, candidates: Sequence[str], ask: bool, yes: bool) -> list[str]:
    """Return the key, or none if no column could be one.

    Raises:
        ConfigError: there are candidates, and the command may not ask.
    """
    if ask:
        if candidates:
            _OUT.print(f"Candidates for the key: {escape(_listed(candidates))}")
        answer: str = typer.prompt(
            "Which column is the key? Leave empty if the table is about a single entity", likely or ""
        )
        return [answer] if answer else []
    if yes or not candidates:
        return [likely] if likely else []
    raise ConfigError(f"name the key with --key (candidates: {_listed(candidates)}), or give --no-key")


def _choose(role: str, likely: str | None, candidates: Sequence[str], ask: bool, yes: bool) -> str:
    """Return the column for a role: the user's answer or, with --yes, the likely one.

    Raises:
        ConfigError: the command may not ask.
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
    for text in result.read:
        _OUT.print(f"[dim]file:[/] {escape(text)}")
    for text in result.notes:
        _OUT.print(f"[dim]not used:[/] {escape(text)}", soft_wrap=True)
    for text in result.assumptions:
        _OUT.print(f"[yellow]assumed:[/] {escape(text)}", soft_wrap=True)
    for text in result.warnings:
        _OUT.print(f"[yellow]look:[/] {escape(text)}", soft_wrap=True)
    _OUT.print(
        f"\n{len(result.files)} files in {escape(str(result.folder))}; read README.md and loop.yaml first. Next:\n"
    )
    for line in result.next:
        _OUT.print(f"    {escape(line)}", soft_wrap=True)
    if hint := called.hint():
        _OUT.print(f"\n{escape(hint)}", soft_wrap=True)

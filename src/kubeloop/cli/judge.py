"""The command `kubeloop judge`: may a canary become the champion?"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kubeloop import config

_OUT = Console(highlight=False)
_WIDE = 170
"""Width of the output to a file or a pipe, where lines are not wrapped."""
_WHOLE = 100
PROMOTE, HOLD, ROLLBACK = 0, 3, 4
"""Exit codes: an Argo Rollouts AnalysisRun counts every code but 0 as a failure."""
CODES = {"promote": PROMOTE, "hold": HOLD, "rollback": ROLLBACK}


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(judge)


def judge(
    events: Annotated[
        Path | None,
        typer.Argument(help="Requests of both arms: a .parquet, .csv or .jsonl file.", show_default="the payload log"),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--dir", "-C", help="Folder with loop.yaml.", show_default="this folder")
    ] = Path(),
    as_of: Annotated[
        str | None,
        typer.Option(help="Moment of the judgement: labels due by then count.", show_default="the newest event"),
    ] = None,
    champion: Annotated[
        float | None,
        typer.Option(help="The champion's gates.metric on its hold-out; needed where that is a loss."),
    ] = None,
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="A slice to judge, as column=value; repeat for more.")
    ] = None,
    errors: Annotated[
        float | None,
        typer.Option(
            help="Instead of judging: how long a rollout will take if this share of requests fails.", min=0, max=1
        ),
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(
            "--step",
            help="With --errors: percent:requests of a step; repeat for more.",
            show_default="5:20000, 25:20000, 50:20000",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine instead of text.")] = False,
) -> None:
    """Say whether a canary may be promoted, from what both arms did so far.

    Without a file it reads the payload log of this loop, and judges the two versions that shared the traffic last.

    A file has one row per request. It needs the columns `event_time`, `arm` (champion or canary) and `share` (the
    probability with which the request was given to the canary). It may have `unit`, `status`, `seconds`, the answers,
    `label`, the columns of `gates.slices` and those of `rollout.metrics`. The criteria are `rollout` of loop.yaml.

    The verdict holds however often you ask: repeat the command with all events so far. Exit codes: 0 promote, 3 hold,
    4 roll back. An Argo Rollouts AnalysisRun may run it as a Job, and a delivery pipeline as a step.

    Before a rollout, `kubeloop judge --errors 0.003` says how many requests it takes to find harm and to prove that
    there is none, if that share of the champion's requests fails.
    """
    settings = config.settings(folder)
    loop = config.load(settings.loop_file)
    if errors is not None:
        _plan(loop, errors, steps or ["5:20000", "25:20000", "50:20000"], as_json=as_json)
        return
    from kubeloop.judge import Judge, table
    from kubeloop.judge.exposures import ExposureError
    from kubeloop.tasks import port

    if events is None:
        from kubeloop.payloads import exposed

        config.adopt(settings)
        rollout = exposed.read(loop, settings)
        rows = rollout.exposures
        if not as_json:
            _OUT.print(f"version {rollout.canary} against version {rollout.champion}, from the payload log")
    else:
        rows = table.exposures(loop, table.read(events))
    if not len(rows):
        raise ExposureError(f"{events or 'the payload log'} has no rows yet")
    oldest, newest = (moment.astype("datetime64[us]").item() for moment in (rows.at.min(), rows.at.max()))
    now = config.instant(as_of) if as_of else newest
    found = Judge(
        loop.rollout, loop.gates, port.of(loop), reference=champion, slices=[_slice(loop, one) for one in slices or ()]
    )
    found.serve(rows)
    found.learn(table.due(loop, rows, now))
    verdict = found.verdict(float(rows.share[-1]), waited=newest - oldest)
    if as_json:
        print(json.dumps(_finite(verdict.to_dict()), indent=2, allow_nan=False))
    else:
        _show(verdict)
    raise typer.Exit(CODES[verdict.action])


def _plan(loop: config.Loop, rate: float, texts: list[str], *, as_json: bool) -> None:
    from kubeloop.judge import forecast

    steps = [_step(text) for text in texts]
    found = forecast.delays(loop.rollout, rate, steps, criteria=loop.rollout.criteria) if rate else []
    proof = forecast.proof(loop.rollout, rate, steps[-1][0])
    if as_json:
        told = {"harm": [asdict(one) for one in found], "proof": {"share": steps[-1][0], "requests": proof}}
        print(json.dumps(told, indent=2))
        return
    table = Table(box=None, header_style="dim")
    for name in ("errors of the canary", "requests until it is rolled back", "of them its own"):
        table.add_column(name, justify="right")
    for one in found:
        late = "not found" if one.requests is None else f"{one.requests:,}"
        table.add_row(f"{min(1.0, rate * one.factor):.2%}", late, "" if one.canary is None else f"{one.canary:,}")
    if found:
        _OUT.print(table)
    text = "never" if proof is None else f"after about {proof:,} requests"
    _OUT.print(f"If the canary is as good as the champion, that is proven {text} at {steps[-1][0]:.0%} of the traffic.")


def _step(text: str) -> tuple[float, int]:
    percent, colon, requests = text.partition(":")
    if not (colon and percent.isdigit() and requests.isdigit() and 0 < int(percent) < _WHOLE and int(requests) > 0):
        raise typer.BadParameter(f"{text!r} is not percent:requests, such as 5:20000", param_hint="--step")
    return int(percent) / _WHOLE, int(requests)


def _finite(value: Any) -> Any:
    """Return it with null for the ends of intervals that are infinite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _slice(loop: config.Loop, text: str) -> tuple[str, str]:
    from kubeloop.judge.exposures import ExposureError

    column, equals, value = text.partition("=")
    if not equals or column not in loop.gates.slices:
        raise ExposureError(f"--slice {text}: write column=value, with a column of gates.slices")
    return column, value


def _show(verdict: Any) -> None:
    table = Table(box=None, header_style="dim")
    for name, side in (("criterion", "left"), ("champion", "right"), ("canary", "right"), ("effect", "left")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for name in ("harm", "proof", "counted", "needed"):
        table.add_column(name, justify="right")
    for one in verdict.findings:
        low, high = one.interval or (None, None)
        table.add_row(
            one.name,
            _number(one.champion),
            _number(one.canary),
            "" if low is None else f"{_number(one.effect)} ({_number(low)} to {_number(high)})",
            f"{one.harm:.3g} of {one.harm_limit:.3g}",
            "" if one.safety is None else "done" if one.proven else f"{one.safety:.3g} of {one.safety_limit:.3g}",
            f"{one.events:,}",
            "" if one.needed is None else f"{one.needed:,}",
        )
    (_OUT if _OUT.is_terminal else Console(width=_WIDE, highlight=False)).print(table)
    _OUT.print(f"[bold]{verdict.action}[/]: {escape(verdict.reason)}", soft_wrap=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

"""The commands around a loop: `kubeloop demo` writes one to try, `kubeloop mlflow` shows its versions."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from kubeloop import config
from kubeloop.cli import called

_OUT = Console(highlight=False)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(demo)
    app.command()(mlflow)


def demo(into: Annotated[Path, typer.Option(help="Folder to write.")] = Path("flights")) -> None:
    """Write the demo: every flight that left New York in 2013, and whether it arrived late."""
    from kubeloop.scaffold import demo as case

    case.write(into)
    _OUT.print(escape(f"loop.yaml and feature_repo are in {into}. Next:\n"), soft_wrap=True)
    for line in (f"cd {into}", "kubeloop run --fast"):
        _OUT.print(escape(f"    {line}"), soft_wrap=True)
    if hint := called.hint():
        _OUT.print(escape(f"\n{hint}"), soft_wrap=True)


def mlflow(
    folder: Annotated[
        Path,
        typer.Option("--dir", "-C", help="Folder with loop.yaml and the feature repo.", show_default="this folder"),
    ] = Path(),
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1.")] = 5000,
) -> None:
    """Show versions and their lineage in the MLflow UI, by the link that it prints, until Ctrl-C."""
    from kubeloop.models import mlflow_ui

    settings = config.settings(folder)
    config.adopt(settings)
    mlflow_ui.serve(settings, port)

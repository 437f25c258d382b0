"""Which loop a command of Kubeflow Pipelines takes: that of a Helm release, of a file, or of the folder."""

import shlex
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from kubeloop import config
from kubeloop.config import ConfigError, Loop, Settings

Installed = Annotated[
    Path | None,
    typer.Option(
        "--loop",
        help="The loop as the chart installed it: loop.yaml of its ConfigMap.",
        show_default="KUBELOOP_LOOP, or else loop.yaml in the folder",
    ),
]
Release = Annotated[
    str | None, typer.Option(help="Take the loop from this Helm release, as it is installed now, instead of --loop.")
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace of --release.", show_default="the context's own")
]
ReleaseNamespace = Annotated[
    str | None, typer.Option("--release-namespace", help="Namespace of --release.", show_default="the context's own")
]
Context = Annotated[
    str | None, typer.Option(help="Context of the kubeconfig file for --release.", show_default="the current one")
]
LoopName = Annotated[
    str | None, typer.Option(help="Which loop of --release.", show_default="that of loop.yaml here, or the only one")
]


class Source(NamedTuple):
    """The options of one command line that say which loop it takes."""

    installed: Path | None
    release: str | None
    namespace: str | None
    context: str | None
    loop_name: str | None

    def read(self, settings: Settings) -> Loop:
        """Return the loop.

        Raises:
            ConfigError: the options exclude each other, or the loop is not valid.
            DeliveryError: the release, or a right to read it, is missing.
        """
        if not self.release:
            if self.namespace or self.context or self.loop_name:
                raise ConfigError("--namespace, --context and --loop-name go with --release NAME: whose loop is meant?")
            return config.load(self.installed or settings.loop or settings.loop_file)
        if self.installed:
            raise ConfigError("give --release or --loop, not both: each says which loop Kubeflow gets")
        from kubeloop.delivery import installed

        name = self.loop_name or (config.load(settings.loop_file).name if settings.loop_file.is_file() else "")
        return Loop.parse(installed.loop(self.release, self.namespace or "", name, context=self.context or ""))

    def options(self) -> str:
        """Return the options as they were typed, for a command that is printed; with a blank before each."""
        given = {
            "--loop": self.installed,
            "--release": self.release,
            "--namespace": self.namespace,
            "--context": self.context,
            "--loop-name": self.loop_name,
        }
        return "".join(f" {option} {shlex.quote(str(value))}" for option, value in given.items() if value)

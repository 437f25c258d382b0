"""The loop that a Kubeflow Pipelines command uses: from a Helm release, from a file, or from the folder."""

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
        help="File with the loop as the chart installed it, such as the loop.yaml in its ConfigMap.",
        show_default="KUBELOOP_LOOP, or else loop.yaml in the folder",
    ),
]
Release = Annotated[str | None, typer.Option(help="Use the loop that this Helm release has now, instead of --loop.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace of --release.", show_default="the context's")
]
ReleaseNamespace = Annotated[
    str | None, typer.Option("--release-namespace", help="Namespace of --release.", show_default="the context's")
]
Context = Annotated[
    str | None, typer.Option(help="Context of the kubeconfig file for --release.", show_default="the current one")
]
LoopName = Annotated[
    str | None, typer.Option(help="Loop of --release.", show_default="the one in loop.yaml here, or the only one")
]


class Source(NamedTuple):
    """The options of a command line that select the loop."""

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
                raise ConfigError("--namespace, --context and --loop-name need --release NAME")
            return config.load(self.installed or settings.loop or settings.loop_file)
        if self.installed:
            raise ConfigError("give --release or --loop, not both: each of them selects the loop")
        from kubeloop.delivery import installed

        name = self.loop_name or (config.load(settings.loop_file).name if settings.loop_file.is_file() else "")
        return Loop.parse(installed.loop(self.release, self.namespace or "", name, context=self.context or ""))

    def options(self) -> str:
        """Return the options as text for a printed command, with a space before each."""
        given = {
            "--loop": self.installed,
            "--release": self.release,
            "--namespace": self.namespace,
            "--context": self.context,
            "--loop-name": self.loop_name,
        }
        return "".join(f" {option} {shlex.quote(str(value))}" for option, value in given.items() if value)

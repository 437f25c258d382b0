"""Compile the pipelines, or run one on this machine: `python -m pipelines --help`."""

import argparse
import json
import sys
from pathlib import Path

from kubeloop import config, errors, names, state
from kubeloop.config.cluster import Pipelines, StepSettings


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    compiling = commands.add_parser("compile", help="write every pipeline as KFP IR YAML")
    compiling.add_argument("--out", type=Path, default=Path("build"), help="folder (default: build)")
    compiling.add_argument("--image", help="image of the steps, instead of pipelines.images.core")
    running = commands.add_parser("run", help="run a pipeline on this machine")
    running.add_argument("pipeline", choices=names.PIPELINES)
    running.add_argument("--run-name", required=True, help="unique name; the same name again resumes the run")
    running.add_argument(
        "--as-of", default="", help="the run uses only what was known at this moment, ISO 8601 (default: now)"
    )
    running.add_argument("--reason", default="asked for by hand", help="why the run was started")
    running.add_argument("--since", default="1d", help="span that batch-scoring scores (default: 1d)")
    for command in (compiling, running):
        command.add_argument("--loop", type=Path, default=Path("loop.yaml"), help="the use case (default: loop.yaml)")
    running.add_argument("--state", type=Path, help="state folder (default: .kubeloop next to loop.yaml)")
    options = parser.parse_args()
    with errors.program(), state.explained():
        loop = config.load(options.loop)
        return _compile(loop, options) if options.command == "compile" else _run(loop, options)


def _compile(loop: config.Loop, options: argparse.Namespace) -> int:
    from pipelines import catalog

    if options.image:
        loop = config.Loop.parse(loop.dump(), {"pipelines": {"images": {"core": options.image}}})
    for name in names.PIPELINES:
        print(catalog.write(loop, name, options.out))
    return 0


def _run(loop: config.Loop, options: argparse.Namespace) -> int:
    place = config.settings(options.loop.resolve().parent, options.state)
    config.adopt(place)

    from pipelines import catalog, local

    # Here the caller decides about another attempt, and a cluster's settings do not apply.
    here = Pipelines(defaults=StepSettings(retries=0))
    pipeline = catalog.PIPELINES[options.pipeline](loop.model_copy(update={"pipelines": here}))
    given = {"run": options.run_name, "loop": loop.dump()}
    given |= {name: getattr(options, name) for name in ("as_of", "reason", "since")}
    arguments = {name: given[name] for name in pipeline.component_spec.inputs or {}}
    result = local.run(pipeline, arguments, name=options.run_name, settings=place)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compile the pipelines, or run one on this machine: `python -m pipelines --help`."""

import argparse
import json
import sys
from pathlib import Path

from kubeloop import __version__, config

IMAGE = f"kubeloop-core:{__version__}"


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    compiling = commands.add_parser("compile", help="write every pipeline as KFP IR YAML")
    compiling.add_argument("--out", type=Path, default=Path("build"), help="folder (default: build)")
    compiling.add_argument("--image", default=IMAGE, help=f"image of the steps (default: {IMAGE})")
    running = commands.add_parser("run", help="run a pipeline on this machine")
    running.add_argument("pipeline", choices=["training"])
    running.add_argument("--run-name", required=True, help="unique name; the same name again resumes the run")
    running.add_argument("--as-of", required=True, help="moment whose knowledge the run uses, ISO 8601")
    running.add_argument("--reason", default="manual", help="why the run was started")
    for command in (compiling, running):
        command.add_argument("--loop", type=Path, default=Path("loop.yaml"), help="the use case (default: loop.yaml)")
    running.add_argument("--state", type=Path, help="state folder (default: .kubeloop beside loop.yaml)")
    options = parser.parse_args()
    loop = config.load(options.loop)
    return _compile(loop, options) if options.command == "compile" else _run(loop, options)


def _compile(loop: config.Loop, options: argparse.Namespace) -> int:
    from kfp import compiler

    from pipelines.training import training

    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"{loop.name}-training.yaml"
    compiler.Compiler().compile(training(loop, options.image), str(target))
    print(target)
    return 0


def _run(loop: config.Loop, options: argparse.Namespace) -> int:
    place = config.settings(options.loop.resolve().parent, options.state)
    config.adopt(place)

    from kubeloop import stages
    from pipelines import local
    from pipelines.training import training

    arguments = {
        "as_of": options.as_of,
        "run": options.run_name,
        "reason": options.reason,
        "snapshot": stages.digest(place.raw),
        "loop": loop.dump(),
    }
    result = local.run(training(loop, IMAGE), arguments, name=options.run_name, settings=place)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Gives an environment the model version that another one serves: `python manifests/promote.py <model> <from> <to>`.

Only what names the version is carried over: the lineage, the address, the digest. Scaling, addresses of services and
everything else of the environment stay as they are.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

LINEAGE = ("kubeloop.io/model-version", "kubeloop.io/model-sha256", "kubeloop.io/run")
FLAGS = ("--version=", "--sha256=")


def carry(source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    """Return `target` with the model of `source`; both are patches of one InferenceService."""
    found = _lineage(source["metadata"], target["metadata"])
    ours, theirs = source["spec"]["predictor"], target["spec"]["predictor"]
    flags = [flag for flag in ours["model"]["args"] if flag.startswith(FLAGS)]
    kept = [flag for flag in theirs["model"]["args"] if not flag.startswith(FLAGS)]
    model = theirs["model"] | {"storageUri": ours["model"]["storageUri"], "args": [*kept[:1], *flags, *kept[1:]]}
    predictor = _lineage(ours, theirs) | {"model": model}
    # A canary of the environment was judged against the version that goes.
    spec = {key: value for key, value in target["spec"].items() if key != "canary"}
    return target | {"metadata": found, "spec": spec | {"predictor": predictor}}


def _lineage(source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    lineage = {name: source["annotations"][name] for name in LINEAGE}
    return target | {"annotations": target.get("annotations", {}) | lineage}


def main() -> None:
    """Write the patch of the environment anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name of the loop")
    parser.add_argument("source", help="environment that serves the version")
    parser.add_argument("target", help="environment that is to serve it")
    parser.add_argument("--overlays", type=Path, default=Path(__file__).parent / "overlays")
    args = parser.parse_args()
    source, target = (args.overlays / name / "models" / f"{args.model}.yaml" for name in (args.source, args.target))
    for path in (source, target):
        if not path.is_file():
            sys.exit(f"{path} does not exist; promote the model to that environment by its pipeline first")
    patch = carry(yaml.safe_load(source.read_text()), yaml.safe_load(target.read_text()))
    target.write_text(yaml.safe_dump(patch, sort_keys=False, width=120))


if __name__ == "__main__":
    main()

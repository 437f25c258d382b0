"""Gives an environment the model version that another one serves: `python manifests/promote.py <model> <from> <to>`.

Only what names the version is carried over: the lineage, the address, the digest. Scaling, addresses of services and
everything else of the environment stay as they are.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "src"))  # the workflow that runs this has a checkout, and no installation

from kubeloop.delivery import patch  # noqa: E402


def main() -> None:
    """Write the patch of the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name of the loop")
    parser.add_argument("source", help="environment that serves the version")
    parser.add_argument("target", help="environment that is to serve it")
    parser.add_argument("--overlays", type=Path, default=HERE / "overlays")
    args = parser.parse_args()
    source, target = (args.overlays / name / "models" / f"{args.model}.yaml" for name in (args.source, args.target))
    found = []
    for path in (source, target):
        if not path.is_file():
            sys.exit(f"{path} does not exist; promote the model to that environment by its pipeline first")
        try:
            found.append(patch.read(path.read_text(), args.model))
        except patch.PatchError as error:
            sys.exit(f"{path} {error}; write it again with manifests/write.py")
    if not patch.version(found[0]):
        sys.exit(f"{args.source} serves no version of {args.model} yet; its pipeline promotes the first")
    carried = patch.carry(*found)
    target.write_text(patch.dump(carried))


if __name__ == "__main__":
    main()

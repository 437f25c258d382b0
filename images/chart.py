"""Write the chart of a release: a copy whose values name the images by registry, version and digest.

    python images/chart.py build/images.json --out build/chart

It takes one or more files that images/build.py wrote with `--push`, and uses only the standard library.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

CHART = Path(__file__).resolve().parents[1] / "charts" / "kubeloop"
KEYS = {
    "kubeloop-core": "core",
    "kubeloop-runtime": "runtime",
    "kubeloop-runtime-gpu": "runtimeGpu",
    "kubeloop-detector": "detector",
}
"""The chart's names for the images, under `images` in its values."""


class ReleaseError(ValueError):
    """The images do not make a release; the message says which and why."""


def values(built: Sequence[Mapping[str, str | None]]) -> dict[str, str]:
    """Return the values of the chart's `images` for the images that a release pushed.

    Args:
        built: the output of images/build.py: name, tag and digest of each.

    Raises:
        ReleaseError: an image is missing, was not pushed, or has another registry or version than the others.
    """
    found = {}
    places = set()
    for image in built:
        registry, _, name = str(image["name"]).rpartition("/")
        if name not in KEYS:
            raise ReleaseError(f"the chart has no image {name}; it has {', '.join(KEYS)}")
        if not image["digest"]:
            raise ReleaseError(f"{name} has no digest; push it with images/build.py --push")
        places.add((registry, image["tag"]))
        found[KEYS[name]] = f"{name}:{image['tag']}@{image['digest']}"
    if missing := [name for name, key in KEYS.items() if key not in found]:
        raise ReleaseError(f"{', '.join(missing)} is not among the images")
    if len(places) > 1:
        raise ReleaseError(f"the images are of several registries or versions: {sorted(map(str, places))}")
    return {**found, "registry": places.pop()[0]}


def fill(text: str, wanted: Mapping[str, str]) -> str:
    """Return a values.yaml with the entries of its section `images` set, and all the rest unchanged, even comments.

    Raises:
        ReleaseError: the section lacks an entry.
    """
    head, opening, rest = text.partition("\nimages:\n")
    # The section ends at the next line without indentation.
    section = re.match(r"(?:[ ].*\n|\n)*", rest)
    inside = section[0] if section and opening else ""
    for key, value in wanted.items():
        changed, times = re.subn(rf"^  {key}: .*$", f"  {key}: {value}", inside, flags=re.MULTILINE)
        if times != 1:
            raise ReleaseError(f"values.yaml has no images.{key}")
        rest, inside = changed + rest[len(inside) :], changed
    return head + opening + rest


def main() -> int:
    """Write the chart that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="files of images/build.py")
    parser.add_argument("--out", required=True, type=Path, help="folder of the chart; it is replaced")
    options = parser.parse_args()
    try:
        wanted = values([image for path in options.images for image in json.loads(path.read_text())])
        content = fill((CHART / "values.yaml").read_text(), wanted)
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    shutil.rmtree(options.out, ignore_errors=True)
    shutil.copytree(CHART, options.out)
    (options.out / "values.yaml").write_text(content)
    for key, value in wanted.items():
        print(f"images.{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

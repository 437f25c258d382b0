"""Build the images with docker, podman or buildah, and write the results to build/images.json.

    python images/build.py core runtime detector --tag 0.1.0 --registry ghcr.io/example --push

It uses only the standard library, so that a machine without the project's environments can build.
"""

import argparse
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from engines import ENGINES, Engine, EngineError

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("core", "runtime", "detector", "runtime-gpu")
SBOM = "/usr/share/kubeloop/sbom.json"
EPOCH = 315532800
"""1980-01-01, the time of every file: a layer that a commit does not change keeps its digest, so nodes can reuse it."""


@dataclass(frozen=True)
class Built:
    """One image.

    Attributes:
        name: with the registry, without the tag.
        id: digest of the image's configuration; the same inputs give the same digest.
        digest: digest of the manifest in the registry, to deploy by; None until the image is pushed.
        size: bytes, unpacked.
        sbom: its bill of materials, relative to the project.
    """

    name: str
    tag: str
    id: str
    digest: str | None
    size: int
    sbom: str


def build(engine: Engine, image: str, options: argparse.Namespace) -> Built:
    """Build one target, write its bill of materials next to images.json, and push it if asked.

    Raises:
        EngineError: the engine failed; it has said why.
    """
    name = f"{options.registry.rstrip('/')}/kubeloop-{image}".lstrip("/")
    arguments = {"VERSION": options.tag, **_commit(), **dict(options.build_arg)}
    engine.build(
        f"{name}:{options.tag}",
        target=image,
        context=ROOT,
        epoch=int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH)),
        arguments=arguments,
        platform=options.platform,
        ca=os.environ.get("SSL_CERT_FILE", ""),
        fresh=options.no_cache,
    )
    sbom = options.out / "sbom" / f"kubeloop-{image}.cdx.json"
    sbom.parent.mkdir(parents=True, exist_ok=True)
    sbom.write_bytes(engine.read(f"{name}:{options.tag}", SBOM))
    found, size = engine.inspect(f"{name}:{options.tag}")
    digest = None
    if options.push:
        digest = engine.push(f"{name}:{options.tag}", tls=not options.plain_http, zstd=options.zstd)
    return Built(name, options.tag, found, digest, size, os.path.relpath(sbom, ROOT))


def _commit() -> dict[str, str]:
    """Return the build arguments that identify the code; none outside a Git checkout."""
    git = ["git", "-C", str(ROOT)]
    done = subprocess.run([*git, "show", "--no-patch", "--format=%H %ct"], capture_output=True, text=True, check=False)
    if done.returncode:
        return {}
    code, seconds = done.stdout.split()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    return {
        "KUBELOOP_CODE": f"{code}-dirty" if changed else code,
        "CREATED": datetime.fromtimestamp(int(seconds), UTC).isoformat(),
    }


def _version() -> str:
    project: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["version"]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help=f"some of {', '.join(IMAGES)} (default: the first three)")
    parser.add_argument("--engine", choices=sorted(ENGINES), help="default: the first of these that answers")
    parser.add_argument("--tag", default=_version(), help="full version (default: the project's)")
    parser.add_argument("--registry", default="", help="registry and folder in front of the names")
    parser.add_argument("--platform", help="such as linux/amd64 (default: this machine's)")
    parser.add_argument("--build-arg", type=_pair, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--push", action="store_true", help="push to the registry and note the digests")
    parser.add_argument("--plain-http", action="store_true", help="the registry speaks no TLS (podman and buildah)")
    parser.add_argument("--zstd", action="store_true", help="push layers as zstd (podman and buildah)")
    parser.add_argument("--no-cache", action="store_true", help="take no layer of an earlier build")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder of images.json (default: build)")
    options = parser.parse_args()
    options.images = options.images or list(IMAGES[:3])
    if unknown := set(options.images) - set(IMAGES):
        parser.error(f"there is no image {', '.join(sorted(unknown))}; the images are {', '.join(IMAGES)}")
    if options.tag == "latest":
        parser.error("`latest` names no version; give a full one")
    return options


def main() -> int:
    """Build the images that the command line names."""
    options = _options()
    try:
        engine = ENGINES[options.engine]() if options.engine else _first()
        built = [build(engine, image, options) for image in options.images]
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    listing = options.out / "images.json"
    listing.write_text(json.dumps([asdict(image) for image in built], indent=2) + "\n")
    for image in built:
        print(f"{image.name}:{image.tag}  {image.size / 1e6:.0f} MB  {image.digest or image.id}")
    print(listing)
    return 0


def _first() -> Engine:
    for engine in ENGINES.values():
        if engine.answers():
            return engine()
    raise EngineError(f"none of {', '.join(ENGINES)} answers; install one of them, or start its daemon")


if __name__ == "__main__":
    sys.exit(main())

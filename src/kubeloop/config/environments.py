"""The environments that an installation without a clone makes for itself: where they lie, and from what they are made.

A wheel carries what the lock says of them (hatch_build.py). A clone carries nothing: `make setup` has made its own.
"""

import functools
import hashlib
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Literal, NamedTuple

PACKAGE = Path(__file__).parents[1]
LOCKED = PACKAGE / "locked"

Name = Literal["core", "runtime", "detector"]
_PYTHON = {"runtime": sys.version_info[:2], "detector": (3, 11)}
"""The Python of each; Alibi Detect has none newer, and core is the one that runs."""


class Environment(NamedTuple):
    """An environment that kubeloop makes for itself."""

    name: Name
    folder: Path
    requirements: Path
    version: tuple[int, int]
    """Of its Python."""

    @property
    def python(self) -> Path:
        """Its interpreter, once it is made."""
        return self.folder / "bin" / "python"


def carried() -> bool:
    """Return whether this package came as a wheel, with what the lock says."""
    return LOCKED.is_dir()


def made(name: Name, folder: Path) -> Environment | None:
    """Return one of the environments that are made in a folder; None for core, which the installer makes.

    Its name holds a digest of what is in it, so that another version of kubeloop has another one.
    """
    if name not in _PYTHON:
        return None
    requirements, version = LOCKED / f"{name}.txt", _PYTHON[name]
    parts = [requirements.read_bytes(), f"{sys.implementation.name} {version} {platform.machine()}".encode()]
    if name == "runtime":
        parts.append(_code())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
    return Environment(name, folder / f"{name}-{digest}", requirements, version)


def distribution() -> importlib.metadata.Distribution:
    """Return what is installed of kubeloop next to its package."""
    return importlib.metadata.distribution("kubeloop")


@functools.cache
def _code() -> bytes:
    """Return the digests that the installer noted of kubeloop's own files."""
    record = (distribution().read_text("RECORD") or "").splitlines()
    return "\n".join(sorted(line for line in record if line.startswith("kubeloop/") and ",sha256=" in line)).encode()

"""The environments that an installation without a clone makes: where they are, and what is installed in them.

A wheel contains their locked requirements (hatch_build.py). A clone does not need them: it has `make setup`.
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
"""The Python version of each: Alibi Detect supports no newer one, and core is the environment that runs now."""


class Environment(NamedTuple):
    """An environment that kubeloop makes."""

    name: Name
    folder: Path
    requirements: Path
    version: tuple[int, int]
    """The version of its Python."""

    @property
    def python(self) -> Path:
        """Its interpreter; the file exists once the environment is made."""
        return self.folder / "bin" / "python"


def carried() -> bool:
    """Return whether this package was installed from a wheel, which contains the locked requirements."""
    return LOCKED.is_dir()


def made(name: Name, folder: Path) -> Environment | None:
    """Return one of the environments that are made in a folder; None for core, which the installer makes.

    Its name contains a digest of its contents, so that each version of kubeloop has a separate environment.
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
    """Return the metadata of the installed kubeloop."""
    return importlib.metadata.distribution("kubeloop")


@functools.cache
def _code() -> bytes:
    """Return the digests of kubeloop's own files, as the installer recorded them."""
    record = (distribution().read_text("RECORD") or "").splitlines()
    return "\n".join(sorted(line for line in record if line.startswith("kubeloop/") and ",sha256=" in line)).encode()

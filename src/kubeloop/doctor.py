"""Find what is missing, wrong or too old, and name the command that mends it."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kubeloop import config
from kubeloop.config import ConfigError, Settings

FREE_BYTES = 2 * 1024**3
_VERSIONS = (
    "import importlib.metadata, json, sys; "
    "print(json.dumps([importlib.metadata.version(sys.argv[1]), *sys.version_info[:2]]))"
)
_PROBES = {"runtime": "onnxruntime", "detector": "alibi-detect"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` is the command that puts it right."""

    what: str
    ok: bool
    mend: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Look at everything a run needs; takes a second or two."""
    return [*quick(settings), *_floors(), *_environments(settings), *_loop(settings), *_space(settings)]


def quick(settings: Settings) -> list[Finding]:
    """Look at what fails a run at once: the three interpreters."""
    found = []
    for name in ("core", "runtime", "detector"):
        python: Path = getattr(settings, f"{name}_python")
        ok = os.access(python, os.X_OK)
        found.append(Finding(f"{name} environment: {python}" + ("" if ok else " is missing"), ok, "make setup"))
    return found


def floors(extra: str) -> dict[str, str]:
    """Return the lower bounds that this project declares for an extra, by package name."""
    bounds = {}
    for line in importlib.metadata.requires("kubeloop") or []:
        requirement, _, marker = line.partition(";")
        match = re.match(r"\s*([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:[^>=]*)(?:>=|==)\s*([0-9][^,\s]*)", requirement)
        if match and f"extra == '{extra}'" in marker.replace('"', "'"):
            bounds[match[1].lower()] = match[2]
    return bounds


def _floors() -> Iterator[Finding]:
    old = []
    for package, floor in floors("core").items() | floors("runtime").items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            old.append(f"{package} is missing")
            continue
        if _parts(version) < _parts(floor):
            old.append(f"{package} {version} is older than {floor}")
    yield Finding("; ".join(sorted(old)) or "core packages are at or above their floors", not old, "make setup")


def _environments(settings: Settings) -> Iterator[Finding]:
    for name, package in _PROBES.items():
        python: Path = getattr(settings, f"{name}_python")
        if not python.exists():
            continue
        done = subprocess.run(
            [python, "-c", _VERSIONS, package], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            yield Finding(f"{name} environment has no {package}", False, "make setup")
            continue
        version, major, minor = json.loads(done.stdout)
        yield Finding(
            f"{name} environment: Python {major}.{minor}, {package} {version}", (major, minor) == (3, 11), "make setup"
        )
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    yield Finding(f"this Python is {version}", sys.version_info[:2] == (3, 11), "make setup")


def _loop(settings: Settings) -> Iterator[Finding]:
    try:
        loop = config.load(settings.loop_file)
    except ConfigError as error:
        yield Finding(str(error), False, "kubeloop init TABLE, or mend loop.yaml; `kubeloop config` explains it")
        return
    yield Finding(f"{settings.loop_file} is valid: {loop.name}", True)
    repo = settings.home / loop.features.repo
    for needed in ("feature_store.yaml", "sql/events.sql", "expectations/training.yaml"):
        if not (repo / needed).is_file():
            yield Finding(f"{repo / needed} is missing", False, "kubeloop init TABLE writes a working feature repo")
    for name, table in loop.source.tables.items():
        if table.path and not (settings.home / table.path).is_file():
            yield Finding(
                f"{settings.home / table.path} is missing",
                False,
                f"set source.tables.{name}.path in {settings.loop_file}",
            )
        if not (repo / "expectations" / f"{name}.yaml").is_file():
            yield Finding(f"table {name} has no expectations", False, f"write {repo / 'expectations' / name}.yaml")


def _space(settings: Settings) -> Iterator[Finding]:
    folder = next(parent for parent in (settings.state, *settings.state.parents) if parent.exists())
    if not os.access(folder, os.W_OK):
        yield Finding(f"{folder} cannot be written", False, "set KUBELOOP_STATE to a folder of yours")
        return
    free = shutil.disk_usage(folder).free
    yield Finding(f"{free / 1024**3:.1f} GiB free in {folder}", free > FREE_BYTES, "free at least 2 GiB")
    if settings.services_file.is_file():
        gone = [
            name
            for name, item in json.loads(settings.services_file.read_text()).items()
            if not Path(f"/proc/{item['pid']}").exists() and Path("/proc/self").exists()
        ]
        if gone:
            yield Finding(
                f"{', '.join(gone)} ended without a word; the state is kept", False, f"rm {settings.services_file}"
            )


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])

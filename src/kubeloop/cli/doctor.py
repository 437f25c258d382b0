"""Find what is missing, wrong or too old, and name the command that fixes it."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from kubeloop import access, config
from kubeloop.config import ConfigError, Settings, environments
from kubeloop.config.environments import Name
from kubeloop.errors import KubeloopError
from kubeloop.state import faults
from kubeloop.stores.bucket import Bucket, BucketError, OwnerError

FREE_BYTES = 2 * 1024**3
ANSWER_S = 60.0
_SETUP = "make -B setup"
"""In a clone: without -B, make would do nothing, because pyproject.toml and uv.lock have not changed."""

_ENVIRONMENTS: dict[Name, str] = {"core": "feast", "runtime": "onnxruntime", "detector": "alibi-detect"}
"""The environments, each with its main package; their extras have the same names."""
_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps({"python": "%d.%d.%d" % sys.version_info[:3], "packages": found}))
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check; `fix` is the command that repairs it, if the text does not name it."""

    what: str
    ok: bool
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.what}; fix: {self.fix}" if self.fix else self.what

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Check everything that a run needs; takes a second or two, plus the time to read the whole state once."""
    return [
        *_state(settings),
        *quick(settings, state=False),
        *_system(),
        *_environments(settings),
        *_loop(settings),
        *_space(settings),
        *_bucket(settings),
    ]


def quick(settings: Settings, *, state: bool = True) -> list[Finding]:
    """Check what would fail a run at once: the three interpreters and, with `state`, the state folder."""
    found = [Finding(str(fault), ok=False) for fault in faults(settings, whole=False)] if state else []
    for name in _ENVIRONMENTS:
        python = _python(settings, name)
        own = config.own(settings, name)
        if own and not own.folder.exists():
            found.append(Finding(f"{name} environment: {own.folder} is made when it is first needed", True))
            continue
        ok = os.access(python, os.X_OK)
        wrong = "" if ok else " is not executable" if python.exists() else " is missing"
        found.append(Finding(f"{name} environment: {python}{wrong}", ok, _setup(settings, name)))
    return found


def _setup(settings: Settings, name: Name) -> str:
    """Return the command that makes an environment again."""
    if own := config.own(settings, name):
        return f"rm -r {shlex.quote(str(own.folder))}, and the next `kubeloop run` makes it again"
    return "install the wheel again" if environments.carried() and name == "core" else _SETUP


def _state(settings: Settings) -> Iterator[Finding]:
    broken = [Finding(str(fault), ok=False) for fault in faults(settings)]
    yield from broken
    if not broken and settings.state.is_dir():
        yield Finding(f"{settings.state} is undamaged, as far as its checksums can tell", True)


def bounds(extra: str) -> dict[str, SpecifierSet]:
    """Return the versions that this project requires in an extra, by package name."""
    # The detector's packages are for Python 3.11 only, whatever Python runs this.
    asker = {"python_version": "3.11", "python_full_version": "3.11.0"} if extra == "detector" else {}
    found = {}
    for line in importlib.metadata.requires("kubeloop") or []:
        requirement = Requirement(line)
        # A wheel also requires all of core, in the lock's versions.
        asked = requirement.marker
        if asked and asked.evaluate({"extra": extra, **asker}) and not asked.evaluate({"extra": "", **asker}):
            found[requirement.name] = requirement.specifier
    return found


def _python(settings: Settings, name: Name) -> Path:
    python: Path = getattr(settings, f"{name}_python")
    return python


def _environments(settings: Settings) -> Iterator[Finding]:
    """Ask each interpreter for its packages, since each environment has its own version bounds."""
    pythons = SpecifierSet(importlib.metadata.metadata("kubeloop")["Requires-Python"])
    for name, probe in _ENVIRONMENTS.items():
        python, asked = _python(settings, name), bounds(name)
        # `quick` reports this.
        if not os.access(python, os.X_OK):
            continue
        try:
            version, packages = _ask(python, asked)
        except _NoAnswerError as error:
            yield Finding(f"{name} environment: {python} {error}", False, _setup(settings, name))
            continue
        wrong = [] if version in pythons else [f"Python {version} is not {pythons}"]
        for package, bound in asked.items():
            has = packages[package]
            if has is None:
                wrong.append(f"{package} is missing")
            elif has not in bound:
                wrong.append(f"{package} {has} is not {bound}")
        fine = f"Python {version}, {probe} {packages[probe]} and {len(asked) - 1} others as the project requires"
        yield Finding(f"{name} environment: {'; '.join(wrong) or fine}", not wrong, _setup(settings, name))


class _NoAnswerError(KubeloopError):
    """An interpreter did not list its packages; the message completes a sentence that begins with its path."""

    lasting = False


def _ask(python: Path, packages: Iterable[str]) -> tuple[str, dict[str, str | None]]:
    """Return the version of an interpreter, and the versions of these packages in it."""
    try:
        done = subprocess.run(
            [python, "-c", _VERSIONS, *packages], capture_output=True, text=True, timeout=ANSWER_S, check=True
        )
        answer = json.loads(done.stdout)
        return answer["python"], {name: answer["packages"][name] for name in packages}
    except subprocess.TimeoutExpired:
        raise _NoAnswerError(f"did not answer within {ANSWER_S:g} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or "no message").splitlines()[-1]
        raise _NoAnswerError(f"ended with {error.returncode}: {last}") from None
    except OSError as error:
        raise _NoAnswerError(f"does not start: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise _NoAnswerError("did not answer with its packages; it is not a Python interpreter") from None


def _loop(settings: Settings) -> Iterator[Finding]:
    try:
        loop = config.load(settings.loop_file)
    except ConfigError as error:
        yield Finding(
            str(error), False, "kubeloop init TABLE, or correct loop.yaml; `kubeloop config` explains every setting"
        )
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


def _bucket(settings: Settings) -> Iterator[Finding]:
    if not settings.bucket:
        return
    try:
        owner = Bucket.open(settings).check()
    except OwnerError as error:
        yield Finding(str(error), False, "set KUBELOOP_BUCKET (the chart's storage.bucket), or KUBELOOP_OWNER")
    except (BucketError, ConfigError) as error:
        yield Finding(str(error), False, "check KUBELOOP_BUCKET, AWS_ENDPOINT_URL and the keys of the store")
    else:
        yield Finding(f"{settings.bucket} belongs to {owner.name if owner else 'nobody yet'}", True)


def _system() -> Iterator[Finding]:
    # Not `sys.platform`: a type checker would consider the rest unreachable.
    if (system := platform.system()) != "Linux":
        yield Finding(f"kubeloop was never tried on {system}: docs/platforms.md says what is known", True)


def _space(settings: Settings) -> Iterator[Finding]:
    folder = next(parent for parent in (settings.state, *settings.state.parents) if parent.exists())
    if not os.access(folder, os.W_OK):
        yield Finding(f"{folder} cannot be written", False, "set KUBELOOP_STATE to a folder that you can write to")
        return
    free = shutil.disk_usage(folder).free
    yield Finding(f"{free / 1024**3:.1f} GiB free in {folder}", free > FREE_BYTES, "free at least 2 GiB")
    # `_state` reports a file that cannot be read.
    with contextlib.suppress(KubeloopError, OSError):
        gone = [
            name
            for name, item in access.services(settings.services_file).items()
            if not Path(f"/proc/{item['pid']}").exists() and Path("/proc/self").exists()
        ]
        if gone:
            yield Finding(
                f"{', '.join(gone)} ended unexpectedly; the state is kept",
                False,
                f"rm {shlex.quote(str(settings.services_file))}",
            )

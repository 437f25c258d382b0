"""Make the environments that an installation without a clone needs, at their first use.

The commands that start services call `ensure` first. In a clone, or if KUBELOOP_*_PYTHON name the interpreters, there
is nothing to make. uv installs the locked requirements from the wheel and checks their hashes.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from kubeloop.config import Environment, Loop, Settings, environments, inherited, own
from kubeloop.errors import KubeloopError
from kubeloop.node.processes import die_with_parent
from kubeloop.stores import whole

_TAIL_LINES = 8
_DISK = {"runtime": "0.7 GB", "detector": "1.1 GB"}
"""Size of each on disk, with its byte code."""


class UnmadeError(KubeloopError):
    """An environment cannot be made; the message says what to do."""

    lasting = False


def ensure(loop: Loop, settings: Settings, say: Callable[[str], None]) -> None:
    """Make the environments that a loop needs and that do not exist yet.

    An environment is made under another name and then renamed, so that an incomplete one is never used after a kill.

    Raises:
        UnmadeError: uv is missing or failed, or the folder cannot be written.
    """
    wanted = [own(settings, "runtime"), own(settings, "detector") if loop.drift.engine == "alibi" else None]
    for environment in filter(None, wanted):
        # If its Python was removed, the interpreter is a broken link.
        if environment.python.exists():
            continue
        try:
            with _locked(environment, say) as lock:
                if not environment.python.exists():
                    _make(environment, lock, say)
        except OSError as error:
            raise UnmadeError(
                f"the {environment.name} environment cannot be made in {environment.folder.parent} ({error}); "
                "set XDG_CACHE_HOME to a folder of yours with enough space, and run the same command again"
            ) from error


@contextmanager
def _locked(environment: Environment, say: Callable[[str], None]) -> Iterator[IO[bytes]]:
    """Prevent other kubeloops from making an environment; uv inherits the lock, in case it outlives this process."""
    folder = environment.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another kubeloop is making the {environment.name} environment; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _make(environment: Environment, lock: IO[bytes], say: Callable[[str], None]) -> None:
    name, folder = environment.name, environment.folder
    packages = len(re.findall(r"^\S+==", environment.requirements.read_text(), re.MULTILINE))
    say(f"Making the {name} environment, once: {packages} packages, {_DISK[name]}, in {folder}.")
    started = time.monotonic()
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _uv(environment, lock, "venv", "--no-project", "--relocatable", "--python", _base(environment), unfinished)
    python = unfinished / "bin" / "python"
    _uv(
        *(environment, lock, "pip", "install", "--python", python, "--no-deps", "--compile-bytecode"),
        *("--require-hashes", "--requirement", environment.requirements),
    )
    if name == "runtime":
        # Only kubeloop, without the packages next to it; the detector's worker does not import it.
        site = unfinished / "lib" / "python{}.{}".format(*environment.version) / "site-packages"
        apart = shutil.ignore_patterns("__pycache__", "demo", "locked")
        shutil.copytree(environments.PACKAGE, site / "kubeloop", ignore=apart)
    if folder.exists():
        shutil.rmtree(folder)
    whole.move(unfinished, folder)
    say(f"Made the {name} environment in {time.monotonic() - started:.0f} s.")


def _base(environment: Environment) -> str:
    """Return the Python of a new environment: this one if it fits, else one that uv finds or downloads."""
    return sys.executable if environment.version == sys.version_info[:2] else "{}.{}".format(*environment.version)


def _uv(environment: Environment, lock: IO[bytes], *arguments: str | Path) -> None:
    program = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if program is None:
        missing = UnmadeError(
            f"the {environment.name} environment cannot be made without uv; install it (https://docs.astral.sh/uv), "
            f"or let KUBELOOP_{environment.name.upper()}_PYTHON name an interpreter that has its packages"
        )
        missing.lasting = True
        raise missing
    # In a terminal, uv shows the progress of downloads. For a new environment it would say how to activate it.
    shown = sys.stderr.isatty()
    done = subprocess.run(
        [program, *arguments, *([] if shown and arguments[0] == "pip" else ["--quiet"])],
        # A uv.toml or pyproject.toml in the current folder belongs to another project.
        cwd=environment.folder.parent,
        env=inherited(),
        stdin=subprocess.DEVNULL,
        stderr=None if shown else subprocess.PIPE,
        text=True,
        pass_fds=[lock.fileno()],
        preexec_fn=partial(die_with_parent, os.getpid()),
        check=False,
    )
    if done.returncode:
        said = ", as it says above" if shown else ":\n" + "\n".join(done.stderr.strip().splitlines()[-_TAIL_LINES:])
        other = ""
        if environment.name == "detector":
            other = "; or set drift.engine to builtin in loop.yaml, which needs no detector environment"
        raise UnmadeError(
            f"the {environment.name} environment cannot be made: uv failed{said}\nCheck the network, or name your own "
            f"package index in UV_DEFAULT_INDEX, and run the same command again{other}"
        )

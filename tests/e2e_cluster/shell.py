"""One bash process that runs blocks of commands in turn and keeps variables and background jobs, as a terminal does."""

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

_BEGIN = r"""
set -euo pipefail
trap 'echo "line $LINENO of the block failed with $?: $BASH_COMMAND" >&2' ERR
"""

_LOOK_S = 1.0


class ShellError(RuntimeError):
    """A block of commands failed or did not end in time; the message ends with its output."""


class Shell:
    """A bash that exits at the first failing command."""

    def __init__(self, folder: Path, environ: Mapping[str, str], scripts: Path) -> None:
        self._scripts = scripts
        scripts.mkdir(parents=True, exist_ok=True)
        self._number = len(list(scripts.glob("*.sh")))
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._ask(_BEGIN)

    def run(self, block: str, limit_s: float = 600.0) -> str:
        """Run a block and return what it printed.

        Raises:
            ShellError: a command failed, or the block takes too long; the shell then ends.
        """
        self._number += 1
        path = self._scripts / f"{self._number:02d}.sh"
        path.write_text(block + "\n")
        end = f"end of block {self._number} {os.urandom(4).hex()}"
        # From a file and without input: a command that reads its input would swallow the commands after it.
        self._ask(f"source {shlex.quote(str(path))} < /dev/null\necho {shlex.quote(end)}\n")
        try:
            printed = self._until(end, limit_s)
        except ShellError as error:
            self.close()
            raise ShellError(f"{path.read_text()}\n{error}") from None
        path.with_suffix(".log").write_text(printed)
        return printed

    @property
    def ended(self) -> bool:
        """Whether a command failed or the shell was closed."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the shell and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(timeout=20)

    def _ask(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ShellError("the shell has ended: an earlier block failed") from error

    def _until(self, end: str, limit_s: float) -> str:
        assert self._process.stdout is not None
        deadline, held = time.monotonic() + limit_s, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while f"{end}\n".encode() not in held:
                over = self.ended
                if not selector.select(min(_LOOK_S, max(0.0, deadline - time.monotonic()))):
                    # A background job of the shell keeps the pipe open.
                    if over:
                        raise ShellError(held.decode(errors="replace")[-4000:])
                    if time.monotonic() >= deadline:
                        raise ShellError(f"not within {limit_s:g} s:\n{held.decode(errors='replace')[-4000:]}")
                    continue
                piece = os.read(self._process.stdout.fileno(), 65536)
                if not piece:
                    raise ShellError(held.decode(errors="replace")[-4000:])
                held += piece
        return held.decode(errors="replace").partition(end)[0]

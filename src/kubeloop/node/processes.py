"""A model server or transformer as a child process: started, awaited, restarted, ended."""

import asyncio
import contextlib
import ctypes
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from kubeloop.errors import KubeloopError
from kubeloop.node.desired import Program

LOG = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 10.0
STEADY_S = 30.0
"""A child that ran this long is restarted without a delay again."""
_TAIL_BYTES = 4096
_TAIL_LINES = 5
_PR_SET_PDEATHSIG = 1
# Loaded here, since few calls are safe between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class StartError(KubeloopError):
    """A program did not become ready; the message ends with its last lines on stderr."""

    lasting = False

    def __init__(self, program: Program, message: str) -> None:
        super().__init__(message)
        self.program = program


class Backend:
    """A program as the router sees it: an address that may be missing, and its open requests."""

    __slots__ = ("inflight", "url")

    def __init__(self) -> None:
        self.url: str | None = None
        self.inflight = 0


def die_with_parent(parent: int) -> None:
    """Have the kernel kill the calling process when its parent ends in any way; run between fork and exec.

    Only Linux can do this (`prctl(2)`, PR_SET_PDEATHSIG); elsewhere, a killed parent leaves its children running.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(1)


class Replica:
    """One program and the process that runs it at the moment.

    The program listens on a port that the system picks, and prints `ready http://host:port` on stdout once it serves.
    From then on it is restarted whenever it ends, after growing pauses.
    """

    def __init__(self, program: Program, log: Path, ready_s: float, on_change: Callable[[], None]) -> None:
        self.program = program
        self.backend = Backend()
        self.restarts = 0
        self.error = ""
        self._log = log
        self._ready_s = ready_s
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._offset = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        """ID of the process; None if it does not run."""
        return self._process.pid if self._process else None

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.backend.url is not None

    async def start(self) -> None:
        """Start the program and wait until it serves; from then on it is restarted until `stop`.

        Raises:
            StartError: it ended, or was not ready in time.
        """
        await self._spawn()
        self._background(self._keep_alive())

    async def drain(self) -> None:
        """Wait for the open requests, for the program's grace period at most, then `stop`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.program.grace_s):
                while self.backend.inflight:
                    await asyncio.sleep(0.02)
        await self.stop()

    async def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL after the grace period."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.backend.url = None
        if process := self._process:
            self._process = None
            await _end(process, self.program.grace_s)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _spawn(self) -> None:
        program = self.program
        try:
            process = self._process = await self._fork()
        except OSError as error:
            raise StartError(program, f"cannot run {program.command[0]}: {error}") from error
        try:
            async with asyncio.timeout(self._ready_s):
                self.backend.url = await self._ready_line(process)
        except BaseException as error:
            self._process = None
            await _end(process, 0)
            if isinstance(error, TimeoutError):
                raise StartError(program, f"not ready after {self._ready_s:g} s{self._tail()}") from error
            raise
        self.error = ""
        LOG.info("%s %s ready: pid %d, %s", program.component, program.version, process.pid, self.backend.url)
        self._on_change()

    async def _fork(self) -> asyncio.subprocess.Process:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._offset = log.tell()
            return await asyncio.create_subprocess_exec(
                *self.program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C must reach only the node, which still has requests to finish
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )

    async def _ready_line(self, process: asyncio.subprocess.Process) -> str:
        assert process.stdout  # noqa: S101 - it was started with a pipe
        while line := await process.stdout.readline():
            word, _, url = line.decode(errors="replace").strip().partition(" ")
            if word == "ready" and url.startswith("http://"):
                self._background(_copy(process.stdout, self._log))
                return url
        raise StartError(self.program, f"ended with exit code {await process.wait()}{self._tail()}")

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_S
        while True:
            if process := self._process:
                began = loop.time()
                code = await process.wait()
                self._process, self.backend.url = None, None
                self.error = f"ended with exit code {code}{self._tail()}"
                if loop.time() - began > STEADY_S:
                    pause = FIRST_PAUSE_S
            LOG.warning("%s %s: restart in %g s: %s", self.program.component, self.program.version, pause, self.error)
            self._on_change()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_S)
            self.restarts += 1
            try:
                await self._spawn()
            except StartError as error:
                self.error = str(error)

    def _tail(self) -> str:
        """Return the last lines that the current process wrote, after a colon; empty if there are none."""
        try:
            with self._log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._offset, size - _TAIL_BYTES))
                lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError as error:
            return f": its log cannot be read: {error}"
        return f": {' | '.join(line.strip() for line in lines[-_TAIL_LINES:])}" if lines else ""


async def _copy(source: asyncio.StreamReader, target: Path) -> None:
    """Read a child's stdout so that its pipe does not fill up."""
    with target.open("ab") as sink:
        while chunk := await source.read(65536):
            sink.write(chunk)
            sink.flush()


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate() if grace_s else process.kill()
    try:
        await asyncio.wait_for(process.wait(), grace_s or None)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

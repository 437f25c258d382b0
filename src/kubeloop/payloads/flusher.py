"""Write sealed events as segments of the payload log, in a separate thread."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from kubeloop.payloads.compaction import Compactor, remove_covered
from kubeloop.payloads.segments import MIRRORED, LogError, Row, marked, segments, table_of, write
from kubeloop.stores import whole

logger = logging.getLogger(__name__)

OVERHEAD = 1024
"""Memory that an event takes besides its body, rounded up."""
SEGMENT_BYTES = 32 * 2**20
"""Bytes of bodies that make a segment, however few the events are."""
_RETRY_S = 1.0
_TIDY_S = 2.0
"""How often old segments are deleted while no segment is written."""


@dataclass(frozen=True)
class Job:
    """Sealed events, their write-ahead files with sizes, and the futures that wait for the segment."""

    rows: list[Row]
    files: list[tuple[Path, int]]
    waiters: "list[asyncio.Future[int]]"


class Flusher:
    """Writes jobs in order. Its numbers change only in its thread and may be read from any other.

    Attributes:
        last_seq: the last event in a segment.
        written: events put into segments since the start.
        segments: how many there are.
        segment_bytes: their size on disk.
        freed: bytes of write-ahead files removed.
        finished: jobs done.
        failures: attempts to write a segment that failed.
        error: why the last attempt failed; None if it did not.
    """

    def __init__(
        self, directory: Path, keep_bytes: int, release: Callable[[int], None], wake: Callable[[], None]
    ) -> None:
        """Read the folder, which the caller owns.

        Args:
            directory: the payload log.
            keep_bytes: size of all segments beyond which the oldest that are already in S3 are deleted; 0 keeps all.
            release: called in the flusher's thread with the memory that a segment freed.
            wake: called in the flusher's thread after each job.
        """
        self._directory, self._keep_bytes, self._release, self._wake = directory, keep_bytes, release, wake
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._closing = threading.Event()
        self._compactor = Compactor(directory)
        live = segments(directory)
        remove_covered(directory, live)
        self.last_seq = live[-1].last if live else 0
        self.written = self.freed = self.finished = self.failures = 0
        self.error: str | None = None
        self._measure()
        self._thread = vital_thread("flusher", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, job: Job) -> None:
        """Add a job to the queue."""
        self._jobs.put(job)

    def close(self) -> None:
        """Finish the jobs, except those that fail, and end the thread."""
        self._closing.set()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while job := self._next():
            rows = job.rows
            while rows:
                try:
                    rows = self._write_part(rows)
                except OSError as error:
                    self._report(error)
                    self.failures += 1
                    if self._closing.wait(_RETRY_S):
                        return
            self._free(job.files)
            self.finished += 1
            self._wake()
            for waiter in job.waiters:
                waiter.get_loop().call_soon_threadsafe(_resolve, waiter, self.last_seq)

    def _next(self) -> Job | None:
        while True:
            try:
                return self._jobs.get(timeout=_TIDY_S if self._keep_bytes else None)
            except Empty:
                self._tidy()

    def _write_part(self, rows: list[Row]) -> list[Row]:
        """Write the first rows as a segment; return the others."""
        size = count = 0
        while count < len(rows) and size < SEGMENT_BYTES:
            size += len(rows[count][-1]) + OVERHEAD
            count += 1
        segment = write(self._directory, table_of(rows[:count]))
        self.last_seq = segment.last
        self.written += count
        self.error = None
        self._release(size)
        try:
            self._compactor.add(segment, size)
            self._compactor.sweep()
        except (OSError, LogError) as error:
            self._report(error)
        self._measure()
        self._tidy()
        return rows[count:]

    def _tidy(self) -> None:
        """Delete the oldest segments that are already in S3, down to `keep_bytes`; never the newest one."""
        if not self._keep_bytes or self.segment_bytes <= self._keep_bytes:
            return
        mirrored = marked(self._directory, MIRRORED)
        for segment in segments(self._directory)[:-1]:
            if segment.last > mirrored or self.segment_bytes <= self._keep_bytes:
                break
            self.segment_bytes -= segment.path.stat().st_size
            segment.path.unlink()
            self._compactor.forget(segment)
        self._measure()

    def _free(self, files: list[tuple[Path, int]]) -> None:
        for path, size in files:
            path.unlink()
            self.freed += size
        if files:
            whole.sync_folder(self._directory)

    def _measure(self) -> None:
        self.segments = len(segments(self._directory))
        self.segment_bytes = sum(path.stat().st_size for path in self._directory.glob("events-*.parquet"))

    def _report(self, error: Exception) -> None:
        if self.error != str(error):
            logger.error("cannot write a segment, trying again: %s", error)
        self.error = str(error)


def vital_thread(name: str, run: Callable[[], None]) -> threading.Thread:
    """Make a thread whose failure ends the process: this one could not work without it, and the next one recovers."""

    def guarded() -> None:
        try:
            run()
        except BaseException:
            logger.exception("the %s failed; acknowledged events are in the write-ahead file", name)
            os._exit(70)

    return threading.Thread(target=guarded, name=name, daemon=True)


def _resolve(waiter: "asyncio.Future[int]", last_seq: int) -> None:
    if not waiter.done():
        waiter.set_result(last_seq)

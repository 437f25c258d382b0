"""Take events for the payload log: acknowledge them once they are in the write-ahead file, then write segments.

Three parts work without locks, each with its own state. The event loop passes events on and answers. The writer thread
appends them in groups to the write-ahead file. The flusher thread turns sealed files into segments.
"""

import asyncio
import errno
import logging
import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from queue import Empty, SimpleQueue

from kubeloop.payloads import folder
from kubeloop.payloads.cloudevents import Event
from kubeloop.payloads.flusher import OVERHEAD, SEGMENT_BYTES, Flusher, Job, vital_thread
from kubeloop.payloads.segments import MIRRORED, Row, marked
from kubeloop.payloads.wal import Wal, encode, replay, wal_files
from kubeloop.stores import whole

logger = logging.getLogger(__name__)

_GROUP_BYTES = 4 * 2**20
_POLL_S = 0.05
_ROOM_BYTES = 2**20
"""Free space on the disk below which the collector is not ready."""


@dataclass(frozen=True)
class Limits:
    """What the journal may use, and when it writes a segment.

    Attributes:
        memory_bytes: size of the held events that are not in a segment yet; beyond it, events are refused.
        disk_bytes: size of the folder beyond which events are refused; 0 for no limit. From half of this size, the
            oldest segments that are already in S3 are deleted.
        flush_rows: events that make a segment.
        flush_seconds: age of the oldest event that makes a segment.
        answer_seconds: how long an event waits for a stalled disk before it is refused.
    """

    memory_bytes: int = 256 * 2**20
    disk_bytes: int = 0
    flush_rows: int = 2000
    flush_seconds: float = 1.0
    answer_seconds: float = 2.0


@dataclass(frozen=True)
class Refusal:
    """Why events were not taken: an HTTP status, a short reason to count by, and what to do."""

    status: int
    reason: str
    message: str


_MEMORY = Refusal(429, "memory", "the flusher cannot keep up; try again later, or raise --max-memory-bytes")
_DISK = Refusal(503, "disk_full", "the disk is full or --max-disk-bytes is reached; free space in the log's folder")
_STALLED = Refusal(503, "stalled", "the disk does not answer; try again later")
_CLOSING = Refusal(503, "closing", "the collector is shutting down; try again")
_IO_ERROR = "io_error"
_DAMAGED = "damaged"

REASONS = (*(refusal.reason for refusal in (_MEMORY, _DISK, _STALLED, _CLOSING)), _IO_ERROR, _DAMAGED)
"""Every reason for losing an event: it was refused, or accepted and found damaged by the next collector."""


@dataclass(frozen=True)
class _Entry:
    events: list[Event]
    cost: int
    answer: "asyncio.Future[Refusal | None]"
    deadline: float


@dataclass(frozen=True)
class _Flush:
    waiter: "asyncio.Future[int]"


class _Signal(Enum):
    WAKE = auto()
    """The flusher is free."""
    CLOSE = auto()
    """Finish the waiting events and end."""


class Journal:
    """Owns one folder of the payload log. Use it from a single event loop."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        """Take over the folder and recover the acknowledged events of a predecessor that are not in a segment.

        Raises:
            folder.FolderTakenError: another collector owns the folder.
            OSError: the folder cannot be made or read.
        """
        self.directory, self.limits = directory, limits
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = folder.take(directory)
        self.flusher = Flusher(
            directory,
            limits.disk_bytes // 2,
            release=lambda cost: self._in_loop(self._release, cost),
            wake=lambda: self._inbox.put(_Signal.WAKE),
        )
        self.received = self.held = 0
        self.dropped: Counter[str] = Counter()
        self._inbox: SimpleQueue[_Entry | _Flush | _Signal] = SimpleQueue()
        self._pending: deque[_Entry] = deque()
        self._closing = False
        self._appended = self._jobs = 0
        self._wal: Wal | None = None
        self._try: asyncio.Future[Refusal | None] | None = None
        self._rows: list[Row] = []
        self._rows_bytes = 0
        self._rows_since = 0.0
        # On a new volume, the log continues where the store says that it ended.
        self._next_seq = max(self._recover(), marked(directory, MIRRORED)) + 1
        self._writer = vital_thread("writer", self._write)

    @property
    def acknowledged_seq(self) -> int:
        """The last `seq` in the write-ahead file."""
        return self._next_seq - 1

    @property
    def wal_bytes(self) -> int:
        """Bytes of acknowledged events that are not in a segment yet."""
        return self._appended - self.flusher.freed

    @property
    def disk_bytes(self) -> int:
        """Largest size of the folder (bytes), including a write-ahead file and its segment at the same time."""
        return self.flusher.segment_bytes + 2 * self.wal_bytes

    def start(self) -> None:
        """Start the threads. Call it from the event loop that will submit events."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()
        self.flusher.start()

    def refuses(self, cost: int) -> Refusal | None:
        """Return why `cost` more bytes would be refused right now; None if they would not be."""
        if self._closing:
            return _CLOSING
        if self.held + cost > self.limits.memory_bytes:
            return _MEMORY
        if self.limits.disk_bytes and self.disk_bytes + cost > self.limits.disk_bytes:
            return _DISK
        return None

    async def ready(self) -> Refusal | None:
        """Say why the next events would be refused: check `refuses`, then try to write to the disk."""
        refusal = self.refuses(OVERHEAD)
        if refusal is not None:
            return refusal
        # While one attempt hangs, no other one starts, since each would hold a thread.
        if self._try is None or self._try.done():
            self._try = asyncio.ensure_future(asyncio.to_thread(self._room))
        done, _ = await asyncio.wait([self._try], timeout=self.limits.answer_seconds)
        return self._try.result() if done else _STALLED

    async def submit(self, events: list[Event]) -> Refusal | None:
        """Append all events or none; return once they are in the write-ahead file, or return why they are not."""
        self.received += len(events)
        cost = sum(len(event.body) + OVERHEAD for event in events)
        refusal = self.refuses(cost)
        if refusal is None:
            answer: asyncio.Future[Refusal | None] = self._loop.create_future()
            entry = _Entry(events, cost, answer, time.monotonic() + self.limits.answer_seconds)
            self.held += cost
            self._pending.append(entry)
            self._inbox.put(entry)
            refusal = await answer
        if refusal is not None:
            self.dropped[refusal.reason] += len(events)
        return refusal

    def turn_away(self, refusal: Refusal) -> None:
        """Count an event that was refused before its body was read."""
        self.received += 1
        self.dropped[refusal.reason] += 1

    def expire(self) -> None:
        """Answer the events that have waited too long for the disk; call a few times a second.

        Those that the writer holds at that moment, one group, may still be written.
        """
        now = time.monotonic()
        while self._pending and (self._pending[0].answer.done() or self._pending[0].deadline < now):
            entry = self._pending.popleft()
            if not entry.answer.done():
                entry.answer.set_result(_STALLED)

    async def flush(self, timeout_s: float = 10.0) -> int:
        """Put all events acknowledged so far into segments; return the last `seq` on disk.

        Raises:
            OSError: the segment cannot be written (it is tried again); the events stay in the write-ahead file.
            TimeoutError: the disk did not answer in time.
        """
        waiter: asyncio.Future[int] = self._loop.create_future()
        failures, deadline = self.flusher.failures, time.monotonic() + timeout_s
        self._inbox.put(_Flush(waiter))
        while not (await asyncio.wait([waiter], timeout=_POLL_S))[0]:
            if self.flusher.failures > failures:
                raise OSError(self.flusher.error)
            if time.monotonic() > deadline:
                raise TimeoutError("the disk does not answer")
        return waiter.result()

    def close(self) -> None:
        """Write the remaining events into a segment, end the threads and release the folder.

        If the segment cannot be written, `wal_bytes` stays above 0 and the next collector writes it.
        """
        self._closing = True
        self._inbox.put(_Signal.CLOSE)
        self._writer.join()
        self.flusher.close()
        os.close(self._lock)

    def _room(self) -> Refusal | None:
        try:
            # The file has no name, so that a kill does not leave it behind.
            with tempfile.TemporaryFile(dir=self.directory) as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, _ROOM_BYTES)
                else:
                    # macOS has no such call.
                    file.write(bytes(_ROOM_BYTES))
                    file.flush()
        except OSError as error:
            return self._refusal(error)
        return None

    def _refusal(self, error: OSError) -> Refusal:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _DISK
        return Refusal(503, _IO_ERROR, f"{self.directory} cannot be written: {error.strerror}")

    # ---- start

    def _recover(self) -> int:
        """Send the events of the write-ahead files that are not in a segment to the flusher; return the last `seq`."""
        rows: list[Row] = []
        files: list[tuple[Path, int]] = []
        for path in wal_files(self.directory):
            intact, lost, torn = replay(path)
            found = [row for row in intact if row[0] > self.flusher.last_seq]
            if torn:
                logger.warning("ignored the last %d bytes of %s, a torn record", torn, path.name)
            # If the file's segment was written before the kill, nothing of it is lost.
            if lost and (found or not intact):
                logger.error("%s is damaged: %d events that were acknowledged are lost, the others kept", path, lost)
                self.dropped[_DAMAGED] += lost
            if found:
                rows += found
                files.append((path, path.stat().st_size))
            elif lost and not intact:
                # kubeloop cannot read any of it, but a person may be able to.
                whole.move(path, path.with_suffix(".damaged"))
            else:
                path.unlink()
        if not rows:
            return self.flusher.last_seq
        self.held = sum(len(row[-1]) + OVERHEAD for row in rows)
        self._appended = sum(size for _, size in files)
        self._send(Job(rows, files, []))
        logger.info("recovered %d events from the write-ahead file", len(rows))
        return rows[-1][0]

    # ---- writer thread

    def _write(self) -> None:
        closing = False
        while not closing:
            entries: list[_Entry] = []
            waiters: list[asyncio.Future[int]] = []
            for item in self._take():
                if isinstance(item, _Entry):
                    entries.append(item)
                elif isinstance(item, _Flush):
                    waiters.append(item.waiter)
                elif item is _Signal.CLOSE:
                    closing = True
            if entries:
                self._append(entries)
            if waiters or closing or self._due():
                self._seal(waiters)

    def _take(self) -> "list[_Entry | _Flush | _Signal]":
        """Wait for events; return all that wait, up to the size of a group."""
        timeout = None
        if self._rows and self._idle():
            timeout = max(0.0, self._rows_since + self.limits.flush_seconds - time.monotonic())
        items: list[_Entry | _Flush | _Signal] = []
        size = 0
        try:
            items.append(self._inbox.get(timeout=timeout))
            while size < _GROUP_BYTES:
                items.append(self._inbox.get_nowait())
                size += items[-1].cost if isinstance(items[-1], _Entry) else 0
        except Empty:
            pass
        return items

    def _append(self, entries: list[_Entry]) -> None:
        alive = [entry for entry in entries if not entry.answer.done()]
        events = [event for entry in alive for event in entry.events]
        rows: list[Row] = [(seq, *event) for seq, event in enumerate(events, self._next_seq)]
        refusal = None
        try:
            if self._wal is None:
                self._wal = Wal(self.directory, self._next_seq)
            before = self._wal.size
            self._wal.append(encode(rows, self._wal.salt))
        except OSError as error:
            refusal = self._refusal(error)
        else:
            self._appended += self._wal.size - before
            self._next_seq += len(rows)
            if not self._rows:
                self._rows_since = time.monotonic()
            self._rows += rows
            self._rows_bytes += sum(entry.cost for entry in alive)
        self._in_loop(self._settle, entries, alive, refusal)

    def _idle(self) -> bool:
        return self._jobs == self.flusher.finished

    def _due(self) -> bool:
        """Send nothing to a busy flusher: the events that gather meanwhile make one larger segment."""
        return (
            bool(self._rows)
            and self._idle()
            and (
                len(self._rows) >= self.limits.flush_rows
                or self._rows_bytes >= SEGMENT_BYTES
                or time.monotonic() >= self._rows_since + self.limits.flush_seconds
            )
        )

    def _seal(self, waiters: "list[asyncio.Future[int]]") -> None:
        files: list[tuple[Path, int]] = []
        if self._wal is not None and self._rows:
            self._wal.close()
            files.append((self._wal.path, self._wal.size))
            self._wal = None
        rows, self._rows, self._rows_bytes = self._rows, [], 0
        self._send(Job(rows, files, waiters))

    def _send(self, job: Job) -> None:
        self._jobs += 1
        self.flusher.put(job)

    # ---- back in the event loop

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(call, *arguments)

    def _settle(self, entries: list[_Entry], alive: list[_Entry], refusal: Refusal | None) -> None:
        written = set() if refusal else {id(entry) for entry in alive}
        for entry in entries:
            if id(entry) not in written:
                self.held -= entry.cost
            if not entry.answer.done():
                entry.answer.set_result(refusal)

    def _release(self, cost: int) -> None:
        self.held -= cost

"""Merge small segments, so that a slow stream of events does not leave one file per second."""

import time
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from kubeloop.payloads.segments import LogError, Segment, load, write

_FILES = 32
_ROWS = 50_000
_BYTES = 32 * 2**20
_GRACE_S = 60.0
"""How long a merged segment's parts stay: longer than a reader takes to list the folder, so no reader misses both."""


class Compactor:
    """Follows the segments as they are written. The caller is the owner of the folder."""

    def __init__(self, directory: Path, grace_s: float = _GRACE_S) -> None:
        self._directory = directory
        self._grace_s = grace_s
        self._tail: list[tuple[Segment, int, int]] = []
        self._retired: list[tuple[float, Path]] = []

    def add(self, segment: Segment, size: int) -> None:
        """Add a new segment, and merge the last small ones if they are many or large enough together.

        Args:
            segment: the newest.
            size: bytes of its bodies, uncompressed.

        Raises:
            OSError: the disk is full or fails; the small segments stay, and nothing is lost.
            LogError: one of them is damaged; they stay too.
        """
        rows = segment.last - segment.first + 1
        newest = (segment, rows, size)
        try:
            if sum(r for _, r, _ in self._tail) + rows > _ROWS or sum(s for *_, s in self._tail) + size > _BYTES:
                self._merge()
                self._tail = []
            self._tail.append(newest)
            if len(self._tail) >= _FILES:
                self._merge()
        except (OSError, LogError):
            # The next segment must directly follow this one: a merged segment hides every event between its first and
            # its last.
            self._tail = [newest]
            raise

    def forget(self, segment: Segment) -> None:
        """Do not merge this segment: it is gone."""
        self._tail = [part for part in self._tail if part[0] != segment]

    def sweep(self, now: float | None = None) -> None:
        """Remove the parts of merged segments whose grace period is over."""
        now = time.monotonic() if now is None else now
        while self._retired and self._retired[0][0] <= now:
            self._retired.pop(0)[1].unlink(missing_ok=True)

    def _merge(self) -> None:
        if len(self._tail) < 2:
            return
        parts = [segment for segment, _, _ in self._tail]
        for part, following in pairwise(parts):
            if following.first != part.last + 1:
                raise LogError(f"{following.path} does not continue where {part.path.name} ends; they are not merged")
        merged = write(self._directory, pa.concat_tables([load(segment) for segment in parts]))
        rows, size = sum(r for _, r, _ in self._tail), sum(s for *_, s in self._tail)
        self._retired += [(time.monotonic() + self._grace_s, segment.path) for segment in parts]
        self._tail = [(merged, rows, size)]


def remove_covered(directory: Path, live: list[Segment]) -> None:
    """Remove the parts that a collector left when it ended within their grace period."""
    names = {segment.path.name for segment in live}
    for path in directory.glob("events-*.parquet"):
        if path.name not in names:
            path.unlink()

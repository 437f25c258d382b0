"""The collector's write-ahead file: it holds events from before their acknowledgement until they are in a segment."""

import errno
import os
import secrets
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import orjson

from kubeloop.payloads.segments import Row

_HEADER = struct.Struct("<III")
"""Length of the attributes, length of the body, CRC-32 of both."""


def encode(rows: Iterable[Row], salt: int = 0) -> bytes:
    """Write events as records: a header, the attributes as a JSON array, the body as it is.

    A file's checksums begin with its salt, which no client knows. So a body that contains records is never read as
    records.
    """
    parts: list[bytes] = []
    for row in rows:
        attributes, body = orjson.dumps(row[:-1]), row[-1]
        parts += (_HEADER.pack(len(attributes), len(body), crc32(body, crc32(attributes, salt))), attributes, body)
    return b"".join(parts)


class Replay(NamedTuple):
    """What was read from a write-ahead file.

    Attributes:
        rows: the whole records, in order.
        lost: events that were acknowledged and whose record is damaged.
        torn: bytes at the end of a record that was cut off; it was never acknowledged.
    """

    rows: list[Row]
    lost: int
    torn: int


def replay(path: Path) -> Replay:
    """Read a file's events in order. Only a damaged record is lost: the whole ones after it are found.

    `seq` counts without gaps within a file, and the file's name has the first one. So gaps show lost events.
    """
    data = path.read_bytes()
    rows: list[Row] = []
    position, torn = 0, 0
    _, number, *salted = path.stem.split("-")
    expected = first = int(number)
    salt = int(salted[0], 16) if salted else 0
    while position < len(data):
        found = _record(data, position, salt)
        if found is None:
            following = _next(data, position, expected, salt)
            if following is None:
                torn = len(data) - position
                break
            position = following
            continue
        row, position = found
        rows.append(row)
        expected = row[0] + 1
    lost = expected - first - len(rows)
    if torn and _whole(data, len(data) - torn):
        # The last record is as long as it says, so it was written whole, and acknowledged.
        lost, torn = lost + 1, 0
    return Replay(rows, lost, torn)


def _record(data: bytes, position: int, salt: int) -> tuple[Row, int] | None:
    """Return the event whose record begins at a position, and the record's end; None if no record begins there."""
    if position + _HEADER.size > len(data):
        return None
    attributes_size, body_size, checksum = _HEADER.unpack_from(data, position)
    start = position + _HEADER.size
    middle, end = start + attributes_size, start + attributes_size + body_size
    if end > len(data) or not attributes_size or crc32(memoryview(data)[start:end], salt) != checksum:
        return None
    return (*orjson.loads(data[start:middle]), data[middle:end]), end


def _next(data: bytes, position: int, expected: int, salt: int) -> int | None:
    """Return where the first whole record after a damaged one begins: where its length points, or found by a search."""
    if _whole(data, position, last=False):
        attributes_size, body_size, _ = _HEADER.unpack_from(data, position)
        end = int(position + _HEADER.size + attributes_size + body_size)
        record = _record(data, end, salt)
        if record and record[0][0] > expected:
            return end
    most = expected + (len(data) - position) // _HEADER.size
    found = data.find(b"[", position + _HEADER.size + 1)
    while found >= 0:
        record = _record(data, found - _HEADER.size, salt)
        if record and expected < record[0][0] <= most:
            return found - _HEADER.size
        found = data.find(b"[", found + 1)
    return None


def _whole(data: bytes, position: int, *, last: bool = True) -> bool:
    """Return whether a damaged record's header can be right: the record ends with the file if it is the last, else
    before."""
    if position + _HEADER.size > len(data):
        return False
    attributes_size, body_size, _ = _HEADER.unpack_from(data, position)
    end = position + _HEADER.size + attributes_size + body_size
    return bool(attributes_size) and (end == len(data) if last else end < len(data))


class Wal:
    """One append-only file. A write that returned survives the end of the process (not a power cut: no fsync)."""

    def __init__(self, directory: Path, first: int) -> None:
        """Create the file for the events from seq `first` on.

        Raises:
            OSError: the file exists already or cannot be made.
        """
        if taken := [path for path in wal_files(directory) if path.stem.startswith(f"wal-{first:016d}")]:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(taken[0]))
        self.salt = secrets.randbits(32)
        self.path = directory / f"wal-{first:016d}-{self.salt:08x}.log"
        self.size = 0
        self._torn = False
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, data: bytes) -> None:
        """Append whole records, or nothing.

        Raises:
            OSError: the disk is full or fails; what was written of the records is cut off again.
        """
        self._mend()
        self._torn = True
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            self._mend()
            raise
        self.size += len(data)
        self._torn = False

    def close(self) -> None:
        """Close the file; it stays on disk until its events are in a segment."""
        os.close(self._file)

    def _mend(self) -> None:
        # A replay would lose records after a torn one, so nothing is written until the torn record is removed.
        if self._torn:
            os.ftruncate(self._file, self.size)
            self._torn = False


def wal_files(directory: Path) -> list[Path]:
    """List a folder's write-ahead files in order of `seq`."""
    return sorted(directory.glob("wal-*.log"))

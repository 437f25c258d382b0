"""The collector's write-ahead file: events are here before they are acknowledged, until a segment holds them."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import orjson

from kubeloop.monitoring.payload_log import Row

_HEADER = struct.Struct("<III")
"""Length of the attributes, length of the body, CRC-32 of both."""


def encode(rows: Iterable[Row]) -> bytes:
    """Write events as records: a header, the attributes as a JSON array, the body as it is."""
    parts: list[bytes] = []
    for row in rows:
        attributes, body = orjson.dumps(row[:-1]), row[-1]
        parts += (_HEADER.pack(len(attributes), len(body), crc32(body, crc32(attributes))), attributes, body)
    return b"".join(parts)


def replay(path: Path) -> tuple[list[Row], int]:
    """Read a file's events in order, up to the first record that is torn (it was never acknowledged).

    Returns:
        The events, and the number of bytes behind them that were ignored.
    """
    data = memoryview(path.read_bytes())
    rows: list[Row] = []
    position = 0
    while position + _HEADER.size <= len(data):
        attributes_size, body_size, checksum = _HEADER.unpack_from(data, position)
        start = position + _HEADER.size
        middle, end = start + attributes_size, start + attributes_size + body_size
        if end > len(data) or not attributes_size or crc32(data[start:end]) != checksum:
            break
        rows.append((*orjson.loads(data[start:middle]), bytes(data[middle:end])))
        position = end
    return rows, len(data) - position


class Wal:
    """One append-only file. A write that returned survives the end of the process (not a power cut: no fsync)."""

    def __init__(self, directory: Path, first: int) -> None:
        """Create the file for the events from seq `first` on.

        Raises:
            OSError: the file exists already or cannot be made.
        """
        self.path = directory / f"wal-{first:016d}.log"
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
        # Records behind a torn one would be lost in a replay, so none is written before the tear is gone.
        if self._torn:
            os.ftruncate(self._file, self.size)
            self._torn = False


def wal_files(directory: Path) -> list[Path]:
    """List a folder's write-ahead files in order of `seq`."""
    return sorted(directory.glob("wal-*.log"))

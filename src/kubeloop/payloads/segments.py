"""The payload log on disk: its Parquet schema, its file names, and how segments are listed, read and written."""

import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kubeloop.errors import KubeloopError
from kubeloop.stores import kept, whole

INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("received_at", INSTANT, nullable=False),
        pa.field("time", INSTANT, nullable=False),
        *(
            pa.field(name, pa.string(), nullable=False)
            for name in ("id", "type", "source", "service", "namespace", "component", "endpoint")
        ),
        pa.field("body", pa.binary(), nullable=False),
    ]
)
"""One row per event. `seq` counts from 1, with a gap only if an event was lost. Times are UTC; `body` is the raw
payload."""

Row: TypeAlias = tuple[int, int, int, str, str, str, str, str, str, str, bytes]
"""The values of one event in the order of `SCHEMA`; times in microseconds since 1970."""

_NAME = re.compile(r"events-(\d{16})-(\d{16})\.parquet")
_TEMPORARY = ".events.tmp"

MIRRORED = "mirrored"
"""Name of the mark with the last event that an S3 store also has, with all before it."""

NEEDED = "needed"
"""Name of the mark with the last event that no reader of the folder needs again."""

STORED = "stored"
"""Name of the mark with the last event of an S3 store: a mirror tells readers where the log ends; see `stored`."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_YEAR_10000 = 253_402_300_800_000_000


class LogError(KubeloopError):
    """A segment cannot be read; the message names the file and says what to do."""

    lasting = False


class Segment(NamedTuple):
    """One immutable file that holds the events `first` to `last`."""

    first: int
    last: int
    path: Path


def covered(names: Iterable[str]) -> set[str]:
    """Return the names of segments whose events are also in a merged one among the others."""
    found, end = set(), 0
    for name, (_, last) in sorted(_spans(names).items(), key=lambda item: (item[1][0], -item[1][1])):
        if last <= end:
            found.add(name)
        end = max(end, last)
    return found


def segments(directory: Path) -> list[Segment]:
    """List the segments in order of `seq`, without those that a merged one covers.

    Files with other names are not ours and are left out; a folder that does not exist yet has no segments.
    """
    try:
        spans = _spans(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []
    return [Segment(*spans[name], directory / name) for name in sorted(spans.keys() - covered(spans))]


def _spans(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return the first and the last event of each file name that belongs to a segment."""
    return {name: (int(match[1]), int(match[2])) for name in names if (match := _NAME.fullmatch(name))}


def mark(directory: Path, name: str, seq: int) -> None:
    """Write a mark for another process that works on the folder; see `MIRRORED` and `NEEDED`."""
    whole.write(directory / f"{name}.seq", kept.seal(str(seq)))


def marked(directory: Path, name: str) -> int:
    """Return the event in a mark; 0 if there is no mark."""
    try:
        return int(kept.unseal(directory / f"{name}.seq"))
    except FileNotFoundError:
        return 0
    except ValueError as error:
        reason = str(error) if isinstance(error, kept.DamagedError) else f"{directory / name}.seq holds no number"
        raise LogError(f"{reason}; remove it, and it is written again") from error


def stored(directory: Path) -> tuple[int, float]:
    """Return the last event of the S3 store, and when it was asked, in seconds since 1970; zeros without a mirror."""
    try:
        return marked(directory, STORED), (directory / f"{STORED}.seq").stat().st_mtime
    except FileNotFoundError:
        return 0, 0.0


def newest(directory: Path) -> int:
    """Return the last event of the log, including events that a mirror is still fetching; 0 if there are none."""
    written = segments(directory)
    return stored(directory)[0] or (written[-1].last if written else 0)


def last_event(name: str) -> int:
    """Return the last event of the segment with this file name; 0 if it is not a segment's."""
    return _spans([name]).get(name, (0, 0))[1]


def read(directory: Path, after: int = 0, max_rows: int | None = None) -> tuple[pa.Table, int]:
    """Read the events with `seq > after`, in order.

    If there are no new events, this costs one listing of the folder. It is safe at any moment next to a running
    collector.

    Args:
        directory: the payload log.
        after: the last `seq` that the caller has seen.
        max_rows: stop after the segment that reaches this many rows; call again with the returned `seq` for the rest.

    Returns:
        The events, `SCHEMA`, and the last `seq` among them (`after` when there are none).

    Raises:
        LogError: a segment is damaged, or is gone and no merged one replaces it.
    """
    tables: list[pa.Table] = []
    rows = 0
    lost: Path | None = None
    listing = iter(segments(directory))
    while (max_rows is None or rows < max_rows) and (segment := next(listing, None)):
        if segment.last <= after:
            continue
        try:
            table = load(segment)
        except FileNotFoundError as error:
            # The collector merged it after we listed the folder: list again, and find the merged one.
            if lost == segment.path:
                raise LogError(f"{segment.path} is listed but missing; remove it if it is a broken link") from error
            lost = segment.path
            listing = iter(segments(directory))
            continue
        if segment.first <= after:
            table = table.filter(pc.greater(table["seq"], after))
        tables.append(table)
        rows += table.num_rows
        after = segment.last
    return (pa.concat_tables(tables) if tables else SCHEMA.empty_table()), after


def segment(path: Path) -> Segment | None:
    """Return the segment of a file; None for another file."""
    return next((Segment(*span, path) for span in _spans([path.name]).values()), None)


def gaps(directory: Path, known: int, *, oldest: bool) -> list[tuple[int, int]]:
    """Return the first and last event of each gap: events that should be in a segment but are not.

    Args:
        directory: the payload log.
        known: an event that existed, such as the last that a reader has seen; 0 for none.
        oldest: whether the log must hold its oldest events, unless a mark says that an S3 store has them.

    Raises:
        LogError: that mark cannot be read.
    """
    spans = [segment[:2] for segment in segments(directory)]
    if oldest:
        spans.insert(0, (0, marked(directory, MIRRORED)))
    newest = max([known, *(last for _, last in spans)])
    found = [(before[1] + 1, behind[0] - 1) for before, behind in pairwise([*spans, (newest + 1, newest)])]
    return [(first, last) for first, last in found if first <= last]


def name(directory: Path, first: int, last: int) -> Path:
    """Return the path of the segment that holds the events `first` to `last`."""
    return directory / f"events-{first:016d}-{last:016d}.parquet"


def load(segment: Segment) -> pa.Table:
    """Read one segment whole.

    Raises:
        FileNotFoundError: the file is gone.
        LogError: the file is not a segment.
    """
    try:
        with pq.ParquetFile(segment.path, page_checksum_verification=True) as file:
            table = file.read()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise LogError(f"{segment.path} cannot be read ({os.strerror(error.errno)})") from error
        reason = str(error).splitlines()[0]
        raise LogError(f"{segment.path} is damaged ({reason}); restore it or move it out of the log") from error
    if not table.schema.equals(SCHEMA):
        raise LogError(f"{segment.path} has another schema than the payload log; move it out of the log")
    seqs = table["seq"].to_numpy()
    # Page checksums do not cover the footer, which says where the pages are.
    if not len(seqs) or (seqs[0], seqs[-1]) != segment[:2] or (np.diff(seqs) < 1).any():
        raise LogError(f"{segment.path} does not hold the events in its name; restore it or move it out")
    return table


def table_of(rows: Sequence[Row]) -> pa.Table:
    """Build the table of some events, at least one."""
    columns = zip(*rows, strict=True)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def write(directory: Path, table: pa.Table) -> Segment:
    """Write events, at least one and in order of `seq`, as one segment that readers see whole or not at all.

    The file is on disk (fsync) when this returns. Only the owner of the folder may call it.

    Raises:
        OSError: the disk is full or fails; nothing is left behind that a reader would see.
    """
    first, last = table["seq"][0].as_py(), table["seq"][-1].as_py()
    path = name(directory, first, last)
    with whole.file(path, part=directory / _TEMPORARY, sync=True) as part:
        pq.write_table(
            table,
            part,
            compression="zstd",
            # IDs and bodies hardly repeat, so a dictionary would be built and then discarded.
            use_dictionary=[field.name for field in SCHEMA if field.name not in ("seq", "id", "body")],
            write_statistics=["seq", "received_at"],
            write_page_checksum=True,
        )
    return Segment(first, last, path)

"""The payload log for its readers: raw events in order, decoded into predictions and labels."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubeloop.names import LABEL_EVENT, REQUEST_EVENT, RESPONSE_EVENT
from kubeloop.payloads import labels
from kubeloop.payloads.exchanges import Faults, Pair, predictions, schema
from kubeloop.payloads.segments import (
    INSTANT,
    MIRRORED,
    NEEDED,
    SCHEMA,
    LogError,
    Segment,
    mark,
    marked,
    newest,
    read,
    segments,
)
from kubeloop.tasks.port import Task

__all__ = [
    "LABEL",
    "SCHEMA",
    "Carry",
    "Decoded",
    "LogError",
    "Segment",
    "check",
    "decode",
    "newest",
    "read",
    "release",
    "resume",
    "schema",
    "segments",
]

LABEL = pa.schema(
    [
        pa.field("event_id", pa.string()),
        pa.field("label", pa.float64()),
        pa.field("observed_at", INSTANT),
        pa.field("received_at", INSTANT),
    ]
)

REMEMBER = 100_000
"""Number of events for which a request waits for its response, and for which a settled id is remembered."""

_IDENTITY = ["source", "service", "namespace", "component", "endpoint", "id"]


@dataclass(frozen=True)
class Carry:
    """What one round of decoding passes to the next.

    Attributes:
        waiting: raw events, `SCHEMA`, whose partner has not arrived yet.
        settled: identities that are done, with the `seq` that settled them; a repeat of them is dropped.
    """

    waiting: pa.Table = field(default_factory=SCHEMA.empty_table)
    settled: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """Some events, decoded.

    Attributes:
        predictions: one row per prediction: `schema`, then one column per feature.
        labels: `LABEL`, one row per label, as truths of the task.
        carry: pass it to the next call.
        duplicates: events dropped because one with the same identity and type came before.
        ambiguous: identities that two different requests (or responses) share, so that no pair is certain.
        malformed: events, or single labels, dropped because of their content.
        reasons: the reasons for the first few of them.
    """

    predictions: pa.Table
    labels: pa.Table
    carry: Carry
    duplicates: int
    ambiguous: int
    malformed: int
    reasons: tuple[str, ...]

    @property
    def unpaired(self) -> pa.Table:
        """Raw events that wait for their partner; they are part of `carry`."""
        return self.carry.waiting


@dataclass
class _Counts:
    duplicates: int = 0
    ambiguous: int = 0
    faults: Faults = field(default_factory=Faults)


def decode(task: Task, table: pa.Table, carry: Carry | None = None, service: str | None = None) -> Decoded:
    """Pair requests with responses, and turn them and the labels into columns.

    However the log is cut into calls, each prediction comes out exactly once. Events are paired by their id within
    one source, service, namespace, component and endpoint, in order of `seq`. Clients can choose ids, so an id is
    used once: later events of that id and type are dropped, and an id with two different requests before a response
    gives no prediction, since the response could belong to either. A response may come before its request, because
    KServe's agent sends with several workers.

    The agent also logs requests without a body, such as a GET of the model's metadata. They did not ask for a
    prediction, so they and their responses are dropped, but do not count as malformed.

    Args:
        task: whose answers and labels the events carry.
        table: events, `SCHEMA`, newer than all before.
        carry: that of the previous call; left out for the first.
        service: read this inference service only; labels that name no service count for every one.
    """
    carry = carry or Carry()
    events = pa.concat_tables([carry.waiting, table])
    counts = _Counts()
    settled = dict(carry.settled)
    pairs, waiting = _pair(events, _rows(events, [REQUEST_EVENT, RESPONSE_EVENT], service), settled, counts)
    found_labels = _labels(events, _rows(events, [LABEL_EVENT], service), settled, counts, task)
    found_predictions = predictions(_bodies(events, pairs), counts.faults, task)
    horizon = (table["seq"][-1].as_py() if table.num_rows else 0) - REMEMBER
    left = _take(events, waiting)
    return Decoded(
        predictions=found_predictions,
        labels=found_labels,
        carry=Carry(
            waiting=left.filter(pc.greater(left["seq"], horizon)),
            settled={key: seq for key, seq in settled.items() if seq > horizon},
        ),
        duplicates=counts.duplicates,
        ambiguous=counts.ambiguous,
        malformed=counts.faults.count,
        reasons=tuple(counts.faults.reasons),
    )


def resume(task: Task, directory: Path, last: int, service: str | None = None) -> Carry:
    """Rebuild the carry of a reader that has decoded the log up to `last`, so that it need not be stored.

    Raises:
        LogError: a segment is damaged.
    """
    if last == 0:
        return Carry()
    after = max(0, last - REMEMBER)
    # The log after `last` may span months, so only the segments up to it are read.
    table, _ = read(directory, after, last - after)
    return decode(task, table.filter(pc.less_equal(table["seq"], last)), service=service).carry


def check(directory: Path, last: int) -> None:
    """Check that a log that was decoded up to `last` has not been reset.

    Raises:
        LogError: it has been reset, so its events would never be read.
    """
    if 0 < (end := newest(directory)) < last:
        raise LogError(
            f"the payload log ends at event {end}, but the monitor has read up to {last}: the log was reset. Stop "
            f"the collector, write {last} into {MIRRORED}.seq in its folder and start it, or give the monitor a new "
            "database"
        )


def release(directory: Path, last: int) -> None:
    """Record that a reader that has decoded the log up to `last` needs only the part that `resume` reads."""
    if last - REMEMBER > marked(directory, NEEDED):
        mark(directory, NEEDED, last - REMEMBER)


def _rows(events: pa.Table, types: list[str], service: str | None) -> list[int]:
    """Return the row numbers of the events of some types and one service."""
    wanted = pc.is_in(events["type"], pa.array(types))
    if service is not None:
        services = [service, ""] if LABEL_EVENT in types else [service]
        wanted = pc.and_(wanted, pc.is_in(events["service"], pa.array(services)))
    rows: list[int] = np.flatnonzero(wanted.to_numpy()).tolist()
    return rows


def _take(events: pa.Table, rows: list[int]) -> pa.Table:
    return events.take(pa.array(rows, pa.int64()))


def _identities(events: pa.Table, rows: list[int]) -> list[str]:
    """Return the identity of an event; its ID is not enough, since the sender chooses it."""
    chosen = _take(events.select(_IDENTITY), rows)
    keys: list[str] = pc.binary_join_element_wise(*chosen.columns, "\x1f").to_pylist()
    return keys


def _pair(
    events: pa.Table, rows: list[int], settled: dict[str, int], counts: _Counts
) -> tuple[list[tuple[int, int]], list[int]]:
    """Walk the events in order; return the row numbers of each pair, and of the events that wait."""
    narrow = _take(events.select(["seq", "type"]), rows)
    requests = dict(zip(rows, pc.equal(narrow["type"], REQUEST_EVENT).to_pylist(), strict=True))
    bodies, sizes = events["body"], pc.binary_length(events["body"]).to_numpy()
    waiting: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for row, key, seq in zip(rows, _identities(events, rows), narrow["seq"].to_pylist(), strict=True):
        if key in settled:
            counts.duplicates += 1
            continue
        first = waiting.setdefault(key, row)
        if first == row:
            continue
        if requests[first] != requests[row]:
            request, response = (first, row) if requests[first] else (row, first)
            if sizes[request]:
                pairs.append((request, response))
        elif bodies[first].equals(bodies[row]):
            counts.duplicates += 1
            continue
        else:
            counts.ambiguous += 1
        del waiting[key]
        settled[key] = seq
    return sorted(pairs), list(waiting.values())


def _bodies(events: pa.Table, pairs: list[tuple[int, int]]) -> Iterator[Pair]:
    """Yield the pairs, given by row numbers, with views of the bodies instead of copies."""
    bodies = _views(events["body"])
    received = events["received_at"].cast(pa.int64()).to_numpy().tolist()
    requests = _take(events.select(["seq", "id", "endpoint", "time"]), [request for request, _ in pairs])
    columns = (column.to_pylist() for column in (*requests.columns[:3], requests["time"].cast(pa.int64())))
    for (request, response), seq, request_id, endpoint, time in zip(pairs, *columns, strict=True):
        moment = max(received[request], received[response])
        yield Pair(seq, request_id, moment, endpoint, time, bodies(request), bodies(response))


def _views(column: pa.ChunkedArray) -> Callable[[int], memoryview]:
    """Return a function from a row number to that row's bytes in Arrow's own memory."""
    starts: list[int] = []
    parts: list[tuple[list[int], memoryview]] = []
    rows = 0
    for chunk in column.chunks:
        if len(chunk):
            _, offsets, data = chunk.buffers()
            ends = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            starts.append(rows)
            parts.append((ends.tolist(), memoryview(data or b"")))
            rows += len(chunk)

    def view(row: int) -> memoryview:
        part = bisect_right(starts, row) - 1
        ends, data = parts[part]
        row -= starts[part]
        return data[ends[row] : ends[row + 1]]

    return view


def _labels(events: pa.Table, rows: list[int], settled: dict[str, int], counts: _Counts, task: Task) -> pa.Table:
    """Read the label events. One that was sent twice, with one identity and body, counts once."""
    chosen = _take(events, rows)
    moments = chosen["received_at"].cast(pa.int64()).to_pylist()
    bodies = chosen["body"].to_pylist()
    found: list[tuple[str, float, int, int]] = []
    for key, seq, received_at, body in zip(
        _identities(events, rows), chosen["seq"].to_pylist(), moments, bodies, strict=True
    ):
        identity = f"{key}\x1f{sha256(body).hexdigest()}"
        if identity in settled:
            counts.duplicates += 1
            continue
        settled[identity] = seq
        told, faults = labels.read(body, task.label)
        # A label from a fast clock must not win over later labels that correct it.
        found += [(name, label, min(observed_at, received_at), received_at) for name, label, observed_at in told]
        for fault in faults:
            counts.faults.add(seq, fault)
    if not found:
        return LABEL.empty_table()
    columns = zip(*found, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, LABEL, strict=True)], schema=LABEL)

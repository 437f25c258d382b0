"""The collector: take payload events over HTTP from KServe's logger and write them to the payload log."""

import argparse
import asyncio
import json
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kubeloop.errors import KubeloopError
from kubeloop.names import EXPOSURE_EVENT, LABEL_EVENT, REQUEST_EVENT, RESPONSE_EVENT
from kubeloop.payloads import labels
from kubeloop.payloads.cloudevents import Event, EventError, parse
from kubeloop.payloads.flusher import OVERHEAD
from kubeloop.payloads.journal import REASONS, Journal, Limits, Refusal
from kubeloop.serving import bodies, guard, metrics_port
from kubeloop.serving.process import Server, run

logger = logging.getLogger(__name__)

_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_WATCH_S = 0.1
_REPORT_S = 5.0
_REJECTIONS = ("bad_event", "too_large")
_KINDS = {REQUEST_EVENT: "request", RESPONSE_EVENT: "response", LABEL_EVENT: "label", EXPOSURE_EVENT: "exposure"}
_OTHER = "other"
_INLINE_BYTES = 64 * 1024
_FINISH_S = 5.0
_DRAIN_S = 0.2
"""There is only one collector: no other process accepts the events that arrive while it stops."""


class _RefusedError(KubeloopError):
    """There is no room for the body."""

    lasting = False

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Collector:
    """The ASGI application: `POST /` straight from the protocol, everything else through Starlette."""

    def __init__(self, journal: Journal, max_body_bytes: int) -> None:
        self.draining = False
        self._journal = journal
        self._max_body_bytes = max_body_bytes
        self._rejected: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._started = time.monotonic()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._latency = Histogram(
            "kubeloop_collector_request_seconds",
            "From the head of a POST to its answer.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._rest = Starlette(
            routes=[
                Route("/flush", self._flush, methods=["POST"]),
                Route("/status", self._status),
                Route("/metrics", self._metrics),
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
            ],
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the lifespan."""
        if scope["type"] == "http" and scope["path"] == "/":
            await self._intake(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    # ---- events

    async def _intake(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        if scope["method"] != "POST":
            await _reply(send, 405, "send events with POST", (b"allow", b"POST"))
            return
        headers = dict(scope["headers"])
        received_at = time.time_ns() // 1000
        try:
            body = await self._body(headers, receive)
            if headers.get(b"content-encoding", b"identity") != b"identity":
                raise EventError("content-encoding is not supported; send the body without it")
            events = parse(headers, body, received_at)
            await _check_labels(events)
            for event in events:
                self._kinds[_KINDS.get(event.type, _OTHER)] += 1
            refusal = await self._journal.submit(events)
        except (EventError, bodies.ClientGoneError) as error:
            self._rejected["bad_event"] += 1
            await _reply(send, 400, str(error))
        except bodies.TooLargeError as error:
            self._rejected["too_large"] += 1
            await _reply(send, error.status, f"{error}; raise --max-body-bytes")
        except bodies.TooSlowError as error:
            self._rejected["bad_event"] += 1
            await _reply(send, error.status, str(error))
        except _RefusedError as error:
            self._journal.turn_away(error.refusal)
            await _refuse(send, error.refusal)
        else:
            if refusal is None:
                await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
            else:
                await _refuse(send, refusal)
        self._latency.observe(time.perf_counter() - begun)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Read the body, whose bytes count as held while they come in."""
        declared = headers.get(b"content-length", b"")
        expected = int(declared) if declared.isdigit() else 0
        # A body that is too large in any case is not refused for lack of room.
        if expected <= self._max_body_bytes:
            self._admit(expected)
        size = 0

        def grow(part: int) -> None:
            nonlocal size
            self._admit(part + size)
            self._journal.held += part
            size += part

        try:
            return await bodies.read(headers, receive, self._max_body_bytes, grow=grow)
        finally:
            self._journal.held -= size

    def _admit(self, size: int) -> None:
        refusal = self._journal.refuses(size + OVERHEAD)
        if refusal is not None:
            raise _RefusedError(refusal)

    # ---- everything else

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._journal.start()
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            self._journal.close()

    async def _watch(self) -> None:
        """Answer events that wait for a stalled disk, and log from time to time what was dropped."""
        reported, next_report = Counter[str](), 0.0
        while True:
            await asyncio.sleep(_WATCH_S)
            self._journal.expire()
            dropped = self._journal.dropped
            if time.monotonic() >= next_report and dropped != reported:
                logger.warning("dropped events: %s", json.dumps(dict(dropped - reported)))
                reported, next_report = Counter(dropped), time.monotonic() + _REPORT_S

    async def _flush(self, _: Request) -> Response:
        try:
            return JSONResponse({"last_seq": await self._journal.flush()})
        except (OSError, TimeoutError) as error:
            return JSONResponse({"error": f"no segment could be written: {error}"}, status_code=503)

    def _numbers(self) -> dict[str, Any]:
        journal, flusher = self._journal, self._journal.flusher
        return {
            "received": journal.received,
            "written": flusher.written,
            "dropped": dict(journal.dropped),
            "rejected": dict(self._rejected),
            "last_seq": flusher.last_seq,
            "acknowledged_seq": journal.acknowledged_seq,
            "held_bytes": journal.held,
            "wal_bytes": journal.wal_bytes,
            "segments": flusher.segments,
            "segment_bytes": flusher.segment_bytes,
            "flush_failures": flusher.failures,
            "flush_error": flusher.error,
            "uptime": round(time.monotonic() - self._started, 3),
        }

    async def _status(self, _: Request) -> Response:
        return JSONResponse(self._numbers())

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _health(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def _ready(self, _: Request) -> Response:
        if self.draining:
            return PlainTextResponse("shutting down", 503)
        refusal = await self._journal.ready()
        if refusal is None:
            return PlainTextResponse("ok")
        return PlainTextResponse(refusal.message, status_code=503)

    def describe(self) -> Iterable[Metric]:
        """Return no descriptions, so that Prometheus' client reads the metrics only when it is scraped."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Yield the status as Prometheus metrics."""
        numbers = self._numbers()
        prefix = "kubeloop_collector_"
        yield CounterMetricFamily(f"{prefix}events_received", "Events that were well formed.", numbers["received"])
        yield CounterMetricFamily(f"{prefix}events_written", "Events put into segments.", numbers["written"])
        yield CounterMetricFamily(
            f"{prefix}flush_failures", "Failed attempts to write a segment.", numbers["flush_failures"]
        )
        # A counter that appears with its first event would have no increase for an alert to see.
        dropped = dict.fromkeys(REASONS, 0) | numbers["dropped"]
        rejected = dict.fromkeys(_REJECTIONS, 0) | numbers["rejected"]
        kinds = dict.fromkeys((*_KINDS.values(), _OTHER), 0) | dict(self._kinds)
        for name, label, text, counts in (
            ("events", "kind", "Events that were well formed and readable, by what they are.", kinds),
            ("events_dropped", "reason", "Events refused or lost, by reason.", dropped),
            ("events_rejected", "reason", "Requests that are not events.", rejected),
        ):
            family = CounterMetricFamily(prefix + name, text, labels=[label])
            for value, count in counts.items():
                family.add_metric([value], count)
            yield family
        for name, text in (
            ("last_seq", "Last event in a segment."),
            ("acknowledged_seq", "Last event acknowledged."),
            ("held_bytes", "Memory of events that are in no segment yet."),
            ("wal_bytes", "Write-ahead bytes that are in no segment yet."),
            ("segments", "Segments in the log."),
            ("segment_bytes", "Size of the segments."),
        ):
            yield GaugeMetricFamily(prefix + name, text, numbers[name])


async def _check_labels(events: Iterable[Event]) -> None:
    """Refuse labels that the monitor could not read, since only their sender can correct them.

    Raises:
        EventError: the first fault.
    """
    for event in events:
        if event.type == LABEL_EVENT:
            large = len(event.body) > _INLINE_BYTES
            told, faults = await asyncio.to_thread(labels.read, event.body) if large else labels.read(event.body)
            faults = faults or labels.early(told, event.received_at)
            if faults:
                raise EventError(f"event {event.id!r:.80}: {faults[0]}")


async def _refuse(send: Send, refusal: Refusal) -> None:
    await _reply(send, refusal.status, refusal.message, (b"retry-after", b"1"))


async def _reply(send: Send, status: int, error: str, *headers: tuple[bytes, bytes]) -> None:
    body = orjson.dumps({"error": error})
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kubeloop.payloads.collector", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the payload log")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 lets the system pick one")
    parser.add_argument("--max-memory-bytes", type=int, default=Limits.memory_bytes, help="events held before 429")
    parser.add_argument("--max-body-bytes", type=int, default=32 * 2**20, help="largest request before 413")
    parser.add_argument(
        "--max-disk-bytes", type=int, default=Limits.disk_bytes, help="folder size before 503; 0 for no limit"
    )
    parser.add_argument(
        "--flush-rows", type=int, default=Limits.flush_rows, help="number of events after which a segment is written"
    )
    parser.add_argument(
        "--flush-seconds",
        type=float,
        default=Limits.flush_seconds,
        help="age of the oldest event after which a segment is written",
    )
    guard.add_arguments(parser)
    metrics_port.add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status.

    0 if all acknowledged events are in segments, 1 if some had to stay in the write-ahead file, 2 if another collector
    owns the folder or the port.
    """
    options = _arguments(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s collector %(message)s")
    limits = Limits(options.max_memory_bytes, options.max_disk_bytes, options.flush_rows, options.flush_seconds)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        token = guard.token(options)
        listener.bind((options.host, options.port))
        journal = Journal(options.dir, limits)
    except (KubeloopError, OSError) as error:
        logger.error("cannot start: %s", error)
        return 2
    collector = Collector(journal, options.max_body_bytes)
    app = guard.Guard(collector, options.host, token=token, names=options.allow_host)
    server = Server(
        app,
        options.host,
        options.port,
        timeout_s=_FINISH_S,
        drain_s=_DRAIN_S,
        metrics_port=options.metrics_port,
    )
    run(server, [listener])
    if journal.wal_bytes:
        logger.error("stopped with %d bytes of events in the write-ahead file", journal.wal_bytes)
        return 1
    logger.info("stopped at seq %d", journal.acknowledged_seq)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

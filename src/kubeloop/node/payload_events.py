"""Send the requests and responses of predictors to the payload log, without making inference wait."""

import asyncio
import logging
import random
import time
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import orjson

from kubeloop import access, names
from kubeloop.serving.upstream import Client, UpstreamError

Event = tuple[str, bytes, float]

LOG = logging.getLogger(__name__)

WORKERS = 4
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0
TIMEOUT_S = 10.0
GATHER_S = 0.02
"""How long the first pair waits for others, since the events of a request would compete with its own answer."""
MAX_BYTES = 256 * 1024 * 1024
"""Most bytes of bodies that wait for a slow collector: large batches would fill the memory before the queue is full."""
EXPOSE_S, EXPOSE_MOST = 1.0, 500
"""How long the record of an attempt waits for others, and how many are sent together."""
_TRY_AGAIN = {408, 425, 429}


@dataclass(frozen=True, slots=True)
class Pair:
    """A request to a predictor and its response, with the bodies as they were sent."""

    id: str
    service: str
    namespace: str
    endpoint: str
    media_type: bytes
    request: bytes
    requested_at: float
    response: bytes
    responded_at: float
    rows: int

    @property
    def events(self) -> tuple["Event", ...]:
        """The events to send: type, body, moment."""
        return (
            (names.REQUEST_EVENT, self.request, self.requested_at),
            (names.RESPONSE_EVENT, self.response, self.responded_at),
        )

    @property
    def size(self) -> int:
        """Bytes of both bodies."""
        return len(self.request) + len(self.response)


@dataclass(frozen=True, slots=True)
class Exposures:
    """Which versions some requests were given to by chance, and how that ended; see `payloads.exposed`."""

    id: str
    service: str
    namespace: str
    body: bytes
    at: float
    endpoint: str = ""
    media_type: bytes = b"application/json"
    rows: int = 0

    @property
    def events(self) -> tuple["Event", ...]:
        """The event to send: type, body, moment."""
        return ((names.EXPOSURE_EVENT, self.body, self.at),)

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.body)


class EventLog:
    """A bounded queue of pairs and the workers that send them, at least once each, as CloudEvents in binary mode.

    A full queue drops the newest pair, and counts its two events and its prediction rows. If a collector cannot be
    reached or answers 5xx, the worker tries again until it succeeds. An event that the collector refuses with another
    status is dropped, since it would be refused again. All services share the workers, because one collector serves
    them all.

    Args:
        size: most events that wait.
        max_bytes: most bytes of their bodies.
        collector_url: the collector that requires the token.
        token: see `access`.

    Sources: CloudEvents 1.0 HTTP protocol binding; the attributes are those of KServe's agent (pkg/logger).
    """

    def __init__(
        self, size: int, max_bytes: int = MAX_BYTES, *, collector_url: str | None = None, token: str = ""
    ) -> None:
        self._limit = max(2, size)
        self._collector = _origin(collector_url) if collector_url else None
        self._login = [(key.encode(), value.encode()) for key, value in access.bearer(token).items()]
        self._max_bytes = max_bytes
        self._waiting: deque[Pair | Exposures] = deque()
        self._exposed: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._bytes = 0
        self._pending = 0
        self._pending_rows = 0
        self._failing: set[str] = set()
        self.urls: dict[str, str | None] = {}
        """Collector of each service. It is read at every attempt, so that waiting events are sent to a new address."""
        self._workers: list[asyncio.Task[None]] = []
        self._client = Client()
        self.sent = 0
        self.retries = 0
        self.dropped_events = 0
        self.dropped_predictions = 0

    @property
    def queued(self) -> int:
        """Events that were accepted and are neither sent nor dropped yet."""
        return self._pending + len(self._exposed)

    def offer(self, pair: Pair | Exposures) -> None:
        """Accept a pair, or drop it if the queue is full; returns at once."""
        count = len(pair.events)
        if self._pending + count > self._limit or self._bytes + pair.size > self._max_bytes:
            self.dropped_events += count
            self.dropped_predictions += pair.rows
            return
        self._pending += count
        self._pending_rows += pair.rows
        self._bytes += pair.size
        self._waiting.append(pair)
        self._arrived.set()
        self._idle.clear()

    def expose(self, service: str, namespace: str, attempt: dict[str, Any]) -> None:
        """Accept the record of an attempt; several are sent as one event, after `EXPOSE_S` or `EXPOSE_MOST` of them."""
        key = service, namespace
        held = self._exposed.setdefault(key, [])
        held.append(attempt)
        if len(held) >= EXPOSE_MOST:
            self._tell(key)
        elif len(held) == 1:
            asyncio.get_running_loop().call_later(EXPOSE_S, self._tell, key)

    def _tell(self, key: tuple[str, str]) -> None:
        held = self._exposed.pop(key, [])
        if held:
            self.offer(Exposures(str(uuid.uuid4()), *key, orjson.dumps({"attempts": held}), time.time()))

    def open(self) -> None:
        """Start the workers."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]

    async def close(self, flush_s: float) -> None:
        """Send what is queued, for `flush_s` seconds at most; the rest counts as dropped."""
        for key in list(self._exposed):
            self._tell(key)
        try:
            await asyncio.wait_for(self._idle.wait(), flush_s)
        except TimeoutError:
            LOG.error("payload log: %d events are lost: the collector did not take them in time", self._pending)
            self.dropped_events += self._pending
            self.dropped_predictions += self._pending_rows
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._client.close()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                await asyncio.sleep(GATHER_S)
            pair = self._waiting.popleft()
            refused = 0
            for kind, body, moment in pair.events:
                if await self._send(pair.service, _headers(pair, kind, moment), body):
                    self.sent += 1
                else:
                    refused += 1
                self._pending -= 1
            if refused:
                self.dropped_events += refused
                self.dropped_predictions += pair.rows
            self._pending_rows -= pair.rows
            self._bytes -= pair.size
            if not self._pending:
                self._idle.set()

    async def _send(self, service: str, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Return whether the collector accepted the event; False if it never will."""
        pause, fresh = FIRST_PAUSE_S, False
        while url := self.urls.get(service):
            parts = urlsplit(url)
            # A manifest may name any address, and an old one may now be another user's: only our collector gets the
            # token.
            login = self._login if _origin(url) == self._collector else []
            target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}".encode()
            try:
                answer = await self._client.send(
                    url, "POST", target, [*headers, *login], body, timeout_s=TIMEOUT_S, fresh=fresh
                )
                status = answer.status
            except (UpstreamError, TimeoutError) as error:
                reason = str(error)
                fresh = True
            else:
                if status < 300:
                    if url in self._failing:
                        self._failing.discard(url)
                        LOG.info("payload log: %s takes events again", url)
                    return True
                reason = f"status {status}"
                if status < 500 and status not in _TRY_AGAIN:
                    LOG.error("payload log: %s refused an event: %s", url, reason)
                    return False
            if url not in self._failing:
                self._failing.add(url)
                LOG.warning("payload log: %s does not take events; trying again: %s", url, reason)
            self.retries += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads retries, hides nothing
            pause = min(pause * 2, LAST_PAUSE_S)
        return False


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _headers(pair: Pair | Exposures, kind: str, moment: float) -> list[tuple[bytes, bytes]]:
    """Return exactly the headers that KServe's agent sends: from here on, laptop and cluster share the code."""
    return [
        # Both events have the request's ID.
        (b"content-type", pair.media_type),
        (b"ce-specversion", b"1.0"),
        (b"ce-type", kind.encode()),
        (b"ce-id", pair.id.encode()),
        (b"ce-time", _timestamp(moment)),
        (b"ce-recordedtime", _timestamp(time.time())),
        (b"ce-source", names.EVENT_SOURCE.encode()),
        (b"ce-inferenceservicename", pair.service.encode()),
        (b"ce-namespace", pair.namespace.encode()),
        (b"ce-component", b"predictor"),
        (b"ce-endpoint", pair.endpoint.encode()),
        (b"ce-metadata", b"{}"),
    ]


def _timestamp(moment: float) -> bytes:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z").encode()

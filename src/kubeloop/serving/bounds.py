"""Limit the resources that the clients of one process may use, and choose which client is dropped first."""

import ctypes
import logging
import math
import resource
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Protocol

import uvicorn

log = logging.getLogger("kubeloop.serving")

HEAD_BYTES = 64 * 1024
"""Most bytes of a head, and of a body besides its content: chunk sizes, extensions, trailers."""
HEADERS = 100
HEAD_S = 10.0
BODY_S = 30.0
IDLE_S = 120.0
"""Longer than common client pools keep an idle connection (Go's default transport, which KServe's agent posts events
with, 90 s; Envoy 60 s by KServe's gateways; aiohttp 15 s), so that the client closes first and no request meets a
closing connection."""
STALL_S = 10.0
STALL_BYTES = 64 * 1024
"""Bytes of its answer that a client must read within `STALL_S`, unless less is left."""
LINGER_S = 1.0
"""How long we read from a refused client: closing with unread data could discard its answer (RFC 9112, 9.6)."""
CONNECTIONS = 1024
RESERVE = 16
"""Extra connections beyond the limit for GET requests: probes and scrapes, while all others are being answered."""
PIPELINED = 16
"""Most requests of one connection that may wait behind the current one."""
BODIES_BYTES = 128 * 2**20
"""Most bytes of bodies of all requests that are not answered yet."""
ANSWERS_BYTES = 64 * 2**20
"""Most bytes of answers that all clients together have not read yet."""
SMALL_BYTES = 16 * 1024
"""Smaller bodies are not counted: they arrive in one piece, and their number is at most that of the connections."""
_NOTABLE_BYTES = 16 * 2**20
# glibc keeps memory that was freed in the middle of its heap until it is told to return it; other C libraries lack the
# call.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class Answer(Protocol):
    """A whole answer, as `http.Response` is one."""

    body: bytes
    status: int
    media: bytes
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class Post:
    """A whole POST without repeated headers."""

    target: bytes
    """Path and query, escaped."""
    headers: dict[bytes, bytes]
    body: bytes
    port: int | None
    """The port that received it."""


class Client(Protocol):
    """A connection, as `State` sees it."""

    deadline: float
    held: int

    def expire(self, now: float) -> None:
        """Act on the missed deadline."""

    def give_way(self) -> None:
        """Close at once, to make room for others."""

    def weigh(self) -> int:
        """Return the bytes that the client has not read yet."""


def descriptors() -> int:
    """Return how many files and connections this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if soft == resource.RLIM_INFINITY else soft


class State(uvicorn.server.ServerState):
    """What the connections of a server share."""

    def __init__(self) -> None:
        super().__init__()
        # Each client may need a connection to the next hop, and the rest of the process also needs files.
        self.most = min(CONNECTIONS, descriptors() // 4)
        self.waiting: OrderedDict[Client, None] = OrderedDict()
        """Connections that wait for their client; the one that was silent for the longest time comes first."""
        self.bodies = 0
        self.unread = 0
        self.leaving = False
        self.turned_away: Callable[[], None] = lambda: None
        """Called for each request that is refused for lack of room, since the application does not see it."""
        self.at_once: Callable[[Post], Answer | None] | None = None
        """See `process.Prompt`."""
        self.head = b""
        """The headers that every answer has."""
        self.asked_at = -math.inf
        """When the last inference request arrived; probes and scrapes do not count, since they continue to the end."""
        self._closed: dict[str, int] = {}
        self._most_bytes = 0

    def quiet_s(self) -> float:
        """Return the seconds since the last inference."""
        return time.monotonic() - self.asked_at

    def look(self) -> None:
        """Close what is overdue and set the time of the answers; called twice a second."""
        self.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self.head = b"".join(b"%s: %s\r\n" % header for header in self.default_headers)
        self._note_bytes()
        now = time.monotonic()
        for connection in [found for found in self.waiting if found.deadline <= now]:
            connection.expire(now)
        if self._closed:
            log.warning("closed for lack of room: %s", ", ".join(f"{n} {why}" for why, n in self._closed.items()))
            self._closed.clear()
        if _trim and self._most_bytes > max(_NOTABLE_BYTES, 2 * (self.bodies + self.unread)):
            _trim(0)
            self._most_bytes = 0
            self._note_bytes()

    def _note_bytes(self) -> None:
        self._most_bytes = max(self._most_bytes, self.bodies + self.unread)

    def make_room(self) -> bool:
        """Close the connection whose client was silent for the longest time; return whether there was one."""
        for connection in self.waiting:
            self._close(connection, "connections")
            return True
        return False

    def free_bodies(self) -> bool:
        """Refuse unfinished bodies, the longest silent ones first, until the others fit; return whether they do."""
        self._note_bytes()
        for connection in [found for found in self.waiting if found.held]:
            if self.bodies <= BODIES_BYTES:
                break
            self._close(connection, "unfinished bodies")
        return self.bodies <= BODIES_BYTES

    def free_answers(self) -> None:
        """Drop unread answers, the oldest first, until the others fit; a single one may be larger."""
        self._note_bytes()
        for connection in [found for found in self.waiting if found.weigh()][:-1]:
            if self.unread <= ANSWERS_BYTES:
                break
            self._close(connection, "unread answers")

    def _close(self, connection: Client, what: str) -> None:
        self._closed[what] = self._closed.get(what, 0) + 1
        connection.give_way()

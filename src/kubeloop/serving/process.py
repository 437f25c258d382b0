"""Run an ASGI application as a process: announce its port, bound its clients, and stop without losing a request."""

import asyncio
import gc
import logging
import math
import re
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any, Protocol

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kubeloop.serving import MOST_DRAINS
from kubeloop.serving.upstream import LEAVE

log = logging.getLogger("kubeloop.serving")

_MAX_HEAD_BYTES = 64 * 1024
_HEAD_S = 10.0
_OFFER = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
# Longer than common client pools keep an idle connection (aiohttp 15 s, Envoy 60 s by KServe's gateways), so that
# the client closes first and no request meets a closing connection.
_KEEP_ALIVE_S = 75
_SETTLE_S = 0.5


class Application(Protocol):
    """An ASGI application that stops being ready, but not answering, once `draining` is set."""

    draining: bool

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""


class Server(uvicorn.Server):
    """uvicorn, with a port that it announces and a stop that loses no request.

    On SIGTERM or SIGINT it is no longer ready and says with every answer that the client should leave: to the next hop
    by `connection: close`, and to a client behind a proxy, which drops that header, by `LEAVE`. It goes on listening,
    for `drain_s` at least and then until no inference has come for as long, at most `MOST_DRAINS` times `drain_s`:
    routers still know its address, and KServe's agent before it serves kept-alive connections for as long as they are
    used (cmd/agent/main.go), so that a server that had stopped listening would turn each of their requests into a 502.
    """

    def __init__(self, app: Application, host: str, port: int, *, timeout_s: float, drain_s: float = 0.5) -> None:
        """Bind nothing yet.

        Args:
            app: the application.
            host: address to bind.
            port: port to bind; 0 picks one.
            timeout_s: time that requests in flight get at the end.
            drain_s: see above; longer than clients keep an idle connection.
        """
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            loop="uvloop",
            http=_Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(timeout_s) + 1,
        )
        super().__init__(config)
        self.server_state: _State = _State()
        self._app = app
        self._drain_s = drain_s
        self.url = ""
        """Where it listens, from the moment it is started."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening and print `ready <url>`."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        # What is there now stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        print(f"ready {self.url}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop being ready at once, and begin to stop."""
        self._app.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then stop as uvicorn does."""
        self._app.draining = True
        log.info("draining")
        await self._drain()
        # Not all at once: a client that was told to leave comes back on a new connection, and one that waits to be
        # accepted when the listener closes is reset. So the last clients stay where they are while it closes.
        pause = min(self._drain_s, _SETTLE_S)
        if self.server_state.quiet_s() < pause:
            self.server_state.leaving = False
            await asyncio.sleep(pause)
        for server in self.servers:
            server.close()
        self.server_state.leaving = True
        for _ in range(20):
            if not self.server_state.connections:
                break
            await asyncio.sleep(pause / 20)
        await super().shutdown(sockets)
        # Libraries in C report what the last collection could not see as leaks.
        gc.unfreeze()
        log.info("stopped")

    async def _drain(self) -> None:
        """Serve until nobody asks any more."""
        state, step = self.server_state, self._drain_s / 20
        state.leaving = True
        began = time.monotonic()
        await asyncio.sleep(self._drain_s)
        while state.quiet_s() < self._drain_s and time.monotonic() - began < MOST_DRAINS * self._drain_s:
            await asyncio.sleep(step)


class _State(uvicorn.server.ServerState):
    """What the connections of a server share."""

    leaving = False
    asked_at = -math.inf
    """When the last inference came; probes and scrapes go on to the end."""

    def quiet_s(self) -> float:
        """Return the seconds since then."""
        return time.monotonic() - self.asked_at


class _Connection(HttpToolsProtocol):
    """uvicorn's protocol, with a limit on the time and size of a request's head, and errors in JSON."""

    server_state: _State
    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if b"pgrade:" in data:
            # An offer may be ignored (RFC 9110, 7.8), but the parser would drop the request's body with it. Java's
            # client offers h2c with its first request.
            data = _OFFER.sub(b"\r\nx-offer:", data, count=1)
        super().data_received(data)
        if not self._in_head:
            if self._head_timer is not None:
                self._disarm()
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large", f"send at most {_MAX_HEAD_BYTES} bytes of headers")
        elif self._head_timer is None:
            self._arm()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        state = self.server_state
        if self.scope["method"] == "POST":
            state.asked_at = time.monotonic()
        if state.leaving:
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, LEAVE]

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", msg)

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_S, self._late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        self._refuse(b"408 Request Timeout", "the request's headers did not arrive in time")

    def _refuse(self, status: bytes, message: str) -> None:
        """Answer what is no request, unless that answer would be taken for the one to an earlier request."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started):
            body = orjson.dumps({"error": message})
            head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(head % (status, len(body)) + body)
        self.transport.close()


def run(server: Server) -> None:
    """Serve until SIGTERM or SIGINT, then leave with exit status 0."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    # uvicorn raises the signal again once it has stopped; by default that would kill the process.
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, leave)
    server.run()


def log_to_stderr() -> None:
    """Write one line an event to standard error; of libraries, only their warnings."""
    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=form)
    logging.getLogger("kubeloop").setLevel(logging.INFO)

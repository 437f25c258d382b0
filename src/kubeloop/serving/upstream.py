"""A client for HTTP/1.1 on keep-alive connections that passes heads and bodies on as bytes.

A general client costs more than the model it asks: aiohttp takes 3.9 times the CPU of this one per request
(`make bench ARGS=upstream`, which measures the clients alone), and every prediction makes three requests (one to the
predictor, and two events). It also passes on header bytes that are not text.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from kubeloop.errors import KubeloopError

CONNECT_S = 2.0
IDLE_S = 15.0
"""Shorter than servers keep an idle connection (ours: 75 s), so that no request is sent on a closing one."""
LEAVE = (b"kubeloop-connection", b"close")
"""A server's header for a client behind a proxy: the server is about to end, so the client must use a new connection.

`connection: close` reaches only the next hop (RFC 9110, 7.6.1), which may be a proxy in the server's own pod, such as
KServe's agent, and that proxy ends with the server.
"""

Headers = Iterable[tuple[bytes, bytes]]


class UpstreamError(KubeloopError):
    """No connection, or it ended before the answer was complete."""

    lasting = False


class ConnectError(UpstreamError):
    """No connection: the request was not sent."""


@dataclass(slots=True)
class Answer:
    """A response; header names are in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Client:
    """Connections to any number of servers, one for each request at a time."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        """Keep an idle connection for `idle_s`."""
        self._idle_s = idle_s
        self._open: set[_Connection] = set()
        self._idle: dict[str, deque[_Connection]] = {}

    async def send(
        self,
        url: str,
        method: str,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        fresh: bool = False,
    ) -> Answer:
        """Send a request and return the answer with its whole body.

        Args:
            url: the server, such as `http://127.0.0.1:8080`; a path in it is not used.
            method: any but CONNECT.
            target: path and query, escaped.
            headers: without `host` and `content-length`.
            body: the body.
            timeout_s: limit for the answer, once connected.
            fresh: use a new connection, since an idle one may just have been closed by the server.

        Raises:
            ConnectError: no server accepted a connection.
            UpstreamError: it ended before the answer was complete.
            TimeoutError: the answer took too long.
        """
        connection = None if fresh else self._reuse(url)
        if connection is None:
            connection = await self._connect(url)
        parts = [b"%s %s HTTP/1.1\r\nhost: %s\r\n" % (method.encode(), target, _origin(url)[3])]
        parts += [b"%s: %s\r\n" % header for header in headers]
        if body or method in ("POST", "PUT", "PATCH"):
            parts.append(b"content-length: %d\r\n" % len(body))
        parts += [b"\r\n", body]
        try:
            answer = await connection.exchange(b"".join(parts), timeout_s, bodyless=method == "HEAD")
        except BaseException:
            connection.transport.abort()
            raise
        if connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.setdefault(url, deque()).append(connection)
        else:
            connection.transport.close()
        return answer

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._open):
            connection.transport.abort()

    def _reuse(self, url: str) -> "_Connection | None":
        idle = self._idle.get(url)
        oldest = asyncio.get_running_loop().time() - self._idle_s
        while idle and idle[0].idle_since < oldest:
            idle.popleft().transport.close()
        return idle.pop() if idle else None

    def _forget(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.url, deque())
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.url, None)

    async def _connect(self, url: str) -> "_Connection":
        host, port, tls, _ = _origin(url)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(
                    functools.partial(_Connection, url, self._forget), host, port, ssl=tls or None
                )
        except (OSError, TimeoutError) as error:
            raise ConnectError(f"{url} does not accept a connection: {error}") from error
        self._open.add(connection)
        return connection


class _Connection(asyncio.Protocol):
    """One connection; carries one exchange at a time."""

    transport: asyncio.Transport
    """Set by the event loop before the connection is used."""

    def __init__(self, url: str, forget: Callable[["_Connection"], None]) -> None:
        self.url = url
        self.idle_since = 0.0
        self.reusable = False
        self._forget = forget
        self._lost = False
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._bodyless = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._until_close = False

    async def exchange(self, request: bytes, timeout_s: float, *, bodyless: bool) -> Answer:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Answer] = loop.create_future()
        self._waiter = waiter
        self._bodyless, self.reusable, self._until_close = bodyless, False, False
        timer = loop.call_later(timeout_s, self._fail, TimeoutError(f"no answer within {timeout_s:g} s"))
        if self._lost:
            self._fail(UpstreamError("the server closed the connection"))
        else:
            self.transport.write(request)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost, self.reusable = True, False
        self._forget(self)
        if self._until_close and exc is None:
            self._finish()
        self._fail(UpstreamError(f"the server closed the connection: {exc or 'before it answered'}"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.reusable = False
            self._fail(UpstreamError(f"the server does not speak HTTP/1.1: {error}"))
            self.transport.abort()

    def on_message_begin(self) -> None:
        if self._waiter is None or self._waiter.done():
            raise UpstreamError("an answer without a request")
        self._headers, self._chunks = [], []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._bodyless:
            self._finish()
            return
        named = {name for name, _ in self._headers}
        self._until_close = not named & {b"content-length", b"transfer-encoding"}

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self.reusable = self._parser.should_keep_alive() and not self._bodyless and LEAVE not in self._headers
            self._finish()

    def _finish(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(Answer(self._parser.get_status_code(), self._headers, b"".join(self._chunks)))

    def _fail(self, error: Exception) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(error)


@functools.lru_cache(256)
def _origin(url: str) -> tuple[str, int, bool, bytes]:
    """Return host, port, whether to use TLS, and the Host header of a URL."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    return parts.hostname or "", parts.port or (443 if tls else 80), tls, parts.netloc.rpartition("@")[2].encode()

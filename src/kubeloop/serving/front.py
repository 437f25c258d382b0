"""The HTTP front of every service: it passes on whole requests only, and limits each client as `bounds` says.

This is uvicorn's protocol on httptools' parser (llhttp), which refuses what two servers could read in two ways: two
lengths, a length and chunks, bad chunks, folded headers. This class adds what both lack; `process.Server` runs it. Each
client that is silent or does not read has a deadline, and is dropped first if room is needed.
"""

import asyncio
import math
import time
from http import HTTPStatus
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from kubeloop.errors import KubeloopError
from kubeloop.serving import bounds
from kubeloop.serving.upstream import LEAVE

# What a connection waits for: in all states but the first, for the client. Not an Enum, since looking up its members,
# twice for each request, costs ten times as much.
_OURS, _HEAD, _BODY, _IDLE, _READ, _GONE = range(6)


class RefusedError(KubeloopError):
    """The refusal of a request: a status and a message."""

    lasting = True

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Connection(HttpToolsProtocol):
    """One connection."""

    server_state: bounds.State
    deadline = math.inf
    held = 0
    """Bytes of bodies that are not answered yet."""
    _turn = _OURS
    _surplus = False
    _in_head = _in_body = False
    _begun = 0
    _large = False
    _head_bytes = _body_bytes = 0
    """Bytes of the current message that arrived in separate packets."""
    _counted = 0
    _named: dict[bytes, bytes]
    """The headers of the current request by name; the last one of a repeated name."""
    _offered: bytes | None = None
    _current: RequestResponseCycle | None = None
    _unread = 0
    _whole: bytes | None = None
    """The body so far of a request that can be answered as soon as it is complete."""
    _last_words: bytes | None = None
    """Set once no more data is read; it is written after the answers to the earlier requests."""

    # ---- the transport's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        state = self.server_state
        if len(state.connections) > state.most and not state.make_room():
            self._surplus = True
            if len(state.connections) > state.most + bounds.RESERVE:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again later", linger=False)
                return
        self._next_turn()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.waiting.pop(self, None)
        self._release()
        self._count_unread(0)
        self.pipeline.clear()
        self._abandon()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer the complete requests of a client that has closed its side; an incomplete one is not answered."""
        if self._answering():
            self._last_words = self._last_words or b""
            return True
        return False

    def data_received(self, data: bytes) -> None:
        if self._last_words is not None:
            return
        in_head, in_body, begun = self._in_head, self._in_body, self._begun
        self._large = len(data) > bounds.HEAD_BYTES
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if not self._ignore(offer, data):
                return
        except httptools.HttpParserError as error:
            self._refuse_unparsed(error)
            return
        if self._whole is not None:
            # The rest will come later, so it is a request like any other.
            self._begin()
        if self._in_head and self._begun - begun <= (not in_head and not in_body):
            self._head_bytes += len(data)
            if self._head_bytes > bounds.HEAD_BYTES:
                self._refuse(*_LARGE_HEAD)
                return
        elif in_body and self._in_body and self._begun == begun:
            # Slow senders send content in chunks of one byte.
            self._body_bytes += len(data)
            if self._body_bytes - 9 * self.held > bounds.HEAD_BYTES:
                self._refuse(HTTPStatus.BAD_REQUEST, "the body is nearly all chunk sizes, extensions or trailers")
                return
        if self.held > bounds.SMALL_BYTES and not self._count_bodies():
            self.server_state.turned_away()
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests at once; try again later")
            return
        self._next_turn(moved=True)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.flow.pause_reading()
        self._count_unread(self.transport.get_write_buffer_size())
        self._next_turn()
        if self.server_state.unread > bounds.ANSWERS_BYTES:
            self.loop.call_soon(self.server_state.free_answers)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._count_unread(0)
        if self._turn == _GONE:
            return
        if (self._current is None or self._current.response_complete) and not self.transport.is_closing():
            self._go_on()
        self._next_turn()

    def shutdown(self) -> None:
        super().shutdown()
        self._next_turn()

    # ---- the parser's side

    def _ignore(self, offer: httptools.HttpParserUpgrade, data: bytes) -> bool:
        """Continue without an upgrade; return whether the request that offered it can be read.

        It may be ignored (RFC 9110, 7.8), but httptools drops the request's body with it, and Java's client offers h2c
        with its first request. So the head is read again without the offer.
        """
        while True:
            data = (self._offered or b"") + data[offer.args[0] :]
            self._offered = None
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as another:
                offer = another
            except httptools.HttpParserError as error:
                self._refuse_unparsed(error)
                return False
            else:
                return True

    def _refuse_unparsed(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, RefusedError):
            self._refuse(cause.status, str(cause))
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, f"this is not HTTP/1.1: {cause or error}")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._begun += 1
        self._head_bytes = self._body_bytes = 0
        self.url, self.headers = b"", []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer must not be read as a header (RFC 9110, 6.5.1).
            return
        if len(self.headers) == bounds.HEADERS:
            raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"send at most {bounds.HEADERS} headers")
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._named = named = dict(self.headers)
        method = self.parser.get_method()
        version = self.parser.get_http_version()
        state = self.server_state
        if self._large or self._head_bytes:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > bounds.HEAD_BYTES:
                raise RefusedError(*_LARGE_HEAD)
        if version not in ("1.1", "1.0"):
            raise RefusedError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this server speaks HTTP/1.1")
        if method == b"CONNECT":
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "this server is not a proxy")
        twice = len(named) != len(self.headers)
        hosts = sum(name == b"host" for name, _ in self.headers) if twice else int(b"host" in named)
        if hosts > 1 or (not hosts and version == "1.1"):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"one Host header must be there, not {hosts}")
        coding = named.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            raise RefusedError(HTTPStatus.NOT_IMPLEMENTED, "the one transfer coding here is chunked, with HTTP/1.1")
        if self.parser.should_upgrade():
            kept = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self._offered = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version.encode(), b"".join(kept))
            return
        if self._surplus and len(state.connections) <= state.most:
            self._surplus = False
        if self._surplus and method != b"GET":
            state.turned_away()
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again later")
        if len(self.pipeline) == bounds.PIPELINED:
            raise RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, f"wait for answers: {bounds.PIPELINED} requests wait already"
            )
        self._in_body = True
        if method == b"POST":
            state.asked_at = time.monotonic()
            plain = version == "1.1" and coding is None and not twice and b"expect" not in named
            if plain and state.at_once is not None and self._alone():
                self._whole = b""
                return
        self._begin()

    def _alone(self) -> bool:
        """Return whether no other request is open, and the connection is in its normal state."""
        busy = self.pipeline or (self._current is not None and not self._current.response_complete)
        special = self._surplus or self.server_state.leaving or self._last_words is not None
        return not busy and not special and self.parser.should_keep_alive()

    def _begin(self) -> None:
        """Pass a request to the application."""
        url, headers = self.url, self.headers
        # Only now, since a request that is answered at once needs no scope.
        super().on_message_begin()
        self.url = url
        self.headers += headers
        self.expect_100_continue = self._named.get(b"expect", b"").lower() == b"100-continue"
        super().on_headers_complete()
        if self.server_state.leaving:
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, LEAVE]
        if self._whole:
            super().on_body(self._whole)
        self._whole = None

    def on_body(self, body: bytes) -> None:
        self.held += len(body)
        if self._whole is None:
            super().on_body(body)
        else:
            self._whole += body

    def on_message_complete(self) -> None:
        if self._offered is not None:
            return
        self._in_body = False
        if self._whole is not None:
            if self._answered(self._whole):
                self._whole = None
                # Otherwise a client that always sends its next request in time would count as idle since its first
                # answer.
                self._turn = _OURS
                self._release()
                return
            self._begin()
        super().on_message_complete()
        if self.cycle.response_complete:
            self._release()

    def _answered(self, body: bytes) -> bool:
        """Answer a whole request without a separate task; return whether that was possible."""
        state = self.server_state
        if state.at_once is None or self.flow.write_paused or self.transport.is_closing():
            return False
        port = self.server[1] if self.server else None
        answer = state.at_once(bounds.Post(self.url, self._named, body, port))
        if answer is None:
            return False
        length = b"\r\ncontent-length: %d\r\n" % len(answer.body)
        more = [b"%s: %s\r\n" % header for header in answer.headers]
        parts = (
            _STATUS_LINES[answer.status],
            state.head,
            b"content-type: ",
            answer.media,
            length,
            *more,
            b"\r\n",
            answer.body,
        )
        self.transport.write(b"".join(parts))
        state.total_requests += 1
        return True

    # ---- answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._release()
        elif not self.flow.write_paused:
            self._go_on()
        self._next_turn()

    def _go_on(self) -> None:
        """Begin the next request of this connection, or read it."""
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._release()
            if self._last_words is not None:
                self._leave(linger=True)
                return
        self.flow.resume_reading()

    def _answering(self) -> bool:
        """Return whether a whole request is being answered."""
        cycle = self._current
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    # ---- whose turn it is, and for how long

    def _next_turn(self, *, moved: bool = False) -> None:
        """Record what the connection waits for now; `moved` says that the client has sent or read something."""
        if self._turn == _GONE:
            return
        cycle, waiting = self._current, self.server_state.waiting
        if self.flow.write_paused or self.transport.is_closing():
            turn = _READ
        elif cycle is not None and not cycle.response_complete:
            turn = _BODY if cycle.more_body else _OURS
        elif self._in_body:
            turn = _BODY
        elif self._in_head or not self._begun:
            turn = _HEAD
        else:
            turn = _IDLE
        if turn == _OURS:
            waiting.pop(self, None)
        elif turn != self._turn:
            self.deadline = time.monotonic() + _limit(turn)
            waiting[self] = None
            waiting.move_to_end(self)
        elif moved:
            waiting.move_to_end(self)
        self._turn = turn

    def expire(self, now: float) -> None:
        """Act on the missed deadline."""
        left = self.transport.get_write_buffer_size()
        if self._turn == _READ and left and left <= self._unread - bounds.STALL_BYTES:
            self._count_unread(left)
            self.deadline = now + bounds.STALL_S
        elif left or self._turn in (_READ, _GONE):
            self.transport.abort()
        elif self._turn == _IDLE:
            self.transport.close()
        else:
            what = "headers" if self._turn == _HEAD else "body"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request's {what} did not arrive in time")

    def give_way(self) -> None:
        """Close at once, to make room for others."""
        self.server_state.connections.discard(self)
        self.server_state.waiting.pop(self, None)
        if self._turn in (_READ, _GONE) or self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self._turn == _IDLE:
            self.transport.close()
        else:
            if self._in_body:
                self.server_state.turned_away()
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients; try again later", linger=False)
        self._release()
        self._count_unread(0)

    def weigh(self) -> int:
        """Return the bytes that the client has not read yet."""
        if self._unread:
            self._count_unread(self.transport.get_write_buffer_size())
        return self._unread

    def _count_unread(self, size: int) -> None:
        self.server_state.unread += size - self._unread
        self._unread = size

    def _count_bodies(self) -> bool:
        """Count the bodies of this connection; return whether there is room for them."""
        state = self.server_state
        state.bodies += self.held - self._counted
        self._counted = self.held
        return state.bodies <= bounds.BODIES_BYTES or state.free_bodies()

    def _release(self) -> None:
        self.server_state.bodies -= self._counted
        self.held = self._counted = self._body_bytes = 0

    # ---- refusals

    def _refuse(self, status: HTTPStatus, message: str, *, linger: bool = True) -> None:
        """Refuse a request after the answers to the earlier ones, and close."""
        if self._last_words is not None or self.transport.is_closing():
            return
        body = orjson.dumps({"error": message})
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        lines += [b"%s: %s" % header for header in self.server_state.default_headers]
        lines += [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close", b"", body]
        self._last_words = b"\r\n".join(lines)
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()
        if not self._answering():
            self._leave(linger=linger)

    def _leave(self, *, linger: bool) -> None:
        """Send the last answer, unless it would end up inside another one, and close."""
        cycle = self._current
        begun = cycle is not None and cycle.response_started and not cycle.response_complete
        self._abandon()
        self._release()
        if self._last_words and not begun:
            self.transport.write(self._last_words)
            if linger:
                self.transport.write_eof()
                self.flow.resume_reading()
                self._turn, self.deadline = _GONE, time.monotonic() + bounds.LINGER_S
                self.server_state.waiting[self] = None
                return
        self.transport.close()
        self._next_turn()

    def _abandon(self) -> None:
        """Tell the application that the client has closed the connection."""
        cycle = self._current
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()


_LARGE_HEAD = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"send at most {bounds.HEAD_BYTES} bytes of headers"


_STATUS_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


def _limit(turn: int) -> float:
    if turn == _IDLE:
        return bounds.IDLE_S
    return bounds.HEAD_S if turn == _HEAD else bounds.BODY_S if turn == _BODY else bounds.STALL_S


PROTOCOL: type[HttpToolsProtocol] = _Connection
"""The protocol class that uvicorn uses for each connection to a server with a `bounds.State`."""

"""Read the body of a request in an ASGI server: bounded in bytes and time, whatever Content-Length claims."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from kubeloop.errors import KubeloopError

if TYPE_CHECKING:
    from starlette.requests import Request

TIMEOUT_S = 30.0
"""The default limit for a body."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class BodyError(KubeloopError):
    """A body is not read; `status` is HTTP's code for it."""

    lasting = True
    status: int


class TooLargeError(BodyError):
    """It has more bytes than allowed."""

    status = 413


class TooSlowError(BodyError):
    """It did not arrive in time."""

    status = 408


class ClientGoneError(KubeloopError):
    """The client closed the connection before its request was complete."""

    lasting = False


async def read(
    headers: Mapping[bytes, bytes],
    receive: Receive,
    most_bytes: int,
    timeout_s: float = TIMEOUT_S,
    grow: Callable[[int], None] | None = None,
) -> bytes:
    """Read a whole request body.

    Args:
        headers: of the request, names in lower case.
        receive: of ASGI.
        most_bytes: of the body.
        timeout_s: from now to its last byte.
        grow: called with the bytes of each part before it is kept; an error that it raises ends the reading.

    Raises:
        TooLargeError: it has more than `most_bytes`.
        TooSlowError: it takes longer than `timeout_s`.
        ClientGoneError: the client went away.
    """
    length = headers.get(b"content-length", b"")
    # A body that is declared too large is refused without reading it.
    if length.isdigit() and int(length) > most_bytes:
        raise _too_large(most_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientGoneError("the client went away before the end of the body")
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > most_bytes:
                    raise _too_large(most_bytes)
                if grow is not None:
                    grow(len(part))
                if not message.get("more_body"):
                    return part if not parts else b"".join([*parts, part])
                parts.append(part)
    except TimeoutError:
        raise TooSlowError(f"the body did not arrive within {timeout_s:g} s; send it faster") from None


async def of(request: "Request", most_bytes: int) -> bytes:
    """Read the body of a Starlette request; see `read`.

    Raises:
        BodyError: it is too large or too slow.
        ClientGoneError: the client went away.
    """
    return await read(dict(request.scope["headers"]), request.receive, most_bytes)


def _too_large(most_bytes: int) -> TooLargeError:
    return TooLargeError(f"the body has more than {most_bytes} bytes")

"""Check who may call a service before anything else reads the request: `Guard` wraps each of our applications.

On loopback, every user of the machine and every web page in the owner's browser can send requests. So a service there:

- answers only to its own names: a page whose name was pointed at 127.0.0.1 (DNS rebinding) sends the page's name;
- refuses requests with another site's `Origin`, which browsers add to everything that a page sends elsewhere;
- refuses bodies of a kind that a page can send without asking first (Fetch standard, "CORS-safelisted request-header");
- requires the owner's token (`access`), if it was given one, for everything except reading and inference.

In a cluster a service has many names, and NetworkPolicies say who may connect. So on another address only the token
counts.
"""

import argparse
import asyncio
import contextlib
import hmac
import ipaddress
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from kubeloop import access
from kubeloop.serving.bounds import Post

_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+?)\.?)(?::\d+)?")
_SAFE = frozenset({"GET", "HEAD"})
_BINARY = b"application/octet-stream"
_JSON = b"application/json"
_JSON_SIZE = b"inference-header-content-length"
_HOSTS = 8
"""Most accepted values of Host that are remembered."""
_DRAIN_BYTES = 1024 * 1024
_DRAIN_S = 1.0

Headers = list[tuple[bytes, bytes]]


class Guard:
    """An ASGI application that passes on the allowed requests.

    Args:
        app: the application behind it.
        host: the address that it is bound to.
        token: the owner's; empty if none is required.
        inference: prefixes of paths that need no token.
        names: further names that it answers to on loopback.
    """

    def __init__(
        self,
        app: Any,
        host: str,
        *,
        token: str = "",
        inference: Sequence[str] = (),
        names: Collection[str] = (),
    ) -> None:
        self._app = app
        self._prompt = getattr(app, "at_once", None)
        self._local = loopback(host)
        self._token = token.encode()
        self._inference = tuple(inference)
        self._hosts: set[bytes] = set()
        self._names = _NAMES | {host.lower(), *(name.lower() for name in names)}

    @property
    def draining(self) -> bool:
        """Whether the application is about to end; see `process.Application`."""
        return bool(self._app.draining)

    @draining.setter
    def draining(self, value: bool) -> None:
        self._app.draining = value

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or pass it on."""
        refusal = self._refuses(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, message = refusal
        await _read(receive)
        body = orjson.dumps({"error": message})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        # The unread rest of the body must not be read as the next request.
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def at_once(self, post: Post) -> Any:
        """See `process.Prompt`; a refusal is `__call__`'s."""
        if self._prompt is None or self._token:
            return None
        said = post.headers
        if self._local and not self._usual(said) and self._strange([*said.items()]) is not None:
            return None
        return self._prompt(post)

    def _refuses(self, scope: Any) -> tuple[int, str] | None:
        """Return the status and the reason of a refusal."""
        headers: Headers = scope["headers"]
        named = dict(headers)
        if self._local and not (len(named) == len(headers) and self._usual(named)):
            refusal = self._strange(headers)
            if refusal is not None:
                return refusal
        if self._token and scope["method"] not in _SAFE and not scope["path"].startswith(self._inference):
            given = _only(headers, b"authorization").encode("latin-1")
            if not hmac.compare_digest(given, b"Bearer " + self._token):
                return 401, (
                    "this needs the token of the user who started the service, from the state folder's file `token`: "
                    "Authorization: Bearer <token>"
                )
        return None

    def _usual(self, said: dict[bytes, bytes]) -> bool:
        """Return whether a request is a usual one: declared, from a program, to a host that was accepted before."""
        declared = said.get(b"content-type") == _JSON or _JSON_SIZE in said
        return declared and said.get(b"host") in self._hosts and b"origin" not in said

    def _strange(self, headers: Headers) -> tuple[int, str] | None:
        """Return why a request to a service on loopback is refused, by its headers."""
        host = _only(headers, b"host")
        if (found := _HOST.fullmatch(host.lower())) is None or (found[1] or found[2]) not in self._names:
            return 403, f"this service of one machine answers to localhost and 127.0.0.1, not to {host[:80]!r}"
        origin = _first(headers, b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host:
            return 403, "a web page of another site may not ask this service"
        if _has_body(headers) and not _declared(headers):
            return 415, "name the type of the body: Content-Type: application/json"
        if len(self._hosts) < _HOSTS:
            self._hosts.add(_first(headers, b"host") or b"")
        return None


def loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a service that requires a token for changes."""
    parser.add_argument(
        "--token-file", type=Path, help="file with the token that a request which changes something must carry"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], help="another name that it answers to on loopback; repeatable"
    )


def token(args: argparse.Namespace) -> str:
    """Return the token that the flags name, or an empty text.

    Raises:
        AccessError: it cannot be read.
    """
    return access.read(args.token_file) if args.token_file else ""


def _first(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


def _only(headers: Headers, name: bytes) -> str:
    """Return a header that must occur once; an empty text otherwise."""
    found = [value for key, value in headers if key == name]
    return found[0].decode("latin-1").strip() if len(found) == 1 else ""


def _has_body(headers: Headers) -> bool:
    length = _first(headers, b"content-length")
    return _first(headers, b"transfer-encoding") is not None or (length is not None and length.strip(b"0 ") != b"")


def _declared(headers: Headers) -> bool:
    """Return whether no page could have sent this body without asking first."""
    names = {key for key, _ in headers}
    if b"ce-specversion" in names or _JSON_SIZE in names:
        return True
    media = (_first(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    if not media:
        # Programs such as tritonclient leave it out. A page can too, but its browser then adds its own headers.
        return not names & {b"origin", b"sec-fetch-site", b"sec-fetch-mode"}
    return media in (_JSON, _BINARY) or (media.startswith(b"application/") and media.endswith(b"+json"))


async def _read(receive: Any) -> None:
    """Read and discard a body, since closing with unread data could discard the answer."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while size < _DRAIN_BYTES and (message := await receive()).get("more_body"):
                size += len(message.get("body", b""))

"""What the model server and the transformer share: the endpoints, limits and errors.

Raw ASGI, since a request of one row takes less time than a routing framework. One process serves one model.
"""

import argparse
import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import orjson
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from kubeloop import __version__
from kubeloop.serving import bodies, metrics_port
from kubeloop.serving.bounds import Post
from kubeloop.serving.metrics import INFER, PREDICT, Metrics
from kubeloop.serving.tensors import ProtocolError

log = logging.getLogger("kubeloop.serving")

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_JSON = b"application/json"
# curl -d without a header sends this type, and KServe's own examples do so.
_MEDIA = frozenset({b"", _JSON, b"application/x-www-form-urlencoded"})
_BINARY = _MEDIA | {b"application/octet-stream"}
EXTENSIONS = ["binary_tensor_data"]
"""Extensions of the Open Inference Protocol, by the names that its servers use."""
_LINGER_S = 1.0
_AT_ONCE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost."""

    max_body_bytes: int = 4 * 1024 * 1024
    max_rows: int = 10_000
    timeout_s: float = 10.0

    def check_rows(self, rows: int) -> None:
        """Refuse a request with too many rows.

        Raises:
            ProtocolError: 413.
        """
        if rows > self.max_rows:
            raise ProtocolError(f"{rows} rows in one request; send at most {self.max_rows}", 413)


@dataclass(slots=True)
class Request:
    """One request with its whole body."""

    body: bytes
    headers: dict[bytes, bytes]
    version: str | None
    """The version that the path names, if any."""


@dataclass(slots=True)
class Response:
    """One answer."""

    body: bytes
    status: int = 200
    media: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Its headers other than type and length."""


class Service(Protocol):
    """What an inference process does behind the shared endpoints. Errors are raised as `ProtocolError`."""

    name: str
    limits: Limits
    metrics: Metrics

    async def start(self) -> None:
        """Open what needs the running event loop."""

    async def stop(self) -> None:
        """Close it again."""

    async def ready(self) -> bool:
        """Return whether a prediction would work now."""

    async def metadata(self, version: str | None) -> dict[str, Any]:
        """Return the OIP model metadata; a version that is not served raises 404."""

    async def infer(self, request: Request) -> Response:
        """Answer a V2 inference request."""

    async def predict(self, request: Request) -> Response:
        """Answer a V1 predict request."""


@runtime_checkable
class Prompt(Protocol):
    """A service that can answer small requests without waiting for anything."""

    def infer_at_once(self, request: Request) -> Response | None:
        """Answer a V2 inference request; None if it needs `infer`. Errors are raised as `ProtocolError`."""

    def predict_at_once(self, request: Request) -> Response | None:
        """The same for V1."""


class Beside(Protocol):
    """What runs as long as the application runs."""

    async def start(self) -> None:
        """Begin."""

    async def stop(self) -> None:
        """End, before the service does."""


Handler = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, status: int = 200) -> Response:
    """Return a JSON answer."""
    return Response(orjson.dumps(value), status)


def error_response(error: ProtocolError) -> Response:
    """Return the answer to a request that failed."""
    return json_response({"error": str(error)}, error.status)


def _failure() -> Response:
    return json_response({"error": "internal error; the server's log says more"}, 500)


class App:
    """The ASGI application of one `Service`: V1, V2, health, metadata and metrics."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.draining = False
        self.in_flight = 0
        self.beside: list[Beside] = []
        """Other servers of the service, such as gRPC, which start with it and stop before it."""
        self._limits = service.limits
        self._at_once_bytes = min(_AT_ONCE_BYTES, service.limits.max_body_bytes)
        self._metrics = service.metrics
        self._metrics.in_flight.set_function(lambda: self.in_flight)
        v2, v1 = f"/v2/models/{service.name}", f"/v1/models/{service.name}"
        self._routes: dict[str, tuple[str, str, Handler]] = {
            f"{v2}/infer": ("POST", INFER, service.infer),
            f"{v1}:predict": ("POST", PREDICT, service.predict),
            "/": ("GET", "/", self._alive),
            "/v2": ("GET", "/v2", self._server),
            "/v2/health/live": ("GET", "/v2/health/live", self._live),
            "/v2/health/ready": ("GET", "/v2/health/ready", self._ready),
            v2: ("GET", "/v2/models/{name}", self._metadata),
            f"{v2}/ready": ("GET", "/v2/models/{name}/ready", self._model_ready),
            "/v1/models": ("GET", "/v1/models", self._models),
            v1: ("GET", "/v1/models/{name}", self._model_ready),
            "/metrics": ("GET", "/metrics", self._scrape),
        }
        self._versions = f"{v2}/versions/"
        self._prompt: dict[bytes, tuple[str, Callable[[Request], Response | None]]] = {}
        if isinstance(service, Prompt):
            self._prompt = {
                f"{v2}/infer".encode(): (INFER, service.infer_at_once),
                f"{v1}:predict".encode(): (PREDICT, service.predict_at_once),
            }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the body is always read first, so that a refusal does not race with the upload."""
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        start = time.perf_counter()
        self.in_flight += 1
        template = "other"
        headers: list[tuple[bytes, bytes]] = []
        unread = False
        try:
            path, version = self._canonical(scope["path"])
            route = self._routes.get(path)
            if route is not None:
                template = route[1]
            try:
                incoming = dict(scope["headers"])
                unread = True
                body = await read_body(incoming, receive, self._limits)
                unread = False
                if route is None:
                    raise ProtocolError(self._not_found(scope["path"]), 404)
                if scope["method"] != route[0] and (scope["method"], route[0]) != ("HEAD", "GET"):
                    headers.append((b"allow", route[0].encode()))
                    raise ProtocolError(f"{scope['method']} is not allowed here; use {route[0]}", 405)
                if route[0] == "POST":
                    check_media(incoming)
                response = await route[2](Request(body, incoming, version))
            except ProtocolError as error:
                response = error_response(error)
            except bodies.ClientGoneError:
                return
            except Exception:  # the last resort of a server: report it in the log and in the answer
                log.exception("%s %s failed", scope["method"], scope["path"])
                response = _failure()
            if unread:
                headers.append((b"connection", b"close"))
            headers += response.headers
            headers.append((b"content-type", response.media))
            headers.append((b"content-length", b"%d" % len(response.body)))
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            self._metrics.observe(template, response.status, time.perf_counter() - start)
            if unread:
                await _linger(response.body, receive, send)
            else:
                await send({"type": "http.response.body", "body": response.body})
        finally:
            self.in_flight -= 1

    def at_once(self, post: Post) -> Response | None:
        """Answer a whole inference request of a few rows, which takes less time than a task; see `process.Prompt`."""
        route = self._prompt.get(post.target)
        if route is None or len(post.body) > self._at_once_bytes:
            return None
        start = time.perf_counter()
        try:
            check_media(post.headers)
            response = route[1](Request(post.body, post.headers, None))
        except ProtocolError as error:
            response = error_response(error)
        except Exception:  # as in `__call__`
            log.exception("POST %s failed", post.target.decode())
            response = _failure()
        if response is not None:
            self._metrics.observe(route[0], response.status, time.perf_counter() - start)
        return response

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                for each in (self.service, *self.beside):
                    await each.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                for each in (*self.beside, self.service):
                    await each.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _canonical(self, path: str) -> tuple[str, str | None]:
        """Separate the version from a path."""
        if not path.startswith(self._versions):
            return path, None
        version, slash, rest = path[len(self._versions) :].partition("/")
        return f"/v2/models/{self.service.name}{slash}{rest}", version

    def _not_found(self, path: str) -> str:
        parts = path.split("/")
        if path.startswith(("/v1/models/", "/v2/models/")) and parts[3].partition(":")[0] != self.service.name:
            return (
                f"model {parts[3].partition(':')[0][:80]!r} is not served here; this server has {self.service.name!r}"
            )
        return f"no such path; the paths are {', '.join(route[1] for route in self._routes.values())}"

    async def _alive(self, _request: Request) -> Response:
        return json_response({"status": "alive"})

    async def _server(self, _request: Request) -> Response:
        return json_response({"name": "kubeloop", "version": __version__, "extensions": EXTENSIONS})

    async def _live(self, _request: Request) -> Response:
        return json_response({"live": True})

    async def is_ready(self) -> bool:
        """Return whether a prediction would work now and clients should still connect."""
        return not self.draining and await self.service.ready()

    async def _ready(self, _request: Request) -> Response:
        ready = await self.is_ready()
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _metadata(self, request: Request) -> Response:
        return json_response(await self.service.metadata(request.version))

    async def _models(self, _request: Request) -> Response:
        return json_response({"models": [self.service.name]})

    async def _model_ready(self, request: Request) -> Response:
        if request.version is not None:
            await self.service.metadata(request.version)
        ready = await self.is_ready()
        return json_response({"name": self.service.name, "ready": ready}, 200 if ready else 503)

    async def _scrape(self, _request: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media=CONTENT_TYPE_LATEST.encode())


async def read_body(headers: dict[bytes, bytes], receive: Receive, limits: Limits) -> bytes:
    """Read a whole request body; see `bodies.read`.

    Raises:
        ProtocolError: too large (413) or too slow (408).
        bodies.ClientGoneError: the client went away.
    """
    try:
        return await bodies.read(headers, receive, limits.max_body_bytes, limits.timeout_s)
    except bodies.TooLargeError as error:
        raise ProtocolError(f"{error}; send fewer rows a request", error.status) from None
    except bodies.TooSlowError as error:
        raise ProtocolError(str(error), error.status) from None


def check_media(headers: dict[bytes, bytes]) -> None:
    """Refuse a body that is neither JSON nor JSON followed by binary tensors.

    Raises:
        ProtocolError: 415.
    """
    media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    binary = b"inference-header-content-length" in headers
    if media not in (_BINARY if binary else _MEDIA):
        expected = (
            "send Content-Type: application/json, or application/octet-stream and Inference-Header-Content-Length"
        )
        raise ProtocolError(f"{expected}, not {media[:80].decode('latin-1')!r}", 415)
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise ProtocolError("compressed bodies are not supported; send the body as it is", 415)


async def _linger(body: bytes, receive: Receive, send: Send) -> None:
    """Send a refusal and read for a moment longer, since closing with unread data could discard the answer."""
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b""})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every inference process has."""
    limits = Limits()
    # KServe's controller appends the spellings with underscores to a transformer.
    parser.add_argument("--name", "--model_name", required=True, help="model name in the paths")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind")
    parser.add_argument("--port", "--http_port", type=int, required=True, help="port to bind; 0 picks one")
    parser.add_argument("--grpc-port", type=int, help="port of gRPC; 0 picks one (default: no gRPC)")
    metrics_port.add_arguments(parser)
    parser.add_argument("--max-body-bytes", type=int, default=limits.max_body_bytes)
    parser.add_argument("--max-rows", type=int, default=limits.max_rows, help="most rows of one request")
    parser.add_argument("--timeout-s", type=float, default=limits.timeout_s, help="for a body, and for a prediction")
    parser.add_argument("--drain-s", type=float, default=0.5, help="how long to keep serving after SIGTERM")


def limits_of(args: argparse.Namespace) -> Limits:
    """Return the limits that the flags set."""
    return Limits(args.max_body_bytes, args.max_rows, args.timeout_s)

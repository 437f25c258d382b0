"""The way of a request: to the transformer, from there by weight to a predictor, and a copy to the payload log.

Raw ASGI and whole bodies: bytes are passed on unread, except for the number of rows in a predictor's answer.
"""

import random
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from kubeloop.delivery.metrics import Metrics
from kubeloop.delivery.payload_events import EventLog, Pair
from kubeloop.delivery.processes import Backend
from kubeloop.serving.http import ClientGoneError, Limits, Receive, Scope, Send, read_body
from kubeloop.serving.oip import ProtocolError

PREDICTOR_ENTRY = "/_predictor"
"""Where a transformer finds the predictors: `<node>/_predictor/v2/models/<name>/infer`."""

_INFERENCE = re.compile(r"^/v(?:2/models/[^/]+(?:/versions/[^/]+)?/infer|1/models/[^/]+:predict)$")
_CONNECT_S = 2.0
# RFC 9110, section 7.6.1, and what is set anew for the next hop. Compression would only hide the payload.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade host content-length expect accept-encoding".split()
)

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Target:
    """A predictor in a route."""

    endpoint: str
    percent: int
    backend: Backend


@dataclass(frozen=True, slots=True)
class Route:
    """Where the requests of one inference service go; replaced as a whole, so a switch is atomic."""

    service: str
    namespace: str
    transformer: Backend | None
    predictors: tuple[Target, ...]
    logger_url: str | None
    timeout_s: float

    def choose(self, component: str, tried: Backend | None) -> tuple[str, Backend] | None:
        """Pick a backend that is up, by weight, and another one than `tried` if there is any."""
        if component == "transformer" and self.transformer:
            return ("default", self.transformer) if self.transformer.url else None
        up = [target for target in self.predictors if target.backend.url and target.percent]
        others = [target for target in up if target.backend is not tried] or up
        if not others:
            return None
        if len(others) == 1:
            return others[0].endpoint, others[0].backend
        # Chance, not turns: traffic that repeats in a pattern must not always meet the same model.
        chosen = random.choices(others, [target.percent for target in others])[0]  # noqa: S311
        return chosen.endpoint, chosen.backend


@dataclass(slots=True)
class _Answer:
    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]]
    backend: str = ""


class Router:
    """An ASGI application over the routes of a node.

    `/v1/…` and `/v2/…` go to the transformer, `/_predictor/…` to a predictor. Inference has no side effects, so
    its POST is tried a second time when a backend cannot be reached or goes away; more would only delay the 503.
    """

    def __init__(self, log: EventLog, metrics: Metrics, *, max_body_bytes: int) -> None:
        self.routes: dict[str, Route] = {}
        self.url = ""
        self.closing = False
        self.inflight = 0
        self._log = log
        self._metrics = metrics
        self._limits = Limits(max_body_bytes=max_body_bytes)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Open the connections to the backends."""
        self._session = aiohttp.ClientSession(
            # Idle connections end before the servers' 75 s, so that no request meets a closing one.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def close(self) -> None:
        """Close them again."""
        if self._session:
            await self._session.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        raw: str = scope["raw_path"].decode("latin-1")
        component, path = "transformer", raw
        if raw.startswith(PREDICTOR_ENTRY):
            component, path = "predictor", raw[len(PREDICTOR_ENTRY) :]
        self.inflight += 1
        try:
            body = await read_body(dict(scope["headers"]), receive, self._limits)
            answer = await self._answer(component, path, body, scope)
        except ProtocolError as error:
            answer = _error(error.status, str(error))
        except ClientGoneError:
            return
        finally:
            self.inflight -= 1
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})
        self._metrics.observe(component, answer.backend, answer.status, time.perf_counter() - began)

    async def _answer(self, component: str, path: str, body: bytes, scope: Scope) -> _Answer:
        if self.closing and component == "transformer":
            return _error(503, "the node is shutting down")
        service = self._service(path)
        method: str = scope["method"]
        inference = method == "POST" and _INFERENCE.match(path) is not None
        query: bytes = scope["query_string"]
        target = f"{path}?{query.decode('latin-1')}" if query else path
        headers = _request_headers(scope["headers"])
        tried: Backend | None = None
        for attempt in (1, 2):
            # Read anew each time: the second attempt meets the switch that took the first one's backend away.
            route = self.routes.get(service)
            choice = route.choose(component, tried) if route else None
            if route is None or choice is None:
                return _error(503, f"no {component} of {service} is up; see the conditions of the inference service")
            endpoint, backend = choice
            logged = inference and (component == "predictor" or route.transformer is None)
            requested_at = time.time()
            backend.inflight += 1
            try:
                answer = await self._ask(backend, method, target, headers, body, route.timeout_s)
            except TimeoutError:
                return _error(504, f"the {component} of {service} took more than {route.timeout_s:g} s", endpoint)
            except aiohttp.ClientError:
                tried = backend
                if attempt == 1 and (inference or method in ("GET", "HEAD")):
                    continue
                break
            finally:
                backend.inflight -= 1
            answer.backend = endpoint
            if logged and 200 <= answer.status < 300:
                self._record(route, endpoint, (body, scope["headers"], requested_at), answer)
            return answer
        return _error(503, f"the {component} of {service} went away; try again")

    async def _ask(
        self, backend: Backend, method: str, target: str, headers: CIMultiDict[str], body: bytes, timeout_s: float
    ) -> _Answer:
        assert self._session  # noqa: S101 - `open` comes first
        async with self._session.request(
            method,
            URL(f"{backend.url}{target}", encoded=True),
            data=body or None,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S),
        ) as response:
            payload = await response.read()
            return _Answer(response.status, payload, _response_headers(response.raw_headers, payload, method))

    def _record(self, route: Route, endpoint: str, request: tuple[bytes, Headers, float], answer: _Answer) -> None:
        rows = count_rows(answer.body)
        self._metrics.predictions += rows
        if route.logger_url is None:
            return
        body, headers, requested_at = request
        self._log.offer(
            Pair(
                url=route.logger_url,
                id=str(uuid.uuid4()),
                source=f"{self.url}/v2/models/{route.service}",
                service=route.service,
                namespace=route.namespace,
                endpoint=endpoint,
                request=body,
                request_type=_media_type(headers),
                requested_at=requested_at,
                response=answer.body,
                response_type=_media_type(answer.headers),
                responded_at=time.time(),
                rows=rows,
            )
        )

    def _service(self, path: str) -> str:
        """Return the service that a path means; a path without a model means the only one."""
        parts = path.split("/", 4)
        if len(parts) > 3 and parts[2] == "models":
            name = parts[3].partition(":")[0]
            if name in self.routes:
                return name
            raise ProtocolError(f"there is no inference service {name[:80]!r} here", 404)
        if len(self.routes) > 1:
            raise ProtocolError(f"say which model: /v2/models/<name>/…, one of {', '.join(self.routes)}", 404)
        for name in self.routes:
            return name
        raise ProtocolError("there is no inference service here yet", 503)


def count_rows(body: bytes) -> int:
    """Return the rows of a V2 or V1 response; 0 for a body that is neither."""
    try:
        content: Any = orjson.loads(body)
        if "outputs" in content:
            return int(content["outputs"][0]["shape"][0])
        return len(content["predictions"])
    except (ValueError, TypeError, KeyError, IndexError):
        return 0


def _error(status: int, message: str, backend: str = "") -> _Answer:
    body = orjson.dumps({"error": message})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    return _Answer(status, body, headers, backend)


def _request_headers(headers: Headers) -> CIMultiDict[str]:
    dropped = _dropped(headers)
    return CIMultiDict((k.decode("latin-1"), v.decode("latin-1")) for k, v in headers if k not in dropped)


def _response_headers(headers: Headers, body: bytes, method: str) -> list[tuple[bytes, bytes]]:
    lower = [(key.lower(), value) for key, value in headers]
    dropped = _dropped(lower)
    kept = [(key, value) for key, value in lower if key not in dropped]
    length = next((v for k, v in lower if k == b"content-length"), b"0") if method == "HEAD" else b"%d" % len(body)
    return [*kept, (b"content-length", length)]


def _dropped(headers: Headers) -> frozenset[bytes]:
    """Return the names that end at this hop: the fixed ones and those that `Connection` lists."""
    listed = [value for key, value in headers if key == b"connection"]
    if not listed:
        return _HOP_BY_HOP
    return _HOP_BY_HOP | {name.strip().lower() for value in listed for name in value.split(b",")}


def _media_type(headers: Headers) -> str:
    return next((v.decode("latin-1") for k, v in headers if k == b"content-type"), "application/json")

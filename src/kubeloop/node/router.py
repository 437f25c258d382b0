"""Route a request to the transformer and from there, by weight, to a predictor, and copy it to the payload log.

This is raw ASGI with whole bodies: bytes are passed on without parsing, except for the number of rows in an answer.
"""

import random
import re
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from kubeloop.delivery.manifest import GROWTH
from kubeloop.node.desired import DEFAULT
from kubeloop.node.metrics import Metrics
from kubeloop.node.payload_events import EventLog, Pair
from kubeloop.node.processes import Backend
from kubeloop.serving.bodies import ClientGoneError
from kubeloop.serving.calls import JSON_SIZE
from kubeloop.serving.http import Limits, Receive, Scope, Send, read_body
from kubeloop.serving.tensors import ProtocolError
from kubeloop.serving.upstream import Answer, Client, Headers, UpstreamError

PREDICTOR_ENTRY = "/_predictor"
"""Where a transformer finds the predictors: `<node>/_predictor/v2/models/<name>/infer`."""

_ARMS = 2
MALFORMED = 502
"""Status of an attempt whose answer has no rows, in the payload log; the client gets the answer as it came."""

_PREDICTOR_PREFIX = f"{PREDICTOR_ENTRY}/".encode()
_INFERENCE = re.compile(rb"^/v(?:2/models/[^/]+(?:/versions/[^/]+)?/infer|1/models/[^/]+:predict)$")
# RFC 9110, section 7.6.1, and headers that are set again for the next hop. Compression would only hide the payload.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade host content-length date expect accept-encoding".split()
)


@dataclass(frozen=True, slots=True)
class Target:
    """A predictor in a route."""

    endpoint: str
    percent: int
    backend: Backend
    version: str = ""


class Choice(NamedTuple):
    """Where an attempt goes; `share` is the canary's probability, None if it was not left to chance."""

    endpoint: str
    backend: Backend
    version: str = ""
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The backends of one inference service; a route is replaced as a whole, so a switch is atomic."""

    service: str
    namespace: str
    transformer: Backend | None
    predictors: tuple[Target, ...]
    logger_url: str | None
    timeout_s: float

    def choose(self, component: str, tried: Backend | None) -> Choice | None:
        """Pick a backend that is up, by weight, and a different one than `tried` if possible."""
        if component == "transformer" and self.transformer:
            return Choice("default", self.transformer) if self.transformer.url else None
        up = [target for target in self.predictors if target.backend.url and target.percent]
        others = [target for target in up if target.backend is not tried] or up
        if not others:
            return None
        if len(others) == 1:
            return Choice(others[0].endpoint, others[0].backend, others[0].version)
        # At random, not in turns: traffic with a repeating pattern must not always reach the same model.
        chosen = random.choices(others, [target.percent for target in others])[0]  # noqa: S311
        if len(others) < len(self.predictors):
            # A version is down or was tried already: the others' shares are not those of the rollout.
            return Choice(chosen.endpoint, chosen.backend, chosen.version)
        share = others[-1].percent / sum(target.percent for target in others)
        # Of two versions only: with more, the share of one against the default is not what the coin had.
        known = share if len(others) == _ARMS and others[0].endpoint == DEFAULT else None
        return Choice(chosen.endpoint, chosen.backend, chosen.version, known)


@dataclass(frozen=True, slots=True)
class Request:
    """What a predictor was asked, and when."""

    body: bytes
    headers: Headers
    at: float


class Router:
    """An ASGI application over the routes of a node.

    `/v1/…` and `/v2/…` go to the transformer, `/_predictor/…` to a predictor. Inference has no side effects, so
    its POST is tried a second time if a backend cannot be reached or closes the connection. More attempts would only
    delay the 503.
    """

    def __init__(self, log: EventLog, metrics: Metrics, *, max_body_bytes: int) -> None:
        self.routes: dict[str, Route] = {}
        self.closing = False
        self.inflight = 0
        self._log = log
        self._metrics = metrics
        # As in a cluster: a transformer's request also contains the features.
        self._limits = {
            "transformer": Limits(max_body_bytes=max_body_bytes),
            "predictor": Limits(max_body_bytes=GROWTH * max_body_bytes),
        }
        self._client = Client()

    def switch(self, route: Route) -> None:
        """Replace the route of a service."""
        self.routes[route.service] = route
        self._log.urls[route.service] = route.logger_url

    def remove(self, service: str) -> None:
        """Remove a service's route; its queued events are dropped."""
        self.routes.pop(service, None)
        self._log.urls.pop(service, None)

    def close(self) -> None:
        """Close the connections to the backends."""
        self._client.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        path: bytes = scope["raw_path"]
        component = "transformer"
        if path.startswith(_PREDICTOR_PREFIX):
            component, path = "predictor", path[len(_PREDICTOR_PREFIX) - 1 :]
        endpoint = ""
        # Requests that began before the node stops are finished; `Node.finish` waits for them.
        late = self.closing and component == "transformer"
        self.inflight += 1
        try:
            body = await read_body(dict(scope["headers"]), receive, self._limits[component])
            if late:
                raise ProtocolError("the node is shutting down", 503)
            endpoint, answer = await self._answer(component, path, body, scope)
        except ProtocolError as error:
            answer = _error(error)
        except ClientGoneError:
            return
        finally:
            self.inflight -= 1
        # Counted first: a client that has the answer must find it in the counts.
        self._metrics.observe(component, endpoint, answer.status, time.perf_counter() - began)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, component: str, path: bytes, body: bytes, scope: Scope) -> tuple[str, Answer]:
        """Return the answer and the endpoint that gave it."""
        service = self._service(path)
        method: str = scope["method"]
        query: bytes = scope["query_string"]
        target = b"%s?%s" % (path, query) if query else path
        inference = method == "POST" and _INFERENCE.match(path) is not None
        headers = _forwarded(scope["headers"])
        tried: Backend | None = None
        while True:
            # Read again for each attempt: the second one must see a switch that removed the first one's backend.
            route = self.routes.get(service)
            choice = route.choose(component, tried) if route else None
            if route is None or choice is None:
                raise ProtocolError(f"no {component} of {service} is running; see the service's conditions", 503)
            backend = choice.backend
            requested_at, began = time.time(), time.perf_counter()
            exposure = self._exposure(route, choice, requested_at) if inference and tried is None else None
            backend.inflight += 1
            try:
                answer = await self._client.send(
                    str(backend.url), method, target, headers, body, timeout_s=route.timeout_s, fresh=tried is not None
                )
            except TimeoutError:
                self._expose(route, exposure, 0, began)
                raise ProtocolError(f"the {component} of {service} took more than {route.timeout_s:g} s", 504) from None
            except UpstreamError:
                # Its own failure, even if another version answers now.
                self._expose(route, exposure, 0, began)
                if tried is None and (inference or method in ("GET", "HEAD")):
                    tried = backend
                    continue
                raise ProtocolError(f"the {component} of {service} closed the connection; try again", 503) from None
            finally:
                backend.inflight -= 1
            if inference and 200 <= answer.status < 300 and (component == "predictor" or route.transformer is None):
                name = exposure["id"] if exposure else str(uuid.uuid4())
                rows = self._record(route, name, choice.endpoint, Request(body, scope["headers"], requested_at), answer)
                self._expose(route, exposure, answer.status if rows else MALFORMED, began)
            else:
                self._expose(route, exposure, answer.status, began)
            answer.headers = _returned(answer, method)
            return choice.endpoint, answer

    def _exposure(self, route: Route, choice: Choice, at: float) -> dict[str, Any] | None:
        """Begin the record of an attempt whose version was left to chance; without a payload log there is none."""
        if choice.share is None or route.logger_url is None:
            return None
        return {
            "id": str(uuid.uuid4()),
            "time": datetime.fromtimestamp(at, UTC).isoformat(),
            "version": choice.version,
            "canary": choice.endpoint != DEFAULT,
            "share": choice.share,
        }

    def _expose(self, route: Route, exposure: dict[str, Any] | None, status: int, began: float) -> None:
        if exposure is not None:
            ended = {"status": status, "seconds": round(time.perf_counter() - began, 6)}
            self._log.expose(route.service, route.namespace, exposure | ended)

    def _record(self, route: Route, name: str, endpoint: str, request: Request, answer: Answer) -> int:
        """Offer an answered request to the payload log; return its rows."""
        rows = count_rows(answer.body, next((value for key, value in answer.headers if key == JSON_SIZE), None))
        self._metrics.predictions += rows
        if route.logger_url is None:
            return rows
        self._log.offer(
            Pair(
                id=name,
                service=route.service,
                namespace=route.namespace,
                endpoint=endpoint,
                media_type=_media_type(request.headers),
                request=request.body,
                requested_at=request.at,
                response=answer.body,
                responded_at=time.time(),
                rows=rows,
            )
        )
        return rows

    def _service(self, path: bytes) -> str:
        """Return the service that a path names; a path without a model means the only service."""
        parts = path.split(b"/", 4)
        if len(parts) > 3 and parts[2] == b"models":
            name = parts[3].partition(b":")[0].decode("latin-1")
            if name in self.routes:
                return name
            raise ProtocolError(f"there is no inference service {name[:80]!r} here", 404)
        if len(self.routes) > 1:
            raise ProtocolError(
                f"name the model in the path: /v2/models/<name>/…, one of {', '.join(self.routes)}", 404
            )
        for name in self.routes:
            return name
        raise ProtocolError("there is no inference service here yet", 503)


def count_rows(body: bytes, json_size: bytes | None = None) -> int:
    """Return the rows of a V2 or V1 response; 0 for a body that is neither.

    Args:
        body: the response.
        json_size: how much of it is JSON, if binary tensors follow.
    """
    try:
        content: Any = orjson.loads(body if json_size is None else body[: int(json_size)])
        if "outputs" in content:
            return int(content["outputs"][0]["shape"][0])
        return len(content["predictions"])
    except (ValueError, TypeError, KeyError, IndexError):
        return 0


def _error(error: ProtocolError) -> Answer:
    body = orjson.dumps({"error": str(error)})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.status == 503:
        headers.append((b"retry-after", b"1"))
    return Answer(error.status, headers, body)


def _forwarded(headers: Headers) -> list[tuple[bytes, bytes]]:
    dropped = _dropped(headers)
    return [header for header in headers if header[0] not in dropped]


def _returned(answer: Answer, method: str) -> list[tuple[bytes, bytes]]:
    length = b"%d" % len(answer.body)
    if method == "HEAD":
        length = next((value for key, value in answer.headers if key == b"content-length"), length)
    return [*_forwarded(answer.headers), (b"content-length", length)]


def _dropped(headers: Headers) -> frozenset[bytes]:
    """Return the headers that are not passed on: the fixed ones and those that `Connection` lists."""
    listed = [value for key, value in headers if key == b"connection"]
    if not listed:
        return _HOP_BY_HOP
    return _HOP_BY_HOP | {name.strip().lower() for value in listed for name in value.split(b",")}


def _media_type(headers: Headers) -> bytes:
    return next((value for key, value in headers if key == b"content-type"), b"application/json")

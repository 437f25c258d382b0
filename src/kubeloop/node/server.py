"""The local node: router and controller in one process, so that a laptop serves InferenceServices without a cluster.

`python -m kubeloop.node.server --port 8080 --state .kubeloop` prints `ready http://127.0.0.1:8080` when it
accepts requests. Its children end with it: in order after SIGTERM, otherwise by the kernel (see `processes`).
"""

import argparse
import asyncio
import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kubeloop import access
from kubeloop.access import AccessError
from kubeloop.config import Serving, settings
from kubeloop.delivery.manifest import API_VERSION, KIND, TRANSFORMER_COMMAND
from kubeloop.node.controller import ConflictError, Controller
from kubeloop.node.desired import Commands, ManifestError
from kubeloop.node.metrics import Metrics
from kubeloop.node.payload_events import EventLog
from kubeloop.node.router import PREDICTOR_ENTRY, Router
from kubeloop.serving import bodies, guard
from kubeloop.serving.http import Receive, Scope, Send
from kubeloop.serving.process import Server, log_to_stderr, run

API = f"/apis/{API_VERSION}"
HOST = "127.0.0.1"
DRAIN_S = 10.0
FLUSH_S = 5.0
READY_S = 60.0
MAX_MANIFEST_BYTES = 1024 * 1024
_INFERENCE = ("/v1", "/v2", f"{PREDICTOR_ENTRY}/")


class Node:
    """The ASGI application of a node: inference goes to the router, everything else to the API.

    API, in the paths and forms of Kubernetes: PUT, GET and DELETE
    `/apis/serving.kserve.io/v1beta1/namespaces/<ns>/inferenceservices/<name>`, GET of the list. Also
    `GET /status` (JSON) and `GET /metrics` (Prometheus).

    Args:
        commands: the programs it may run.
        state: folder for manifests and logs.
        log_queue: most payload events that wait for a slow collector.
        max_body_bytes: largest request body.
        ready_s: time a program gets to become ready.
        token: what a caller must send to change anything; it is also sent with the events to `collector_url`.
        collector_url: the collector of the same owner.
    """

    def __init__(
        self,
        commands: Commands,
        state: Path,
        *,
        log_queue: int = Serving().log_queue,
        max_body_bytes: int = Serving().max_body_bytes,
        ready_s: float = READY_S,
        token: str,
        collector_url: str | None = None,
    ) -> None:
        self.token = token
        self.log = EventLog(log_queue, collector_url=collector_url, token=token)
        self.metrics = Metrics(self.log)
        self.router = Router(self.log, self.metrics, max_body_bytes=max_body_bytes)
        self.controller = Controller(self.router, commands, state, ready_s)
        self._api = _api(self)

    @property
    def draining(self) -> bool:
        """Whether clients get 503, while transformers still reach the predictors."""
        return self.router.closing

    @draining.setter
    def draining(self, value: bool) -> None:
        self.router.closing = value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["path"].startswith(_INFERENCE):
            await self.router(scope, receive, send)
        else:
            await self._api(scope, receive, send)

    async def finish(self) -> None:
        """Wait for the open requests."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self.router.inflight:
                    await asyncio.sleep(0.02)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.log.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.log.close(FLUSH_S)
        await self.controller.close()
        self.router.close()
        await send({"type": "lifespan.shutdown.complete"})


class NodeServer(Server):
    """The server of a node: restores its services once it has an address, and waits for open requests at the end."""

    def __init__(self, node: Node, port: int, names: Sequence[str] = ()) -> None:
        guarded = guard.Guard(node, HOST, token=node.token, inference=_INFERENCE, names=names)
        super().__init__(guarded, HOST, port, timeout_s=DRAIN_S, drain_s=0.1)
        self._node = node

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then apply the stored manifests."""
        await super().startup(sockets)
        self._node.controller.restore(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the open requests while transformers can still reach the predictors, then stop."""
        self._node.draining = True
        await self._node.finish()
        await super().shutdown(sockets)


def _api(node: Node) -> Starlette:
    controller = node.controller

    async def put(request: Request) -> Response:
        try:
            manifest = json.loads(await bodies.of(request, MAX_MANIFEST_BYTES))
            applied = controller.put(request.path_params["namespace"], request.path_params["name"], manifest)
        except ValueError as error:
            if isinstance(error, ConflictError):
                return _failure(409, "Conflict", str(error))
            reason = "" if isinstance(error, ManifestError) else "the body is not JSON: "
            return _failure(400, "BadRequest", f"{reason}{error}")
        except bodies.BodyError as error:
            reason = "RequestEntityTooLarge" if error.status == 413 else "Timeout"
            return _failure(error.status, reason, str(error))
        except OSError as error:
            return _failure(503, "ServiceUnavailable", f"{error.filename} cannot be written: {error.strerror}")
        return _json(applied, 202)

    async def get(request: Request) -> Response:
        found = controller.get(request.path_params["namespace"], request.path_params["name"])
        return _json(found) if found else _missing(request)

    async def delete(request: Request) -> Response:
        gone = await controller.delete(request.path_params["namespace"], request.path_params["name"])
        return _json(gone) if gone else _missing(request)

    async def items(request: Request) -> Response:
        found = controller.list(request.path_params.get("namespace"))
        return _json({"apiVersion": API_VERSION, "kind": f"{KIND}List", "items": found})

    async def status(_: Request) -> Response:
        return _json(_status(node))

    async def metrics(_: Request) -> Response:
        return Response(node.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    collection = f"{API}/namespaces/{{namespace}}/inferenceservices"
    routes = [
        Route("/status", status),
        Route("/metrics", metrics),
        Route(f"{API}/inferenceservices", items),
        Route(collection, items),
        Route(f"{collection}/{{name}}", put, methods=["PUT"]),
        Route(f"{collection}/{{name}}", get, methods=["GET"]),
        Route(f"{collection}/{{name}}", delete, methods=["DELETE"]),
    ]

    async def gone(_request: Request, _error: Exception) -> Response:
        return _failure(400, "BadRequest", "the request was incomplete")

    return Starlette(routes=routes, exception_handlers={bodies.ClientGoneError: gone})


def _status(node: Node) -> dict[str, Any]:
    """Return what the node has done since it started; `predictions` are rows answered by predictors."""
    log, metrics = node.log, node.metrics
    return {
        "predictions": metrics.predictions,
        "sent": log.sent,
        "queued": log.queued,
        "dropped": {"events": log.dropped_events, "predictions": log.dropped_predictions},
        "retries": log.retries,
        "errors": metrics.errors,
        "routes": {
            name: {
                "transformer": route.transformer.url if route.transformer else None,
                "predictors": [
                    {"endpoint": target.endpoint, "percent": target.percent, "url": target.backend.url}
                    for target in route.predictors
                ],
                "logger": route.logger_url,
            }
            for name, route in node.router.routes.items()
        },
    }


def _json(value: Any, code: int = 200) -> Response:
    return Response(orjson.dumps(value), code, media_type="application/json")


def _failure(code: int, reason: str, message: str) -> Response:
    status = {"apiVersion": "v1", "kind": "Status", "status": "Failure"}
    return _json(status | {"reason": reason, "message": message, "code": code}, code)


def _missing(request: Request) -> Response:
    return _failure(404, "NotFound", f"there is no inference service {request.url.path.rpartition('/')[2]!r}")


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m kubeloop.node.server", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port to bind on 127.0.0.1; 0 picks one")
    parser.add_argument("--state", type=Path, required=True, help="folder for manifests and logs")
    parser.add_argument("--log-queue", type=int, default=Serving().log_queue, help="payload events held at most")
    parser.add_argument("--max-body-bytes", type=int, default=Serving().max_body_bytes)
    parser.add_argument("--ready-s", type=float, default=READY_S, help="time a program gets to become ready")
    parser.add_argument(
        "--collector-url", help="address of the collector of the same owner, which needs the same token"
    )
    guard.add_arguments(parser)
    args = parser.parse_args(argv)
    log_to_stderr()
    place = settings(state=args.state)
    try:
        access.private(place.state)
        # The node always requires a token, since a manifest says what it runs. If none is given, it makes one.
        token = guard.token(args) or access.make(place.token_file)
    except AccessError as error:
        parser.exit(1, f"{error}\n")
    commands = Commands(
        predictor=(str(place.runtime_python), "-m", "kubeloop.serving.server"),
        transformer=(str(place.core_python), *TRANSFORMER_COMMAND[1:]),
        features=place.features,
    )
    node = Node(
        commands,
        place.state,
        log_queue=args.log_queue,
        max_body_bytes=args.max_body_bytes,
        ready_s=args.ready_s,
        token=token,
        collector_url=args.collector_url,
    )
    run(NodeServer(node, args.port, args.allow_host))


if __name__ == "__main__":
    main()

"""Serve HTTP while a worker runs in the background, and end both together."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from kubeloop.serving import bodies
from kubeloop.serving.process import Server

Work = Callable[[asyncio.Event], Awaitable[None]]

_FINISH_S = 25.0
"""Time that requests in flight have to finish; a pod has 30 s."""
_DRAIN_S = 0.2
"""No wait: no other pod takes the requests, or, with two triggers, the monitor's outbox sends them again."""


class _App:
    """An application that is not ready once it is told to stop."""

    draining = False

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.draining and scope.get("path") == "/readyz":
            await PlainTextResponse("shutting down", 503)(scope, receive, send)
            return
        # A client that leaves before its request is complete is not our error, so we log no traceback.
        with contextlib.suppress(bodies.ClientGoneError):
            await self._app(scope, receive, send)


async def serve(app: ASGIApp, host: str, port: int, work: Work, metrics_port: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the worker ends; print `ready <url>` once it listens.

    Args:
        app: the application, behind its guard.
        host: address to bind.
        port: port to bind; 0 lets the system pick one.
        work: the worker; it ends soon after its event is set. Its exception is raised here, since a service that
            answers but does nothing would hide the failure.
        metrics_port: a second port, of `metrics_port.MetricsPort`.
    """
    with socket.create_server((host, port)) as listener:
        server = Server(_App(app), host, port, timeout_s=_FINISH_S, drain_s=_DRAIN_S, metrics_port=metrics_port)
        stop = asyncio.Event()
        worker = asyncio.ensure_future(work(stop))
        worker.add_done_callback(lambda _: setattr(server, "should_exit", True))
        await server.serve(sockets=[listener])
        stop.set()
        await worker

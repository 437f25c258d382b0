"""Run an ASGI application as a process: announce its port, and stop without losing a request.

Every service of ours is such a process: the predictor, the transformer, the node and the collector call `run`, the
trigger, the monitor and the mirror `background.serve`. `front` and `bounds` limit their clients.
"""

import asyncio
import contextlib
import gc
import logging
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import uvicorn

from kubeloop.serving import MOST_DRAINS, bounds, front
from kubeloop.serving.metrics_port import MetricsPort

log = logging.getLogger("kubeloop.serving")

_SETTLE_S = 0.5
_LOOK_S = 0.5


class Application(Protocol):
    """An ASGI application that still answers but is no longer ready once `draining` is set."""

    draining: bool

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""


@runtime_checkable
class Prompt(Protocol):
    """An application that can answer some requests without waiting for anything."""

    def at_once(self, post: bounds.Post) -> bounds.Answer | None:
        """Answer; None if it needs a task and `__call__`."""


class Server(uvicorn.Server):
    """uvicorn with a port that it announces, and a stop that does not lose a request.

    On SIGTERM or SIGINT it is no longer ready and says with every answer that the client should leave: to the next hop
    by `connection: close`, and to a client behind a proxy, which drops that header, by `LEAVE`. It keeps listening for
    at least `drain_s`, and then until no inference request has arrived for as long, at most `MOST_DRAINS` times
    `drain_s`. Until then routers still know its address, and KServe's agent in front of it serves kept-alive
    connections as long as they are used (cmd/agent/main.go). If the server stopped listening, each of their requests
    would become a 502.
    """

    def __init__(
        self,
        app: Application,
        host: str,
        port: int,
        *,
        timeout_s: float,
        drain_s: float = 0.5,
        metrics_port: int | None = None,
        turned_away: Callable[[], None] | None = None,
    ) -> None:
        """Set up the server; nothing is bound yet.

        Args:
            app: the application.
            host: address to bind.
            port: port to bind; 0 picks one.
            timeout_s: time that open requests get at the end.
            drain_s: see above; it is longer than clients keep an idle connection.
            metrics_port: a second port, of `metrics_port.MetricsPort`.
            turned_away: see `bounds.State`.
        """
        self._host = host
        self._metrics_port = metrics_port
        shown = app if metrics_port is None else MetricsPort(app, metrics_port)
        config = uvicorn.Config(
            shown,
            host=host,
            port=port,
            loop="uvloop",
            http=front.PROTOCOL,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(timeout_s) + 1,
        )
        super().__init__(config)
        self.server_state: bounds.State = bounds.State()
        if isinstance(shown, Prompt):
            self.server_state.at_once = shown.at_once
        if turned_away is not None:
            self.server_state.turned_away = turned_away
        # Connections that wait to be accepted also take descriptors, all at once.
        config.backlog = min(config.backlog, self.server_state.most)
        self._app = app
        self._drain_s = drain_s
        self.url = ""
        """Where it listens, once it is started."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening and print `ready <url>`."""
        self._look()
        if self._metrics_port is not None:
            # uvicorn closes its sockets, even those that it did not bind.
            own = sockets or [_bind(self._host, self.config.port)]
            sockets = [*own, _bind(self._host, self._metrics_port)]
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        # The objects that exist now stay, so the garbage collector need not scan them again.
        gc.collect()
        gc.freeze()
        print(f"ready {self.url}", flush=True)

    async def on_tick(self, _counter: int) -> bool:
        """Return whether to stop; uvicorn's own method would overwrite the time that `bounds.State` sets."""
        return self.should_exit

    def _look(self) -> None:
        self.server_state.look()
        self._next_look = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT, and return; uvicorn would raise them again and skip the code after it."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop being ready at once, and begin to stop."""
        self._app.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then stop as uvicorn does."""
        self._app.draining = True
        log.info("draining")
        await self._drain()
        # Not all at once: a client that was told to leave returns on a new connection, which is reset if it waits to be
        # accepted when the listener closes. So the last clients keep their connections while it closes.
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
        self._next_look.cancel()
        # Libraries in C report objects that the last collection could not see as leaks.
        gc.unfreeze()
        log.info("stopped")

    async def _drain(self) -> None:
        """Serve until requests stop."""
        state, step = self.server_state, self._drain_s / 20
        state.leaving = True
        began = time.monotonic()
        await asyncio.sleep(self._drain_s)
        while state.quiet_s() < self._drain_s and time.monotonic() - began < MOST_DRAINS * self._drain_s:
            await asyncio.sleep(step)


def _bind(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def run(server: Server, sockets: list[socket.socket] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a signal before the server begins ends the process with status 0."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, leave)
    server.run(sockets)


def log_to_stderr() -> None:
    """Write one line per event to standard error; from libraries, only warnings."""
    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=form)
    logging.getLogger("kubeloop").setLevel(logging.INFO)

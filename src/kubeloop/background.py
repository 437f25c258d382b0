"""Serve HTTP while a worker goes on beside it, and end both together."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn

from kubeloop.serving.guard import Guard

Work = Callable[[asyncio.Event], Awaitable[None]]


class _Server(uvicorn.Server):
    """A uvicorn server that says when it listens, and leaves by returning, so that cleaning up can follow."""

    def __init__(self, settings: uvicorn.Config, address: str) -> None:
        super().__init__(settings)
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(f"ready {self._address}", flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


async def serve(app: Guard, host: str, port: int, work: Work) -> None:
    """Serve until SIGTERM or SIGINT, or until the worker ends; print `ready <url>` once it listens.

    Args:
        app: the application, behind its guard.
        host: address to bind.
        port: port to bind; 0 lets the system pick one.
        work: the worker; it ends soon after the event that it is given is set. What it raises is raised here, since
            a service that answers but does nothing would hide its failure.
    """
    with socket.create_server((host, port)) as listener:
        server = _Server(
            uvicorn.Config(app, log_config=None, access_log=False), f"http://{host}:{listener.getsockname()[1]}"
        )
        stop = asyncio.Event()
        worker = asyncio.ensure_future(work(stop))
        worker.add_done_callback(lambda _: setattr(server, "should_exit", True))
        await server.serve(sockets=[listener])
        stop.set()
        await worker

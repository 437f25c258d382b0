"""Measure the client's CPU time of a request to the next server, with our own client and with aiohttp.

Both take turns in asking the same minimal server in another process, over 16 connections with bodies of about 500
bytes.

    .venv/bin/python benchmarks/upstream.py
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import uvloop

from kubeloop.serving.upstream import Client

BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[0.5]}]}' * 8
ANSWER = b'{"outputs":[{"name":"probability","datatype":"FP32","shape":[1],"data":[0.5]}]}'
HEADERS = [(b"content-type", b"application/json"), (b"ce-id", b"abc")]
PATH = "/v2/models/m/infer"
CONNECTIONS, ROUNDS = 16, 5

Ask = Callable[[], Awaitable[None]]


class Bare(asyncio.Protocol):
    """Gives every request of this benchmark the same answer, and reads only its length."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport, self._read = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer complete requests."""
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0 and len(self._read) >= end + 4 + len(BODY):
            self._read = self._read[end + 4 + len(BODY) :]
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            self._transport.write(head + ANSWER)  # type: ignore[attr-defined]


def serve(listener: socket.socket) -> None:
    """Serve until the process is ended."""

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Bare, sock=listener)
        await server.serve_forever()

    uvloop.run(forever())


async def ours(url: str, stack: AsyncExitStack) -> Ask:
    """Return a function that sends one request with our client."""
    client = Client()
    stack.callback(client.close)

    async def ask() -> None:
        answer = await client.send(url, "POST", PATH.encode(), HEADERS, BODY, timeout_s=10)
        assert answer.body == ANSWER

    return ask


async def theirs(url: str, stack: AsyncExitStack) -> Ask:
    """Return a function that sends one request with aiohttp, without everything that a proxy does not need."""
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )
    )
    headers = {name.decode(): value.decode() for name, value in HEADERS}

    async def ask() -> None:
        async with session.post(url + PATH, data=BODY, headers=headers) as answer:
            assert await answer.read() == ANSWER

    return ask


async def measure(make: Callable[[str, AsyncExitStack], Awaitable[Ask]], url: str, requests: int) -> float:
    """Return the CPU of one request in microseconds."""
    async with AsyncExitStack() as stack:
        ask = await make(url, stack)

        async def many(count: int) -> None:
            for _ in range(count):
                await ask()

        await asyncio.gather(*(many(10) for _ in range(CONNECTIONS)))
        each = requests // CONNECTIONS
        began = time.process_time()
        await asyncio.gather(*(many(each) for _ in range(CONNECTIONS)))
        return (time.process_time() - began) / (each * CONNECTIONS) * 1e6


def main() -> None:
    """Measure both in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000, help="of each client in each round")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = multiprocessing.get_context("fork").Process(target=serve, args=(listener,), daemon=True)
        process.start()
        clients = {"ours": ours, "aiohttp": theirs}
        found: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(ROUNDS):
            for name, make in clients.items():
                found[name].append(uvloop.run(measure(make, url, options.requests)))
        process.terminate()
    medians = {name: round(statistics.median(values), 1) for name, values in found.items()}
    ratio = round(medians["aiohttp"] / medians["ours"], 1)
    print(json.dumps({"cpu_us_per_request": medians, "ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()

"""The HTTP client against servers that answer in every correct and every wrong way."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kubeloop.serving.upstream import Answer, Client, UpstreamError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Kept: \xe4\r\n\r\nhi"


async def with_server(
    script: Callable[[int, int, asyncio.StreamWriter], Awaitable[None]],
    work: Callable[[Client, str], Awaitable[object]],
) -> tuple[object, list[bytes]]:
    """Run `work` against a server; `script` gets the connection's number and the request's number on it, and writes."""
    heads: list[bytes] = []
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        mine = connections
        for number in range(1, 100):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            heads.append(head + await reader.readexactly(int(length or 0)))
            await script(mine, number, writer)
            if writer.is_closing():
                break

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    client = Client()
    try:
        return await work(client, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), heads
    finally:
        client.close()
        server.close()


def ask(client: Client, url: str, method: str = "POST", **kwargs: object) -> Awaitable[Answer]:
    return client.send(url, method, b"/path?x=1", [(b"x-mark", b"\xe4")], b"body", timeout_s=1.0, **kwargs)


def write(*pieces: bytes, close: bool = False) -> Callable[[int, int, asyncio.StreamWriter], Awaitable[None]]:
    async def script(_connection: int, _request: int, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.005)
        if close:
            writer.close()

    return script


@pytest.mark.parametrize(
    ("script", "body"),
    [
        (write(OK), b"hi"),
        (write(*(OK[n : n + 1] for n in range(len(OK)))), b"hi"),
        (write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", b"1\r\n!\r\n0\r\n\r\n"), b"hi!"),
        (write(b"HTTP/1.1 200 OK\r\n\r\nuntil ", b"the end", close=True), b"until the end"),
        (write(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", close=True), b"hi"),
        (write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", OK), b"hi"),
        (write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), b""),
    ],
    ids=["whole", "byte by byte", "chunked", "until close", "http 1.0", "early hints", "empty"],
)
def test_every_kind_of_answer(script, body):
    async def work(client: Client, url: str) -> list[Answer]:
        return [await ask(client, url), await ask(client, url)]

    answers, heads = asyncio.run(with_server(script, work))
    assert [(answer.status, answer.body) for answer in answers] == [(200, body)] * 2
    assert heads[0].startswith(b"POST /path?x=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert heads[0].endswith(b"\r\nx-mark: \xe4\r\ncontent-length: 4\r\n\r\nbody")


def test_headers_are_bytes_with_names_in_lower_case():
    answer, _ = asyncio.run(with_server(write(OK), ask))
    assert answer.headers == [(b"content-length", b"2"), (b"x-kept", b"\xe4")]


def test_answer_to_head_has_no_body():
    script = write(b"HTTP/1.1 200 OK\r\ncontent-length: 700\r\n\r\n")

    async def work(client: Client, url: str) -> list[Answer]:
        return [await ask(client, url, "HEAD"), await ask(client, url, "HEAD")]

    answers, _ = asyncio.run(with_server(script, work))
    assert [(a.body, a.headers) for a in answers] == [(b"", [(b"content-length", b"700")])] * 2


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (write(b"", close=True), UpstreamError),
        (write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal", close=True), UpstreamError),
        (write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal", close=True), UpstreamError),
        (write(b"SSH-2.0-OpenSSH\r\n"), UpstreamError),
        (write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal"), TimeoutError),
        (write(b""), TimeoutError),
    ],
    ids=["closes", "half a body", "half a chunk", "not http", "stalls in the body", "silent"],
)
def test_every_kind_of_failure(script, error):
    with pytest.raises(error):
        asyncio.run(with_server(script, ask))


def test_nobody_listens():
    with pytest.raises(UpstreamError, match="does not accept a connection"):
        asyncio.run(ask(Client(), "http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (OK, 1),
        (OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), 3),
        (OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstray!", 3),
    ],
    ids=["kept", "closed", "stray answer"],
)
def test_a_connection_is_used_again_only_when_it_may(answer, connections):
    seen: set[int] = set()

    async def script(connection: int, _: int, writer: asyncio.StreamWriter) -> None:
        seen.add(connection)
        writer.write(answer)

    async def work(client: Client, url: str) -> list[bytes]:
        return [(await ask(client, url)).body for _ in range(3)]

    bodies, _ = asyncio.run(with_server(script, work))
    assert bodies == [b"hi"] * 3
    assert len(seen) == connections


def test_each_of_many_requests_at_once_gets_its_own_answer():
    async def script(_connection: int, _request: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        name = b"%d" % writer.get_extra_info("peername")[1]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(name), name))

    async def work(client: Client, url: str) -> list[Answer]:
        return await asyncio.gather(*(ask(client, url) for _ in range(20)))

    answers, _ = asyncio.run(with_server(script, work))
    assert len({answer.body for answer in answers}) == 20


def test_a_fresh_connection_gets_past_one_that_the_server_closed():
    async def script(connection: int, request: int, writer: asyncio.StreamWriter) -> None:
        if (connection, request) == (1, 2):
            writer.close()
        else:
            writer.write(OK)

    async def work(client: Client, url: str) -> Answer:
        await ask(client, url)
        with pytest.raises(UpstreamError):
            await ask(client, url)
        return await ask(client, url, fresh=True)

    answer, _ = asyncio.run(with_server(script, work))
    assert answer.body == b"hi"

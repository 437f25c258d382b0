"""Clients that are slow, too many or never read: they are cut off in time, and all others are answered meanwhile."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.front.conftest import Run
from tests.hostile.front.servers import SHORT, Server, content, rest, serve, status, statuses

GENEROUS = Path(__file__).parent / "generous.py"
MANY = 300
GET = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


def at_once(servers: dict[str, Server], work: Callable[[Server], None]) -> None:
    """Run a function against every server at the same time."""
    failed: list[BaseException] = []

    def guarded(server: Server) -> None:
        try:
            work(server)
        except BaseException as error:  # noqa: BLE001 - raised below
            error.add_note(server.name)
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(server,)) for server in servers.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failed:
        raise failed[0]


def drip(server: Server, begin: bytes, drop: bytes, seconds: float) -> bytes:
    """Send data, then a little of it repeatedly, and return what comes back."""
    with server.connect() as connection:
        connection.sendall(begin)
        until = time.monotonic() + seconds
        connection.settimeout(0.1)
        while time.monotonic() < until:
            with contextlib.suppress(ConnectionError):
                connection.sendall(drop)
            with contextlib.suppress(TimeoutError):
                return rest(connection)
        return b"not cut off"


@pytest.mark.parametrize("what", ["head", "body", "chunks", "silence"])
def test_slow_clients_are_cut_off(every: dict[str, Server], what: str) -> None:
    def check(server: Server) -> None:
        begin, drop = {
            "head": (server.head(), b"x: y\r\n"),
            "body": (server.head("content-length: 1000") + b"\r\n", b" "),
            "chunks": (server.head("transfer-encoding: chunked") + b"\r\n", b"1\r\n \r\n"),
            "silence": (b"", b""),
        }[what]
        assert statuses(drip(server, begin, drop, 10)) == [408]
        assert server.alive()

    at_once(every, check)


def test_idle_connections_are_closed_without_a_word(every: dict[str, Server]) -> None:
    def check(server: Server) -> None:
        with server.connect() as connection:
            connection.sendall(server.whole())
            begun = time.monotonic()
            assert statuses(rest(connection)) == [server.status]
            assert SHORT["IDLE_S"] - 0.1 <= time.monotonic() - begun < SHORT["IDLE_S"] + 3

    at_once(every, check)


def test_a_client_that_keeps_asking_is_not_idle(every: dict[str, Server]) -> None:
    def check(server: Server) -> None:
        pieces = [server.whole(), SHORT["IDLE_S"] / 4] * 8
        assert statuses(server.ask(*pieces, half=True)) == [server.status] * 8

    at_once(every, check)


@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (b"", b"x-%d: y\r\n" * 20),
        (b"x: ", b"y" * 10_000),
        (b"transfer-encoding: chunked\r\n\r\n1;x=", b"y" * 10_000),
        (b"transfer-encoding: chunked\r\n\r\n0\r\nx: ", b"y" * 10_000),
        (b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 1000),
    ],
)
def test_what_never_becomes_a_body_is_not_kept(every: dict[str, Server], begin: bytes, drop: bytes) -> None:
    def check(server: Server) -> None:
        before, until = server.resident(), time.monotonic() + 6
        with server.connect() as connection:
            connection.sendall(server.head() + begin)
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < until:
                    connection.sendall(drop)
            assert time.monotonic() < until, "the server listened without end"
        assert server.resident() - before < 10_000_000
        assert server.alive()

    at_once(every, check)


def test_ten_thousand_requests_at_once_are_too_many(server: Server) -> None:
    before = server.resident()
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(server.whole() * (4_000_000 // len(server.whole())))
        with contextlib.suppress(ConnectionError):
            rest(connection)
    assert server.resident() - before < 60_000_000
    assert server.alive()


def deaf(server: Server) -> socket.socket:
    """Return a connection that sends as many requests as possible and never reads."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.sendall(GET * 8)
    return connection


def test_clients_that_never_read_cost_bounded_memory_for_a_limited_time(tmp_path: Path) -> None:
    with serve("generous", GENEROUS, folder=tmp_path) as server, contextlib.ExitStack() as stack:
        assert server.alive()
        before = server.resident()
        most = 0
        for number in range(MANY):
            stack.enter_context(deaf(server))
            if number % 20 == 0:
                most = max(most, server.resident())
        # Copying a gigabyte takes a moment.
        server.ask(GET.replace(b"/ ", b"/healthz ").replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        most = max(most, server.resident())
        until = time.monotonic() + 30
        while server.resident() - before > 50_000_000:
            assert time.monotonic() < until, "memory is freed although every client is still connected"
            assert server.alive()
            time.sleep(0.2)
        assert most - before < 150_000_000, "64 MiB of answers, and the allocator's overhead"
        assert "unread answers" in logged(server)


def logged(server: Server) -> str:
    """Return the log after the front has had time to write to it."""
    time.sleep(0.7)
    return server.log.read_text()


def test_a_client_that_reads_slowly_gets_all_of_its_answer(tmp_path: Path) -> None:
    with serve("generous", GENEROUS, folder=tmp_path) as server, server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        received = 0
        while chunk := connection.recv(32768):
            received += len(chunk)
            time.sleep(0.03)
        assert received > 2**21


def test_bodies_that_are_never_finished_are_bounded(tmp_path: Path) -> None:
    limits = SHORT | {"BODIES_BYTES": 10_000_000}
    with serve("generous", GENEROUS, folder=tmp_path, limits=limits) as server, contextlib.ExitStack() as stack:
        assert server.alive()
        before = server.resident()
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 900001\r\n\r\n"
        for _ in range(40):
            connection = stack.enter_context(server.connect())
            with contextlib.suppress(ConnectionError):
                connection.sendall(head + b"x" * 900_000)
        assert server.alive()
        assert server.resident() - before < 60_000_000
        assert "unfinished bodies" in logged(server)


@pytest.mark.parametrize("name", ["collector", "trigger", "predictor", "node"])
def test_few_descriptors_are_enough_for_everyone_who_asks(run: Run, name: str) -> None:
    """400 connections that send nothing or never finish their request, against a process with 300 file descriptors."""
    with run(name, files=300, limits={}) as server, contextlib.ExitStack() as stack:
        assert server.alive()
        for number in range(400):
            connection = stack.enter_context(server.connect())
            with contextlib.suppress(ConnectionError):
                connection.sendall((b"", server.head(), server.head("content-length: 10") + b"\r\n{")[number % 3])
            if number % 50 == 0:
                assert server.alive()
        for _ in range(20):
            assert server.alive()
            assert status(server.ask(server.whole("connection: close"))) == server.status


def test_requests_that_find_no_room_count_as_failed(run: Run) -> None:
    """The application does not see them, so without this count alerts would not see them either."""
    with run("predictor", limits={"BODIES_BYTES": 1000, "SMALL_BYTES": 100}) as server:
        large = server.head("content-length: 4000") + b"\r\n" + b" " * 2000
        assert status(server.ask(large)) == 503
        assert server.alive()
        scrape = content(server.ask(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")).decode()
        found = dict(re.findall(r'kubeloop_inferences_total\{outcome="(\w+)"\} (.+)', scrape))
        assert found == {"answered": "0.0", "refused": "0.0", "failed": "1.0"}


def answered(connection: socket.socket) -> bool:
    """Read the answer to a GET of /healthz."""
    received = b""
    while not received.endswith(b"\r\n\r\nok") and (chunk := connection.recv(4096)):
        received += chunk
    return received.startswith(b"HTTP/1.1 200")


def test_probes_get_through_while_all_connections_are_answered(tmp_path: Path) -> None:
    limits = {"CONNECTIONS": 20}
    with serve("generous", GENEROUS, folder=tmp_path, limits=limits) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(20)]
        for connection in slow:
            connection.sendall(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        time.sleep(0.3)
        assert server.alive()
        posted = server.ask(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        assert status(posted) == 503
        assert b"too many connections" in posted
        assert [statuses(rest(connection)) for connection in slow] == [[200]] * 20
        # If no connection waits for an answer, the longest idle one is closed to make room.
        idle = []
        for _ in range(30):
            connection = stack.enter_context(server.connect())
            idle.append(connection)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answered(connection)
        assert server.alive()
        assert rest(idle[0]) == b""
        idle[-1].sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert answered(idle[-1])

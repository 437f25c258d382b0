"""After SIGTERM every server finishes the requests that it has begun."""

import time

import pytest

from tests.hostile.front.conftest import EVERY, Run
from tests.hostile.front.servers import rest, statuses


@pytest.mark.parametrize("name", EVERY)
def test_a_request_under_way_is_finished(run: Run, name: str) -> None:
    with run(name, limits={}) as server, server.connect() as connection, server.connect() as deaf:
        deaf.sendall(b"GET / HTT")
        half = len(server.body) // 2
        connection.sendall(server.head(f"content-length: {len(server.body)}") + b"\r\n" + server.body[:half])
        time.sleep(0.2)
        server.process.terminate()
        time.sleep(0.1)
        connection.sendall(server.body[half:])
        begun = time.monotonic()
        assert statuses(rest(connection)) == [server.status]
        assert server.process.wait(20) == 0
        assert time.monotonic() - begun < 5
        assert "Traceback" not in server.log.read_text()

"""A request body is bounded in size and time, whatever its head claims."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from kubeloop.serving import bodies

Message = dict[str, Any]


def part(body: bytes, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def read(messages: Sequence[Message], most: int = 10, **more: Any) -> bytes:
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    length = more.pop("length", b"")
    headers = {b"content-length": length} if length else {}
    return asyncio.run(bodies.read(headers, receive, most, **more))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([part(b"", False)], b""),
        ([part(b"0123456789", False)], b"0123456789"),
        ([part(b"01234", True), part(b"", True), part(b"56789", False)], b"0123456789"),
        ([{"type": "http.request"}], b""),
    ],
)
def test_whole_bodies(messages: Sequence[Message], expected: bytes) -> None:
    grown: list[int] = []
    assert read(messages, grow=grown.append) == expected
    assert sum(grown) == len(expected)


@pytest.mark.parametrize(
    ("messages", "length"),
    [
        ([part(b"0123456789a", False)], b""),
        ([part(b"01234", True), part(b"56789a", True)], b"3"),
        ([], b"11"),
    ],
    ids=["at once", "in parts", "declared"],
)
def test_too_large(messages: Sequence[Message], length: bytes) -> None:
    with pytest.raises(bodies.TooLargeError) as refused:
        read(messages, length=length)
    assert refused.value.status == 413


def test_too_slow() -> None:
    with pytest.raises(bodies.TooSlowError) as refused:
        read([part(b"0", True)], timeout_s=0.01)
    assert refused.value.status == 408


def test_the_client_leaves() -> None:
    with pytest.raises(bodies.ClientGoneError):
        read([part(b"0", True), {"type": "http.disconnect"}])


def test_the_memory_budget_may_refuse() -> None:
    def full(_: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        read([part(b"0", True)], grow=full)

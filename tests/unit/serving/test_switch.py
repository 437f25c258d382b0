"""Switches under load behind KServe's agent: promotion, rollback, scale-down, a replaced transformer.

No request fails in any of them.
"""

import asyncio
import contextlib
import heapq
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop.payloads import cloudevents, decode, segments
from kubeloop.serving import MOST_DRAINS
from kubeloop.serving.http import App, Limits
from kubeloop.serving.metrics import Metrics
from kubeloop.serving.process import Server
from kubeloop.serving.transformer import Transformer
from kubeloop.tasks.binary.task import BINARY
from tests.unit.serving.cluster import Agent, Caller, Pod, Service

CALLERS = 32
DRAIN_S = 0.5
GRACE_S = MOST_DRAINS * DRAIN_S + 0.5
PATH = "/v2/models/flights/infer"
BODY = json.dumps({"inputs": [{"name": "hour", "datatype": "FP32", "shape": [1], "data": [5.0]}]}).encode()


@dataclass
class Column:
    name: str
    datatype: str


class Constant:
    """Features that need no store."""

    fields = (Column("hour", "FP32"),)
    features = (Column("distance", "FP32"), Column("hour", "FP32"), Column("carrier", "BYTES"))

    def read(self, columns: dict[str, list[Any]], _at: object) -> dict[str, list[Any]]:
        return {"distance": [10.0], "hour": columns["hour"], "carrier": ["AA"]}


@contextlib.contextmanager
def transformer(predictor: int) -> Iterator[Server]:
    app = App(Transformer(Constant(), "flights", f"127.0.0.1:{predictor}", Limits(), Metrics()))
    server = Server(app, "127.0.0.1", 0, timeout_s=5, drain_s=DRAIN_S)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.url:
        time.sleep(0.01)
    yield server
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def port(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


class World:
    """One predictor Service with its pods, and callers of any port."""

    def __init__(self, models: Path, start: Callable[..., Any]) -> None:
        self._models, self._start = models, start
        self.service = Service([])
        self.agents: list[Agent] = []

    async def pod(self, version: str) -> Pod:
        """Start a pod, and add it to the Service once it is ready."""
        flags = ("--model-dir", self._models / "columns", "--name=flights", f"--version={version}")
        server = await asyncio.to_thread(self._start, *flags, drain_s=DRAIN_S)
        agent = Agent(int(server.url.rpartition(":")[2]))
        await agent.start()
        self.agents.append(agent)
        self.service.endpoints.append(agent.port)
        return Pod(server.process, agent)

    @contextlib.asynccontextmanager
    async def load(self, target: int, pause_s: float = 0.02) -> AsyncIterator[list[Caller]]:
        """Call `target` until the block ends; every call must get a 200."""
        callers, until = [Caller(target, PATH, BODY) for _ in range(CALLERS)], asyncio.Event()
        tasks = [asyncio.create_task(caller.run(until, pause_s)) for caller in callers]
        await asyncio.sleep(0.3)
        yield callers
        await asyncio.sleep(0.3)
        until.set()
        await asyncio.gather(*tasks)
        assert [failure for caller in callers for failure in caller.failures] == []
        assert min(len(caller.answers) for caller in callers) > 1

    def ids(self, kind: str) -> list[str]:
        events = [event.headers for agent in self.agents for event in agent.events]
        return [headers["ce-id"] for headers in events if headers["ce-type"].endswith(kind)]

    def decoded(self) -> decode.Decoded:
        """Decode the events as the collector and the monitor do, in the order in which several pods sent them."""
        sent = heapq.merge(*(agent.events for agent in self.agents), key=lambda event: event.at)
        rows = []
        for seq, event in enumerate(sent, 1):
            headers = {name.encode(): value.encode() for name, value in event.headers.items()}
            rows += [(seq, *found) for found in cloudevents.parse(headers, event.body, received_at=seq)]
        return decode.decode(BINARY, segments.table_of(rows), service="flights")


@pytest.fixture
def world(models: Path, start: Callable[..., Any]) -> World:
    return World(models, start)


def test_promotion_rollback_and_scale_down_lose_no_request(world: World) -> None:
    async def run() -> None:
        await world.service.start()
        old = await world.pod("3")
        with transformer(world.service.port) as front:
            async with world.load(port(front)) as callers:
                new = await world.pod("4")
                await old.delete(world.service, GRACE_S)
                back = await world.pod("3")
                await new.delete(world.service, GRACE_S)
                second = await world.pod("3")
                await back.delete(world.service, GRACE_S)
            asked = sum(len(caller.answers) for caller in callers)
            await second.agent.kill()
        world.service.stop()
        decoded = world.decoded()
        assert len(decoded.predictions) == asked
        assert set(decoded.predictions["model_version"].to_pylist()) == {"3", "4"}
        assert (decoded.malformed, decoded.ambiguous, decoded.unpaired.num_rows) == (0, 0, 0)

    asyncio.run(run())


def test_callers_that_are_seldom_heard_lose_nothing_either(world: World) -> None:
    async def run() -> None:
        await world.service.start()
        old = await world.pod("3")
        # Nearly as long as a server drains: the connection, which got no notice, is used just before the pod ends.
        with transformer(world.service.port) as front:
            async with world.load(port(front), pause_s=0.9 * DRAIN_S) as callers:
                new = await world.pod("4")
                await asyncio.sleep(3)
                await old.delete(world.service, GRACE_S)
                await asyncio.sleep(2)
            await new.agent.kill()
        world.service.stop()
        assert callers

    asyncio.run(run())


def test_connections_to_an_agent_whose_server_died_lead_nowhere_only_once(world: World) -> None:
    async def run() -> None:
        await world.service.start()
        broken = await world.pod("3")
        with transformer(world.service.port) as front:
            async with world.load(port(front)):
                whole = await world.pod("3")
                # Without a SIGTERM, no client was told to leave: the agent answers 502 on each kept connection.
                world.service.endpoints.remove(broken.agent.port)
                broken.process.kill()
                await asyncio.sleep(0.5)
            await asyncio.gather(broken.agent.kill(), whole.agent.kill())
        world.service.stop()
        asked = world.ids("request")
        assert len(set(asked)) < len(asked), "some requests were sent twice"
        assert sorted(world.ids("response")) == sorted(set(asked)), "and are logged once"
        assert len(world.decoded().predictions) == len(set(asked))

    asyncio.run(run())


def test_a_transformer_that_is_replaced_loses_no_request(world: World) -> None:
    async def run() -> None:
        await world.service.start()
        pod = await world.pod("3")
        front = Service([])
        await front.start()
        with transformer(world.service.port) as old, transformer(world.service.port) as new:
            front.endpoints.append(port(old))
            async with world.load(front.port):
                front.endpoints.append(port(new))
                # Callers keep connections to the old transformer, whose endpoint goes only a moment after SIGTERM.
                old.should_exit = True
                await asyncio.sleep(0.1)
                front.endpoints.remove(port(old))
                await asyncio.sleep(GRACE_S)
        await pod.agent.kill()
        front.stop()
        world.service.stop()

    asyncio.run(run())


def test_probes_of_the_transformer_are_not_traffic(world: World) -> None:
    async def run() -> None:
        await world.service.start()
        with transformer(world.service.port) as front:
            async with httpx.AsyncClient() as http:

                async def ready() -> int:
                    return (await http.get(f"{front.url}/v2/health/ready")).status_code

                pod = await world.pod("3")
                assert {await ready() for _ in range(5)} == {200}
                pod.agent.draining = True
                assert await ready() == 503
                # The state of a draining pod says nothing about the next pod.
                other = await world.pod("4")
                world.service.endpoints.remove(pod.agent.port)
                assert {await ready() for _ in range(5)} == {200}
                other.process.kill()
                other.process.wait()
                assert await ready() == 503
            await asyncio.gather(pod.agent.kill(), other.agent.kill())
        world.service.stop()
        assert world.ids("request") == []

    asyncio.run(run())

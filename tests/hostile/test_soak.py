"""A soak test with random kills: what clients were answered equals what the log holds and what the node dropped.

Clients ask a real node without a pause while the collector and the predictors are killed at random and versions are
switched. No answered prediction may be lost without being counted or be logged twice, and none may be logged that no
client got.
"""

import contextlib
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from kubeloop.payloads import decode, segments
from kubeloop.tasks.binary.task import BINARY
from tests.hostile.conftest import WHOLE
from tests.hostile.front.servers import free_port
from tests.unit.node.conftest import Kit, NodeProcess, eventually
from tests.unit.node.conftest import kit as kit
from tests.unit.node.test_real_server import NODE, save

SECONDS = 180.0 if WHOLE else 8.0
CLIENTS = 6
QUEUE = 400
"""Predictions that the node holds while the collector is away: few, so that some are dropped and counted."""


@dataclass
class Collector:
    """The collector at one address, over several starts."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        flags = ("--dir", self.folder, "--port", self.port, "--flush-rows", 50, "--flush-seconds", 0.2)
        command = [sys.executable, "-m", "kubeloop.payloads.collector", *map(str, flags)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline().startswith("ready ")

    def end(self, how: str) -> None:
        assert self.process
        getattr(self.process, how)()
        self.process.communicate(timeout=60)


@dataclass
class Clients:
    """The answers to clients by event id: a status, or None if no answer came."""

    url: str
    answers: dict[str, int | None] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, number: int) -> None:
        with httpx.Client(timeout=30, trust_env=False) as http:
            for turn in itertools.count():
                if self.stop.is_set():
                    return
                event = f"{number}-{turn}"
                body = {
                    "parameters": {"event_ids": json.dumps([event])},
                    "inputs": [{"name": "distance", "datatype": "FP32", "shape": [1, 1], "data": [float(turn)]}],
                }
                self.answers[event] = None
                with contextlib.suppress(httpx.TransportError):
                    self.answers[event] = http.post(f"{self.url}/v2/models/flights/infer", json=body).status_code
                time.sleep(0.002)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(60)


def kill_predictor(node: NodeProcess, chance: random.Random) -> None:
    """Kill it as the kernel kills a process that uses too much memory."""
    found = [process["pid"] for process in node.processes() if process.get("pid")]
    with contextlib.suppress(psutil.NoSuchProcess):
        if found:
            psutil.Process(chance.choice(found)).kill()


def test_served_is_logged_and_dropped_through_random_kills(kit: Kit) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    collector = Collector(kit.folder / "log")
    collector.start()
    node = kit.node("--log-queue", str(QUEUE), command=NODE)
    versions = [save(kit.folder / "onnx", f"{number}", number / 10) for number in (1, 2)]

    def switch() -> None:
        # The switch may fail, since the new predictor can be killed. Then the old version continues to serve.
        built = kit.manifest(chance.choice(versions), logger_url=f"{collector.url}/")
        del built["spec"]["transformer"]
        with contextlib.suppress(Exception):
            node.apply(built, 20)

    def bounce(how: str) -> None:
        collector.end(how)
        time.sleep(chance.uniform(0, 0.8))
        collector.start()

    actions: dict[str, Callable[[], None]] = {
        "the collector is killed": lambda: bounce("kill"),
        "the collector is stopped": lambda: bounce("terminate"),
        "a predictor is killed": lambda: kill_predictor(node, chance),
        "another version": switch,
    }
    done: Counter[str] = Counter()
    clients = Clients(node.url)
    first = kit.manifest(versions[0], logger_url=f"{collector.url}/")
    del first["spec"]["transformer"]
    node.apply(first)
    try:
        with clients.asking():
            end = time.monotonic() + SECONDS
            # Each kind once, and then a random one.
            queue = chance.sample(sorted(actions), len(actions))
            while queue or time.monotonic() < end:
                what = queue.pop() if queue else chance.choice(sorted(actions))
                actions[what]()
                done[what] += 1
                time.sleep(chance.uniform(0.05, 0.6))
        eventually(lambda: node.get()["queued"] == 0, 60)
        status = node.get()
        httpx.post(f"{collector.url}/flush", timeout=60).raise_for_status()
        found, _ = segments.read(collector.folder)
        logged = Counter(decode.decode(BINARY, found).predictions["event_id"].to_pylist())
    finally:
        collector.end("terminate")
    told = f"seed {seed}: {dict(done)}, {Counter(clients.answers.values())}, {status['dropped']}"
    print(told)
    served = {event for event, code in clients.answers.items() if code == 200}
    assert len(served) > 100, told
    assert max(logged.values()) == 1, told
    assert set(logged) <= served, told
    assert len(logged) + status["dropped"]["predictions"] == len(served), told
    # A client that was not served got an error, on a connection that was not cut.
    assert {code for code in clients.answers.values() if code != 200} <= {502, 503, 504}, told

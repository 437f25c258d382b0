"""Stand-ins for what a cluster has between a transformer and its predictor: kube-proxy, KServe's agent, a kubelet.

Sources: kserve main of August 2026 (cmd/agent/main.go, pkg/logger/handler.go, pkg/logger/worker.go,
pkg/webhook/admission/pod/agent_injector.go) and the versions of knative.dev that its go.mod names
(pkg/network/handlers/drain.go, serving/pkg/queue/health/handler.go).
"""

import asyncio
import contextlib
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

DROPPED = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"} | {
    "content-length"
}
"""The hop-by-hop headers (RFC 9110, 7.6.1), and those that every hop writes itself."""
WORKERS = 5

Headers = dict[str, str]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Message:
    """A request or a response; `start` is its first line."""

    start: str
    headers: Headers
    body: bytes


async def read(reader: asyncio.StreamReader) -> Message | None:
    """Read one message that has a content length, or return None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ConnectionResetError from None
        return None
    start, *lines = head.decode().rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    try:
        return Message(start, headers, await reader.readexactly(int(headers.get("content-length", 0))))
    except asyncio.IncompleteReadError:
        raise ConnectionResetError from None


def written(start: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [start, *(f"{name}: {value}" for name, value in headers.items()), f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Event(NamedTuple):
    """A CloudEvent in binary mode, with the time when it was sent."""

    at: float
    headers: Headers
    body: bytes


@dataclass
class Agent:
    """KServe's agent: a proxy with a payload log, which continues to serve after SIGTERM for the configured time."""

    upstream: int
    events: list[Event] = field(default_factory=list)
    """The events that its workers have sent, in order of arrival."""
    draining: bool = False
    port: int = 0

    async def start(self) -> None:
        self._idle: list[Streams] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(WORKERS)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """SIGKILL: the kernel resets what is open."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._sending)
        for _, writer in self._idle:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError):
            while request := await read(reader):
                status, headers, body = await self._answer(request)
                writer.write(written(f"HTTP/1.1 {status} X", headers, body))
                await writer.drain()
                if request.headers.get("connection") == "close":
                    break
        self._writers.discard(writer)
        writer.close()

    async def _answer(self, request: Message) -> tuple[int, Headers, bytes]:
        if request.headers.get("user-agent", "").startswith("kube-probe/"):
            return await self._health(request.headers.get("k-network-probe", ""))
        # The client's id, if there is one; and the request's content type for both events.
        event = {"id": request.headers.get("ce-id") or str(uuid.uuid4())}
        media = request.headers.get("content-type", "")
        self._log("request", event, media, request.body)
        status, headers, body = await self._forward(request)
        if status == 200:
            self._log("response", event, media, body)
        return status, headers, body

    async def _health(self, kind: str) -> tuple[int, Headers, bytes]:
        if self.draining:
            return 503, {}, b"shutting down\n"
        if kind != "queue":
            return 400, {}, b"unexpected probe header value: " + kind.encode()
        # SERVING_READINESS_PROBE: the server's own readiness probe.
        status, *_ = await self._forward(Message("GET /v2/health/ready HTTP/1.1", {"host": "localhost"}, b""))
        return (200, {}, b"queue") if status == 200 else (503, {}, b"")

    async def _forward(self, request: Message) -> tuple[int, Headers, bytes]:
        kept = {name: value for name, value in request.headers.items() if name not in DROPPED}
        try:
            streams = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self.upstream)
            streams[1].write(written(request.start, kept, request.body))
            answer = await read(streams[0])
            if answer is None:
                raise ConnectionResetError("closed before it answered")
        except ConnectionError as error:
            return 502, {"content-type": "text/plain; charset=utf-8"}, f"{error}\n".encode()
        if answer.headers.get("connection") == "close":
            streams[1].close()
        else:
            self._idle.append(streams)
        headers = {name: value for name, value in answer.headers.items() if name not in DROPPED}
        return int(answer.start.split(" ")[1]), headers, answer.body

    def _log(self, kind: str, event: Headers, media: str, body: bytes) -> None:
        headers = {
            "ce-specversion": "1.0",
            "ce-type": f"org.kubeflow.serving.inference.{kind}",
            "ce-id": event["id"],
            "ce-time": "2026-08-01T00:00:00.123456789Z",
            "ce-recordedtime": "2026-08-01T00:00:00.223456789Z",
            # --source-uri is the pod's name; a Deployment's pod does not have one yet when it is admitted.
            "ce-source": "http://localhost:9081/",
            "ce-inferenceservicename": "flights",
            "ce-namespace": "ml",
            "ce-component": "predictor",
            "ce-endpoint": "",
            "ce-metadata": "{}",
        }
        task = asyncio.create_task(self._send(headers | ({"content-type": media} if media else {}), body))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, headers: Headers, body: bytes) -> None:
        """One of five workers, so an answer can arrive before its request."""
        async with self._free:
            await asyncio.sleep(random.uniform(0, 0.005))
            self.events.append(Event(time.monotonic(), headers, body))


@dataclass
class Service:
    """kube-proxy: a new connection goes to any current endpoint, and an existing one stays with its endpoint."""

    endpoints: list[int]
    port: int = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner = await asyncio.open_connection("127.0.0.1", random.choice(self.endpoints))
        except ConnectionError:
            writer.transport.abort()
            return
        await asyncio.gather(_copy(reader, inner[1]), _copy(inner[0], writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()
    except (ConnectionError, asyncio.CancelledError):
        # asyncio would report each connection's handler that a failing test cancels.
        writer.transport.abort()


@dataclass
class Pod:
    """A predictor's pod: our server, with the agent in front of it."""

    process: subprocess.Popen[str]
    agent: Agent

    async def delete(self, service: Service, grace_s: float, propagation_s: float = 0.1) -> None:
        """Act like a kubelet and the endpoints controller.

        Both containers get SIGTERM at once, and at the same moment the removal of the endpoint begins. After the grace
        period, SIGKILL ends what is left.
        """
        self.process.send_signal(signal.SIGTERM)
        self.agent.draining = True
        await asyncio.sleep(propagation_s)
        service.endpoints.remove(self.agent.port)
        await asyncio.sleep(grace_s - propagation_s)
        self.process.kill()
        await self.agent.kill()


@dataclass
class Caller:
    """A client that keeps its connection as long as it may."""

    port: int
    path: str
    body: bytes
    answers: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    connections: int = 0

    async def run(self, until: asyncio.Event, pause_s: float = 0.0) -> None:
        streams = None
        while not until.is_set():
            try:
                if streams is None:
                    self.connections += 1
                    streams = await asyncio.open_connection("127.0.0.1", self.port)
                reader, writer = streams
                head = {"host": "localhost", "content-type": "application/json"}
                writer.write(written(f"POST {self.path} HTTP/1.1", head, self.body))
                answer = await read(reader)
                if answer is None:
                    raise ConnectionResetError("closed before it answered")
            except ConnectionError as error:
                self.failures.append(repr(error))
                streams = None
                continue
            code = int(answer.start.split(" ")[1])
            self.answers.append(code)
            if code != 200:
                self.failures.append(f"{code}: {answer.body[:200]!r}")
            if answer.headers.get("connection") == "close":
                writer.close()
                streams = None
            await asyncio.sleep(pause_s)
        if streams:
            streams[1].close()

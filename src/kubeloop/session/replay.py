"""Simulate the world around the loop: clients that request predictions, labels that arrive later, and the clock.

The payload log is the replay's memory. A prediction in the log was requested, and a label in the log was delivered;
the missing ones are sent, so a replay that was killed continues where it stopped.
"""

import asyncio
import heapq
import json
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kubeloop import names
from kubeloop.config import Drift, Loop
from kubeloop.errors import KubeloopError

RETRAIN_TIME = timedelta(days=1)
"""How far the simulated clock may advance during a retraining; then the traffic waits for it.

It is at most one window: otherwise a table of one day would be over before the new model serves.
"""

_PACE_S = 0.15
_DRAIN_S = 15.0
_END_S = 15.0


class ReplayError(KubeloopError):
    """The replay cannot continue; the message says why."""

    lasting = False


@dataclass
class Progress:
    """The progress of the replay; `latencies_ms` holds those of the newest requests."""

    begin: datetime
    moment: datetime
    until: datetime
    served: int = 0
    before: int = 0
    errors: int = 0
    requests: int = 0
    labels: int = 0
    last_error: str = ""
    retraining: bool = False
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=2000))
    started: float = field(default_factory=time.monotonic)

    def latency(self, quantile: float) -> float:
        """Return a quantile of the newest requests' latency in milliseconds; NaN before the first."""
        return float(np.quantile(self.latencies_ms, quantile)) if self.latencies_ms else float("nan")

    def measured(self) -> dict[str, float] | None:
        """Return median and 99th percentile of the newest latencies, and their number; None if there are none."""
        if not self.latencies_ms:
            return None
        return {"p50": self.latency(0.5), "p99": self.latency(0.99), "requests": len(self.latencies_ms)}

    def rate(self) -> float:
        """Return predictions per second since the start of this process."""
        return (self.served - self.before) / max(1e-9, time.monotonic() - self.started)


@dataclass(frozen=True)
class Addresses:
    """Base URLs of the services that the clients call."""

    inference: str
    collector: str
    monitor: str
    trigger: str
    login: Mapping[str, str] = field(default_factory=dict)
    """The header with the token of collector and monitor (`access.header`)."""


@dataclass(frozen=True)
class Sent:
    """What the payload log already holds: event ids by kind, and the newest event time."""

    predictions: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()


class Replay:
    """Replays labelled events as traffic, in the order of time.

    Args:
        loop: the use case.
        events: of `features.events` at the moments that are `drawn`.
        addresses: the services.
        materialize: brings the online store up to a moment; called before that moment's requests.
        sent: what an earlier, interrupted replay sent.
        report: called with the progress after each moment.
        note: called with the events of each request, and whether they were answered.
    """

    def __init__(
        self,
        loop: Loop,
        events: pa.Table,
        addresses: Addresses,
        materialize: Callable[[datetime], int],
        sent: Sent,
        report: Callable[[Progress], None],
        note: Callable[[list[str], bool], None],
    ) -> None:
        if loop.replay is None:
            raise ReplayError("loop.yaml has no `replay` section, so there is nothing to replay")
        self._loop = loop
        self._events = events
        self._addresses = addresses
        self._materialize = materialize
        self._sent = sent
        self._report = report
        self._note = note
        self._plan = loop.replay
        self._due: list[tuple[datetime, str, int]] = []
        self.progress = Progress(loop.replay.train_to, loop.replay.train_to, loop.replay.until)

    async def run(self) -> Progress:
        """Replay to the end and return the progress.

        Raises:
            ReplayError: a service stopped answering.
        """
        self.progress.served = self.progress.before = len(self._sent.predictions)
        connector = aiohttp.TCPConnector(limit=8)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as http:
            self._http = http
            self._fields = await self._inputs()
            barriers = deque(_barriers(self._loop.drift, self._plan.train_to, self.progress.until))
            hold: datetime | None = None
            for moment, rows in self._moments():
                while barriers and barriers[0] <= moment:
                    end = barriers.popleft()
                    await self._deliver(end)
                    if await self._advance(end) and hold is None:
                        hold = end + min(RETRAIN_TIME, self._loop.drift.window)
                hold = await self._pace(moment, hold)
                self._materialize(moment)
                await self._answered(self._ask(moment, group) for group in self._groups(rows))
                await self._deliver(moment)
                self.progress.moment = moment
                self._report(self.progress)
            await self._deliver(self.progress.until)
            await self._advance(self.progress.until)
            await self._settle()
            await self._logged()
            self.progress.moment = self.progress.until
            self._report(self.progress)
        return self.progress

    def _moments(self) -> Iterator[tuple[datetime, pa.Table]]:
        """Yield each moment with the events that still have to be requested."""
        events = self._events
        stamps = events["event_timestamp"].to_numpy()
        _, starts = np.unique(stamps, return_index=True)
        ends = np.append(starts[1:], len(stamps))
        known = pa.array(sorted(self._sent.predictions), pa.string())
        told = self._sent.labels
        for start, end in zip(starts, ends, strict=True):
            rows = events.slice(int(start), int(end - start))
            moment: datetime = rows["event_timestamp"][0].as_py()
            asked = pc.is_in(rows["event_id"], known)
            for row in rows.select(["event_id", "label", "label_available_at"]).to_pylist():
                if row["label"] is not None and row["event_id"] not in told:
                    heapq.heappush(self._due, (row["label_available_at"], row["event_id"], row["label"]))
            rows = rows.filter(pc.invert(asked))
            if rows.num_rows:
                yield moment, rows

    def _groups(self, rows: pa.Table) -> Iterator[pa.Table]:
        column = self._plan.group_by
        if column is None:
            yield rows
            return
        for value in pc.unique(rows[column]):
            yield rows.filter(pc.equal(rows[column], value))

    async def _inputs(self) -> list[tuple[str, str]]:
        """Ask the inference service for the inputs that a client must send."""
        metadata = await self._json("GET", f"{self._addresses.inference}/v2/models/{self._loop.name}")
        return [(tensor["name"], tensor["datatype"]) for tensor in metadata["inputs"]]

    async def _ask(self, moment: datetime, rows: pa.Table) -> None:
        """Send one request; a failure is counted."""
        inputs = [
            {"name": name, "datatype": datatype, "shape": [rows.num_rows], "data": _plain(rows[name])}
            for name, datatype in self._fields
        ]
        events: list[str] = rows["event_id"].to_pylist()
        body = {
            "id": str(uuid4()),
            "parameters": {
                "event_ids": json.dumps(events),
                "event_time": moment.isoformat(),
            },
            "inputs": inputs,
        }
        started = time.perf_counter()
        try:
            answer = await self._json(
                "POST", f"{self._addresses.inference}/v2/models/{self._loop.name}/infer", json=body
            )
            rows = (answer["outputs"][0].get("shape") or [None])[0]
            if rows != len(events):
                raise ReplayError(f"answers for {rows} of {len(events)} rows")
            self._note(events, True)
            self.progress.served += rows
        except ReplayError as error:
            self._note(events, False)
            self.progress.errors += len(events)
            self.progress.last_error = str(error)
        self.progress.requests += 1
        self.progress.latencies_ms.append(1000 * (time.perf_counter() - started))

    async def _answered(self, asks: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Wait for the answers, even if the replay is told to end meanwhile, so that every request is counted."""
        begun = asyncio.gather(*asks)
        try:
            await asyncio.shield(begun)
        except asyncio.CancelledError:
            await asyncio.wait([begun], timeout=_END_S)
            raise

    async def _deliver(self, moment: datetime) -> None:
        """Send the labels that have become known."""
        labels = []
        while self._due and self._due[0][0] <= moment:
            known_at, event_id, label = heapq.heappop(self._due)
            labels.append({"event_id": event_id, "label": label, "observed_at": known_at.isoformat()})
        if not labels:
            return
        headers = {
            "ce-specversion": "1.0",
            "ce-type": names.LABEL_EVENT,
            "ce-id": str(uuid4()),
            "ce-source": "kubeloop/replay",
            "ce-time": moment.isoformat(),
            "ce-inferenceservicename": self._loop.name,
            "ce-namespace": self._loop.delivery.namespace,
            "ce-component": "client",
            "ce-endpoint": "default",
            **self._addresses.login,
        }
        await self._json("POST", self._addresses.collector, headers=headers, json={"labels": labels})
        self.progress.labels += len(labels)

    async def _advance(self, until: datetime) -> bool:
        """Let the monitor judge every window that has ended; return whether a run is active now."""
        await self._logged()
        await self._json(
            "POST",
            f"{self._addresses.monitor}/advance",
            headers=self._addresses.login,
            json={"until": until.isoformat()},
        )
        return await self._active()

    async def _logged(self) -> None:
        """Wait until the collector has every payload event, so that a window is complete when it is judged.

        If the collector does not answer, the wait is short, and the events that it misses count as late.
        """
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline:
            status = await self._json("GET", f"{self._addresses.inference}/status")
            if not status["queued"]:
                return
            await asyncio.sleep(0.02)

    async def _active(self) -> bool:
        status = await self._json("GET", f"{self._addresses.trigger}/status")
        return bool(status["active"])

    async def _pace(self, moment: datetime, hold: datetime | None) -> datetime | None:
        """During a retraining, slow down the clients, and stop the clock once it has advanced far enough."""
        while hold is not None:
            self.progress.retraining = await self._active()
            if not self.progress.retraining:
                return None
            self._report(self.progress)
            await asyncio.sleep(_PACE_S)
            if moment < hold:
                return hold
        return None

    async def _settle(self) -> None:
        """Wait until no run is active."""
        while await self._active():
            self.progress.retraining = True
            self._report(self.progress)
            await asyncio.sleep(_PACE_S)
        self.progress.retraining = False

    async def _json(self, method: str, url: str, **options: Any) -> Any:
        try:
            async with self._http.request(method, url, **options) as response:
                text = await response.text()
                if response.status >= 400:
                    raise ReplayError(f"{method} {url}: {response.status} {text[:300]}")
                return json.loads(text) if text else None
        except (TimeoutError, aiohttp.ClientError) as error:
            raise ReplayError(f"{method} {url}: {error or type(error).__name__}") from error


def drawn(moments: npt.NDArray[np.datetime64], sample: float, seed: int) -> npt.NDArray[np.datetime64]:
    """Return the moments whose events are sent: each of [n] with the probability `sample`."""
    return moments[np.random.default_rng(seed).random(len(moments)) < sample]


def _plain(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        return [value.isoformat() for value in column.to_pylist()]
    values: list[Any] = column.to_pylist()
    return values


def _barriers(drift: Drift, start: datetime, until: datetime) -> Iterator[datetime]:
    """Yield the moments at which a window ends or its labels are complete."""
    ends = []
    end = start + drift.window
    while end <= until:
        ends += [end, end + drift.label_wait]
        end += drift.window
    yield from sorted(set(ends))

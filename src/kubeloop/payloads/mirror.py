"""Copy the payload log between a pod's disk and an S3 store, in a process next to the collector or the monitor.

Segments never change, so the mirror lists both places and copies the missing ones. Neither the collector nor the
monitor uses the store: if it is down, segments wait on the collector's disk, and the monitor judges what it has.

Before its first round, and every half a minute, a mirror checks the owner of the store (`bucket.Owner`): it may belong
to another installation or to another collector of the same name.
"""

import argparse
import asyncio
import contextlib
import logging
import math
import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kubeloop import background, config, errors, names
from kubeloop.payloads.segments import MIRRORED, NEEDED, STORED, covered, last_event, mark, marked, segments
from kubeloop.serving.guard import Guard
from kubeloop.stores import whole
from kubeloop.stores.bucket import Bucket, BucketError, Owner, OwnerError

_log = logging.getLogger("kubeloop.mirror")

_LONGEST_PAUSE_S = 60.0

END = "payload-log-end.txt"
"""Object with the number of the last event that the store ever had, since segments are kept only for a limited time."""

OWNER_S = 30.0
"""Seconds between two checks of the store's owner."""
SILENT_S = 4 * OWNER_S
"""A log whose mirror was silent for so long is considered lost: a new volume of the same installation continues it."""

LOG_NAME = "log.name"
"""File with a name that the log keeps as long as its volume exists."""

ROUND = 100
"""Most segments that one round fetches. Soon afterwards the reader has recorded how far back it needs them."""


def stored(bucket: Bucket, folder: Path) -> set[str]:
    """Return the names of the segments in the store; in an empty folder, record where the log ended there.

    A collector on a new volume continues the numbers from there: a second event with a used number would be lost.

    Raises:
        BucketError: the store does not answer.
    """
    there = set(bucket.names(names.PAYLOADS))
    if not segments(folder):
        last = max(int(bucket.get(END) or 0), *map(last_event, there), marked(folder, MIRRORED))
        mark(folder, MIRRORED, last)
    return there


def push(bucket: Bucket, folder: Path, there: set[str]) -> int:
    """Copy the segments that the store lacks, and remove those that a merged one covers; return the copies.

    A store may keep objects only for a limited time. What it had once is not copied again.

    Args:
        bucket: the store.
        folder: the payload log.
        there: the names of the segments in the store, see `stored`; it is updated.

    Raises:
        BucketError: the store does not answer; the next call continues where this one ended.
    """
    copied, before = 0, marked(folder, MIRRORED)
    mirrored = before
    for segment in segments(folder):
        name = segment.path.name
        if name not in there and (segment.last > before or covered(there | {name}) - {name}):
            try:
                content = segment.path.read_bytes()
            except FileNotFoundError:
                # It was merged since it was listed. No later segment may be copied first, since no reader would go back
                # for this one.
                break
            bucket.put(f"{names.PAYLOADS}/{name}", content)
            copied += 1
        there.add(name)
        mirrored = max(mirrored, segment.last)
    if mirrored > before:
        bucket.put(END, str(mirrored).encode())
        mark(folder, MIRRORED, mirrored)
    for name in covered(there):
        bucket.delete(f"{names.PAYLOADS}/{name}")
        there.discard(name)
    return copied


def pull(bucket: Bucket, folder: Path, references: Path, most: int = ROUND) -> int:
    """Copy the segments that the reader needs and the references that the disk lacks; return how many files came.

    Segments that the reader no longer needs are removed from the disk.

    Args:
        bucket: the store.
        folder: where the segments go.
        references: where the references go.
        most: most segments to copy, the oldest first.

    Raises:
        BucketError: the store does not answer; the next call continues where this one ended.
    """
    done = marked(folder, NEEDED)
    there = bucket.names(names.PAYLOADS)
    end = max(map(last_event, there), default=0)
    mark(folder, STORED, end)
    superseded = covered(there)
    # References first: a segment may hold the first answers of a version.
    fetched = bucket.pull(names.REFERENCES, references)
    # Nothing that was added since: a reader past the mark would conclude that the log was reset.
    fetched += bucket.pull(
        names.PAYLOADS, folder, lambda name: done < last_event(name) <= end and name not in superseded, most
    )
    local = [path.name for path in folder.glob("*.parquet")]
    for name in covered(local) | {name for name in local if last_event(name) <= done}:
        (folder / name).unlink(missing_ok=True)
    return len(fetched)


def log_name(folder: Path) -> str:
    """Return the name of the payload log in a folder; the first call makes a random one."""
    path = folder / LOG_NAME
    if not path.exists() or not path.stat().st_size:
        whole.write(path, secrets.token_hex(8))
    return path.read_text(errors="replace")


class Mirror(Collector):
    """The rounds in the background, and what they did."""

    def __init__(self, bucket: Bucket, direction: str, folder: Path, references: Path, poll_s: float) -> None:
        self._bucket = bucket
        self._direction = direction
        self._folder = folder
        self._references = references
        self._poll_s = poll_s
        self._there: set[str] | None = None
        self.new = direction == "push" and not any(path.name != LOG_NAME for path in folder.iterdir())
        self._looked = -math.inf
        self._other: Owner | None = None
        self._since = 0.0
        self._copied = self._failures = 0
        self._last = time.time()
        self.failure: str | None = None

    def step(self) -> int:
        """Make one round; see `push` and `pull`."""
        if time.monotonic() - self._looked >= OWNER_S:
            self._own()
            self._looked = time.monotonic()
        if self._direction == "pull":
            return pull(self._bucket, self._folder, self._references)
        if self._there is None:
            self._there = stored(self._bucket, self._folder)
            self.new = False
        return push(self._bucket, self._folder, self._there)

    def _own(self) -> None:
        """Mark a store without an owner as ours, or check that it is still ours."""
        mark = self._bucket.check()
        if self._direction == "pull":
            return
        ours = log_name(self._folder)
        if not mark or mark.log != ours:
            self._take(mark)
        name = self._bucket.owner or (mark.name if mark else "")
        mark = self._bucket.claim(Owner(name, ours, str(time.time_ns())))
        if mark and mark.log != ours:
            raise self._is_another_log(mark)

    def _take(self, mark: Owner | None) -> None:
        """Check that the log of this folder may continue the one in the store.

        Raises:
            OwnerError: the other log's mirror is still active, or has continued where this one's numbers end.
        """
        if mark and mark.log:
            now = time.monotonic()
            if mark != self._other:
                self._other, self._since = mark, now
            if now < self._since + SILENT_S:
                raise self._is_another_log(mark)
            _log.warning("the other log of %s is silent; this one takes its place", mark.name)
        end, here = int(self._bucket.get(END) or 0), segments(self._folder)
        last = max(marked(self._folder, MIRRORED), *(segment.last for segment in here), 0)
        if here and end > last:
            raise OwnerError(
                f"{self._bucket.address('')} has a log up to event {end}, but {self._folder} ends at {last}: it "
                "is another log, or an old copy. Give this collector an empty volume or its own bucket"
            )
        self._there = None

    def _is_another_log(self, mark: Owner) -> OwnerError:
        return OwnerError(
            f"{self._bucket.address('')} holds the log of another collector of {mark.name or 'no name'}: if that one "
            f"is gone, this one takes over after {SILENT_S:g} s; if it runs elsewhere, give this one a bucket and a "
            "storage.owner of its own"
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Make rounds until `stop` is set, and a last one then; a failed round is repeated, after growing pauses."""
        failed = 0
        while True:
            last, copied = stop.is_set(), 0
            try:
                copied = await asyncio.to_thread(self.step)
                self.failure, failed, self._last = None, 0, time.time()
            except BucketError as error:
                if str(error) != self.failure:
                    _log.error("this round failed, trying again: %s", error)
                failed += 1
                self._failures += 1
                self.failure = str(error)
            if last:
                return
            self._copied += copied
            if copied < ROUND:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), min(self._poll_s * 2**failed, _LONGEST_PAUSE_S))

    def collect(self) -> Iterable[Metric]:
        """Yield what was done as Prometheus metrics."""
        yield CounterMetricFamily("kubeloop_mirror_files", "Files copied.", self._copied)
        yield CounterMetricFamily("kubeloop_mirror_failures", "Rounds that failed.", self._failures)
        age = time.time() - self._last
        yield GaugeMetricFamily("kubeloop_mirror_age_seconds", "Since the last round that went through, or start.", age)


def create_app(mirror: Mirror) -> Starlette:
    """Return the HTTP application of a mirror."""
    registry = CollectorRegistry()
    registry.register(mirror)
    ProcessCollector(registry=registry)

    def readyz(_request: Request) -> Response:
        return PlainTextResponse(mirror.failure or "ok", 503 if mirror.failure else 200)

    def healthz(_request: Request) -> Response:
        # The collector starts once this answers, and needs the number of its first event by then.
        if mirror.new:
            return PlainTextResponse(mirror.failure or "asks the store where the log ended", 503)
        return PlainTextResponse("ok")

    return Starlette(
        routes=[
            Route("/metrics", lambda _: Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )


def main() -> None:
    """Copy until SIGTERM or SIGINT, or make one round with --once."""
    parser = argparse.ArgumentParser(prog="python -m kubeloop.payloads.mirror", description=__doc__)
    parser.add_argument("direction", choices=["push", "pull"], help="push from the collector, pull to the monitor")
    parser.add_argument("--dir", type=Path, required=True, help="folder of the payload log")
    parser.add_argument(
        "--references", type=Path, help="folder of the references that pull fetches (default: next to it)"
    )
    parser.add_argument("--once", action="store_true", help="make one round and exit")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system pick one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--poll-seconds", type=float, default=5.0, help="between two rounds")
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s mirror %(message)s")
    args.dir.mkdir(parents=True, exist_ok=True)
    with errors.program():
        bucket = Bucket.open(config.settings())
        references = args.references or args.dir.parent / names.REFERENCES
        mirror = Mirror(bucket, args.direction, args.dir, references, args.poll_seconds)
        if args.once:
            print(mirror.step())
            return
        uvloop.run(background.serve(Guard(create_app(mirror), args.host), args.host, args.port, mirror.run))


if __name__ == "__main__":
    main()

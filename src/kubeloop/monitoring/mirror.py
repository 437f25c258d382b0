"""Carries the payload log between a pod's disk and an S3 store, as a process beside the collector or the monitor.

Segments never change once they are written, so carrying them is listing two places and copying what one of them
lacks. Neither the collector nor the monitor knows of the store: when it is down, segments wait on the collector's
disk, and the monitor judges what it has.
"""

import argparse
import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kubeloop import background, config, names
from kubeloop.bucket import Bucket, BucketError
from kubeloop.monitoring.payload_log import covered, segments

_log = logging.getLogger("kubeloop.mirror")

_LONGEST_PAUSE_S = 60.0


def push(bucket: Bucket, folder: Path) -> int:
    """Copy the segments that the store lacks, remove those there that a merged one covers; return the copies.

    Raises:
        BucketError: the store does not answer; the next call goes on where this one ended.
    """
    there = set(bucket.names(names.PAYLOADS))
    copied = 0
    for segment in segments(folder):
        if segment.path.name in there:
            continue
        try:
            content = segment.path.read_bytes()
        except FileNotFoundError:
            # Merged since it was listed. A later one must not come first: a reader would never go back for this one.
            break
        bucket.put(f"{names.PAYLOADS}/{segment.path.name}", content)
        there.add(segment.path.name)
        copied += 1
    for name in covered(there):
        bucket.delete(f"{names.PAYLOADS}/{name}")
    return copied


def pull(bucket: Bucket, folder: Path, references: Path) -> int:
    """Copy the segments and references that the disk lacks; return how many files came.

    Raises:
        BucketError: the store does not answer; the next call goes on where this one ended.
    """
    superseded = covered(bucket.names(names.PAYLOADS))
    # References first: a segment may hold the first answers of a version.
    fetched = bucket.pull(names.REFERENCES, references)
    fetched += bucket.pull(names.PAYLOADS, folder, lambda name: name not in superseded)
    for name in covered(path.name for path in folder.glob("*.parquet")):
        (folder / name).unlink(missing_ok=True)
    return len(fetched)


class Mirror(Collector):
    """Rounds in the background, and what they did."""

    def __init__(self, bucket: Bucket, direction: str, folder: Path, references: Path, poll_s: float) -> None:
        self._bucket = bucket
        self._direction = direction
        self._folder = folder
        self._references = references
        self._poll_s = poll_s
        self._copied = self._failures = 0
        self._last: float | None = None
        self.failure: str | None = None

    def step(self) -> int:
        """Make one round; see `push` and `pull`."""
        if self._direction == "push":
            return push(self._bucket, self._folder)
        return pull(self._bucket, self._folder, self._references)

    async def run(self, stop: asyncio.Event) -> None:
        """Make rounds until `stop` is set, and a last one then; one that fails is tried again, after longer pauses."""
        pause = self._poll_s
        while True:
            last = stop.is_set()
            try:
                self._copied += await asyncio.to_thread(self.step)
                self.failure, pause, self._last = None, self._poll_s, time.time()
            except BucketError as error:
                if str(error) != self.failure:
                    _log.error("this round failed, trying again: %s", error)
                self._failures += 1
                self.failure, pause = str(error), min(2 * pause, _LONGEST_PAUSE_S)
            if last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    def collect(self) -> Iterable[Metric]:
        """Yield what was done as Prometheus metrics."""
        yield CounterMetricFamily("kubeloop_mirror_files", "Files copied.", self._copied)
        yield CounterMetricFamily("kubeloop_mirror_failures", "Rounds that failed.", self._failures)
        if self._last is not None:
            age = time.time() - self._last
            yield GaugeMetricFamily("kubeloop_mirror_age_seconds", "Since the last round that went through.", age)


def create_app(mirror: Mirror) -> Starlette:
    """Return the HTTP face of a mirror."""
    registry = CollectorRegistry()
    registry.register(mirror)

    def readyz(_request: Request) -> Response:
        return PlainTextResponse(mirror.failure or "ok", 503 if mirror.failure else 200)

    return Starlette(
        routes=[
            Route("/metrics", lambda _: Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)),
            Route("/healthz", lambda _: PlainTextResponse("ok")),
            Route("/readyz", readyz),
        ]
    )


def main() -> None:
    """Carry until SIGTERM or SIGINT, or make one round with --once."""
    parser = argparse.ArgumentParser(prog="python -m kubeloop.monitoring.mirror", description=__doc__)
    parser.add_argument("direction", choices=["push", "pull"], help="push from the collector, pull to the monitor")
    parser.add_argument("--dir", type=Path, required=True, help="folder of the payload log")
    parser.add_argument("--references", type=Path, help="folder of the references that pull fetches (default: beside)")
    parser.add_argument("--once", action="store_true", help="make one round and leave")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system pick one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--poll-seconds", type=float, default=5.0, help="between two rounds")
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s mirror %(message)s")
    args.dir.mkdir(parents=True, exist_ok=True)
    try:
        bucket = Bucket.open(config.settings())
        references = args.references or args.dir.parent / names.REFERENCES
        mirror = Mirror(bucket, args.direction, args.dir, references, args.poll_seconds)
        if args.once:
            print(mirror.step())
            return
        asyncio.run(background.serve(create_app(mirror), args.host, args.port, mirror.run))
    except BucketError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

"""The monitor: watches a service's payload log, judges its windows and tells the trigger about episodes."""

import argparse
import asyncio
import contextlib
import logging
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, ProcessCollector, generate_latest
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kubeloop import access, background, config, errors, moments, state
from kubeloop.monitoring.detector import port
from kubeloop.monitoring.outbox import Outbox
from kubeloop.monitoring.rounds import AheadError, Monitor
from kubeloop.monitoring.status import Metrics, Status
from kubeloop.monitoring.store import Store, StoreConflictError
from kubeloop.monitoring.versions import NodeError, Versions
from kubeloop.monitoring.windows import MONDAY, Grid
from kubeloop.payloads.segments import LogError, stored
from kubeloop.serving import bodies, guard, metrics_port
from kubeloop.stores import database

_log = logging.getLogger("kubeloop.monitor")

WAIT = (AheadError, LogError, NodeError, port.DetectorError, StoreConflictError, OperationalError, httpx.HTTPError)
"""Errors of a round if a service that it needs does not answer; the next round tries again."""

_MAX_BODY = 64 * 1024
_LONGEST_PAUSE_S = 30.0
_FOLLOW_S = 0.2
_FETCH_S = 60.0
"""How long /advance waits until a mirror has checked the store and copied what is there."""


class Watch:
    """The rounds in the background, and the error of the last one."""

    def __init__(
        self,
        monitor: Monitor,
        poll_seconds: float,
        collector_url: str | None,
        settle_seconds: float | None = None,
        token: str = "",
    ) -> None:
        self.failure: str | None = None
        self.skew = monitor.drift.skew
        self._settle_seconds = settle_seconds
        self._monitor = monitor
        self._poll_seconds = poll_seconds
        self._login = access.bearer(token)
        self._flush = f"{collector_url.rstrip('/')}/flush" if collector_url else None

    async def run(self, stop: asyncio.Event) -> None:
        """Make rounds until `stop` is set; a failed round is repeated after pauses that grow."""
        pause = self._poll_seconds
        while not stop.is_set():
            try:
                await asyncio.to_thread(self._monitor.step)
                self.failure, pause = None, self._poll_seconds
            except WAIT as error:
                if str(error) != self.failure:
                    _log.error("this round failed, trying again: %s", error)
                self.failure, pause = str(error), min(2 * pause, _LONGEST_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    def advance(self, until: datetime) -> None:
        """Have the collector write its events, or wait for the mirror; then judge every window that ended by `until`.

        Raises:
            the errors of WAIT.
        """
        if self._flush:
            httpx.post(self._flush, headers=self._login, timeout=30.0, trust_env=not self._login).raise_for_status()
        if self._settle_seconds is not None:
            self._follow(min(until.timestamp(), time.time()) + self._settle_seconds)
        self._monitor.advance(until)
        self.failure = None

    def _follow(self, moment: float) -> None:
        """Read what the S3 store held at a moment (seconds since 1970), as the mirror copies it.

        Raises:
            LogError: it was not all copied a minute later.
        """
        deadline = max(moment, time.time()) + _FETCH_S
        while True:
            self._monitor.step()
            last, asked = stored(self._monitor.log)
            if asked >= moment and self._monitor.store.progress(self._monitor.service).cursor >= last:
                return
            if time.time() > deadline:
                raise LogError("the mirror has not copied everything from the S3 store; its log says why")
            time.sleep(_FOLLOW_S)


def create_app(status: Status, watch: Watch) -> Starlette:
    """Return the HTTP application of the monitor."""
    registry = CollectorRegistry()
    registry.register(Metrics(status))
    ProcessCollector(registry=registry)
    failing = Gauge("kubeloop_monitor_failing", "Whether the last round failed.", ["service"], registry=registry)
    failing.labels(status.service).set_function(lambda: watch.failure is not None)

    def get_status(_request: Request) -> Response:
        return _json(status.read() | {"failure": watch.failure})

    async def post_advance(request: Request) -> Response:
        try:
            until = moments.past(moments.read(orjson.loads(await bodies.of(request, _MAX_BODY))["until"]), watch.skew)
        except bodies.BodyError as error:
            return _json({"error": str(error)}, error.status)
        except (ValueError, KeyError, TypeError) as error:
            return _json({"error": f'send {{"until": "2013-04-08T00:00:00Z"}} ({error})'}, 400)
        try:
            await asyncio.to_thread(watch.advance, until)
        except WAIT as error:
            return _json({"error": str(error)}, 503)
        return await asyncio.to_thread(get_status, request)

    def readyz(_request: Request) -> Response:
        status.store.progress(status.service)
        return _json({"status": watch.failure or "ok"}, 503 if watch.failure else 200)

    return Starlette(
        routes=[
            Route("/status", get_status),
            Route("/advance", post_advance, methods=["POST"]),
            Route("/windows", lambda _: _json(status.windows())),
            Route("/episodes", lambda _: _json(status.store.episodes(status.service))),
            Route("/metrics", lambda _: Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)),
            Route("/healthz", lambda _: _json({"status": "ok"})),
            Route("/readyz", readyz),
        ],
        exception_handlers={OperationalError: database.unavailable},
    )


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_UTC_Z), status, media_type="application/json")


def _moment(text: str) -> datetime:
    try:
        return moments.past(moments.read(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run(args: argparse.Namespace) -> None:
    loop = config.load(args.loop.resolve())
    settings = config.settings(args.loop.resolve().parent)
    settings.logs.mkdir(parents=True, exist_ok=True)
    token = guard.token(args)
    grid = Grid(loop.drift.window, args.origin)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store(settings.monitor_db)))
        versions = stack.enter_context(
            contextlib.closing(
                Versions(
                    store,
                    loop.name,
                    loop.delivery.namespace,
                    args.node_url,
                    args.references,
                    state=settings.state,
                    pod=args.kubernetes,
                )
            )
        )
        outbox = stack.enter_context(contextlib.closing(Outbox(store, loop.name, args.trigger_url, token=token)))
        detector = stack.enter_context(
            contextlib.closing(
                port.open_detector(
                    loop.drift.engine,
                    settings.detector_python,
                    settings.logs,
                    url=args.detector_url,
                    token_file=args.token_file,
                )
            )
        )
        until = loop.replay.until if args.replay and loop.replay else None
        monitor = Monitor(loop, settings.payloads, store, detector, versions, grid, outbox, until=until)
        status = Status(loop.name, store, settings.payloads, loop.drift, grid)
        if args.reset_watermark:
            monitor.reset()
            print(f"the watermark of {loop.name} is {store.progress(loop.name).watermark}")
            return
        if args.once:
            monitor.step()
            print(orjson.dumps(status.read(), option=orjson.OPT_UTC_Z | orjson.OPT_INDENT_2).decode())
            return
        watch = Watch(monitor, args.poll_seconds, args.collector_url, args.settle_seconds, token)
        app = guard.Guard(create_app(status, watch), args.host, token=token, names=args.allow_host)
        uvloop.run(background.serve(app, args.host, args.port, watch.run, args.metrics_port))


def main() -> None:
    """Serve until SIGTERM or SIGINT, or make one round with --once."""
    parser = argparse.ArgumentParser(prog="python -m kubeloop.monitoring.monitor", description=__doc__)
    parser.add_argument("--loop", type=Path, required=True, help="the loop.yaml to watch")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system pick one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--poll-seconds", type=float, default=0.5, help="seconds between two readings of the log")
    parser.add_argument("--once", action="store_true", help="make one round, print the status and exit")
    parser.add_argument(
        "--reset-watermark", action="store_true", help="delete what a wrong clock dated ahead of now, and exit"
    )
    parser.add_argument("--trigger-url", help="address for drift events; if left out, they wait in the store")
    parser.add_argument("--collector-url", help="address of the collector, which writes its events before /advance")
    parser.add_argument(
        "--settle-seconds",
        type=float,
        help="with a mirror: how long an event may take to the S3 store; /advance waits for what comes until then",
    )
    parser.add_argument("--node-url", help="address of the node, which knows the folders of model versions")
    parser.add_argument("--kubernetes", action="store_true", help="ask the API server of this pod instead of a node")
    parser.add_argument(
        "--references", type=Path, help="folder with <version>/reference, searched before the node is asked"
    )
    parser.add_argument("--detector-url", help="address of a running detector worker, such as a sidecar")
    parser.add_argument(
        "--replay",
        action="store_true",
        help="clients replay the past, as loop.yaml says: use the replay's time, not the clock",
    )
    parser.add_argument(
        "--origin", type=_moment, default=MONDAY, help="start of a window, ISO 8601; the others are aligned to it"
    )
    guard.add_arguments(parser)
    metrics_port.add_arguments(parser)
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with errors.program(), database.answering("the monitor's", "KUBELOOP_MONITOR_DB"), state.explained():
        _run(args)


if __name__ == "__main__":
    main()

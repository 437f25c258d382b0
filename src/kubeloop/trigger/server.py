"""The trigger: takes drift events over HTTP, and starts and follows the pipeline runs that the ledger asks for."""

import argparse
import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kubeloop import background, config, errors, names, state
from kubeloop.serving import bodies, guard, metrics_port
from kubeloop.stores import database
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.ledger import Ledger
from kubeloop.trigger.runners import LocalRunner, Runner

_log = logging.getLogger(__name__)
_MAX_BODY = 64 * 1024


class _Metrics(Collector):
    """The ledger's counts, read at each scrape, so that they survive the process."""

    def __init__(self, ledger: Ledger, service: str) -> None:
        self._ledger = ledger
        self._service = service

    def collect(self) -> Iterable[Metric]:
        name = self._service
        events = CounterMetricFamily("kubeloop_trigger_events", "Events received.", labels=["service", "decision"])
        received: Counter[str] = Counter()
        for event in self._ledger.events(name):
            received["accepted" if event.accepted else "absorbed"] += 1
            received["duplicate"] += event.received - 1
        for decision in ("accepted", "absorbed", "duplicate"):
            events.add_metric([name, decision], received[decision])
        yield events
        runs = CounterMetricFamily("kubeloop_trigger_runs", "Finished pipeline runs.", labels=["service", "outcome"])
        outcomes = Counter(run.outcome for run in self._ledger.runs(name))
        for outcome in ("promoted", "rejected", "failed"):
            runs.add_metric([name, outcome], outcomes[outcome])
        yield runs
        active = GaugeMetricFamily("kubeloop_trigger_active", "Runs without an outcome (0 or 1).", labels=["service"])
        active.add_metric([name], outcomes[None])
        yield active
        rest = GaugeMetricFamily(
            "kubeloop_trigger_cooldown_until_seconds",
            "End of the newest cooldown in event time, seconds since 1970; absent before the first.",
            labels=["service"],
        )
        if cooldown := self._ledger.cooldown(name):
            rest.add_metric([name], cooldown.until.timestamp())
        yield rest


def create_app(ledger: Ledger, service: str) -> Starlette:
    """Return the HTTP application of the ledger for one inference service."""
    registry = CollectorRegistry()
    registry.register(_Metrics(ledger, service))
    ProcessCollector(registry=registry)

    async def post_event(request: Request) -> Response:
        try:
            event = DriftEvent.parse(request.headers, await bodies.of(request, _MAX_BODY))
        except bodies.BodyError as error:
            return _json({"error": str(error)}, error.status)
        except ValueError as error:
            return _json({"error": str(error)}, 400)
        if event.service != service:
            return _json({"error": f"data.service is {event.service!r}; this trigger retrains {service!r}"}, 400)
        decision = await run_in_threadpool(ledger.record, event)
        if not decision.duplicate:
            _log.info("event %s: %s", event.episode, decision.reason)
        # A broker of Knative treats an answer that is not a CloudEvent as a failed delivery, and sends the event again.
        attributes = {"specversion": "1.0", "type": names.DECISION_EVENT, "source": f"/kubeloop/trigger/{service}"}
        attributes["id"] = hashlib.sha256(event.episode.encode()).hexdigest()
        return _json(decision, 202, {f"ce-{name}": value for name, value in attributes.items()})

    def get_status(_request: Request) -> Response:
        rest = ledger.cooldown(service)
        cooldown = rest and {"until": rest.until, "length": config.duration_text(rest.length)}
        return _json(
            {
                "service": service,
                "active": ledger.active(service),
                "cooldown": cooldown,
                "runs": ledger.runs(service),
                "events": ledger.events(service),
            }
        )

    def get_run(request: Request) -> Response:
        name = request.path_params["name"]
        run = ledger.run(name)
        return _json(run) if run else _json({"error": f"there is no run {name!r}; GET /status lists them"}, 404)

    def get_metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def healthz(_request: Request) -> Response:
        return _json({"status": "ok"})

    def readyz(_request: Request) -> Response:
        ledger.active(service)
        return _json({"status": "ok"})

    return Starlette(
        routes=[
            Route("/events", post_event, methods=["POST"]),
            Route("/status", get_status),
            Route("/runs/{name}", get_run),
            Route("/metrics", get_metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ],
        exception_handlers={OperationalError: database.unavailable},
    )


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


async def _work(
    ledger: Ledger, service: str, runner: Runner, holder: str, args: argparse.Namespace, stop: asyncio.Event
) -> None:
    lease = timedelta(seconds=args.lease_seconds)
    while not stop.is_set():
        try:
            await asyncio.to_thread(ledger.reconcile, service, runner, holder, lease)
        except OperationalError as error:
            _log.error("the ledger's database does not answer, trying again: %s", error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), args.poll_seconds)


def _runner(kind: str, settings: config.Settings, loop: config.Loop, loop_file: Path) -> Runner:
    if kind == "kfp":
        from kubeloop.trigger.kubeflow import KfpRunner

        return KfpRunner(settings, loop)
    return LocalRunner(settings, loop_file, config.inherited(), loop.pipelines.deadline)


async def _serve(args: argparse.Namespace) -> None:
    token = guard.token(args)
    loop_file = args.loop.resolve()
    loop = config.load(loop_file)
    settings = config.settings(loop_file.parent)
    ledger = Ledger(
        settings.ledger_db,
        loop.drift,
        max_failures=args.max_failures,
        backoff=timedelta(seconds=args.backoff_seconds),
    )
    runner = _runner(args.runner, settings, loop, loop_file)
    holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        await background.serve(
            guard.Guard(create_app(ledger, loop.name), args.host, token=token, names=args.allow_host),
            args.host,
            args.port,
            lambda stop: _work(ledger, loop.name, runner, holder, args, stop),
            args.metrics_port,
        )
    finally:
        for name in runner.stop() if isinstance(runner, LocalRunner) else ():
            _log.info("%s: interrupted, since the trigger stops; it starts again with the next one", name)
        ledger.release(holder)
        ledger.close()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m kubeloop.trigger.server", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="0 lets the system pick one")
    parser.add_argument("--loop", type=Path, required=True, help="the loop.yaml to retrain")
    parser.add_argument("--runner", choices=["local", "kfp"], default="local", help="where pipelines run")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--poll-seconds", type=float, default=0.2, help="seconds between two checks of the runs")
    parser.add_argument(
        "--lease-seconds", type=float, default=10.0, help="seconds after which another trigger takes over"
    )
    parser.add_argument("--max-failures", type=int, default=3, help="failed attempts after which a run is abandoned")
    parser.add_argument(
        "--backoff-seconds", type=float, default=5.0, help="seconds before the second attempt; then doubles"
    )
    guard.add_arguments(parser)
    metrics_port.add_arguments(parser)
    args = parser.parse_args()
    if args.lease_seconds <= 2 * args.poll_seconds:
        parser.error("--lease-seconds must exceed twice --poll-seconds, or a lease ends before it is renewed")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with errors.program(), database.answering("the ledger's", "KUBELOOP_LEDGER_DB"), state.explained():
        uvloop.run(_serve(args))


if __name__ == "__main__":
    main()

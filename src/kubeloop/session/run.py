"""One `kubeloop run`: raw data, services, the first model, the replay, and the summary.

Every part can be interrupted and repeated: raw data and feature tables are kept, the ledger records the first model and
every retraining, and the payload log records what was replayed.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import httpx
import pyarrow as pa
import pyarrow.compute as pc

from kubeloop import access
from kubeloop.addresses import ServiceError
from kubeloop.config import Loop, Settings
from kubeloop.data import sources
from kubeloop.errors import KubeloopError
from kubeloop.session import requests as runs
from kubeloop.session.counts import Counts
from kubeloop.session.replay import Addresses, Progress, Replay, Sent, drawn
from kubeloop.session.services import Services
from kubeloop.steps import promotion, stages
from kubeloop.stores import kept
from kubeloop.tasks import port
from kubeloop.trigger.runners import LocalRunner

_END_S = 10.0


class SessionError(KubeloopError):
    """The loop cannot continue; the message says why and what to do."""

    lasting = True


class Observer(Protocol):
    """Receives events and progress."""

    def say(self, text: str) -> None:
        """Receive a sentence about an event."""

    def progress(self, progress: Progress) -> None:
        """Receive the progress of the replay."""


@dataclass(frozen=True)
class Plan:
    """What a run replays: `fast` takes a smaller sample of fewer months."""

    fast: bool = False

    def apply(self, loop: Loop) -> Loop:
        """Return the loop with the planned replay.

        Raises:
            SessionError: the loop has no replay.
        """
        if loop.replay is None:
            raise SessionError("loop.yaml has no `replay` section; add one, or serve with `kubeloop serve`")
        if not self.fast:
            return loop
        until = loop.replay.fast_until or loop.replay.until
        replay = loop.replay.model_copy(update={"sample": loop.replay.fast_sample, "until": until})
        return loop.model_copy(update={"replay": replay})


def run(
    loop: Loop,
    settings: Settings,
    environment: Mapping[str, str],
    observer: Observer,
    *,
    plan: Plan,
    fresh: bool = False,
) -> dict[str, Any]:
    """Run the whole loop on the replayed table and return the summary.

    Args:
        loop: the use case.
        settings: the place.
        environment: variables for the services, besides the settings.
        observer: receives events and progress.
        plan: what to replay.
        fresh: delete everything of earlier runs first.

    Raises:
        SessionError: the first model failed, or the stored state is from another kind of run.
        ServiceError: a service does not start or ended.
        ReplayError: a service stopped answering.
    """
    loop = plan.apply(loop)
    assert loop.replay is not None  # noqa: S101 - plan.apply has made sure
    started = time.monotonic()
    with Services(loop, settings, environment, observer.say) as services:
        if fresh:
            forget(settings, observer.say)
        counts = _remember(settings, plan)
        prepare(loop, settings, observer.say)
        observer.say("Starting collector, node, trigger and monitor.")
        start(loop, services)
        resume_serving(loop, settings, observer.say)
        first_model(loop, settings, services, observer)
        _replay(loop, settings, services, observer, counts)
        from kubeloop.session import summary

        observer.say("Comparing the loop with the frozen first model on the replayed predictions.")
        result = summary.build(loop, settings, counts.content, time.monotonic() - started)
        summary.write(settings, result)
    return result


def prepare(loop: Loop, settings: Settings, say: Callable[[str], None]) -> None:
    """Import the raw data and build the feature tables for serving, unless that was done before."""
    from kubeloop import features

    access.private(settings.state)
    counts = sources.take_in(loop, settings, say=say)
    repo = settings.home / loop.features.repo
    mark = settings.features / "built-from"
    state = f"{settings.features} {stages.digest(settings.raw)} {stages.digest(repo)}"
    say("Raw data: " + ", ".join(f"{rows:,} {name}" for name, rows in counts.items()) + ".")
    if broken := kept.changed(settings.features):
        say(f"Feature tables: {', '.join(broken)} in {settings.features} were damaged or missing and are built again.")
        for name in broken:
            (settings.features / name).unlink(missing_ok=True)
    if broken or not mark.is_file() or mark.read_text() != state:
        rows = features.build(repo, settings.raw, settings.features)
        mark.write_text(state)
        say(f"Feature tables: {sum(rows.values()):,} rows in {len(rows)} views.")


def start(loop: Loop, services: Services) -> None:
    """Start the services; if the loop has a replay, the monitor's clock begins with it."""
    if loop.replay is None:
        services.start_all(datetime.now(UTC).isoformat())
        return
    begin = {"until": loop.replay.train_to.isoformat()}
    services.start_all(begin["until"])
    services.post("monitor", "/advance", json=begin)


def resume_serving(loop: Loop, settings: Settings, say: Callable[[str], None]) -> None:
    """Serve the stored champion again, if there is one, with the current addresses of the services."""
    from kubeloop.models import registry

    champion = registry.champion(settings, loop.name)
    if champion is not None:
        applied = promotion.resume(loop, settings, champion)
        say(f"Serving version {champion.version}, ready after {applied.seconds:.1f} s.")


def first_model(loop: Loop, settings: Settings, services: Services, observer: Observer) -> None:
    """Train, gate and serve the first model through the ledger, unless there is a champion.

    Raises:
        SessionError: the run failed or the gate rejected it.
    """
    from kubeloop.models import registry

    assert loop.replay is not None  # noqa: S101 - plan.apply has made sure
    if registry.champion(settings, loop.name) is not None:
        return
    # Another configuration or other data give another first model, which an earlier failure does not block.
    identity = stages.digest(settings.raw)[:8] + loop.digest()[:8]
    trigger = services.url("trigger")
    name = runs.request(
        trigger, loop, f"first-{identity}", loop.replay.train_to, "the first model of the loop", services.login
    )
    observer.say(f"Training the first model on data up to {loop.replay.train_to:%Y-%m-%d} (run {name}).")
    outcome = runs.follow(settings, trigger, name, observer.say, services.check)
    if outcome["outcome"] != "promoted":
        raise SessionError(
            f"the first model was not served: {outcome['detail']}\nThe log is {runs.log(settings, name)}"
        )
    observer.say(str(outcome["detail"]))


def _remember(settings: Settings, plan: Plan) -> Counts:
    """Return the counts of earlier sessions.

    Raises:
        SessionError: they are from another kind of run.
    """
    counts = Counts.open(settings, fast=plan.fast)
    if not counts.known:
        raise SessionError("the state was written by an older kubeloop; add --fresh to start over")
    if counts.content["fast"] != plan.fast:
        kept, asked = ("the full replay", "--fast") if plan.fast else ("--fast", "the full replay")
        raise SessionError(f"the state is from {kept}, not from {asked}; add --fresh to start over")
    return counts


def _replay(loop: Loop, settings: Settings, services: Services, observer: Observer, counts: Counts) -> None:
    from kubeloop import features
    from kubeloop.features import online
    from kubeloop.payloads import table

    assert loop.replay is not None  # noqa: S101 - plan.apply has made sure
    plan = loop.replay
    _flush(services)
    known = table.read(port.of(loop), settings, loop.name)
    sent = Sent(frozenset(known.event_ids), frozenset(known.labelled))
    if sent.predictions:
        observer.say(f"Continuing after {len(sent.predictions):,} predictions of an earlier session.")
    repo = settings.home / loop.features.repo
    moments = features.moments(repo, settings.raw, start=plan.train_to, end=plan.until)
    chosen = drawn(moments, plan.sample, plan.seed)
    events = features.events(repo, settings.raw, start=plan.train_to, end=plan.until, at=chosen)
    materializer = online.Materializer(settings.features, loop.features.service, asked=events)
    observer.say(
        f"Replaying {plan.train_to:%Y-%m-%d} to {plan.until:%Y-%m-%d}: {events.num_rows:,} events of {len(chosen):,} "
        f"of {len(moments):,} moments (seed {plan.seed}), labels as they became known."
    )
    addresses = Addresses(
        services.url("node"),
        services.url("collector"),
        services.url("monitor"),
        services.url("trigger"),
        services.login,
    )
    news = News(loop, settings, services, observer)

    def report(progress: Progress) -> None:
        observer.progress(progress)
        news.look()

    def note(asked: list[str], answered: bool) -> None:
        counts.note(asked, answered=answered)

    replay = Replay(loop, events, addresses, materializer.advance, sent, report, note)
    uncertain = counts.begin(_among(sent.predictions, events["event_id"]))
    if uncertain:
        observer.say(f"The last session was killed: {uncertain:,} of its predictions were settled from the log.")
    started = time.monotonic()
    progress = asyncio.run(replay.run())
    # The replay has waited until the node's queue was empty, so no more events will be dropped.
    counts.end(time.monotonic() - started, _dropped(services), progress.measured())
    _flush(services)
    news.look(now=True)
    observer.say(
        f"Replayed {progress.served:,} predictions; {progress.errors:,} failed; latency of a request "
        f"{progress.latency(0.5):.1f} ms at the median, {progress.latency(0.99):.1f} ms at the 99th percentile."
    )


class News:
    """Reads what the monitor and the trigger decided, and reports each decision once."""

    def __init__(self, loop: Loop, settings: Settings, services: Services, observer: Observer) -> None:
        from kubeloop.monitoring.store import Store

        self._loop = loop
        self._services = services
        self._settings = settings
        self._say: Callable[[str], None] = observer.say
        self._store = Store(settings.monitor_db)
        self._episodes = {row["id"] for row in self._store.episodes(loop.name)}
        self._steps: dict[str, runs.Steps] = {}
        self._finished = {str(run["name"]) for run in self._runs() if run["outcome"]}
        self._next = 0.0

    def look(self, now: bool = False) -> None:
        """Report what is new, at most a few times per second."""
        if not now and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.3
        self._services.check()
        for row in self._store.episodes(self._loop.name):
            if row["id"] not in self._episodes and row["decision"]:
                self._episodes.add(row["id"])
                self._say(f"{row['opened_at']:%Y-%m-%d} drift: {row['reason']} The trigger: {row['decision']}")
        for run in self._runs():
            name = str(run["name"])
            if name in self._finished:
                continue
            steps = self._steps.setdefault(name, runs.Steps(runs.log(self._settings, name)))
            for line in steps.news():
                self._say(line)
            if run["outcome"]:
                self._finished.add(name)
                self._say(f"Run {name}: {run['outcome']}. {run['detail']}")

    def _runs(self) -> list[dict[str, Any]]:
        status = httpx.get(f"{self._services.url('trigger')}/status", timeout=30).json()
        runs: list[dict[str, Any]] = status["runs"]
        return runs


def _among(ids: frozenset[str], events: pa.ChunkedArray) -> frozenset[str]:
    """Return the ids that belong to events."""
    return frozenset(events.filter(pc.is_in(events, pa.array(sorted(ids), pa.string()))).to_pylist())


def _flush(services: Services) -> None:
    """Have the collector write the events that it holds to the payload log."""
    services.post("collector", "/flush")


def _dropped(services: Services) -> int:
    """Return the number of predictions that the payload log lost in this session, in any service."""
    try:
        status = httpx.get(f"{services.url('node')}/status", timeout=10).json()
    except httpx.HTTPError as error:
        raise ServiceError(f"the node does not answer ({error}); its log is in the logs folder") from error
    return int(status["dropped"]["predictions"])


def forget(settings: Settings, say: Callable[[str], None]) -> None:
    """Delete what runs leave, but no other files in the folder.

    Pipeline runs outlive a killed session. One that is still active would act on the new state, so it is ended first.

    Raises:
        SessionError: a pipeline run does not end.
    """
    _end_runs(settings, say)
    for name in (
        *("features", "payloads", "runs", "pipeline", "pipeline-cache", "mlartifacts", "manifests", "data-docs"),
        *("quarantine", "raw", "logs"),
    ):
        shutil.rmtree(settings.state / name, ignore_errors=True)
    for pattern in ("*.db", "*.db-wal", "*.db-shm", "*.json", "*.jsonl", "report.html"):
        for path in settings.state.glob(pattern):
            path.unlink()
    settings.logs.mkdir(parents=True, exist_ok=True)


def _end_runs(settings: Settings, say: Callable[[str], None]) -> None:
    runner = LocalRunner(settings, settings.loop_file, {})
    names = (
        sorted(folder.name for folder in settings.runs.iterdir() if folder.is_dir()) if settings.runs.is_dir() else []
    )
    left = [name for name in names if _at_work(runner, name)]
    if not left:
        return
    say(f"Ending {', '.join(left)}, which an earlier session left running.")
    runner.stop()
    deadline = time.monotonic() + _END_S
    while left := [name for name in left if _at_work(runner, name)]:
        if time.monotonic() > deadline:
            raise SessionError(
                f"{', '.join(left)} of an earlier session does not end; the process is in "
                f"{settings.runs / left[0] / 'run.json'}: end it, then try again"
            )
        time.sleep(0.02)


def _at_work(runner: LocalRunner, name: str) -> bool:
    state = runner.find(name)
    return state is not None and state.status == "running"

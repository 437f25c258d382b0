"""Run the whole backtest: models and walks in parallel processes, then the table and its conclusion."""

import atexit
import fcntl
import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import datetime, timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from kubeloop import config
from kubeloop.backtest import BacktestError, history, policies, score
from kubeloop.backtest.history import History, Span
from kubeloop.backtest.policies import Policy
from kubeloop.backtest.score import Measured
from kubeloop.backtest.walk import Need, Walk, walk
from kubeloop.config import Loop, Settings
from kubeloop.monitoring.detector import port
from kubeloop.stores import kept, whole

RESULT = "result.json"

Progress = Callable[[str, int, int], None]
"""Called with the current task, the amount done and the whole amount."""


def run(
    loop: Loop,
    settings: Settings,
    wanted: Sequence[Policy],
    span: Span,
    *,
    workers: int,
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Take every policy through the history; return the results as they are stored in `backtest/result.json`.

    Args:
        loop: the use case.
        settings: the place.
        wanted: the policies; the others are compared with the first.
        span: the time to replay.
        workers: processes.
        say: called with a sentence about each event.
        progress: called with the progress.

    Raises:
        BacktestError: this history is not enough for a backtest.
    """
    with _alone(settings.state / history.FOLDER):
        return _run(loop, settings, wanted, span, workers, say, progress)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which is released when the process ends, even if it is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BacktestError(f"another backtest is running in {folder}; wait for it, or stop it") from None
        yield


def _run(
    loop: Loop,
    settings: Settings,
    wanted: Sequence[Policy],
    span: Span,
    workers: int,
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    past = history.open_history(loop, settings, span, say)
    rows = past.rows(span.start, span.until)
    say(
        f"{rows.stop - rows.start:,} rows from {span.start:%Y-%m-%d} to {span.until:%Y-%m-%d}, "
        f"{len(span.ends(loop.drift.window))} windows, {len(wanted)} policies."
    )
    with _pool(past, settings, workers) as pool:
        walks = _walks(pool, past, wanted, progress)
        measured = _all(pool, score_one, [walks[policy.name] for policy in wanted], "policies measured", progress)
    found = _result(past, wanted, measured)
    path = settings.state / history.FOLDER / RESULT
    whole.write(path, kept.dumps(found))
    return found


def _walks(pool: ProcessPoolExecutor, past: History, wanted: Sequence[Policy], progress: Progress) -> dict[str, Walk]:
    """Walk every policy; make missing models when a walk needs them."""
    needs = {Need(past.span.start, policy.apply(past.loop).training.window) for policy in wanted}
    for policy in wanted:
        needs |= set(_foreseen(past, policy))
    walks: dict[str, Walk] = {}
    while True:
        missing = sorted(
            (need for need in needs if not _there(past, need)), key=lambda need: (need.moment, need.window)
        )
        _all(pool, train_one, missing, "models trained", progress)
        if reason := past.failure(history.version(past.loop, past.span.start)):
            raise BacktestError(f"the first model cannot be trained: {reason}")
        left = [policy for policy in wanted if policy.name not in walks]
        found = _all(pool, walk_one, left, "policies walked", progress)
        walks |= {policy.name: one for policy, one in zip(left, found, strict=True) if isinstance(one, Walk)}
        needs = {one for one in found if isinstance(one, Need)}
        if not needs:
            return walks


def _foreseen(past: History, policy: Policy) -> Iterator[Need]:
    """Yield the models that a policy will need in any case: those of its calendar, all for the oracle."""
    loop = policy.apply(past.loop)
    ends = past.span.ends(past.loop.drift.window)[:-1]
    every = timedelta(0) if policy.oracle else loop.drift.retrain_every
    if every is None or (loop.drift.retrain_on and not policy.oracle):
        return
    spans = -1
    for end in [past.span.start, *ends]:
        if not every or (end - past.span.start) // every > spans:
            spans = (end - past.span.start) // every if every else spans
            yield Need(end, loop.training.window)


def _there(past: History, need: Need) -> bool:
    name = history.version(_windowed(past.loop, need.window), need.moment)
    return past.has(name) or bool(past.failure(name))


def _windowed(loop: Loop, window: timedelta) -> Loop:
    return loop.model_copy(update={"training": loop.training.model_copy(update={"window": window})})


def _all(
    pool: ProcessPoolExecutor, task: Callable[[Any], Any], items: Iterable[Any], what: str, progress: Progress
) -> list[Any]:
    items = list(items)
    if not items:
        return []
    progress(what, 0, len(items))
    futures: list[Future[Any]] = [pool.submit(task, item) for item in items]
    for done, future in enumerate(as_completed(futures), 1):
        future.result()
        progress(what, done, len(items))
    return [future.result() for future in futures]


class _Worker:
    """The state of a process of the pool."""

    def __init__(self, loop: Loop, folder: Path, whole: bool, span: Span, settings: Settings, alone: bool) -> None:
        self.history = History(loop, folder, whole, span)
        self.settings = settings
        # Processes that train at the same time share the cores; LightGBM's model does not depend on the threads.
        self.threads = loop.training.threads if alone else 1

    @functools.cached_property
    def detector(self) -> port.Detector:
        found = port.open_detector(self.history.loop.drift.engine, self.settings.detector_python, self.settings.logs)
        atexit.register(found.close)
        return found


_worker: _Worker


def _start(*about: Any) -> None:
    global _worker
    # Ctrl-C reaches every process of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The warnings of the monitor in every walk are in the result.
    logging.getLogger("kubeloop").setLevel(logging.ERROR)
    config.adopt(about[4])
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _worker = _Worker(*about)


def _leave_with_parent() -> None:
    """End when the parent process ends, even if it was killed: a pool's workers would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def train_one(need: Need) -> None:
    """Make a model."""
    loop = _windowed(_worker.history.loop, need.window)
    settings = loop.training.model_copy(update={"threads": _worker.threads})
    _worker.history.train(_worker.settings, loop.model_copy(update={"training": settings}), need.moment)


def walk_one(policy: Policy) -> Walk | Need:
    """Take a policy through the history."""
    if policy.oracle:
        return score.oracle(_worker.history, policy.name)
    return walk(policy, _worker.history, _worker)


def score_one(one: Walk) -> Measured:
    """Measure a policy."""
    return score.measure(one, _worker.history)


@contextmanager
def _pool(past: History, settings: Settings, workers: int) -> Iterator[ProcessPoolExecutor]:
    about = (past.loop, past.folder, past.whole, past.span, settings, workers == 1)
    # Spawned, since threads of Arrow and OpenMP do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=about)
    try:
        yield pool
    except BaseException:
        # Their unfinished work is not stored, and no one waits for it.
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(past: History, wanted: Sequence[Policy], measured: Sequence[Measured]) -> dict[str, Any]:
    loop, span = past.loop, past.span
    direction, confidence = past.task.headline.better, loop.gates.confidence
    blocks = len(span.ends(loop.drift.window))
    by_name = {policy.name: one for policy, one in zip(wanted, measured, strict=True)}

    def between(of: Measured, than: Measured) -> dict[str, Any]:
        value, draws = score.better(of, than, direction)
        return {"value": value, "interval": score.interval(draws, blocks, confidence)}

    rows = []
    for policy, one in zip(wanted, measured, strict=True):
        made = one.walk.retrainings
        rows.append(
            {
                "policy": policy.name,
                "oracle": policy.oracle,
                "value": one.value,
                "interval": score.interval(one.draws, blocks, confidence),
                "difference": None if one is measured[0] else between(one, measured[0]),
                "retrainings": len(made),
                "promotions": one.walk.promotions,
                "failed": sum(run.outcome == "failed" for run in made),
                "worst": None
                if one.worst is None
                else {
                    "start": one.worst.start.isoformat(),
                    "value": one.worst.value,
                    "rows": one.worst.rows,
                    "positives": one.worst.positives,
                },
                "settings": policy.settings,
                "runs": [
                    {"moment": run.moment.isoformat(), "kind": run.kind, "outcome": run.outcome, "detail": run.detail}
                    for run in made
                ],
            }
        )
    real = [one for policy, one in zip(wanted, measured, strict=True) if not policy.oracle]
    suggested = score.chosen(real, direction, blocks, confidence)
    found = past.rows(span.start, span.ends(loop.drift.window)[-1])
    labels = past.labels[found]
    answer = None
    if policies.EITHER in by_name and policies.MONTHLY in by_name:
        answer = between(by_name[policies.EITHER], by_name[policies.MONTHLY])
    return {
        "name": loop.name,
        "metric": loop.gates.metric,
        "confidence": confidence,
        "start": span.start.isoformat(),
        "until": span.ends(loop.drift.window)[-1].isoformat(),
        "window": config.duration_text(loop.drift.window),
        "windows": blocks,
        "rows": int((labels == labels).sum()),
        "positives": past.task.positives(labels[labels == labels]),
        "features": "built once" if past.whole else "built for each window",
        "policies": rows,
        "drift_against_monthly": answer,
        "suggested": suggested.walk.policy,
        "written": f"{datetime.now().astimezone().isoformat(timespec='seconds')}",
    }

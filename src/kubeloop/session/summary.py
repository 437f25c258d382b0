"""The summary of a run, as plain values for a machine, a report or a test."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubeloop.config import Loop, Settings
from kubeloop.models import gates, registry
from kubeloop.monitoring.store import Store
from kubeloop.payloads import table
from kubeloop.steps.promotion import promoted
from kubeloop.stores import kept, whole
from kubeloop.tasks import port
from kubeloop.tasks.tabular import model_folder
from kubeloop.trigger.ledger import Ledger
from kubeloop.trigger.store import Run


def build(loop: Loop, settings: Settings, session: Mapping[str, Any], wall_s: float) -> dict[str, Any]:
    """Read the stores and return the summary.

    Args:
        loop: the use case.
        settings: the place.
        session: the values of `counts.Counts` that no store holds: fast, sessions, replay_s, latency_ms, and the
            predictions that its clients got (`served`, `errors`), that were lost (`dropped`), or that were counted
            after a kill (`uncertain`).
        wall_s: seconds that the last session took.
    """
    known = table.read(port.of(loop), settings, loop.name)
    versions = registry.versions(settings, loop.name)
    runs = {run.name: run for run in Ledger(settings.ledger_db, loop.drift).runs(loop.name)}
    store = Store(settings.monitor_db)
    windows = store.windows(loop.name)
    return {
        "name": loop.name,
        "wall_s": round(wall_s, 1),
        "replay_s": round(session["replay_s"], 1),
        "sessions": session["sessions"],
        "fast": session["fast"],
        "replay": loop.replay.model_dump(mode="json") if loop.replay else None,
        "predictions": {
            "served": session["served"],
            "logged": known.predictions.num_rows,
            **{name: session[name] for name in ("dropped", "errors", "uncertain")},
        },
        "latency_ms": session.get("latency_ms"),
        "labels": known.labels.num_rows,
        "windows": len(windows),
        "windows_drifted": sum(1 for row in windows if row["drifted"]),
        **_episodes(loop, store, runs),
        "versions": [_version(version, runs.get(version.run)) for version in versions],
        "quality": _quality(loop, known, versions),
    }


def write(settings: Settings, summary: Mapping[str, Any]) -> Path:
    """Write summary.json in one piece and return its path."""
    path = settings.state / "summary.json"
    whole.write(path, kept.dumps(dict(summary)))
    return path


def read(settings: Settings) -> dict[str, Any] | None:
    """Return the summary of the last finished run, or None."""
    path = settings.state / "summary.json"
    if not path.is_file():
        return None
    return kept.loads(path)


def _episodes(loop: Loop, store: Store, runs: Mapping[str, Run]) -> dict[str, list[dict[str, Any]]]:
    """Return the episodes that requested a run, and separately those that the trigger absorbed."""
    episodes, absorbed = [], []
    for row in store.episodes(loop.name):
        told = {
            "id": row["id"],
            "opened_at": row["opened_at"].isoformat(),
            "kind": row["kind"],
            "features": row["features"],
            "why": row["reason"],
        }
        if row["accepted"] is False:
            absorbed.append(told | {"decision": row["decision"]})
            continue
        run = runs.get(row["run_name"] or "")
        outcome, reason = (run.outcome, run.detail) if run and run.outcome else ("running", None)
        episodes.append(told | {"run_id": row["run_name"], "outcome": outcome, "reason": reason})
    return {"episodes": episodes, "absorbed": absorbed}


def _version(version: registry.Version, run: Run | None) -> dict[str, Any]:
    """Return a version; `promoted` means that it was deployed and made the champion, not only that the gate agreed."""
    tags = version.tags
    verdict = json.loads(tags.get("kubeloop.gate", "{}"))
    return {
        "version": version.version,
        "run_id": version.run,
        "as_of": tags.get("kubeloop.as_of"),
        "trained_from": tags.get("kubeloop.trained_from"),
        "trained_to": tags.get("kubeloop.trained_to"),
        "promoted": promoted(version),
        "promoted_at": tags.get("kubeloop.promoted_at"),
        "champion": registry.CHAMPION in version.aliases,
        "reason": verdict.get("reason") if promoted(version) else _why_not(version, verdict, run),
        "gate": verdict,
        "lineage": {
            name.removeprefix("kubeloop."): value
            for name, value in tags.items()
            if name.endswith("sha256") or name in ("kubeloop.code", "kubeloop.feature_service", "kubeloop.served_at")
        },
    }


def _why_not(version: registry.Version, verdict: Mapping[str, Any], run: Run | None) -> str | None:
    if not verdict.get("promote"):
        return verdict.get("reason")
    if proposal := version.tags.get("kubeloop.proposal"):
        return f"proposed as {proposal}; it is promoted when the branch names it"
    return run.detail if run and run.outcome else "passed the gate but is not served yet"


def _quality(loop: Loop, known: table.Log, versions: list[registry.Version]) -> dict[str, Any]:
    """Compare the loop with its frozen first model, by `gates.metric`, on the rows served since a newer one took over.

    Both are scored on the same logged features and labels; whole days are resampled.
    """
    task = port.of(loop)
    metric = task.headline
    about = {"metric": metric.name, "title": metric.title}
    nothing = {**about, "frozen": None, "loop": None, "difference": None, "ci95": None, "rows": 0, "from": None}
    rows = known.labelled_predictions()
    first = next((version for version in versions if promoted(version)), None)
    if first is None or not rows.num_rows:
        return nothing
    newer = pc.not_equal(rows["model_version"], first.version)
    if not pc.any(newer).as_py():
        return nothing
    start: datetime = pc.min(rows.filter(newer)["event_time"]).as_py()
    rows = rows.filter(pc.greater_equal(rows["event_time"], pa.scalar(start, rows["event_time"].type)))
    y = np.asarray(rows["label"].to_numpy(), dtype=np.float64)
    served = task.answers(rows)
    frozen = model_folder.predict(task, first.folder, rows.to_pandas()).astype(np.float64)
    days = gates.time_blocks(rows["event_time"].cast(pa.timestamp("us")).to_numpy(), timedelta(days=1))
    difference, low, high = gates.difference_interval(
        task, y, frozen, served, metric.name, days, loop.gates.resamples, confidence=0.95, seed=loop.training.seed
    )
    return {
        **about,
        "frozen": metric.value(*task.checked(y, frozen)),
        "loop": metric.value(*task.checked(y, served)),
        "difference": difference,
        "ci95": [low, high],
        "rows": len(y),
        "from": start.isoformat(),
    }

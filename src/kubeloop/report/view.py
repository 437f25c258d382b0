"""Everything that the page shows, as text and drawings for the template."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from kubeloop.config import Loop, Settings
from kubeloop.models import registry
from kubeloop.models.gates import Verdict
from kubeloop.models.registry import Version
from kubeloop.payloads.table import Log
from kubeloop.report import forest, heatmap, live, marks, quality, story, tradeoff, words
from kubeloop.report.facts import Facts
from kubeloop.report.live import Live
from kubeloop.report.story import Mark
from kubeloop.report.svg import Time
from kubeloop.steps.promotion import promoted
from kubeloop.tasks import port
from kubeloop.trigger.store import Run

_DIGESTS = {
    "raw data": "kubeloop.raw_sha256",
    "training set": "kubeloop.training_set_sha256",
    "feature repo": "kubeloop.feature_repo_sha256",
    "configuration": "kubeloop.config_sha256",
    "model": "kubeloop.sha256",
}
_FEATURES_SHOWN = 6

MLFLOW_UI = "http://127.0.0.1:5000/"
"""Where `kubeloop mlflow` shows the registry of this machine."""


def build(loop: Loop, settings: Settings, facts: Facts, log: Log, summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the template's variables.

    Args:
        loop: the use case.
        settings: the place.
        facts: of the stores.
        log: the payload log.
        summary: of the finished run, or None.
    """
    origin = min((row["start"] for row in facts.windows), default=loop.replay.train_to if loop.replay else None)
    traffic = live.read(loop, log, facts.first, origin, facts.watermark)
    sentence, tone = words.verdict(facts, summary, log.predictions.num_rows)
    episodes, decisions = _episode_marks(facts), _decision_marks(facts)
    time = _time(facts, traffic, [*episodes, *decisions])
    colours = marks.colours(list(traffic.served))
    return {
        "title": f"{loop.name}: the loop",
        "name": loop.name,
        "description": loop.description,
        "assumptions": loop.assumptions,
        "sentence": sentence,
        "tone": tone,
        "compared": words.compared(summary),
        "accounts": words.accounts(summary),
        "tiles": _tiles(facts, log, summary),
        "changes": _changes(facts, traffic),
        "unchanged": _last_rejection(facts),
        "story": _story(loop, facts, traffic, time, episodes, decisions, colours),
        "note": traffic.note,
        "colours": [(f"v{name}", class_) for name, class_ in colours.items()],
        "first": facts.first.version if facts.first else "1",
        "compares": any(part.difference is not None for part in traffic.bins),
        "heat": _heat(loop, facts, traffic, time, episodes),
        "drift": loop.drift,
        "gates": loop.gates,
        "episodes": [_episode(facts, traffic, number, row) for number, row in enumerate(facts.episodes, 1)],
        "decisions": _decisions(loop, facts),
        "versions": [_version(settings, facts, traffic, colours, version) for version in reversed(facts.versions)],
        "lineage": _lineage(facts),
        "backtest": tradeoff.read(settings),
        "quality": quality.read(settings, [run.name for run in facts.runs]),
        "state": settings.state.name,
        "mlflow_here": MLFLOW_UI,
        "mlflow": settings.mlflow_uri if settings.mlflow_uri.startswith("http") else MLFLOW_UI,
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def verdict_of(version: Version) -> Verdict | None:
    """Return the gate's verdict that a version was registered with."""
    text = version.tags.get("kubeloop.gate")
    return Verdict.from_dict(json.loads(text)) if text else None


def _time(facts: Facts, traffic: Live, points: list[Mark]) -> Time | None:
    moments = [point.moment for point in points]
    moments += [moment for part in traffic.bins for moment in (part.start, part.end)]
    moments += [row[end] for row in facts.windows for end in ("start", "end")]
    if not moments or min(moments) == max(moments):
        return None
    return Time(min(moments), max(moments))


def _episode_marks(facts: Facts) -> list[Mark]:
    return [
        Mark(
            row["opened_at"],
            row["id"],
            f"Episode {number}, {row['opened_at']:%Y-%m-%d}\n{row['reason']}\n"
            f"{words.trigger(row['accepted'], row['decision'])}",
            accepted=bool(row["accepted"]),
        )
        for number, row in enumerate(facts.episodes, 1)
    ]


def _decision_marks(facts: Facts) -> list[Mark]:
    found = []
    for run in sorted(facts.runs, key=lambda run: run.as_of):
        version = facts.made_by(run.name)
        label = f"v{version.version}" if version else "" if run.outcome else "…"
        tip = f"{run.as_of:%Y-%m-%d}: {run.name} {words.outcome(run)}\n{run.detail or ''}"
        found.append(Mark(run.as_of, label, tip, outcome=run.outcome))
    return found


def _tiles(facts: Facts, log: Log, summary: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Return name, value and a word of explanation for each tile."""
    drifted = sum(1 for row in facts.windows if row["drifted"])
    started = sum(1 for row in facts.episodes if row["accepted"])
    through = sum(1 for version in facts.versions if promoted(version))
    tiles = [
        ("Windows", f"{len(facts.windows):,}", f"{drifted:,} drifted"),
        ("Episodes", f"{len(facts.episodes):,}", f"{started:,} started a run"),
        ("Versions", f"{len(facts.versions):,}", f"{through:,} promoted"),
    ]
    if summary is None:
        return [("Logged", f"{log.predictions.num_rows:,}", f"{log.labels.num_rows:,} labels"), *tiles]
    counts = summary["predictions"]
    lost = f"{counts['dropped']:,} dropped, {counts['errors']:,} failed"
    tiles = [
        ("Predictions served", f"{counts['served']:,}", lost),
        ("Logged", f"{counts['logged']:,}", f"{summary['labels']:,} labels"),
        *tiles,
        ("Run time", words.length(float(summary["wall_s"])), _replayed(summary)),
    ]
    latency = summary.get("latency_ms") or {}
    if latency.get("p50") is not None:
        over = f"newest {latency['requests']:,}"
        tiles.append(("Request p50", f"{latency['p50']:.1f} ms", f"p99 {latency['p99']:.1f} ms; {over}"))
    return tiles


def _replayed(summary: Mapping[str, Any]) -> str:
    sessions = int(summary.get("sessions") or 1)
    return f"the last of {sessions} sessions" if sessions > 1 else "fast replay" if summary["fast"] else "whole replay"


def _changes(facts: Facts, traffic: Live) -> list[dict[str, Any]]:
    """Return why each later version took over, newest first."""
    served = list(traffic.served.items())
    found = []
    for (before, _), (name, (since, _)) in pairwise(served):
        version = next((version for version in facts.versions if version.version == name), None)
        run = facts.run(version.run) if version else None
        found.append(
            {
                "before": before,
                "after": name,
                "day": f"{since:%Y-%m-%d}",
                "why": run.reason if run else "The run that made it was not recorded.",
                "gate": words.gate(verdict_of(version) if version else None),
            }
        )
    return found[::-1]


def _last_rejection(facts: Facts) -> str:
    """Return why the model has not changed."""
    last = next((run for run in reversed(facts.runs) if run.outcome in ("rejected", "failed")), None)
    if last is not None:
        return f"The newest run that could have changed it, of {last.as_of:%Y-%m-%d}, did not: {last.detail}"
    return "No retraining has finished." if facts.versions else "There is no model yet."


def _story(
    loop: Loop,
    facts: Facts,
    traffic: Live,
    time: Time | None,
    episodes: list[Mark],
    decisions: list[Mark],
    colours: Mapping[str, str],
) -> Any:
    if time is None or not traffic.bins:
        return None
    short = {
        row["start"]: row["note"] or "the live metric" for row in facts.performance if row["drifted"] and row["live"]
    }
    return story.draw(port.of(loop), traffic, time, episodes, decisions, colours, short)


def _heat(loop: Loop, facts: Facts, traffic: Live, time: Time | None, episodes: list[Mark]) -> Any:
    if time is None or not facts.scores:
        return None
    taken_over = {name: since for name, (since, _) in list(traffic.served.items())[1:]}
    return heatmap.draw(facts.windows, facts.scores, time, episodes, taken_over, loop.drift)


def _episode(facts: Facts, traffic: Live, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    run = facts.run(row["run_name"])
    version = facts.made_by(row["run_name"])
    scores = {
        score["feature"]: score
        for score in facts.scores
        if score["version"] == row["version"] and score["drifted"] and score["end"] <= row["window_end"]
    }
    features = [(name, f"{scores[name]['effect']:.2f}" if name in scores else "") for name in row["features"]]
    shown = _FEATURES_SHOWN if len(features) > _FEATURES_SHOWN + 2 else len(features)
    live_since = traffic.served.get(version.version) if version and promoted(version) else None
    return {
        "number": number,
        "id": row["id"],
        "day": f"{row['opened_at']:%Y-%m-%d}",
        "version": row["version"],
        "kind": row["kind"],
        "reason": row["reason"],
        "features": features[:shown],
        "more": features[shown:],
        "trigger": words.trigger(row["accepted"], row["decision"]),
        "accepted": bool(row["accepted"]),
        "run": row["run_name"],
        "outcome": words.outcome(run),
        "detail": run.detail if run else "",
        "took": _took(run),
        "made": version.version if version else None,
        "live": f"{live_since[0]:%Y-%m-%d %H:%M}" if live_since else None,
        "ended": words.ended(row["outcome"], row["closed_at"]),
    }


def _took(run: Run | None) -> str:
    if run is None or run.finished_at is None or run.started_at is None:
        return ""
    attempts = f", {run.attempts} attempts" if run.attempts > 1 else ""
    return f"{words.length(run.finished_at - run.started_at)}{attempts}"


def _decisions(loop: Loop, facts: Facts) -> dict[str, Any] | None:
    if not facts.runs:
        return None
    made = [facts.made_by(run.name) for run in facts.runs]
    verdicts = [verdict_of(version) if version else None for version in made]
    drawn = forest.draw(verdicts, loop.gates.min_gain)
    rows = [
        {
            "run": run.name,
            "day": f"{run.as_of:%Y-%m-%d}",
            "version": version.version if version else None,
            "outcome": words.outcome(run),
            "plot": plot,
            "gain": words.gain(verdict) if verdict else "",
            "compared": verdict is not None and verdict.interval is not None,
            "failed": forest.failed(verdict.checks) if verdict else [],
            "checks": len(verdict.checks) if verdict else 0,
            "detail": "" if verdict else run.detail or f"{run.status}, attempt {run.attempts}",
        }
        for run, version, verdict, plot in zip(facts.runs, made, verdicts, drawn.rows, strict=True)
    ]
    return {"rows": rows, "axis": drawn.axis, "compares": any(row["compared"] for row in rows)}


def _version(
    settings: Settings, facts: Facts, traffic: Live, colours: Mapping[str, str], version: Version
) -> dict[str, Any]:
    tags, run = version.tags, facts.run(version.run)
    served = traffic.served.get(version.version)
    numbers = {row["id"]: number for number, row in enumerate(facts.episodes, 1)}
    asked = f"episode {numbers[run.episode]}" if run and run.episode in numbers else run.reason if run else "–"
    champion, verdict = registry.CHAMPION in version.aliases, verdict_of(version)
    # The other versions have addresses of sessions that are over.
    endpoint = tags.get("kubeloop.served_at") if champion else None
    return {
        "version": version.version,
        "colour": colours.get(version.version, ""),
        "status": _status(version, run),
        "trained": f"{words.day(tags.get('kubeloop.trained_from'))} to {words.day(tags.get('kubeloop.trained_to'))}",
        "as_of": words.moment(tags.get("kubeloop.as_of")),
        "digests": [(name, tags[tag]) for name, tag in _DIGESTS.items() if tags.get(tag)],
        "gate": words.gain(verdict) if verdict else "–",
        "service": tags.get("kubeloop.feature_service", "–"),
        "code": tags.get("kubeloop.code", "–"),
        "run": version.run or "–",
        "asked": asked,
        "promoted_at": words.moment(tags.get("kubeloop.promoted_at")) if promoted(version) else None,
        "served_at": endpoint,
        "served": story.span(served[0], served[1]) if served else None,
        "predictions": f"{sum(part.rows.get(version.version, 0) for part in traffic.bins):,}",
        "evaluation": quality.link(settings, version.folder.parent / "evaluation" / "evaluation.html"),
    }


def _status(version: Version, run: Run | None) -> str:
    if registry.CHAMPION in version.aliases:
        return "champion"
    if promoted(version):
        return "replaced"
    verdict = verdict_of(version)
    if verdict is None or not verdict.promote:
        return "rejected"
    if version.tags.get("kubeloop.proposal"):
        return "proposed"
    return "failed" if run and run.outcome else "under way"


def _lineage(facts: Facts) -> dict[str, Any] | None:
    """Return the champion's boxes, from data to endpoint."""
    if facts.champion is None:
        return None
    tags = facts.champion.tags
    return {
        "version": facts.champion.version,
        "boxes": [
            ("Raw data", f"known on {words.day(tags.get('kubeloop.as_of'))}", tags.get("kubeloop.raw_sha256")),
            ("Features", tags.get("kubeloop.feature_service", "–"), tags.get("kubeloop.feature_repo_sha256")),
            (
                "Training set",
                f"{words.day(tags.get('kubeloop.trained_from'))} to {words.day(tags.get('kubeloop.trained_to'))}",
                tags.get("kubeloop.training_set_sha256"),
            ),
            ("Model", f"version {facts.champion.version}", tags.get("kubeloop.sha256")),
            ("Endpoint", tags.get("kubeloop.served_at", "not served yet"), None),
        ],
        "with": [("code", tags.get("kubeloop.code")), ("configuration", tags.get("kubeloop.config_sha256"))],
    }

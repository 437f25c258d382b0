"""The state of a loop on one screen for the person on call, read from its stores, whether or not it is running."""

import json
from collections.abc import Mapping
from typing import Any

import httpx
from rich.markup import escape

from kubeloop import access, state
from kubeloop.config import Loop, Settings, duration_text
from kubeloop.models.registry import Version
from kubeloop.monitoring.rows import EpisodeRow, PerformanceRow, ScoreRow
from kubeloop.report import facts, words
from kubeloop.report.facts import Facts
from kubeloop.tasks import port

_ASK_S = 1.0
_MOST_FEATURES = 3
_MEASURED = ("metric", "value", "low", "high", "positives", "reference")


def read(loop: Loop, settings: Settings) -> dict[str, Any]:
    """Return the state of the loop.

    Times are datetimes: event time for champion.live_since, episode, cooldown and the monitor's times, wall time for
    champion.promoted_at and the run's times. A value that was not written yet is None or zero. Nothing is made or
    changed.
    """
    known = facts.read(loop, settings)
    champion = known.champion
    judged = [row for row in known.performance if row["live"] and row["status"] == "judged"]
    return {
        "name": loop.name,
        "champion": _champion(known, champion) if champion else None,
        "last_decision": _last_decision(known),
        "episode": next((_episode(row) for row in reversed(known.episodes) if row["closed_at"] is None), None),
        "run": _run(known),
        "cooldown": _cooldown(known),
        "monitor": {
            "watermark": known.watermark,
            "predictions": sum(row["rows"] for row in [*known.windows, *known.filling]),
            "windows": len(known.windows),
            "windows_drifted": sum(1 for row in known.windows if row["drifted"]),
            "episodes": len(known.episodes),
            **_measured(judged[-1] if judged else None),
            "title": port.of(loop).headline.title,
            "metric_window": judged[-1]["start"] if judged else None,
        },
        "services": services(settings),
        "broken": [str(fault) for fault in state.faults(settings, whole=False)],
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return what `read` found as lines of rich markup."""
    name, champion, monitor = found["name"], found["champion"], found["monitor"]
    if champion is None and not monitor["predictions"] and found["run"] is None and not found["services"]:
        return [f"[bold]{escape(name)}[/]: nothing has run here yet; start with `kubeloop run`."]
    return [
        *_champion_lines(name, champion),
        *_decision_lines(found["last_decision"], champion),
        _drift_line(found["episode"], monitor),
        _run_line(found["run"], found["cooldown"]),
        *_traffic_lines(monitor),
        *_service_lines(found["services"]),
    ]


def windows(loop: Loop, settings: Settings) -> dict[str, Any]:
    """Return the monitor's windows with their drifted features and live metric, and its episodes.

    Each window is the monitor's row with `features` (name, effect and its interval of what drifted, the most harmful
    first), `metric` by name with `value`, `low`, `high` and `positives` (None until its labels are in), and
    `metric_status`, which is `few` if there are too few labels to judge.
    """
    known = facts.read(loop, settings)
    drifted: dict[tuple[Any, str], list[ScoreRow]] = {}
    for score in known.scores:
        if score["drifted"]:
            drifted.setdefault((score["start"], score["version"]), []).append(score)
    measured = {(row["start"], row["version"]): row for row in known.performance}
    found = []
    for row in known.windows:
        key = (row["start"], row["version"])
        performance = measured.get(key)
        worst = sorted(drifted.get(key, []), key=lambda score: -score["importance"] * score["effect"])
        features = [
            {
                "feature": score["feature"],
                "effect": score["effect"],
                "effect_low": score["effect_low"],
                "effect_high": score["effect_high"],
            }
            for score in worst
        ]
        short = bool(performance and performance["drifted"])
        status = performance["status"] if performance else None
        told = {"features": features, "metric_status": status, "metric_drifted": short}
        found.append({**row, **_measured(performance), **told})
    return {"windows": found, "episodes": known.episodes}


def _measured(row: PerformanceRow | None) -> dict[str, Any]:
    known: Mapping[str, Any] = row or {}
    return {name: known.get(name) for name in _MEASURED}


def window_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a window of `windows` as table cells: window, version, rows, live metric, verdict, drifted features."""
    quality = _quality(row)
    if row["status"] != "judged":
        verdict = f"[dim]{escape(row['status'].replace('_', ' '))}[/]"
    elif row["drifted"]:
        verdict = f"[yellow]drifted[/] ({row['importance']:.0%})"
    else:
        verdict = "[green]steady[/]"
    named = [_effect(score) for score in row["features"][:_MOST_FEATURES]]
    more = len(row["features"]) - len(named)
    return (
        f"{row['start']:%Y-%m-%d %H:%M}".removesuffix(" 00:00") + f" {duration_text(row['end'] - row['start'])}",
        escape(row["version"]) + ("" if row["live"] else " [dim](not live)[/]"),
        f"{row['rows']:,}",
        f"[yellow]{quality}[/]" if row["metric_drifted"] else quality,
        verdict,
        escape(", ".join(named) + (f" and {more} more" if more > 0 else "")),
    )


def _effect(score: Mapping[str, Any]) -> str:
    said = f"{score['feature']} {score['effect']:.2f}"
    return (
        said if score.get("effect_low") is None else f"{said} ({score['effect_low']:.2f} to {score['effect_high']:.2f})"
    )


def _quality(row: Mapping[str, Any]) -> str:
    """Return the live metric with its interval and the number of positives."""
    if row["value"] is None:
        return "–"
    if row.get("low") is None:
        return f"{row['value']:.3f}"
    rests = "" if row["positives"] is None else f", {row['positives']:,} positives"
    few = ", too few to judge" if row.get("metric_status") == "few" else ""
    return f"{row['value']:.3f} ({row['low']:.2f} to {row['high']:.2f}{rests}{few})"


def services(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return url, pid and whether it answers (`up`) for each service that the last session recorded."""
    written = access.services(settings.services_file)
    return {name: {**service, "up": _answers(service["url"])} for name, service in written.items()}


def _answers(url: str) -> bool:
    try:
        # Loopback needs no proxy, and a proxy from the environment would answer instead of the service.
        return httpx.get(f"{url}/status", timeout=_ASK_S, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _champion(known: Facts, champion: Version) -> dict[str, Any]:
    tags = champion.tags
    return {
        "version": champion.version,
        "promoted_at": tags.get("kubeloop.promoted_at"),
        "trained_from": tags.get("kubeloop.trained_from"),
        "trained_to": tags.get("kubeloop.trained_to"),
        "as_of": tags.get("kubeloop.as_of"),
        "reason": tags.get("kubeloop.reason"),
        "sha256": champion.sha256,
        "run": champion.run,
        "served_at": tags.get("kubeloop.served_at"),
        "gate": _gate(champion),
        "newest": known.versions[-1].version == champion.version,
    }


def _gate(version: Version) -> str | None:
    text = version.tags.get("kubeloop.gate")
    return str(json.loads(text)["reason"]) if text else None


def _last_decision(known: Facts) -> dict[str, Any] | None:
    run = next((run for run in reversed(known.runs) if run.outcome), None)
    if run is None:
        return None
    version = known.made_by(run.name)
    return {
        "run": run.name,
        "version": version.version if version else None,
        "as_of": run.as_of,
        "outcome": run.outcome,
        "detail": run.detail,
        "finished_at": run.finished_at,
    }


def _episode(row: EpisodeRow) -> dict[str, Any]:
    return {
        key: row[key] for key in ("id", "kind", "version", "opened_at", "features", "reason", "decision", "run_name")
    }


def _run(known: Facts) -> dict[str, Any] | None:
    run = next((run for run in known.runs if run.outcome is None), None)
    if run is None:
        return None
    keys = ("name", "status", "attempts", "failures", "created_at", "started_at", "as_of", "reason", "detail")
    return {key: getattr(run, key) for key in keys}


def _cooldown(known: Facts) -> dict[str, Any] | None:
    rest = known.cooldown
    if rest is None:
        return None
    over = known.watermark is not None and known.watermark >= rest.until
    return {"until": rest.until, "length": duration_text(rest.length), "over": over}


def _champion_lines(name: str, champion: Mapping[str, Any] | None) -> list[str]:
    if champion is None:
        return [f"[bold]{escape(name)}[/]: no champion yet"]
    since = words.moment(champion["promoted_at"])
    span = f"{words.day(champion['trained_from'])} to {words.day(champion['trained_to'])}"
    return [
        f"[bold]{escape(name)}[/]: version [bold]{escape(champion['version'])}[/] is champion since {since} UTC",
        f"  trained   {span}, with what was known on {words.day(champion['as_of'])}",
        f"  why       {escape(champion['reason'] or '–')}",
        f"  gate      {escape(champion['gate'] or '–')}",
    ]


def _decision_lines(last: Mapping[str, Any] | None, champion: Mapping[str, Any] | None) -> list[str]:
    if last is None or (champion and champion["run"] == last["run"]):
        return []
    colour = {"promoted": "green", "rejected": "yellow"}.get(last["outcome"], "red")
    what = f"version {last['version']}" if last["version"] else f"run {last['run']}"
    detail = str(last["detail"] or "").removeprefix(f"{str(last['outcome']).capitalize()}: ")
    return [f"  since     {escape(what)} of {last['as_of']:%Y-%m-%d} [{colour}]{last['outcome']}[/]: {escape(detail)}"]


def _drift_line(episode: Mapping[str, Any] | None, monitor: Mapping[str, Any]) -> str:
    if episode is None:
        return f"Drift       no open episode; {words.plural(monitor['episodes'], 'episode')} so far"
    return f"Drift       [yellow]open[/] since {episode['opened_at']:%Y-%m-%d}: {escape(episode['reason'])}"


def _run_line(run: Mapping[str, Any] | None, cooldown: Mapping[str, Any] | None) -> str:
    if run is not None:
        began = run["started_at"] or run["created_at"]
        return (
            f"Run         [cyan]{run['status']}[/] {escape(run['name'])}, attempt {run['attempts']}, "
            f"since {began:%Y-%m-%d %H:%M} UTC"
        )
    if cooldown is None or cooldown["over"]:
        return "Run         none is running"
    return f"Run         none is running; cooldown until {cooldown['until']:%Y-%m-%d %H:%M} (event time)"


def _traffic_lines(monitor: Mapping[str, Any]) -> list[str]:
    if monitor["watermark"] is None or not monitor["predictions"]:
        return ["Traffic     no predictions yet"]
    seen, cut = words.plural(monitor["predictions"], "prediction"), words.plural(monitor["windows"], "window")
    until = f"{monitor['watermark']:%Y-%m-%d %H:%M}"
    found = [f"Traffic     {seen} up to {until}, {cut}, {monitor['windows_drifted']:,} drifted"]
    if monitor["value"] is not None:
        reference = monitor["reference"]
        held_out = f", {reference:.3f} on its hold-out" if reference is not None else ""
        title = f"Live {monitor['title']}"
        found.append(
            f"{title:<11} {_quality(monitor)} in the window from {monitor['metric_window']:%Y-%m-%d}{held_out}"
        )
    return found


def _service_lines(known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not known:
        return ["Services    none is running; `kubeloop serve` starts them"]
    return [
        f"{'Services' if place == 0 else '':<12}{name:<10} "
        + (f"[green]up[/]    {escape(service['url'])}" if service["up"] else f"[red]down[/]  {escape(service['url'])}")
        for place, (name, service) in enumerate(known.items())
    ]

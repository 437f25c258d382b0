"""Explain the numbers of a run in plain sentences."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from kubeloop import moments
from kubeloop.models.gates import Verdict
from kubeloop.report.facts import Facts
from kubeloop.steps.promotion import promoted
from kubeloop.trigger.store import Run

Summary = Mapping[str, Any]

_ISO = re.compile(r"\d{4}-\d{2}-\d{2}T[\d:.]+(?:[+-]\d{2}:\d{2}|Z)?")


def verdict(facts: Facts, summary: Summary | None, logged: int) -> tuple[str, str]:
    """Return the result of the loop in one sentence, and whether that is `good`, `bad` or neither (`open`)."""
    if summary is None:
        if not facts.versions:
            return "The run has not finished: no model has been trained yet.", "open"
        return f"The run has not finished. So far: {counts(facts)}, {logged:,} predictions logged.", "open"
    found = summary["quality"]
    if found["difference"] is None:
        return f"{_capital(counts(facts))}; {_unchanged(facts)}.", "open"
    low, high = found["ci95"]
    name = inline(found["title"])
    numbers = f"{found['loop']:.3f} against {found['frozen']:.3f} of the frozen first model"
    interval = f"{found['difference']:+.3f}, 95% interval {low:+.3f} to {high:+.3f}"
    start = _capital(counts(facts))
    if low > 0:
        return f"{start}; the loop's {name} is {numbers} ({interval}).", "good"
    if high < 0:
        return f"{start}; the loop did worse than without retraining: its {name} is {numbers} ({interval}).", "bad"
    return f"{start}; no gain is proven: the loop's {name} is {numbers} ({interval}, which includes zero).", "open"


def counts(facts: Facts) -> str:
    """Return how many episodes there were, and how many retrained models were promoted."""
    first = facts.first.version if facts.first else None
    again = [version for version in facts.versions if version.version != first]
    through = sum(1 for version in again if promoted(version))
    episodes = plural(len(facts.episodes), "episode")
    if not again:
        return f"{episodes}, no retrained model"
    if through == len(again):
        return f"{episodes}, {plural(through, 'retrained model')} promoted"
    return f"{episodes}, {plural(len(again), 'retrained model')}, {through or 'none'} promoted"


def _unchanged(facts: Facts) -> str:
    if not facts.versions:
        return "no model has been trained yet"
    if facts.first is None:
        return "no model has passed the gate and started, so none serves"
    if sum(promoted(version) for version in facts.versions) > 1:
        return "the promoted model has not answered a labelled prediction yet, so there is nothing to compare"
    return f"version {facts.first.version}, the first model, still serves, so there is nothing to compare it with"


def compared(summary: Summary | None) -> str:
    """Return the data of the comparison."""
    found = (summary or {}).get("quality") or {}
    if found.get("difference") is None:
        return ""
    return (
        f"Both scored on the same {found['rows']:,} logged and labelled predictions since "
        f"{moments.read(found['from']):%Y-%m-%d}, when the first retrained model took over; "
        "the interval resamples whole days."
    )


def accounts(summary: Summary | None) -> list[str]:
    """Return warnings about the counts of predictions; none if clients, log and drops agree."""
    counts = (summary or {}).get("predictions") or {}
    if not counts:
        return []
    said = []
    missing = counts["served"] - counts["logged"] - counts["dropped"]
    if missing > 0:
        said.append(
            f"Warning: the payload log lacks {plural(missing, 'prediction')} that clients got, and the loss was not "
            "counted."
        )
    if missing < 0:
        said.append(
            f"Warning: the payload log holds {plural(-missing, 'prediction')} more than clients of the replay got; an "
            "answer was lost on its way to them, or another client sent events."
        )
    if uncertain := counts.get("uncertain"):
        said.append(f"{plural(uncertain, 'prediction')} of a session that was killed: settled later from the log.")
    return said


def gate(verdict: Verdict | None) -> str:
    """Return the gate's decision in one sentence."""
    if verdict is None:
        return "The gate's decision was not recorded."
    return verdict.reason


def gain(verdict: Verdict) -> str:
    """Return a verdict's gain with its interval."""
    if verdict.difference is None or verdict.interval is None:
        value = "undefined" if verdict.challenger is None else f"{verdict.challenger:.3f}"
        return f"{verdict.metric} {value}, no champion to beat"
    low, high = verdict.interval
    return f"{verdict.difference:+.4f} ({low:+.4f} to {high:+.4f})"


def trigger(accepted: bool | None, decision: str | None) -> str:
    """Return the trigger's answer to an episode."""
    if decision is None:
        return "The trigger has not answered yet."
    if accepted:
        return "The trigger started one run."
    why = _ISO.sub(lambda found: moment(found[0]).removesuffix(" 00:00"), decision.removeprefix("absorbed: "))
    return f"The trigger did not start a run: {why}."


def ended(outcome: str | None, closed_at: datetime | None) -> str:
    """Return how an episode ended."""
    if closed_at is None:
        return "It is still open."
    return {
        "refused": "It ended at once, since no run was started.",
        "replaced": f"It ended on {closed_at:%Y-%m-%d}, when another version took over the traffic.",
        "expired": f"It ended on {closed_at:%Y-%m-%d}: the cooldown had passed and the same version still served.",
    }.get(outcome or "", f"It ended on {closed_at:%Y-%m-%d}: {outcome}.")


def outcome(run: Run | None) -> str:
    """Return how a run ended, in one word."""
    if run is None:
        return "no run"
    return run.outcome or "under way"


def inline(title: str) -> str:
    """Return a metric's title as it is written within a sentence."""
    return title[0].lower() + title[1:] if title[1:2].islower() else title


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}" if count else f"no {noun}s"


def length(value: timedelta | float) -> str:
    """Return a length of time as a person would say it."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"


def day(text: str | None) -> str:
    """Return the day of an ISO 8601 moment, a dash for none."""
    return text[:10] if text else "–"


def moment(text: str | None) -> str:
    """Return an ISO 8601 moment to the minute, a dash for none."""
    return f"{moments.read(text):%Y-%m-%d %H:%M}" if text else "–"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]

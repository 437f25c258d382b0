"""The result of a backtest as cells of a table and as sentences."""

from collections.abc import Mapping
from typing import Any

from kubeloop import moments
from kubeloop.backtest import policies
from kubeloop.report.words import plural


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return a policy's row: name, metric, interval, difference to the first, retrainings, promotions, worst window."""
    worst, difference = row["worst"], row["difference"]
    against = "–"
    if difference is not None:
        against = f"{difference['value']:+.4f} ({_reach(difference['interval'], sign=True)})"
    shown = "–"
    if worst is not None:
        shown = f"{worst['value']:.3f}, from {worst['start'][:10]}, {_rows(worst)}"
    made = f"{row['retrainings']}" + (f" ({row['failed']} failed)" if row["failed"] else "")
    return [
        f"{row['policy']} (hindsight)" if row["oracle"] else row["policy"],
        f"{row['value']:.4f}",
        _reach(row["interval"]),
        against,
        made,
        f"{row['promotions']}",
        shown,
    ]


def sentences(found: Mapping[str, Any], applied: str = "") -> list[str]:
    """Return what the numbers are based on, the comparison with a monthly calendar, and the suggestion."""
    start, until = (moments.read(found[end]) for end in ("start", "until"))
    basis = (
        f"{found['rows']:,} labelled predictions from {start:%Y-%m-%d} to {until:%Y-%m-%d}"
        f"{_positive(found)}; intervals resample {found['windows']} whole windows of {found['window']}. "
        "A positive difference is better."
    )
    return [basis, *answer(found), suggestion(found, applied)]


def _positive(found: Mapping[str, Any]) -> str:
    return "" if found["positives"] is None else f", {found['positives']:,} positive"


def _rows(worst: Mapping[str, Any]) -> str:
    if worst["positives"] is None:
        return f"{worst['rows']:,} rows"
    return f"{worst['positives']:,} of {worst['rows']:,} positive"


def answer(found: Mapping[str, Any]) -> list[str]:
    """Say whether drift-triggered retraining is better than simply retraining every month."""
    difference = found["drift_against_monthly"]
    if difference is None:
        return []
    rows = {row["policy"]: row for row in found["policies"]}
    ours, theirs = rows[policies.EITHER], rows[policies.MONTHLY]
    (low, high), value = difference["interval"], difference["value"]
    numbers = f"{found['metric']} {value:+.4f} ({low:+.4f} to {high:+.4f})"
    counts = f"{plural(ours['retrainings'], 'retraining')} against {theirs['retrainings']}"
    question = "Is retraining on drift or performance better than retraining every month?"
    if low > 0:
        return [f"{question} Yes, on this history: {numbers}, with {counts}."]
    if high < 0:
        return [f"{question} No, every month is better on this history: {numbers}, with {counts}."]
    return [f"{question} This history does not show it: {numbers}, and the interval includes zero; it took {counts}."]


def suggestion(found: Mapping[str, Any], applied: str = "") -> str:
    """Say which policy is suggested, and why."""
    rows = {row["policy"]: row for row in found["policies"]}
    row = rows[found["suggested"]]
    return (
        f"Suggested: {found['suggested']}, with {plural(row['retrainings'], 'retraining')}. No policy is "
        "significantly better, and of those that are as good it retrains least."
        + ("" if applied == found["suggested"] else " `kubeloop backtest --apply suggested` writes it into loop.yaml.")
    )


def evidence(found: Mapping[str, Any], name: str) -> str:
    """Say in one line why a policy was chosen, for loop.yaml."""
    row = next(row for row in found["policies"] if row["policy"] == name)
    metric, difference = found["metric"], row["difference"]
    against = ""
    if difference is not None:
        value, reach = difference["value"], _reach(difference["interval"], sign=True)
        against = f", {value:+.4f} ({reach}) against {found['policies'][0]['policy']}"
    return (
        f"{name}: {metric} {row['value']:.4f}{against}, {plural(row['retrainings'], 'retraining')}, "
        f"{found['start'][:10]} to {found['until'][:10]}"
    )


def _reach(interval: Any, *, sign: bool = False) -> str:
    form = "+.4f" if sign else ".4f"
    return f"{interval[0]:{form}} to {interval[1]:{form}}"

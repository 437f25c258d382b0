"""Render a gate's verdict as one self-contained HTML page."""

from kubeloop import pages
from kubeloop.models.gates import Check, Verdict

_WANTED = {"blocks": "≥", "class": "≥", "gain": ">", "floor": "≥", "ceiling": "≤", "slice": "≥", "warnings": "≤"}


def html(title: str, verdict: Verdict) -> str:
    """Return a complete page; it loads nothing, runs no script and follows the reader's light or dark scheme.

    Args:
        title: for example the model's name.
        verdict: of `gates.compare` or `gates.first`.
    """
    return pages.render(
        "gate",
        title=title,
        verdict=verdict,
        tiles=_tiles(verdict),
        rows=[_row(check, verdict) for check in verdict.checks],
    )


def _tiles(verdict: Verdict) -> list[tuple[str, str, str]]:
    """Return name, value and the value's interval of each tile."""
    found = [("Challenger", _number(verdict.challenger), _between(verdict.challenger_interval))]
    if verdict.champion is not None:
        found.append(("Champion", _number(verdict.champion), _between(verdict.champion_interval)))
    if verdict.difference is not None:
        found.append(("Gain", f"{verdict.difference:+.4f}", ""))
    if verdict.interval is not None:
        low, high = verdict.interval
        found.append((f"{verdict.confidence:.0%} interval of the gain", f"{low:+.4f} to {high:+.4f}", ""))
    if verdict.rows is not None:
        of_class = "" if verdict.positives is None else f", {verdict.positives:,}"
        found.append(("Rows, of them class 1" if of_class else "Rows", f"{verdict.rows:,}{of_class}", ""))
    return found


def _row(check: Check, verdict: Verdict) -> dict[str, object]:
    kind, _, name = check.name.partition(" ")
    about = {
        "blocks": "Blocks of time in the hold-out",
        "class": "Rows outside the most frequent class",
        "gain": "Lower end of the gain's interval",
        "warnings": "Warnings about the model",
        "slice": f"Change of {verdict.metric} where {name}",
    }.get(kind, name)
    value, limit = _number(check.value), _number(check.limit)
    if kind in ("blocks", "class", "warnings"):
        value, limit = f"{check.value:.0f}", f"{check.limit:.0f}"
    return {
        "about": about,
        "found": value,
        "between": _between(check.interval),
        "positives": "" if check.positives is None else f"{check.positives:,}",
        "wanted": f"{_WANTED[kind]} {limit}",
        "passed": check.passed,
        "note": check.note,
    }


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

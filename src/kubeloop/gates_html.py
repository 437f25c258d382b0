"""Render a gate's verdict as one self-contained HTML page."""

from kubeloop import pages
from kubeloop.gates import Check, Verdict

_WANTED = {"blocks": "≥", "gain": ">", "floor": "≥", "ceiling": "≤", "slice": "≥", "warnings": "≤"}


def html(title: str, verdict: Verdict) -> str:
    """Return a complete page; it loads nothing, runs no script and follows the reader's light or dark scheme.

    Args:
        title: such as the model's name.
        verdict: of `gates.compare` or `gates.first`.
    """
    return pages.render(
        "gate",
        title=title,
        verdict=verdict,
        tiles=_tiles(verdict),
        rows=[_row(check, verdict) for check in verdict.checks],
    )


def _tiles(verdict: Verdict) -> list[tuple[str, str]]:
    found = [("Challenger", _number(verdict.challenger))]
    if verdict.champion is not None:
        found.append(("Champion", _number(verdict.champion)))
    if verdict.difference is not None:
        found.append(("Gain", f"{verdict.difference:+.4f}"))
    if verdict.interval is not None:
        low, high = verdict.interval
        found.append((f"{verdict.confidence:.0%} interval of the gain", f"{low:+.4f} to {high:+.4f}"))
    return found


def _row(check: Check, verdict: Verdict) -> dict[str, object]:
    kind, _, name = check.name.partition(" ")
    about = {
        "blocks": "Blocks of time in the hold-out",
        "gain": "Lower end of the gain's interval",
        "warnings": "Warnings about the model",
        "slice": f"Change of {verdict.metric} where {name}",
    }.get(kind, name)
    value, limit = _number(check.value), _number(check.limit)
    if kind in ("blocks", "warnings"):
        value, limit = f"{check.value:.0f}", f"{check.limit:.0f}"
    return {"about": about, "found": value, "wanted": f"{_WANTED[kind]} {limit}", "passed": check.passed}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

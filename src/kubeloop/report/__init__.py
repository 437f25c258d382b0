"""The report: one self-contained HTML page that says why a model changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubeloop import pages
from kubeloop.config import Loop, Settings
from kubeloop.payloads import table
from kubeloop.report import facts, view
from kubeloop.stores import whole
from kubeloop.tasks import port


def write(loop: Loop, settings: Settings, summary: Mapping[str, Any] | None) -> Path:
    """Write `report.html` into the state folder in one piece and return its path.

    The page loads nothing, works without JavaScript and follows the reader's light or dark scheme.

    Args:
        loop: the use case.
        settings: the place.
        summary: of `summary.build`; None for a run that has not finished.

    Raises:
        LogError: a segment of the payload log is damaged.
    """
    content = view.build(
        loop, settings, facts.read(loop, settings), table.read(port.of(loop), settings, loop.name), summary
    )
    path = settings.state / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.write(path, pages.render("report", **content))
    return path

"""The rows that validation quarantined in each run, and links to its Data Docs."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq

from kubeloop.config import Settings

_DOCS = {"raw": "raw tables", "training": "training set"}


@dataclass(frozen=True)
class Quality:
    """One run: quarantined rows by (table, reason), and its documents as (name, link)."""

    run: str
    quarantined: list[tuple[str, str, int]]
    documents: list[tuple[str, str]]


def read(settings: Settings, runs: list[str]) -> list[Quality]:
    """Read the quarantine of each run; a row with two reasons counts under both."""
    return [Quality(run, _quarantined(settings.state / "quarantine" / run), _documents(settings, run)) for run in runs]


def link(settings: Settings, target: Path) -> str | None:
    """Return a link from the report to a file, or None when there is no such file."""
    if not target.is_file():
        return None
    return quote(Path(os.path.relpath(target, settings.state)).as_posix())


def _quarantined(folder: Path) -> list[tuple[str, str, int]]:
    found = []
    for path in sorted(folder.glob("*.parquet")):
        reasons = pq.read_table(path, columns=["reasons"])["reasons"].to_pylist()
        counted = Counter(reason for row in reasons for reason in row or ["no reason given"])
        found += [(path.stem, reason, count) for reason, count in counted.most_common()]
    return found


def _documents(settings: Settings, run: str) -> list[tuple[str, str]]:
    folder = settings.state / "data-docs" / run
    links = {name: link(settings, folder / part / "index.html") for part, name in _DOCS.items()}
    return [(name, target) for name, target in links.items() if target]

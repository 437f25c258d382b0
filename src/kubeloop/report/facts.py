"""Read the stores of a loop, without creating or changing any of them."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from kubeloop.config import Loop, Settings
from kubeloop.models import registry
from kubeloop.models.registry import Version
from kubeloop.monitoring.rows import EpisodeRow, FillingRow, PerformanceRow, ScoreRow, WindowRow
from kubeloop.monitoring.store import Store
from kubeloop.steps import promotion
from kubeloop.trigger.ledger import Ledger
from kubeloop.trigger.store import Cooldown, Received, Run


@dataclass(frozen=True)
class Facts:
    """Registry, monitor and ledger of one loop; each part is empty until something has written it.

    Attributes:
        versions: model versions, oldest first.
        windows: closed windows, one row per version.
        filling: windows that are not closed yet.
        scores: drift scores of every feature in every judged window.
        performance: live performance of windows whose labels are in.
        episodes: in the order in which they opened.
        watermark: newest event time that the monitor knows.
        runs: the runs of the ledger, oldest first.
        events: the events of the ledger, in event time.
        cooldown: the newest one, over or not.
    """

    versions: list[Version] = field(default_factory=list)
    windows: list[WindowRow] = field(default_factory=list)
    filling: list[FillingRow] = field(default_factory=list)
    scores: list[ScoreRow] = field(default_factory=list)
    performance: list[PerformanceRow] = field(default_factory=list)
    episodes: list[EpisodeRow] = field(default_factory=list)
    watermark: datetime | None = None
    runs: list[Run] = field(default_factory=list)
    events: list[Received] = field(default_factory=list)
    cooldown: Cooldown | None = None

    @property
    def champion(self) -> Version | None:
        """The version that the champion alias names."""
        return next((version for version in self.versions if registry.CHAMPION in version.aliases), None)

    @property
    def first(self) -> Version | None:
        """The first version that served: it would serve today if nothing had been retrained."""
        return next((version for version in self.versions if promotion.promoted(version)), None)

    def run(self, name: str | None) -> Run | None:
        """Return a run by its name."""
        return next((run for run in self.runs if run.name == name), None)

    def made_by(self, run: str | None) -> Version | None:
        """Return the version that a run registered."""
        return next((version for version in self.versions if run and version.run == run), None)


def read(loop: Loop, settings: Settings) -> Facts:
    """Read the stores that exist."""
    found: dict[str, object] = {}
    if _kept(settings.mlflow_uri):
        found["versions"] = registry.versions(settings, loop.name)
    if _kept(settings.monitor_db):
        store = Store(settings.monitor_db)
        found |= {
            "windows": store.windows(loop.name),
            "filling": store.open_windows(loop.name),
            "scores": store.scores(loop.name),
            "performance": store.performance(loop.name),
            "episodes": store.episodes(loop.name),
            "watermark": store.progress(loop.name).watermark,
        }
        store.close()
    if _kept(settings.ledger_db):
        ledger = Ledger(settings.ledger_db, loop.drift)
        found |= {
            "runs": ledger.runs(loop.name),
            "events": ledger.events(loop.name),
            "cooldown": ledger.cooldown(loop.name),
        }
        ledger.close()
    return Facts(**found)  # type: ignore[arg-type]


def _holds(path: Path) -> bool:
    # SQLite takes an empty file for a new database, and tables would be created in it.
    return path.is_file() and path.stat().st_size > 0


def _kept(url: str) -> bool:
    """Return whether there is something to read, since opening a missing SQLite file would create it."""
    place = sa.make_url(url)
    return place.get_backend_name() != "sqlite" or _holds(Path(place.database or ""))

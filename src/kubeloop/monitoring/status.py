"""The monitor's status and its metrics for Prometheus."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kubeloop.config import Drift
from kubeloop.monitoring.outbox import waiting
from kubeloop.monitoring.rows import ScoreRow, ShownWindow
from kubeloop.monitoring.store import Store
from kubeloop.monitoring.windows import Grid
from kubeloop.payloads import decode


class Status:
    """Reads the store and the log; safe to call while the monitor works."""

    def __init__(self, service: str, store: Store, log: Path, drift: Drift, grid: Grid) -> None:
        self.service = service
        self.store = store
        self._log = log
        self._drift = drift
        self._grid = grid

    def read(self) -> dict[str, Any]:
        """Return the monitor's progress.

        `processed_until` is the end of the last window that is over and judged, by service; windows without rows count
        as judged. `lag_events` counts the events in the log that were not read yet: all events if the log was reset.
        """
        now = self.store.progress(self.service)
        counts = Counter(row["status"] for row in self.store.windows(self.service))
        filling = self.store.open_windows(self.service)
        end = decode.newest(self._log)
        episodes = self.store.episodes(self.service)
        until = None
        if now.watermark is not None:
            due = [row["start"] for row in filling if row["end"] <= now.watermark]
            until = min(due, default=self._grid.start(now.watermark))
        return {
            "service": self.service,
            "engine": self._drift.engine,
            "watermark": now.watermark,
            "watermark_ahead": now.watermark is not None and now.watermark > datetime.now(UTC) + self._drift.skew,
            "processed_until": {self.service: until},
            "last_seq": now.cursor,
            "lag_events": end - now.cursor if end >= now.cursor else end,
            "windows": dict(sorted(counts.items())) | {"open": len({row["start"] for row in filling})},
            "waiting_rows": sum(row["rows"] for row in filling),
            "late_rows": now.late_rows,
            "early_rows": now.early_rows,
            "malformed": now.malformed,
            "open_episode": next((row for row in episodes if row["closed_at"] is None), None),
            "episodes": len(episodes),
            "undelivered": len(waiting(self.store, self.service)),
        }

    def windows(self) -> list[ShownWindow]:
        """Return the closed windows with the scores of their features and, once labels are in, their performance."""
        measured = {(row["start"], row["version"]): row for row in self.store.performance(self.service)}
        scores: dict[tuple[datetime, str], list[ScoreRow]] = {}
        for row in self.store.scores(self.service):
            scores.setdefault((row["start"], row["version"]), []).append(row)
        return [
            {
                **row,
                "scores": scores.get((row["start"], row["version"]), []),
                "performance": measured.get((row["start"], row["version"])),
            }
            for row in self.store.windows(self.service)
        ]


class Metrics(Collector):
    """Metrics from the store, read at each scrape, so that the numbers outlive the process."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """Read the store."""
        status, name = self._status.read(), self._status.service
        store = self._status.store
        windows = store.windows(name)
        closed = CounterMetricFamily("kubeloop_monitor_windows", "Closed windows.", labels=["service", "status"])
        for key, count in Counter(row["status"] for row in windows).items():
            closed.add_metric([name, key], count)
        yield closed
        drifted = CounterMetricFamily("kubeloop_monitor_drifted_windows", "Drifted windows.", labels=["service"])
        drifted.add_metric([name], sum(1 for row in windows if row["drifted"]))
        yield drifted
        effect = GaugeMetricFamily(
            "kubeloop_monitor_effect",
            "Effect size of the change of a feature in the last judged window of the live version, 0 to 1.",
            labels=["service", "version", "feature", "kind"],
        )
        last = [row for row in windows if row["live"] and row["status"] == "judged"][-1:]
        for score in (s for w in last for s in store.scores(name, w["start"]) if s["version"] == w["version"]):
            effect.add_metric([name, score["version"], score["feature"], score["kind"]], score["effect"])
        yield effect
        quality = GaugeMetricFamily(
            "kubeloop_monitor_metric",
            "gates.metric of the last window with labels.",
            labels=["service", "version", "metric"],
        )
        bound = GaugeMetricFamily(
            "kubeloop_monitor_metric_bound",
            "Ends of the 95 % interval of kubeloop_monitor_metric.",
            labels=["service", "version", "metric", "end"],
        )
        performance = [row for row in store.performance(name) if row["live"]]
        for row in [row for row in performance if row["status"] == "judged"][-1:]:
            labels = [name, row["version"], row["metric"] or ""]
            if row["value"] is not None:
                quality.add_metric(labels, row["value"])
            for end, value in (("low", row["low"]), ("high", row["high"])):
                if value is not None:
                    bound.add_metric([*labels, end], value)
        yield quality
        yield bound
        share = GaugeMetricFamily(
            "kubeloop_monitor_labelled_share",
            "Share of predictions with a label in time, in the last window whose wait is over.",
            labels=["service"],
        )
        for row in [row for row in performance if row["rows"]][-1:]:
            share.add_metric([name], row["labelled"] / row["rows"])
        yield share
        rows = CounterMetricFamily(
            "kubeloop_monitor_rows_outside", "Rows that are in no window.", labels=["service", "why"]
        )
        for why in ("late", "early"):
            rows.add_metric([name, why], status[f"{why}_rows"])
        yield rows
        malformed = CounterMetricFamily(
            "kubeloop_monitor_malformed", "Events and single labels of the log that cannot be read.", labels=["service"]
        )
        malformed.add_metric([name], status["malformed"])
        yield malformed
        yield _gauge("kubeloop_monitor_open_episodes", "Open episodes.", name, status["open_episode"] is not None)
        yield _gauge("kubeloop_monitor_undelivered", "Episodes without an answer.", name, status["undelivered"])
        yield _gauge("kubeloop_monitor_lag_events", "Events in the log not read yet.", name, status["lag_events"])
        help_text = "Whether the stored watermark is in the future; then nothing is read until it is reset."
        yield _gauge("kubeloop_monitor_watermark_ahead", help_text, name, status["watermark_ahead"])
        if status["watermark"] is not None:
            help_text = "Newest event time, seconds since 1970."
            yield _gauge("kubeloop_monitor_watermark_seconds", help_text, name, status["watermark"].timestamp())


def _gauge(name: str, text: str, service: str, value: float) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=["service"])
    gauge.add_metric([service], value)
    return gauge

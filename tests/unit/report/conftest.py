"""A small loop that has really run: models, registry, payload log, monitor state and ledger, all on disk."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubeloop import config
from kubeloop.config import Loop, Settings
from kubeloop.models import gates, registry
from kubeloop.monitoring.detector.port import Score
from kubeloop.monitoring.store import Due, Store
from kubeloop.names import LABEL_EVENT, REQUEST_EVENT, RESPONSE_EVENT
from kubeloop.payloads import segments
from kubeloop.session import summary
from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.maker import BinaryMaker
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.tabular import export, model_folder, training
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.ledger import Ledger

MAKER = BinaryMaker(BINARY)

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
WEEK = timedelta(days=7)
HOSTILE = "<script>alert('x')</script>"
ROWS = 30
"""Predictions per day."""

_LOOP = """
name: parcels
description: Parcels & "late" <ones>.
assumptions: ["A label is <b>taken</b> to be known 1d after its row's moment"]
source: {tables: {orders: {available_at: known_at, path: orders.csv}}}
features: {service: parcels_v1}
training: {algorithm: logistic_regression, window: 60d, holdout: 14d}
gates: {resamples: 100}
drift: {window: 7d, min_rows: 50, cooldown: 7d}
"""


@dataclass(frozen=True)
class World:
    loop: Loop
    settings: Settings
    summary: dict[str, Any]


@pytest.fixture
def place(tmp_path: Path) -> tuple[Loop, Settings]:
    """A loop in which nothing has run."""
    return _place(tmp_path)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six weeks: version 1 for three, then version 2 in its place; version 3 was rejected in week five."""
    loop, settings = _place(tmp_path_factory.mktemp("loop"))
    settings.state.mkdir(parents=True)
    (settings.home / "loop.yaml").write_text(_LOOP)
    models = [_model(settings.state / "made" / name, sign) for name, sign in (("a", 1), ("b", -1), ("c", -1))]
    _register(loop, settings, models)
    _traffic(settings, models)
    _watch(loop, settings)
    _document(settings)
    counts = {"served": 42 * ROWS + 3, "errors": 2, "dropped": 3, "uncertain": 0}
    session = {"fast": True, "sessions": 1, "replay_s": 60.0, "latency_ms": None, **counts}
    return World(loop, settings, summary.build(loop, settings, session, 65.0))


class Page(HTMLParser):
    """A parsed page, which checks that every tag is closed where HTML requires it."""

    _VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, word: str) -> list[dict[str, str | None]]:
        """Return the attributes of the elements that have a class."""
        return [known for _, known in self.tags if word in (known.get("class") or "").split()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self._open[-1:] in (["script"], ["style"]) else self.words).append(data)


@pytest.fixture(scope="session")
def parse() -> type[Page]:
    return Page


@pytest.fixture(scope="session")
def page(world: World) -> Page:
    """The report of that loop."""
    from kubeloop import report

    return Page(report.write(world.loop, world.settings, world.summary).read_text())


def _place(folder: Path) -> tuple[Loop, Settings]:
    return Loop.parse(_LOOP), config.settings(folder, folder / "state")


def _frame(seed: int, rows: int, sign: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    weight = random.normal(size=rows)
    chance = 1 / (1 + np.exp(-(1.5 * sign * weight - 0.5)))
    return pd.DataFrame(
        {
            "event_id": [f"{seed}-{row}" for row in range(rows)],
            "event_timestamp": pd.date_range("2023-11-01", periods=rows, freq="2h", tz="UTC"),
            "label": (random.random(rows) < chance).astype(int),
            "weight": weight,
            HOSTILE: random.normal(size=rows),
        }
    )


def _model(folder: Path, sign: int) -> Path:
    frame = _frame(ord(folder.name), 600, sign)
    learn, holdout = training.split(BINARY, frame, 14 * DAY)
    fitted = training.fit(MAKER, learn, binary.Training(algorithm="logistic_regression", threads=1))
    model_folder.write(folder, fitted, export.to_onnx(fitted), learn, holdout, name="parcels")
    return folder


def _register(loop: Loop, settings: Settings, models: list[Path]) -> None:
    frame = _frame(99, 600, -1)
    before = _frame(98, 600, 1)
    labels, blocks = frame["label"].to_numpy(), np.arange(600) // 60
    scores = [model_folder.predict(BINARY, folder, frame) for folder in models]
    verdicts = [
        gates.first(BINARY, before["label"].to_numpy(), model_folder.predict(BINARY, models[0], before), loop.gates),
        gates.compare(BINARY, labels, scores[0], scores[1], loop.gates, blocks=blocks),
        gates.compare(BINARY, labels, scores[1], scores[1] * 0.999, loop.gates, blocks=blocks),
    ]
    assert [verdict.promote for verdict in verdicts] == [True, True, False]
    evaluation = settings.state / "made" / "evaluation"
    evaluation.mkdir()
    (evaluation / "evaluation.html").write_text("<!doctype html>")
    ledger = Ledger(settings.ledger_db, loop.drift)
    for folder, verdict, event in zip(models, verdicts, _events(loop), strict=True):
        assert ledger.record(event).accepted
        run = ledger.claim(loop.name, "test", timedelta(minutes=1))
        assert run is not None
        run = ledger.mark_started(run)
        promoted = json.dumps(verdict.promote)
        number = len(registry.versions(settings, loop.name)) + 1
        tags = {
            "kubeloop.as_of": event.as_of.isoformat(),
            "kubeloop.reason": event.reason,
            "kubeloop.trained_from": "2023-11-01T00:00:00+00:00",
            "kubeloop.trained_to": "2023-12-06T00:00:00+00:00",
            **{f"kubeloop.{what}_sha256": f"{number}{what}".ljust(64, "f") for what in ("raw", "training_set")},
            "kubeloop.feature_service": "parcels_v1",
            "kubeloop.code": "0.1.0+abc",
            "kubeloop.gate": json.dumps(verdict.to_dict()),
            "kubeloop.promoted": promoted,
        }
        version = registry.register(settings, loop, folder, run=run.name, tags=tags, artifacts=evaluation)
        if verdict.promote:
            registry.promote(settings, version)
            address = f"http://127.0.0.1:{number}"
            when = {"kubeloop.promoted_at": "2026-05-06T07:08:09+00:00", "kubeloop.served_at": address}
            registry.tag(settings, version, when)
        ledger.finish(run, "promoted" if verdict.promote else "rejected", verdict.reason, {"promote": verdict.promote})
    absorbed = DriftEvent(loop.name, "parcels-4", START + 36 * DAY, START + 36 * DAY, "drift", (HOSTILE,), "again")
    assert not ledger.record(absorbed).accepted
    ledger.close()


def _events(loop: Loop) -> list[DriftEvent]:
    def event(episode: str, week: int, kind: str, reason: str) -> DriftEvent:
        moment = START + week * WEEK
        return DriftEvent(loop.name, episode, moment, moment, kind, (HOSTILE,), reason)  # type: ignore[arg-type]

    return [
        event("parcels-first", 0, "manual", "the first model"),
        event("parcels-2", 3, "drift", f"{HOSTILE} drifted in 2 of 3 windows"),
        event("parcels-3", 5, "drift", "weight drifted in 2 of 2 windows"),
    ]


def _traffic(settings: Settings, models: list[Path]) -> None:
    """Labels follow the weight for two weeks, and from then on run against it."""
    rows: list[segments.Row] = []
    for day in range(6 * 7):
        moment = START + day * DAY + timedelta(hours=12)
        version = 1 if day < 22 else 2
        frame = _frame(1000 + day, ROWS, 1 if day < 14 else -1)
        scores = model_folder.predict(BINARY, models[version - 1], frame)
        ids = frame["event_id"].tolist()
        inputs = [
            {"name": name, "datatype": "FP32", "shape": [ROWS, 1], "data": frame[name].tolist()}
            for name in ("weight", HOSTILE)
        ]
        output = {"name": "probability", "datatype": "FP32", "shape": [ROWS], "data": scores.tolist()}
        parameters = {"event_ids": json.dumps(ids), "event_time": moment.isoformat()}
        labels = [
            {"event_id": key, "label": int(label), "observed_at": (moment + DAY / 4).isoformat()}
            for key, label in zip(ids, frame["label"], strict=True)
        ]
        for kind, body in (
            (REQUEST_EVENT, {"inputs": inputs, "parameters": parameters}),
            (RESPONSE_EVENT, {"model_name": "parcels", "model_version": str(version), "outputs": [output]}),
            (LABEL_EVENT, {"labels": labels}),
        ):
            rows.append(
                _row(len(rows) + 1, moment, f"{kind[-5:]}-{day}" if kind == LABEL_EVENT else str(day), kind, body)
            )
    settings.payloads.mkdir()
    segments.write(settings.payloads, segments.table_of(rows))


def _row(seq: int, moment: datetime, key: str, kind: str, body: Mapping[str, Any]) -> segments.Row:
    at = int(moment.timestamp() * 1e6)
    return (seq, at + seq, at, key, kind, "test", "parcels", "", "predictor", "default", json.dumps(body).encode())


def _watch(loop: Loop, settings: Settings) -> None:
    """Five closed windows, each with both features and the score; the hostile feature drifts from the third on."""
    store = Store(settings.monitor_db)
    effects = {"weight": 0.05, HOSTILE: 0.62, "score": 0.11}
    for week in range(5):
        start, end, version = START + week * WEEK, START + (week + 1) * WEEK, "1" if week < 4 else "2"
        key = {"service": loop.name, "start": start, "version": version, "end": end}
        drifted = week >= 2
        judged = {
            "rows": 7 * ROWS,
            "status": "judged",
            "live": True,
            "drifted": drifted,
            "importance": 0.25 if drifted else 0.0,
            "prediction_drifted": False,
            "note": None,
        }
        scores = [
            key
            | asdict(Score(name, "score" if name == "score" else "numeric", 0.4, 0.001, effect, 0.31, 7 * ROWS, 0.0))
            | {
                "effect_low": max(0.0, effect - 0.1),
                "effect_high": effect + 0.1,
                "p_adjusted": 0.002,
                "importance": {"weight": 0.75, HOSTILE: 0.25}.get(name, 0.0),
                "drifted": drifted and name == HOSTILE,
            }
            for name, effect in effects.items()
        ]
        due = Due("features", start, end)
        progress = store.progress(loop.name)
        store.close_window(progress, due, [key | judged], scores, [], _episode(loop, week))
        measured = {
            "metrics": {"log_loss": 0.5},
            "metric": "auc",
            "rows": 7 * ROWS,
            "labelled": 7 * ROWS,
            "status": "judged",
            "live": True,
            "drifted": week == 2,
            "value": 0.7 + week / 100,
            "low": 0.64 + week / 100,
            "high": 0.75 + week / 100,
            "positives": 40 + week,
            "reference": 0.8,
            "note": "AUC 0.720, under the hold-out's" if week == 2 else None,
        }
        store.close_performance(store.progress(loop.name), due, [key | measured], None, DAY)
    now = store.progress(loop.name)
    store.ingest(type(now)(**(asdict(now) | {"watermark": START + 6 * WEEK})), (), {})
    store.close()


def _episode(loop: Loop, week: int) -> dict[str, Any] | None:
    """The episodes that windows two and four opened, and one after window three that the trigger absorbed."""
    numbers = {2: ("parcels-2", True), 3: ("parcels-4", False), 4: ("parcels-3", True)}
    if week not in numbers:
        return None
    name, accepted = numbers[week]
    moment = START + (week + 1) * WEEK
    runs = {event.episode: event for event in _events(loop)}
    run = runs[name].run_name if name in runs else None
    decision = f"starts {run}" if run else "absorbed: parcels is in its cooldown until 2024-02-05T00:00:00+00:00"
    return {
        "id": name,
        "service": loop.name,
        "version": "1",
        "kind": "drift",
        "window_end": moment,
        "opened_at": moment,
        "as_of": moment,
        "features": [HOSTILE],
        "reason": f"{HOSTILE} drifted",
        "emitted_at": moment,
        "accepted": accepted,
        "run_name": run,
        "decision": decision,
        "closed_at": None if week == 4 else moment + DAY,
        "outcome": None if week == 4 else "replaced" if accepted else "refused",
    }


def _document(settings: Settings) -> None:
    """Data Docs of the first run, and a quarantine with one row that has two reasons."""
    runs = sorted({event.run_name for event in _events(Loop.parse(_LOOP))})
    folder = settings.state / "quarantine" / runs[0]
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"reasons": pa.array([["too_old(orders)", HOSTILE], ["too_old(orders)"]])}), folder / "orders.parquet"
    )
    for part in ("raw", "training"):
        docs = settings.state / "data-docs" / runs[0] / part
        docs.mkdir(parents=True)
        (docs / "index.html").write_text("<!doctype html>")

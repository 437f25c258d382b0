"""The summary of a loop whose second model took over half-way, from real stores."""

import json
import shutil
from datetime import datetime, timedelta
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
from kubeloop.monitoring.store import Due, Store
from kubeloop.names import LABEL_EVENT, REQUEST_EVENT, RESPONSE_EVENT
from kubeloop.payloads import segments
from kubeloop.report import words
from kubeloop.session import summary
from kubeloop.steps import stages
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.tabular import model_folder
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.ledger import Ledger

SESSION = {
    "fast": True,
    "sessions": 2,
    "served": 3004,
    "errors": 3,
    "dropped": 4,
    "uncertain": 1,
    "replay_s": 12.34,
    "latency_ms": {"p50": 1},
}


@pytest.fixture(scope="module")
def blind(learned: tuple[Path, Path], loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on random labels."""
    folder = tmp_path_factory.mktemp("blind")
    table = pq.read_table(learned[0])
    labels = pa.array(np.random.default_rng(1).permutation(table["label"].to_numpy()), pa.int32())
    pq.write_table(table.set_column(2, "label", labels), folder / "training.parquet")
    stages.train(loop, folder / "training.parquet", folder / "model")
    return folder / "model"


@pytest.fixture
def settings(blank_mlflow: Path, tmp_path: Path) -> Settings:
    found = config.settings(tmp_path, tmp_path / "state")
    found.payloads.mkdir(parents=True)
    shutil.copy(blank_mlflow, found.state / "mlflow.db")
    return found


@pytest.fixture
def rows(learned: tuple[Path, Path]) -> pd.DataFrame:
    """The rows of the requests: the newest six days of the training set."""
    return pq.read_table(learned[0]).to_pandas().tail(3000).reset_index(drop=True)


def serve(settings: Settings, name: str, rows: pd.DataFrame, versions: list[tuple[Path, str, int]]) -> None:
    """Log predictions and labels; each version serves so many rows, in requests of a hundred."""
    events = []

    def event(kind: str, key: str, body: dict[str, Any]) -> None:
        place = len(events) + 1
        attributes = ("test", name, "kubeloop", "predictor", "default")
        events.append((place, place, place, key, kind, *attributes, json.dumps(body).encode()))

    start = 0
    for folder, version, count in versions:
        kinds = model_folder.read(folder).features
        for first in range(start, start + count, 100):
            part = rows.iloc[first : first + 100]
            parameters = {
                "event_ids": json.dumps(part["event_id"].tolist()),
                "event_time": part["event_timestamp"].iloc[0].isoformat(),
            }
            inputs = [
                {
                    "name": feature,
                    "datatype": "FP32" if kind == "numeric" else "BYTES",
                    "shape": [len(part)],
                    "data": [None if value != value else value for value in part[feature].tolist()],
                }
                for feature, kind in kinds.items()
            ]
            scores = [float(score) for score in model_folder.predict(BINARY, folder, part)]
            output = {"name": "probability", "datatype": "FP32", "shape": [len(part)], "data": scores}
            event(REQUEST_EVENT, f"r{first}", {"inputs": inputs, "parameters": parameters})
            event(RESPONSE_EVENT, f"r{first}", {"model_name": name, "model_version": version, "outputs": [output]})
        start += count
    known = rows.iloc[: start - 50]
    truth = [
        {"event_id": key, "label": int(label), "observed_at": "2013-06-01T00:00:00+00:00"}
        for key, label in zip(known["event_id"], known["label"], strict=True)
    ]
    event(LABEL_EVENT, "labels", {"labels": truth})
    segments.write(settings.payloads, segments.table_of(events))


def register(
    settings: Settings, loop: Loop, model: Path, run: str, *, promote: bool, deployed: bool = True
) -> registry.Version:
    verdict = gates.Verdict(promote, "because", "auc", None, 0.7, None, None, 0.95, ())
    tags = {
        "kubeloop.as_of": "2013-05-20T00:00:00+00:00",
        "kubeloop.trained_from": "a",
        "kubeloop.trained_to": "b",
        "kubeloop.raw_sha256": "raw",
        "kubeloop.code": "0.1.0",
        "kubeloop.gate": json.dumps(verdict.to_dict()),
        "kubeloop.promoted": json.dumps(promote),
    }
    version = registry.register(settings, loop, model, run=run, tags=tags)
    if promote and deployed:
        registry.promote(settings, version)
        registry.tag(settings, version, {"kubeloop.promoted_at": "2026-05-06T07:08:09+00:00"})
    return version


def test_a_loop_that_learned_is_compared_with_its_first_model(
    settings: Settings, loop: Loop, learned: tuple[Path, Path], blind: Path, rows: pd.DataFrame
) -> None:
    register(settings, loop, blind, "r1", promote=True)
    register(settings, loop, learned[1], "r2", promote=True)
    serve(settings, loop.name, rows, [(blind, "1", 1000), (learned[1], "2", 2000)])
    found = summary.build(loop, settings, SESSION, 56.78)
    assert found["predictions"] == {"served": 3004, "logged": 3000, "dropped": 4, "errors": 3, "uncertain": 1}
    assert found["labels"] == 2950
    assert (found["fast"], found["sessions"], found["wall_s"], found["replay_s"]) == (True, 2, 56.8, 12.3)
    assert found["latency_ms"] == {"p50": 1}

    compared = rows.iloc[1000:2950]
    frozen = BINARY.score(compared["label"], model_folder.predict(BINARY, blind, compared))["auc"]
    newer = BINARY.score(compared["label"], model_folder.predict(BINARY, learned[1], compared))["auc"]
    auc = found["quality"]
    assert auc["rows"] == 1950
    assert auc["from"] == compared["event_timestamp"].iloc[0].isoformat()
    assert auc["frozen"] == pytest.approx(frozen, abs=1e-6)
    assert auc["loop"] == pytest.approx(newer, abs=1e-6)
    assert auc["difference"] == pytest.approx(newer - frozen, abs=1e-6)
    assert 0 < auc["ci95"][0] < auc["difference"] < auc["ci95"][1]

    first, second = found["versions"]
    assert (first["version"], first["champion"], second["champion"]) == ("1", False, True)
    assert second["run_id"] == "r2"
    assert second["promoted"] is True
    assert second["reason"] == "because"
    assert second["gate"]["challenger"] == 0.7
    assert second["lineage"] == {
        "raw_sha256": "raw", "code": "0.1.0", "sha256": model_folder.read(learned[1]).sha256,
    }  # fmt: skip


def test_a_segment_that_the_log_loses_is_noticed(
    settings: Settings, loop: Loop, learned: tuple[Path, Path], rows: pd.DataFrame
) -> None:
    serve(settings, loop.name, rows[:600], [(learned[1], "1", 600)])
    (first,) = settings.payloads.glob("*.parquet")
    session = SESSION | {"served": 604, "uncertain": 0}
    assert words.accounts(summary.build(loop, settings, session, 1)) == []
    first.unlink()
    found = summary.build(loop, settings, session, 1)
    assert found["predictions"] == {"served": 604, "logged": 0, "dropped": 4, "errors": 3, "uncertain": 0}
    assert words.accounts(found) == [
        "Warning: the payload log lacks 600 predictions that clients got, and the loss was not counted."
    ]


def test_a_loop_with_one_model_is_compared_with_nothing(
    settings: Settings, loop: Loop, learned: tuple[Path, Path], rows: pd.DataFrame
) -> None:
    register(settings, loop, learned[1], "r1", promote=True)
    register(settings, loop, learned[1], "r2", promote=False)
    serve(settings, loop.name, rows, [(learned[1], "1", 300)])
    found = summary.build(loop, settings, SESSION, 1)
    assert found["quality"] == {
        "metric": "auc",
        "title": "AUC",
        "frozen": None,
        "loop": None,
        "difference": None,
        "ci95": None,
        "rows": 0,
        "from": None,
    }
    assert [item["promoted"] for item in found["versions"]] == [True, False]
    assert (found["episodes"], found["absorbed"]) == ([], [])


def test_a_model_that_never_served_is_neither_promoted_nor_the_frozen_one(
    settings: Settings, loop: Loop, learned: tuple[Path, Path], blind: Path, rows: pd.DataFrame, as_of: datetime
) -> None:
    """The gate passed versions 1 and 4: version 1 did not come up, and version 4 waits for a review."""
    event = DriftEvent(loop.name, "first", as_of, as_of, "manual", (), "the first model")
    ledger = Ledger(settings.ledger_db, loop.drift)
    ledger.record(event)
    run = ledger.claim(loop.name, "me", timedelta(minutes=1))
    assert run is not None
    ledger.finish(ledger.mark_started(run), "failed", "the predictor did not start", lasting=True)
    ledger.close()
    register(settings, loop, learned[1], event.run_name, promote=True, deployed=False)
    register(settings, loop, blind, "r2", promote=True)
    register(settings, loop, learned[1], "r3", promote=True)
    proposed = register(settings, loop, blind, "r4", promote=True, deployed=False)
    registry.tag(settings, proposed, {"kubeloop.proposal": "abc on branch review"})
    register(settings, loop, blind, "r5", promote=True, deployed=False)
    serve(settings, loop.name, rows, [(blind, "2", 1000), (learned[1], "3", 1000)])
    found = summary.build(loop, settings, SESSION, 1)
    assert [item["promoted"] for item in found["versions"]] == [False, True, True, False, False]
    assert [item["reason"] for item in found["versions"]] == [
        "the predictor did not start",
        "because",
        "because",
        "proposed as abc on branch review; it is promoted when the branch names it",
        "passed the gate but is not served yet",
    ]
    compared = rows.iloc[1000:1950]
    frozen = BINARY.score(compared["label"], model_folder.predict(BINARY, blind, compared))["auc"]
    assert found["quality"]["frozen"] == pytest.approx(frozen, abs=1e-6)


def test_before_anything_happened(settings: Settings, loop: Loop) -> None:
    counts = dict.fromkeys(("served", "errors", "dropped", "uncertain"), 0)
    bare = {"fast": False, "sessions": 1, "replay_s": 0.0, **counts}
    found = summary.build(loop.model_copy(update={"replay": None}), settings, bare, 0)
    assert found["predictions"] == counts | {"logged": 0}
    assert (found["labels"], found["windows"], found["versions"], found["latency_ms"]) == (0, 0, [], None)
    assert found["replay"] is None


@pytest.mark.parametrize(
    ("outcome", "expected", "why"),
    [("promoted", "promoted", "better"), ("rejected", "rejected", "worse"), (None, "running", None)],
)
def test_an_episode_tells_what_came_of_it(
    settings: Settings, loop: Loop, as_of: datetime, outcome: str | None, expected: str, why: str | None
) -> None:
    event = DriftEvent(loop.name, "flight-delay-w1", as_of, as_of, "drift", ("temp",), "it got warm")
    run_name = event.run_name
    ledger = Ledger(settings.ledger_db, loop.drift)
    assert ledger.record(event).run_name == run_name
    run = ledger.claim(loop.name, "me", timedelta(minutes=1))
    assert run is not None
    if outcome:
        ledger.finish(ledger.mark_started(run), outcome, why)  # type: ignore[arg-type]
    ledger.close()
    store = Store(settings.monitor_db)
    episode = {
        "id": event.episode, "service": loop.name, "version": "1", "kind": "drift", "window_end": as_of,
        "opened_at": as_of, "as_of": as_of, "features": ["temp"], "reason": event.reason, "emitted_at": as_of,
        "accepted": True, "run_name": run_name, "decision": f"starts {run_name}", "closed_at": None, "outcome": None,
    }  # fmt: skip
    window = {
        "service": loop.name, "start": as_of - timedelta(days=7), "end": as_of, "version": "1", "rows": 500,
        "status": "tested", "live": True, "drifted": True, "importance": 0.5, "prediction_drifted": False, "note": "",
    }  # fmt: skip
    calm = window | {"start": as_of - timedelta(days=14), "end": as_of - timedelta(days=7), "drifted": False}
    due = Due("features", window["start"], window["end"])
    store.close_window(store.progress(loop.name), due, [calm, window], [], [], episode)
    second = episode | {"id": "flight-delay-w2", "accepted": False, "run_name": None, "decision": "absorbed: it rests"}
    later = Due("features", as_of, as_of + timedelta(days=7))
    store.close_window(store.progress(loop.name), later, [], [], [], second)
    store.close()
    found = summary.build(loop, settings, SESSION, 1)
    assert (found["windows"], found["windows_drifted"]) == (2, 1)
    assert found["episodes"] == [
        {
            "id": "flight-delay-w1",
            "opened_at": as_of.isoformat(),
            "kind": "drift",
            "features": ["temp"],
            "why": "it got warm",
            "run_id": run_name,
            "outcome": expected,
            "reason": why,
        }
    ]
    assert found["absorbed"] == [
        {
            "id": "flight-delay-w2",
            "opened_at": as_of.isoformat(),
            "kind": "drift",
            "features": ["temp"],
            "why": "it got warm",
            "decision": "absorbed: it rests",
        }
    ]


def test_what_is_written_is_read(settings: Settings, loop: Loop) -> None:
    assert summary.read(settings) is None
    found = summary.build(loop, settings, SESSION, 1)
    path = summary.write(settings, found)
    assert path == settings.state / "summary.json"
    assert summary.read(settings) == found
    assert [item.name for item in settings.state.glob("summary*")] == ["summary.json"]


def test_a_number_that_json_does_not_have_is_refused(settings: Settings) -> None:
    summary.write(settings, {"good": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        summary.write(settings, {"bad": float("nan")})
    assert summary.read(settings) == {"good": 1}

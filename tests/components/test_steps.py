"""Each step on real artifacts; see the fixtures for how it is called."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from kfp import dsl

from kubeloop import access, names
from kubeloop.config import Loop
from kubeloop.data import sources
from kubeloop.features import online
from kubeloop.models import gates, registry
from kubeloop.session import run as session
from kubeloop.steps import promotion, stages
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.tabular import model_folder

DAY = timedelta(days=1)


def test_extract_data_takes_what_was_known(extracted: Any, loop: Loop, as_of: datetime) -> None:
    raw = extracted.made["raw"]
    tables = sources.tables(Path(raw.path))
    assert set(tables) == set(loop.source.tables)
    assert raw.metadata["rows"] == {name: pq.read_metadata(path).num_rows for name, path in tables.items()}
    assert raw.metadata["snapshot"] == "the snapshot"
    start = as_of - loop.training.window - loop.features.history
    for name, table in loop.source.tables.items():
        known = pq.read_table(tables[name])[table.available_at]
        assert pc.max(known).as_py() <= as_of
        assert table.static or start <= pc.min(known).as_py() < start + DAY


def test_validate_data_passes_good_tables_on(validated: Any, loop: Loop) -> None:
    raw, clean = (sources.tables(Path(validated.made[name].path)) for name in ("raw", "clean"))
    assert set(clean) == set(raw)
    quarantined = validated.made["clean"].metadata["quarantined"]
    assert set(quarantined) == set(loop.source.tables)
    for name, path in clean.items():
        assert pq.read_metadata(path).num_rows == pq.read_metadata(raw[name]).num_rows - quarantined[name]
    page = Path(validated.made["raw.html"].path).read_text()
    assert "flight-delay: raw data" in page
    assert all(name in page for name in raw)
    assert (validated.settings.state / "data-docs" / "r1" / "raw" / "index.html").is_file()


def test_build_features_joins_every_labelled_event(joined: Any, loop: Loop, as_of: datetime) -> None:
    dataset = joined.made["joined"]
    table = pq.read_table(dataset.path)
    assert dataset.metadata["rows"] == table.num_rows > 10_000
    assert table.column_names[:3] == ["event_id", "event_timestamp", "label"]
    assert table["label"].null_count == 0
    assert as_of - loop.training.window <= pc.min(table["event_timestamp"]).as_py()
    assert pc.max(table["event_timestamp"]).as_py() < as_of
    # Only the data set is left: the feature tables were next to it only while they were needed.
    assert not [path for path in Path(dataset.path).parent.iterdir() if path.name.startswith("tmp")]


def test_validate_features_passes_the_training_set_on(checked: Any) -> None:
    before, after = (pq.read_table(checked.made[name].path) for name in ("joined", "training_set"))
    quarantined = checked.made["training_set"].metadata["quarantined"]
    assert after.num_rows == before.num_rows - quarantined > 10_000
    assert after.schema.equals(before.schema)
    assert "flight-delay: training data" in Path(checked.made["training.html"].path).read_text()


def test_train_model_writes_a_model_folder(trained: Any, loop: Loop, as_of: datetime) -> None:
    model = trained.made["model"]
    card = model_folder.read(Path(model.path))
    assert model.framework == "onnx"
    assert model.metadata["sha256"] == card.sha256
    assert model.metadata["algorithm"] == "lightgbm"
    assert (model.metadata["trained_from"], model.metadata["trained_to"]) == (card.trained_from, card.trained_to)
    assert datetime.fromisoformat(card.trained_to) < as_of - loop.training.holdout
    assert (Path(model.path) / "reference" / "reference.toml").is_file()


def test_evaluate_model_measures_the_hold_out(evaluated: Any, loop: Loop, as_of: datetime) -> None:
    made = evaluated.made
    card = model_folder.read(Path(made["model"].path))
    assert made["metrics"].metadata["auc"] == pytest.approx(card.metrics["auc"])
    assert 0.65 < made["metrics"].metadata["auc"] < 0.95
    assert made["metrics"].metadata["size_bytes"] == (Path(made["model"].path) / "model.onnx").stat().st_size
    scores = pq.read_table(Path(made["evaluation"].path) / "holdout.parquet")
    training_set = pq.read_table(made["training_set"].path)
    newest = pc.greater_equal(training_set["event_timestamp"], as_of - loop.training.holdout)
    assert abs(scores.num_rows - pc.sum(newest).as_py()) < 0.02 * scores.num_rows
    curves = made["curves"].metadata
    assert curves["confusionMatrix"]["annotationSpecs"] == [{"displayName": "negative"}, {"displayName": "positive"}]
    cells = [cell for row in curves["confusionMatrix"]["rows"] for cell in row["row"]]
    assert sum(cells) == scores.num_rows
    assert len(curves["confidenceMetrics"]) > 10
    points = [number for point in curves["confidenceMetrics"] for number in point.values()]
    assert points == [round(number, 4) for number in points], "the Kubeflow UI would show every digit"
    assert {"roc.png", "evaluation.html"} <= {path.name for path in Path(made["evaluation"].path).iterdir()}
    assert Path(made["evaluation.html"].path).read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["metrics", "curves"])
def test_evaluate_model_leaves_a_file_an_artifact(evaluated: Any, name: str) -> None:
    """kfp's local cache runs a step again if its artifact has no file."""
    assert json.loads(Path(evaluated.made[name].path).read_text()) == evaluated.made[name].metadata


def test_gate_model_promotes_a_first_model(judged: Any) -> None:
    assert judged.returned["promote"] is True
    assert (judged.folder / "reason").read_text().startswith("Promoted: first model")
    verdict = gates.Verdict.from_dict(json.loads((judged.folder / "verdict").read_text()))
    assert verdict.promote
    assert judged.made["gate"].metadata == {"auc_challenger": verdict.challenger}
    assert json.loads(Path(judged.made["gate"].path).read_text()) == judged.made["gate"].metadata
    page = Path(judged.made["gate.html"].path).read_text()
    assert f"<b>{verdict.challenger:.4f}</b>" in page


def test_register_model_keeps_the_lineage(registered: Any, loop: Loop) -> None:
    version = registry.get(registered.settings, loop.name, registered.returned["version"])
    assert (version.version, version.run) == ("1", "r1")
    made, tags = registered.made, version.tags
    card = model_folder.read(Path(made["model"].path))
    assert version.sha256 == card.sha256
    expected = {
        "kubeloop.as_of": registered.as_of,
        "kubeloop.reason": "a test",
        "kubeloop.trained_from": card.trained_from,
        "kubeloop.trained_to": card.trained_to,
        "kubeloop.raw_sha256": "the snapshot",
        "kubeloop.training_set_sha256": stages.digest(Path(made["training_set"].path)),
        "kubeloop.feature_service": "flight_delay_v1",
        "kubeloop.feature_repo_sha256": stages.digest(registered.settings.home / "feature_repo"),
        "kubeloop.config_sha256": loop.digest(),
        "kubeloop.code": promotion.code_version(registered.settings),
        "kubeloop.gate": (registered.folder / "verdict").read_text(),
        "kubeloop.promoted": "true",
    }
    assert {name: tags.get(name) for name in expected} == expected


def test_deploy_model_serves_the_champion(deployed: Any, loop: Loop, as_of: datetime) -> None:
    """The served prediction of an event equals the one for its training row."""
    from kubeloop import features

    settings, url = deployed.settings, deployed.returned["url"]
    champion = registry.champion(settings, loop.name)
    assert champion is not None
    assert champion.version == deployed.returned["version"]
    assert champion.tags["kubeloop.served_at"] == url
    assert datetime.fromisoformat(champion.tags["kubeloop.promoted_at"]).tzinfo is not None

    moment = as_of - timedelta(hours=4)
    online.Materializer(settings.features, loop.features.service).advance(moment)
    rows = features.events(settings.home / "feature_repo", settings.raw, start=moment, end=moment + timedelta(hours=1))
    learned = features.training_set(settings.features, loop.features.service, rows).to_pandas()
    answer = ask(url, loop, rows, moment)
    assert answer["model_version"] == champion.version
    expected = model_folder.predict(BINARY, Path(deployed.made["model"].path), learned)
    assert answer["outputs"][0]["data"] == pytest.approx(list(expected), abs=1e-6)
    assert len(np.unique(expected)) > 10


def test_serving_again_says_where(deployed: Any, loop: Loop) -> None:
    """A node starts on another port each time, so the tag of an earlier deployment is outdated."""
    settings, url = deployed.settings, deployed.returned["url"]
    champion = registry.get(settings, loop.name, deployed.returned["version"])
    registry.tag(settings, champion, {"kubeloop.served_at": "http://127.0.0.1:1"})
    said: list[str] = []
    session.resume_serving(loop, settings, said.append)
    assert said[0].startswith(f"Serving version {champion.version}, ready after")
    again = registry.champion(settings, loop.name)
    assert again is not None
    assert again.tags == champion.tags | {"kubeloop.served_at": url}


def ask(url: str, loop: Loop, rows: Any, moment: datetime) -> dict[str, Any]:
    metadata = httpx.get(f"{url}/v2/models/{loop.name}", trust_env=False).raise_for_status().json()
    inputs = []
    for tensor in metadata["inputs"]:
        values = rows[tensor["name"]].to_pylist()
        data = [value.isoformat() if isinstance(value, datetime) else value for value in values]
        inputs.append({**tensor, "shape": [rows.num_rows], "data": data})
    body = {
        "parameters": {"event_ids": json.dumps(rows["event_id"].to_pylist()), "event_time": moment.isoformat()},
        "inputs": inputs,
    }
    found: dict[str, Any] = (
        httpx.post(f"{url}/v2/models/{loop.name}/infer", json=body, trust_env=False, timeout=30)
        .raise_for_status()
        .json()
    )
    return found


def test_what_was_served_is_in_the_payload_log(deployed: Any, loop: Loop, as_of: datetime) -> None:
    from kubeloop import addresses, features
    from kubeloop.payloads import table as log

    moment = as_of - timedelta(hours=6)
    rows = features.events(
        deployed.settings.home / "feature_repo", deployed.settings.raw, start=moment, end=moment + timedelta(hours=1)
    )
    answer = ask(deployed.returned["url"], loop, rows, moment)
    node = addresses.address(deployed.settings, "node")
    while httpx.get(f"{node}/status", trust_env=False).json()["queued"]:
        pass
    collector = addresses.address(deployed.settings, "collector")
    event_ids = rows["event_id"].to_pylist()
    told = [
        {"event_id": name, "label": row % 2, "observed_at": as_of.isoformat()} for row, name in enumerate(event_ids)
    ]
    headers = {
        "ce-specversion": "1.0", "ce-type": names.LABEL_EVENT, "ce-id": "labels-1", "ce-source": "test",
        "ce-time": as_of.isoformat(), "ce-inferenceservicename": loop.name, "ce-namespace": "kubeloop",
        **access.header(deployed.settings.token_file),
    }  # fmt: skip
    httpx.post(collector, json={"labels": told}, headers=headers, trust_env=False).raise_for_status()
    httpx.post(f"{collector}/flush", headers=headers, trust_env=False).raise_for_status()

    known = log.read(BINARY, deployed.settings, loop.name)
    served = known.predictions.filter(pc.is_in(known.predictions["event_id"], rows["event_id"].combine_chunks()))
    assert served["event_id"].to_pylist() == sorted(event_ids)
    scores = dict(zip(event_ids, answer["outputs"][0]["data"], strict=True))
    assert served["score"].to_pylist() == pytest.approx([scores[name] for name in sorted(event_ids)], abs=1e-7)
    assert set(served["model_version"].to_pylist()) == {"1"}
    assert set(served["event_time"].to_pylist()) == {moment}
    assert sorted(known.labelled) == sorted(event_ids)
    labelled = known.labelled_predictions()
    truth = {label["event_id"]: label["label"] for label in told}
    assert labelled["event_id"].to_pylist() == sorted(event_ids)
    assert labelled["label"].to_pylist() == [truth[name] for name in sorted(event_ids)]


def test_deploying_again_changes_nothing(deployed: Any, loop: Loop) -> None:
    from components.deploy_model import deploy_model

    assert deployed.call(deploy_model, deployed.loop, deployed.returned["version"]) == (deployed.returned["url"],)
    champion = registry.champion(deployed.settings, loop.name)
    assert champion is not None
    assert champion.version == deployed.returned["version"]


def test_a_resumed_run_keeps_its_verdict(deployed: Any, tmp_path: Path) -> None:
    """The champion is now the run's own model, so a new comparison would show no gain."""
    from components.gate_model import gate_model

    def judge(run: str) -> bool:
        promote: bool = deployed.call(
            gate_model,
            deployed.loop,
            run,
            deployed.made["model"],
            deployed.made["holdout"],
            dsl.Metrics(name="gate", uri=str(tmp_path / run), metadata={}),
            str(tmp_path / "reason"),
            dsl.Artifact(name="verdict", uri=str(tmp_path / "verdict"), metadata={}),
            dsl.HTML(name="report", uri=str(tmp_path / "gate.html"), metadata={}),
        )
        return promote

    assert judge("r1") is True
    assert (tmp_path / "verdict").read_text() == (deployed.folder / "verdict").read_text()
    assert judge("another run") is False
    assert "the gain is not proven" in (tmp_path / "reason").read_text()

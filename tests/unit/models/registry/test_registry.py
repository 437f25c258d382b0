import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from kubeloop import config
from kubeloop.config import Loop, Settings
from kubeloop.models import registry
from kubeloop.node.processes import die_with_parent
from kubeloop.stores import kept
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.reference import ABSENT, Reference
from kubeloop.tasks.tabular import model_folder

Learned = tuple[Path, Path]
TAGS = {"kubeloop.as_of": "2013-05-20T00:00:00+00:00", "kubeloop.reason": "test", "kubeloop.gate": '{"promote": true}'}


@pytest.fixture
def settings(blank_mlflow: Path, tmp_path: Path) -> Settings:
    found = config.settings(tmp_path, tmp_path / "state with a space")
    found.state.mkdir()
    shutil.copy(blank_mlflow, found.state / "mlflow.db")
    return found


@pytest.fixture
def model(learned: Learned, tmp_path: Path) -> Path:
    """A model folder that a test may change."""
    return Path(shutil.copytree(learned[1], tmp_path / "model"))


def register(settings: Settings, loop: Loop, model: Path, run: str) -> registry.Version:
    return registry.register(settings, loop, model, run=run, tags=TAGS)


def test_a_version_remembers_where_it_comes_from(settings: Settings, loop: Loop, model: Path, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "roc.png").write_bytes(b"png")
    found = registry.register(settings, loop, model, run="r1", tags=TAGS, artifacts=tmp_path / "figures")
    assert (found.name, found.version, found.run) == ("flight-delay", "1", "r1")
    assert found.sha256 == hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()
    (again,) = registry.versions(settings, loop.name)
    assert again.aliases == ("challenger",)
    assert again.tags == {**TAGS, "kubeloop.run": "r1", "kubeloop.sha256": found.sha256}
    assert registry.get(settings, loop.name, "1") == again

    client = mlflow.MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    run = client.get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["auc"] == pytest.approx(model_folder.read(model).metrics["auc"])
    assert run.data.params["algorithm"] == "lightgbm"
    assert run.data.params["n_estimators"] == "40"
    assert run.data.tags["kubeloop.reason"] == "test"
    assert [item.path for item in client.list_artifacts(found.run_id, "evaluation")] == ["evaluation/roc.png"]


def test_the_version_is_the_folder_that_was_checked(settings: Settings, loop: Loop, model: Path) -> None:
    """KServe reads the folder that MLflow keeps, so its files must be exactly those of the pipeline."""
    kept = register(settings, loop, model, "r1").folder
    assert kept.is_relative_to(settings.state / "mlartifacts")
    for path in filter(Path.is_file, model.rglob("*")):
        assert (kept / path.relative_to(model)).read_bytes() == path.read_bytes()
    assert (kept / "MLmodel").is_file()
    assert "onnxruntime" in (kept / "requirements.txt").read_text()


def test_mlflow_loads_and_predicts_the_champion(
    settings: Settings, loop: Loop, model: Path, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote(settings, register(settings, loop, model, "r1"))
    for name, value in config.QUIET.items():
        monkeypatch.setenv(name, value)
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(settings.mlflow_uri)
    mlflow.set_registry_uri(settings.mlflow_uri)
    try:
        loaded = mlflow.pyfunc.load_model(f"models:/{loop.name}@champion")
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
    assert [item.name for item in loaded.metadata.get_input_schema()] == list(model_folder.read(model).features)
    rows = pq.read_table(learned[0]).to_pandas().sample(500, random_state=1)
    assert rows.isna().any().any()
    names = list(model_folder.read(model).features)
    predicted = loaded.predict(rows[names])["probability"]
    assert list(predicted) == pytest.approx(list(model_folder.predict(BINARY, model, rows)), abs=1e-6)
    shuffled = loaded.predict(rows[names[::-1]])["probability"]
    assert list(shuffled) == list(predicted)
    example = loaded.input_example
    assert list(example) == names
    learned_from = set(rows_of(pq.read_table(learned[0]).to_pandas()[names]))
    assert len(set(rows_of(example)) & learned_from) == 5
    assert list(loaded.predict(example)["probability"]) == pytest.approx(
        list(model_folder.predict(BINARY, model, example)), abs=1e-6
    )


def rows_of(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    """Return rows that can be compared: numbers in the model's types."""
    return [
        tuple(np.float32(value) if isinstance(value, float) else value for value in row)
        for row in frame.itertuples(index=False)
    ]


def test_an_example_has_missing_values_where_every_row_has(settings: Settings, loop: Loop, model: Path) -> None:
    known = Reference.load(model / "reference")
    known.numeric[:, 0] = np.nan
    known.categorical[:, 0] = ABSENT
    known.save(model / "reference")
    loaded = mlflow.pyfunc.load_model(str(register(settings, loop, model, "r1").folder))
    example = loaded.input_example
    assert example[known.numeric_names[0]].isna().all()
    assert set(example[known.categorical_names[0]]) == {""}
    assert not example[known.categorical_names[1]].isin(["", "?"]).any()
    assert len(loaded.predict(example)["probability"]) == len(example) == 5


def test_one_run_makes_one_version(settings: Settings, loop: Loop, model: Path) -> None:
    first = register(settings, loop, model, "r1")
    assert register(settings, loop, model, "r1").version == first.version
    second = register(settings, loop, model, "r2")
    assert (second.version, register(settings, loop, model, "r1").version) == ("2", "1")
    assert [(item.version, item.run) for item in registry.versions(settings, loop.name)] == [("1", "r1"), ("2", "r2")]


def test_two_models_keep_apart(settings: Settings, loop: Loop, model: Path) -> None:
    other = loop.model_copy(update={"name": "flight-delay-eu"})
    register(settings, loop, model, "r1")
    register(settings, other, model, "r1")
    register(settings, other, model, "r2")
    assert [item.version for item in registry.versions(settings, loop.name)] == ["1"]
    assert [item.version for item in registry.versions(settings, other.name)] == ["1", "2"]


def test_more_versions_than_a_page_are_all_found(settings: Settings, loop: Loop, model: Path) -> None:
    client = mlflow.MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    source = register(settings, loop, model, "r1").uri
    for number in range(2, 13):
        client.create_model_version(loop.name, source, tags={"kubeloop.run": f"r{number}"})
    assert [item.version for item in registry.versions(settings, loop.name)] == [str(n) for n in range(1, 13)]


def test_aliases_move(settings: Settings, loop: Loop, model: Path) -> None:
    def aliases() -> dict[str, tuple[str, ...]]:
        return {item.version: item.aliases for item in registry.versions(settings, loop.name)}

    assert registry.champion(settings, loop.name) is None
    first = register(settings, loop, model, "r1")
    assert registry.champion(settings, loop.name) is None
    assert aliases() == {"1": ("challenger",)}
    registry.promote(settings, first)
    assert aliases() == {"1": ("champion",)}
    second = register(settings, loop, model, "r2")
    assert aliases() == {"1": ("champion",), "2": ("challenger",)}
    # A rejected challenger is replaced by the next one.
    third = register(settings, loop, model, "r3")
    assert aliases() == {"1": ("champion",), "2": (), "3": ("challenger",)}
    registry.promote(settings, second)
    assert aliases() == {"1": (), "2": ("champion",), "3": ("challenger",)}
    registry.promote(settings, third)
    registry.promote(settings, third)
    assert aliases() == {"1": (), "2": (), "3": ("champion",)}
    champion = registry.champion(settings, loop.name)
    assert champion is not None
    assert champion.version == "3"


def test_tags_are_added(settings: Settings, loop: Loop, model: Path) -> None:
    found = register(settings, loop, model, "r1")
    registry.tag(settings, found, {"kubeloop.served_at": "http://127.0.0.1:1"})
    tags = registry.get(settings, loop.name, "1").tags
    assert tags["kubeloop.served_at"] == "http://127.0.0.1:1"
    assert tags["kubeloop.reason"] == "test"


@pytest.mark.parametrize(("versions", "known"), [(0, "none"), (2, "1, 2")])
def test_a_missing_version_is_named(settings: Settings, loop: Loop, model: Path, versions: int, known: str) -> None:
    for number in range(versions):
        register(settings, loop, model, f"r{number}")
    with pytest.raises(registry.RegistryError, match=f"flight-delay has no version 7; it has {known}"):
        registry.get(settings, loop.name, "7")


def test_a_run_that_was_given_is_used(settings: Settings, loop: Loop, model: Path) -> None:
    """On a cluster, KFP makes and names the run."""
    client = mlflow.MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    experiment = client.create_experiment("given", artifact_location=(settings.state / "given").as_uri())
    run_id = client.create_run(experiment).info.run_id
    given = settings.model_copy(update={"mlflow_run_id": run_id})
    found = register(given, loop, model, "r1")
    assert found.run_id == run_id
    assert found.folder.is_relative_to(settings.state / "given")
    assert client.get_experiment_by_name(loop.name) is None
    assert client.get_run(run_id).info.status == "RUNNING"


def test_an_attempt_that_was_killed_leaves_no_open_run(settings: Settings, loop: Loop, model: Path) -> None:
    client = mlflow.MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    experiment = client.create_experiment(loop.name, artifact_location=(settings.state / "mlartifacts").as_uri())
    opened = client.create_run(experiment, run_name="r1", tags={"kubeloop.run": "r1"}).info.run_id
    other = client.create_run(experiment, run_name="r2", tags={"kubeloop.run": "r2"}).info.run_id
    assert register(settings, loop, model, "r1").run_id == opened
    assert client.get_run(opened).info.status == "FINISHED"
    assert client.get_run(other).info.status == "RUNNING"


def test_a_model_that_cannot_be_packed_registers_nothing(settings: Settings, loop: Loop, model: Path) -> None:
    (model / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(Exception, match=r"(?i)pars|decod|protobuf"):
        register(settings, loop, model, "r1")
    assert registry.versions(settings, loop.name) == []
    client = mlflow.MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    experiment = client.get_experiment_by_name(loop.name)
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_an_undefined_metric_is_left_out(settings: Settings, loop: Loop, model: Path) -> None:
    card = kept.loads(model / "model.json")
    card["metrics"] |= {"auc": None, "brier": float("nan")}
    (model / "model.json").write_text(json.dumps(card))
    found = register(settings, loop, model, "r1")
    client = mlflow.MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    metrics = client.get_run(found.run_id).data.metrics
    assert not {"auc", "brier"} & metrics.keys()
    assert "log_loss" in metrics


class Server:
    """MLflow's own server on SQLite, which a test may stop and start again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        parent = os.getpid()
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--no-serve-artifacts"]
        command += ["--default-artifact-root", (self._folder / "artifacts").as_uri()]
        with (self._folder / "server.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**os.environ, **config.QUIET},
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", trust_env=False).is_success:
                    return
            assert self._process.poll() is None, (self._folder / "server.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    found = Server(settings.state)
    found.start()
    yield found
    found.stop()


def test_a_server_that_goes_away_is_a_sentence_and_the_next_attempt_makes_one_version(
    server: Server, settings: Settings, loop: Loop, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = settings.model_copy(update={"mlflow_uri": server.url})
    assert registry.champion(away, loop.name) is None
    plain = mlflow.MlflowClient.log_artifacts

    def log_artifacts(*args: object, **kwargs: object) -> None:
        server.stop()
        plain(*args, **kwargs)

    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "roc.png").write_bytes(b"png")
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", log_artifacts)
    with pytest.raises(
        registry.RegistryError, match=r"MLflow at http://127.0.0.1:\d+ does not answer; .*KUBELOOP_MLFLOW_URI"
    ):
        registry.register(away, loop, model, run="r1", tags=TAGS, artifacts=tmp_path / "figures")
    with pytest.raises(registry.RegistryError, match="does not answer"):
        registry.champion(away, loop.name)
    monkeypatch.undo()
    server.start()
    found = registry.register(away, loop, model, run="r1", tags=TAGS, artifacts=tmp_path / "figures")
    assert [version.version for version in registry.versions(away, loop.name)] == ["1"]
    client = mlflow.MlflowClient(server.url)
    experiment = client.get_experiment_by_name(loop.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(found.run_id, "FINISHED")]


def test_a_refusal_by_the_server_is_not_reported_as_no_answer(server: Server, settings: Settings, loop: Loop) -> None:
    away = settings.model_copy(update={"mlflow_uri": server.url})
    unknown = registry.Version("nobody", "9", "", "", "", "", 0)
    with pytest.raises(mlflow.exceptions.RestException, match="nobody"):
        registry.promote(away, unknown)

"""Why a step failed, told in the bucket."""

import re
from pathlib import Path
from typing import Any

import pytest

from kubeloop import config, failures
from kubeloop.bucket import Bucket
from kubeloop.config import Settings
from kubeloop.failures import Failure
from kubeloop.loops import LoopError
from kubeloop.stages import StageError
from kubeloop.training import TrainingError


@pytest.fixture
def here(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("KUBELOOP_BUCKET", s3.bucket)
    monkeypatch.setenv("KUBELOOP_RUN_ID", "run-1")
    return config.settings(tmp_path)


def test_it_is_told_under_its_run(here: Settings) -> None:
    bucket = Bucket.open(here)
    assert failures.read(bucket, "run-1") is None
    failure = Failure("name: is missing", final=True, step="train-model")
    failures.tell(here, failure)
    assert failures.read(bucket, "run-1") == failure
    assert failures.read(bucket, "run-2") is None


def test_a_long_error_is_cut(here: Settings) -> None:
    failures.tell(here, Failure("x" * 9000, final=False))
    told = failures.read(Bucket.open(here), "run-1")
    assert told is not None
    assert len(told.error) == 4000


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (config.ConfigError("name: is missing"), True),
        (StageError("the table is empty"), True),
        (LoopError("no longer at s3://"), True),
        (TrainingError("one class"), True),
        (ConnectionError("MLflow is away"), False),
    ],
)
def test_what_data_and_configuration_make_lasts(error: Exception, lasting: bool) -> None:
    assert failures.lasting(error) is lasting


def test_every_name_is_that_of_an_error(project: Path) -> None:
    sources = [path.read_text() for path in (project / "src").rglob("*.py")]
    known = {name for source in sources for name in re.findall(r"^class (\w+)\(", source, re.MULTILINE)}
    assert set(failures.LASTING) <= known


def test_a_bucket_that_is_away_is_logged(here: Settings, seaweed: Any, caplog: pytest.LogCaptureFixture) -> None:
    seaweed.stop()
    try:
        failures.tell(here, Failure("three rows", final=False))
    finally:
        seaweed.start()
    assert "the reason is told here alone" in caplog.text


@pytest.mark.parametrize("name", ["KUBELOOP_BUCKET", "KUBELOOP_RUN_ID"])
def test_on_a_laptop_nothing_is_told(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name)
    failures.tell(config.settings(tmp_path), Failure("plain", final=False))
    assert failures.read(Bucket.open(here), "run-1") is None

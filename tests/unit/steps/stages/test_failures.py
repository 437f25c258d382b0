"""The reason of a step's failure, written to the bucket."""

from pathlib import Path
from typing import Any

import pytest

from kubeloop import config, failures
from kubeloop.config import Settings
from kubeloop.failures import Failure
from kubeloop.stores.bucket import Bucket, BucketError


@pytest.fixture
def here(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("KUBELOOP_BUCKET", s3.bucket)
    monkeypatch.setenv("KUBELOOP_RUN_ID", "run-1")
    return config.settings(tmp_path)


def test_the_failure_is_stored_under_its_run(here: Settings) -> None:
    bucket = Bucket.open(here)
    assert failures.read(bucket, "run-1") is None
    failure = Failure("name: is missing", lasting=True, step="train-model")
    failures.tell(here, failure)
    assert failures.read(bucket, "run-1") == failure
    assert failures.read(bucket, "run-2") is None


def test_a_long_error_is_cut(here: Settings) -> None:
    failures.tell(here, Failure("x" * 9000, lasting=False))
    told = failures.read(Bucket.open(here), "run-1")
    assert told is not None
    assert len(told.error) == 4000


@pytest.mark.parametrize(
    ("error", "lasting"),
    [(config.ConfigError("name: is missing"), True), (BucketError("away"), False), (KeyError("theirs"), False)],
)
def test_an_error_says_itself_whether_it_lasts(error: Exception, lasting: bool) -> None:
    assert Failure.of(error, "train-model") == Failure(str(error), lasting, "train-model")


def test_what_a_step_of_an_older_image_told_is_read(here: Settings) -> None:
    Bucket.open(here).put("failures/run-1.json", b'{"error": "three rows", "final": true, "step": "train-model"}')
    assert failures.read(Bucket.open(here), "run-1") == Failure("three rows", True, "train-model")


def test_a_bucket_that_is_away_is_logged(here: Settings, seaweed: Any, caplog: pytest.LogCaptureFixture) -> None:
    seaweed.stop()
    try:
        failures.tell(here, Failure("three rows", lasting=False))
    finally:
        seaweed.start()
    assert "the reason is only in this log: " in caplog.text


@pytest.mark.parametrize("name", ["KUBELOOP_BUCKET", "KUBELOOP_RUN_ID"])
def test_on_a_laptop_nothing_is_stored(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name)
    failures.tell(config.settings(tmp_path), Failure("plain", lasting=False))
    assert failures.read(Bucket.open(here), "run-1") is None

"""Why a step failed, told in the bucket."""

from pathlib import Path
from typing import Any

import pytest

from kubeloop import config, failures
from kubeloop.bucket import Bucket
from kubeloop.failures import Failure


@failures.told
def step(error: Exception | None = None) -> str:
    if error:
        raise error
    return "done"


@pytest.fixture
def bucket(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("KUBELOOP_BUCKET", s3.bucket)
    monkeypatch.setenv("KUBELOOP_RUN_ID", "run-1")
    return Bucket.open(config.settings(tmp_path))


@pytest.mark.parametrize(
    ("error", "final"), [(config.ConfigError("name: is missing"), True), (ConnectionError("MLflow is away"), False)]
)
def test_it_is_told_and_raised(bucket: Bucket, error: Exception, final: bool) -> None:
    with pytest.raises(type(error)):
        step(error)
    assert failures.read(bucket, "run-1") == Failure(str(error), final)
    assert failures.read(bucket, "run-2") is None


def test_a_success_tells_nothing(bucket: Bucket) -> None:
    assert step() == "done"
    assert failures.read(bucket, "run-1") is None


def test_a_bucket_that_is_away_does_not_hide_the_error(
    bucket: Bucket, seaweed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seaweed.stop()
    try:
        with pytest.raises(ValueError, match="three rows"):
            step(ValueError("three rows"))
    finally:
        seaweed.start()
    assert "the reason is told here alone" in caplog.text


def test_on_a_laptop_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBELOOP_BUCKET", raising=False)
    with pytest.raises(ValueError, match="plain"):
        step(ValueError("plain"))

"""Old Data Docs and quarantines are deleted, from the state folder and from a real S3 store."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kubeloop import config
from kubeloop.config import Loop
from kubeloop.data import findings
from kubeloop.steps import stages
from kubeloop.stores.bucket import Bucket

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
def keeping(demo: Loop) -> Loop:
    return demo.model_copy(update={"pipelines": demo.pipelines.model_copy(update={"findings_ttl": 3 * DAY})})


def test_old_runs_leave_the_state_folder_whole_and_newer_ones_stay(keeping: Loop, tmp_path: Path) -> None:
    for run, days in (("old", 4), ("new", 2)):
        for name in (f"data-docs/{run}/raw/index.html", f"quarantine/{run}/weather.parquet"):
            path = tmp_path / name
            path.parent.mkdir(parents=True)
            path.write_text("x")
            stamp = (NOW - days * DAY).timestamp()
            for each in (path, *path.parents[: len(Path(name).parts) - 2]):
                os.utime(each, (stamp, stamp))
    assert findings.expire_on_disk(tmp_path, keeping, NOW) == 2
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["new", "new"]
    assert findings.expire_on_disk(tmp_path / "nothing", keeping, NOW) == 0


def test_a_folder_that_another_run_removes_meanwhile_is_gone(
    keeping: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "data-docs/old/raw/index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    listing = Path.rglob

    def late(folder: Path, pattern: str) -> list[Path]:
        found = list(listing(folder, pattern))
        shutil.rmtree(tmp_path / "data-docs")
        return found

    monkeypatch.setattr(Path, "rglob", late)
    assert findings.expire_on_disk(tmp_path, keeping, NOW + 4 * DAY) == 0


def test_old_objects_leave_the_bucket_and_those_of_other_loops_stay(
    keeping: Loop, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBELOOP_BUCKET", s3.bucket)
    bucket = Bucket.open(config.settings(tmp_path))
    names = ["data-docs/flight-delay/r1/raw/index.html", "quarantine/flight-delay/r1/weather.parquet"]
    others = ["data-docs/flight-delays/r1/raw/index.html", "payloads/flight-delay/1.parquet"]
    for name in (*names, *others):
        bucket.put(name, b"x")
    assert findings.expire_in_bucket(bucket, keeping, NOW + 2 * DAY) == 0
    assert findings.expire_in_bucket(bucket, keeping, NOW + 4 * DAY) == 2
    assert [name for name in (*names, *others) if bucket.get(name) is not None] == others


def test_a_store_that_refuses_costs_no_run(keeping: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    away = {"bucket": "s3://kubeloop/x", "s3_endpoint": "http://127.0.0.1:1"}
    bucket = Bucket.open(config.settings(tmp_path).model_copy(update=away))
    assert findings.expire_in_bucket(bucket, keeping, NOW) == 0
    assert "could not remove findings" in caplog.text


def test_a_validation_removes_what_is_older(loop: Loop, make_home: Any, as_of: datetime, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    settings = make_home(tmp_path / "home")
    old = settings.state / "data-docs" / "old"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    raw, clean, page = (tmp_path / name for name in ("raw", "clean", "page.html"))
    stages.extract(loop, settings, as_of, raw)
    stages.validate_raw(loop, settings, raw, as_of, "r1", clean, page)
    assert not old.exists()
    docs = settings.state / "data-docs" / "r1"
    assert sum(path.stat().st_size for path in docs.rglob("*") if path.is_file()) < 600_000

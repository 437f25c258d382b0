"""The bucket against a real S3 store."""

from pathlib import Path
from typing import Any

import pytest

from kubeloop import config
from kubeloop.config import ConfigError
from kubeloop.stores.bucket import Bucket, BucketError


@pytest.fixture
def bucket(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("KUBELOOP_BUCKET", f"{s3.bucket}/some/prefix")
    return Bucket.open(config.settings(tmp_path))


def test_an_object_is_read_as_it_was_written(bucket: Bucket) -> None:
    assert bucket.get("outcomes/r1.json") is None
    bucket.put("outcomes/r1.json", b"one")
    bucket.put("outcomes/r1.json", b"two")
    assert bucket.get("outcomes/r1.json") == b"two"
    assert bucket.names("outcomes") == ["r1.json"]
    assert bucket.names("other") == []
    bucket.delete("outcomes/r1.json")
    bucket.delete("outcomes/r1.json")
    assert bucket.get("outcomes/r1.json") is None


def test_a_folder_goes_there_and_back(bucket: Bucket, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "deeper").mkdir(parents=True)
    (here / "one").write_bytes(b"1")
    (here / "deeper" / "two").write_bytes(b"2" * 100_000)
    assert bucket.push(here, "references/m/7") == 2
    assert bucket.pull("references", there) == ["m/7/deeper/two", "m/7/one"]
    assert (there / "m/7/deeper/two").read_bytes() == b"2" * 100_000
    assert bucket.pull("references", there) == [], "files that exist are not fetched again"
    assert not list(there.rglob(".*")), "no partial file remains"


def test_only_what_is_wanted_is_pulled(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("a", "b"):
        bucket.put(f"x/{name}", b"")
    assert bucket.pull("x", tmp_path / "out", lambda name: name == "b") == ["b"]


@pytest.mark.parametrize("address", ["", "bucket", "http://127.0.0.1/b", "s3://"])
def test_an_invalid_address_is_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBELOOP_BUCKET", address)
    with pytest.raises(ConfigError, match="write s3://bucket"):
        Bucket.open(config.settings(tmp_path))


def test_a_store_that_is_down_is_an_error_that_names_the_object(bucket: Bucket, seaweed: Any, tmp_path: Path) -> None:
    bucket.put("x/a", b"1")
    seaweed.stop()
    try:
        with pytest.raises(BucketError, match=r"cannot read .*some/prefix/x/a"):
            bucket.get("x/a")
        with pytest.raises(BucketError, match=r"cannot write .*x/b"):
            bucket.put("x/b", b"")
        with pytest.raises(BucketError, match=r"cannot list .*x"):
            bucket.pull("x", tmp_path / "out")
    finally:
        seaweed.start()
    assert bucket.get("x/a") == b"1"


@pytest.mark.usefixtures("bucket")
def test_wrong_credentials_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(BucketError, match=r"cannot write"):
        Bucket.open(config.settings(tmp_path)).put("x/a", b"")

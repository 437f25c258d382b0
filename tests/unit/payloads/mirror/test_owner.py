"""The owner of a bucket: two installations on one bucket, against a real S3 store."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop import config, errors, names
from kubeloop.payloads import mirror, segments
from kubeloop.payloads.mirror import Mirror
from kubeloop.stores.bucket import OWNER, Bucket, BucketError, Owner, OwnerError

Open = Callable[..., Bucket]


@pytest.fixture
def settings(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Settings:
    monkeypatch.setenv("KUBELOOP_BUCKET", f"{s3.bucket}/shared")
    return config.settings(tmp_path)


@pytest.fixture
def bucket(settings: config.Settings) -> Open:
    """The shared bucket, opened by an installation."""
    return lambda owner="": Bucket.open(settings.model_copy(update={"owner": owner}))


@pytest.fixture
def mirrors(bucket: Open, tmp_path: Path) -> Callable[[str, str, str], Mirror]:
    """Mirrors of one installation, with one folder each."""

    def make(owner: str, direction: str, folder: str) -> Mirror:
        (tmp_path / folder).mkdir(exist_ok=True)
        return Mirror(bucket(owner), direction, tmp_path / folder, tmp_path / f"{folder}-references", 5)

    return make


def write(folder: Path, first: int, last: int) -> None:
    rows = [(seq, seq, 0, str(seq), "t", "s", "", "", "", "", b"body") for seq in range(first, last + 1)]
    segments.write(folder, segments.table_of(rows))


def seqs(folder: Path) -> list[int]:
    found: list[int] = segments.read(folder, 0)[0]["seq"].to_pylist()
    return found


def test_the_first_owns_the_bucket_and_the_second_is_refused(mirrors: Any, bucket: Open, tmp_path: Path) -> None:
    a, b = mirrors("ml/a", "push", "a"), mirrors("ml/b", "push", "b")
    write(tmp_path / "a", 1, 9)
    write(tmp_path / "b", 1, 5)
    assert a.step() == 1
    stored = bucket().names("")
    with pytest.raises(OwnerError, match=r"installation ml/a, .* ml/b: "):
        b.step()
    assert seqs(tmp_path / "b") == [1, 2, 3, 4, 5], "its segments stay, and are not marked as mirrored"
    assert segments.marked(tmp_path / "b", segments.MIRRORED) == 0
    with pytest.raises(OwnerError):
        mirrors("ml/b", "pull", "reader-b").step()
    assert not list((tmp_path / "reader-b").glob("*.parquet"))
    assert mirrors("ml/a", "pull", "reader-a").step() == 1
    assert bucket().names("") == stored, "nothing was written or removed"


@pytest.mark.parametrize("use", ["get", "put", "delete", "names", "push", "pull"])
def test_nothing_of_a_bucket_is_open_to_another(bucket: Open, tmp_path: Path, use: str) -> None:
    bucket("ml/a").put("outcomes/r1.json", b"one")
    other, there = bucket("ml/b"), tmp_path / "files"
    there.mkdir()
    (there / "file").write_text("two")
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: other.get("outcomes/r1.json"),
        "put": lambda: other.put("outcomes/r1.json", b"two"),
        "delete": lambda: other.delete("outcomes/r1.json"),
        "names": lambda: other.names("outcomes"),
        "push": lambda: other.push(there, "outcomes"),
        "pull": lambda: other.pull("outcomes", there),
    }
    with pytest.raises(OwnerError) as refused:
        calls[use]()
    assert isinstance(refused.value, BucketError)
    assert refused.value.lasting, "another attempt would be refused, too"
    assert bucket("ml/a").get("outcomes/r1.json") == b"one"
    # To hand the bucket over, delete the mark.
    bucket().delete(OWNER)
    calls[use]()


def test_prefixes_of_one_bucket_have_their_own_owners(settings: config.Settings) -> None:
    for name in ("a", "b"):
        own = settings.model_copy(update={"bucket": f"{settings.bucket}/{name}", "owner": name})
        Bucket.open(own).put("x", b"1")
        assert Bucket.open(own).check() == Owner(name)


def test_a_bucket_without_a_mark_is_adopted_by_who_writes(mirrors: Any, bucket: Open, tmp_path: Path) -> None:
    """As after an upgrade: segments exist, but no mark of an owner."""
    (tmp_path / "old").mkdir()
    write(tmp_path / "old", 1, 9)
    plain = bucket()
    mirror.push(plain, tmp_path / "old", mirror.stored(plain, tmp_path / "old"))
    assert plain.marked() is None
    assert mirrors("ml/a", "pull", "reader").step() == 1
    assert plain.marked() is None, "a reader sets no mark"
    bucket("ml/a").put("outcomes/r1.json", b"")
    assert plain.marked() == Owner("ml/a")
    mirrors("ml/a", "push", "old").step()
    assert plain.marked()[:2] == ("ml/a", mirror.log_name(tmp_path / "old"))  # type: ignore[index]
    with pytest.raises(OwnerError):
        mirrors("ml/b", "push", "b").step()


def test_a_new_volume_takes_over_from_one_that_is_silent(
    mirrors: Any, bucket: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation of the same name: after a lost volume, or a second cluster with the same values."""
    monkeypatch.setattr(mirror, "OWNER_S", 0.0)
    old, new = mirrors("ml/a", "push", "old"), mirrors("ml/a", "push", "new")
    write(tmp_path / "old", 1, 9)
    old.step()
    for _ in range(3):
        old.step()
        with pytest.raises(OwnerError, match=r"another collector of ml/a: if that one is gone, .* after 120 s"):
            new.step()
    assert new.new, "the collector has not started"
    with pytest.raises(OwnerError):
        new.step()
    monkeypatch.setattr(mirror, "SILENT_S", 0.0)
    assert new.step() == 0
    assert segments.marked(tmp_path / "new", segments.MIRRORED) == 9
    write(tmp_path / "new", 10, 12)
    assert new.step() == 1
    monkeypatch.setattr(mirror, "SILENT_S", 120.0)
    write(tmp_path / "old", 10, 11)
    with pytest.raises(OwnerError, match="another collector of ml/a"):
        old.step()
    mirrors("ml/a", "pull", "reader").step()
    assert seqs(tmp_path / "reader") == list(range(1, 13))


def test_a_log_that_the_store_is_ahead_of_is_refused(mirrors: Any, bucket: Open, tmp_path: Path) -> None:
    """The mark was deleted for a collector with its own log, whose segment numbers would collide with stored ones."""
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", 1, 9)
    mirrors("ml/a", "push", "a").step()
    bucket().delete(OWNER)
    (tmp_path / "b").mkdir()
    write(tmp_path / "b", 1, 5)
    with pytest.raises(OwnerError, match=r"up to event 9, .* ends at 5: it is another log, or an old copy"):
        mirrors("ml/b", "push", "b").step()
    assert bucket().marked() is None
    assert len(bucket().names(names.PAYLOADS)) == 1
    mirrors("ml/b", "push", "empty").step()
    assert segments.marked(tmp_path / "empty", segments.MIRRORED) == 9


def test_of_many_that_start_together_one_goes_on(
    mirrors: Any, bucket: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "OWNER_S", 0.0)
    all_ = [mirrors(f"ml/{number % 2}", "push", f"log-{number}") for number in range(4)]

    def start(one: Mirror) -> bool:
        try:
            one.step()
        except OwnerError:
            return False
        return True

    with ThreadPoolExecutor(len(all_)) as pool:
        list(pool.map(start, all_))
    mark = bucket().marked()
    assert mark
    going = [start(one) for one in all_]
    assert going == [
        (f"ml/{number % 2}", mirror.log_name(tmp_path / f"log-{number}")) == mark[:2] for number in range(4)
    ]
    assert sum(going) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', b'{"owner": 1}', b"\xff"])
def test_a_mark_that_cannot_be_read_is_refused(bucket: Open, content: bytes) -> None:
    bucket().put(OWNER, content)
    with pytest.raises(OwnerError, match=r"owner.json cannot be read; delete it"):
        bucket("ml/a").get("x")


def test_the_refusal_stands_in_the_log_and_at_readyz(bucket: Open, tmp_path: Path) -> None:
    bucket("ml/a").put("x", b"")
    environ = config.inherited() | {"KUBELOOP_OWNER": "ml/b"}
    command = [sys.executable, "-m", "kubeloop.payloads.mirror", "push", "--dir", str(tmp_path / "log")]
    once = subprocess.run([*command, "--once"], env=environ, capture_output=True, text=True, check=False)
    assert once.returncode == errors.LASTING
    assert once.stderr.count("\n") == 1
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().split()[1]
        deadline = time.monotonic() + 30
        while "belongs" not in (answer := httpx.get(f"{url}/readyz")).text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        health = httpx.get(f"{url}/healthz")
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert answer.status_code == health.status_code == 503
    assert answer.text == health.text == once.stderr.strip()
    assert log.count(answer.text) == 1
    assert json.loads(bucket().get(OWNER) or b"")["name"] == "ml/a"

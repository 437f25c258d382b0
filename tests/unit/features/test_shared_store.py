"""The online store and the registry that a cluster's pods share, on real servers."""

import os
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from redis import Redis

from kubeloop import config, features
from kubeloop.config import Settings
from kubeloop.features.online import Materializer, OnlineFeatures

SERVICE = "flight_delay_v1"


@pytest.fixture(params=["redis", "postgres"])
def shared(request: pytest.FixtureRequest, postgres: str, tmp_path: Path) -> Settings:
    """Settings with the registry on PostgreSQL and the online store on the server under test."""
    online = str(request.getfixturevalue("redis")) if request.param == "redis" else f"{postgres}?sslmode=disable"
    return config.settings(tmp_path).model_copy(update={"feature_registry": postgres, "online_store": online})


def asked(rows: pa.Table, online: OnlineFeatures) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {field.name: rows[field.name].to_pylist() for field in online.fields}
    return {
        name: [value.isoformat() if isinstance(value, datetime) else value for value in values]
        for name, values in columns.items()
    }


def test_pods_read_what_another_pod_has_materialized(
    repo: Path, weeks: Path, built: Path, as_of: datetime, shared: Settings, tmp_path: Path
) -> None:
    features.build(repo, weeks, tmp_path / "tables", shared)
    assert not (tmp_path / "tables" / "registry.db").exists()
    # A serving pod has the feature repo, but no tables.
    there = OnlineFeatures.open(repo, SERVICE, shared)
    Materializer(built, SERVICE).advance(as_of)
    here = OnlineFeatures.open(built, SERVICE)
    assert (there.fields, there.features) == (here.fields, here.features)
    rows = features.events(repo, weeks, start=as_of, end=as_of + timedelta(hours=12))
    unknown = there.read(asked(rows, there), as_of)
    assert not any(value is not None for value in unknown["temp"]), "nothing is materialized yet"

    assert Materializer(tmp_path / "tables", SERVICE, shared).advance(as_of) > 1000
    answer, expected = there.read(asked(rows, there), as_of), here.read(asked(rows, here), as_of)
    assert answer == expected
    assert sum(value is not None for values in answer.values() for value in values) > 1000
    later = as_of + timedelta(days=3)
    assert there.read(asked(rows, there), later) == here.read(asked(rows, here), later), "old values expire in both"


@pytest.mark.parametrize("address", ["http://127.0.0.1", "mysql://127.0.0.1/x"])
def test_a_store_that_is_not_known_is_refused(address: str, repo: Path, tmp_path: Path) -> None:
    place = config.settings(tmp_path).model_copy(update={"online_store": address})
    with pytest.raises(features.FeatureError, match="write redis://, rediss:// or postgresql://"):
        features.open_store(repo, place)


Open = Callable[[str], tuple[OnlineFeatures, dict[str, list[Any]]]]


@pytest.fixture
def reader(repo: Path, weeks: Path, postgres: str, as_of: datetime, tmp_path: Path) -> Open:
    """A transformer's reader of an online store whose definitions are registered, and a request for it."""
    rows = features.events(repo, weeks, start=as_of, end=as_of + timedelta(hours=1))

    def start(url: str) -> tuple[OnlineFeatures, dict[str, list[Any]]]:
        here = config.settings(tmp_path).model_copy(update={"feature_registry": postgres, "online_store": url})
        features.register(repo, here)
        online = OnlineFeatures.open(repo, SERVICE, here)
        return online, asked(rows, online)

    return start


def test_a_silent_redis_costs_a_request_seconds_and_is_found_again(redis: str, reader: Open, as_of: datetime) -> None:
    online, rows = reader(redis)
    online.read(rows, as_of)
    process = Redis.from_url(redis).info("server")["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        for _ in range(2):  # once on the existing connection, then on a new one that is never established
            before = time.monotonic()
            with pytest.raises(ConnectionError, match="cannot be read; try again later"):
                online.read(rows, as_of)
            assert time.monotonic() - before < 4
    finally:
        os.kill(process, signal.SIGCONT)
    online.read(rows, as_of)


def test_an_unreachable_redis_is_reported_at_once(reader: Open, as_of: datetime) -> None:
    online, rows = reader("redis://127.0.0.1:9/0")
    before = time.monotonic()
    with pytest.raises(ConnectionError, match="cannot be read"):
        online.read(rows, as_of)
    assert time.monotonic() - before < 2


def test_a_postgres_that_comes_back_is_found_again(
    postgres: str, postgres_server: Any, reader: Open, as_of: datetime
) -> None:
    online, rows = reader(f"{postgres}?sslmode=disable")
    online.read(rows, as_of)
    postgres_server.stop()
    try:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="cannot be read"):
                online.read(rows, as_of)
    finally:
        postgres_server.start()
    online.read(rows, as_of)


@pytest.mark.parametrize("password", ["with,comma=and/slash", "1e5", "true", '"quoted"', "p%40ss \\u002c ü"])
def test_every_password_reaches_redis_as_it_is(redis: str, reader: Open, as_of: datetime, password: str) -> None:
    admin = Redis.from_url(redis)
    admin.execute_command("ACL", "SETUSER", "reader", "on", "resetpass", f">{password}", "~*", "+@all")
    address = redis.rpartition("@")[2]
    online, rows = reader(f"redis://reader:{quote(password, safe='')}@{address}?socket_timeout=5")
    online.read(rows, as_of)


SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (f"redis://:{SECRET}/x@127.0.0.1/0", "special characters of the password: %2F"),
        (f"redis://user:123/{SECRET}@127.0.0.1/0", "number of a database"),
        (f"redis://:{SECRET}[@127.0.0.1/0", "special characters of the password"),
        (f"redis://:{SECRET}@/0", "no host name"),
        (f"redis://:{SECRET}@[::1]/0", "IPv6"),
        (f"redis://:{SECRET}@127.0.0.1/0?retries=3", "unknown option; the options are socket_timeout,"),
        (f"redis://:{SECRET}@127.0.0.1/0?socket_timeout=soon", "numbers of seconds"),
        (f"postgresql://u:{SECRET}@127.0.0.1/x?connect_timeout=1", "unknown option; the options are sslmode"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_secret(
    address: str, says: str, repo: Path, tmp_path: Path
) -> None:
    place = config.settings(tmp_path).model_copy(update={"online_store": address})
    with pytest.raises(features.FeatureError, match="KUBELOOP_ONLINE_STORE cannot be used") as failed:
        features.open_store(repo, place)
    assert says in str(failed.value)
    assert SECRET not in str(failed.value)

"""The online store and the registry that a cluster's pods share, on real servers."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kubeloop import config, features
from kubeloop.config import Settings
from kubeloop.online import Materializer, OnlineFeatures

SERVICE = "flight_delay_v1"


@pytest.fixture(params=["redis", "postgres"])
def shared(request: pytest.FixtureRequest, postgres: str, tmp_path: Path) -> Settings:
    """A place whose registry is on PostgreSQL and whose online store is on the server under test."""
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
    # A serving pod has the feature repo alone: no tables.
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
    assert there.read(asked(rows, there), later) == here.read(asked(rows, here), later), "old values age alike"


@pytest.mark.parametrize("address", ["http://127.0.0.1", "mysql://127.0.0.1/x"])
def test_a_store_that_is_not_known_is_refused(address: str, repo: Path, tmp_path: Path) -> None:
    place = config.settings(tmp_path).model_copy(update={"online_store": address})
    with pytest.raises(features.FeatureError, match="write redis://, rediss:// or postgresql://"):
        features.open_store(repo, place)

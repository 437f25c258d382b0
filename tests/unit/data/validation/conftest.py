import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kubeloop import config
from kubeloop.data.validation import Report, validate

AS_OF = datetime(2013, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True, scope="session")
def quiet() -> None:
    """The library reads these variables at import, which the first validation causes."""
    os.environ.update(config.QUIET)


@dataclass(frozen=True)
class Place:
    """The folders of one validation, and the files that tests write to them."""

    root: Path

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    @property
    def suites(self) -> Path:
        return self.root / "suites"

    def table(self, name: str, frame: pd.DataFrame) -> Path:
        path = self.root / "raw" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        moments = dict.fromkeys(frame.select_dtypes("datetimetz").columns, "datetime64[us, UTC]")
        frame.astype(moments).to_parquet(path)
        return path

    def suite(self, name: str, text: str) -> Path:
        self.suites.mkdir(exist_ok=True)
        path = self.suites / f"{name}.yaml"
        path.write_text(text)
        return path

    def run(self, tables: Mapping[str, Path], as_of: datetime = AS_OF) -> Report:
        return validate(
            tables,
            self.suites,
            as_of=as_of,
            docs=self.docs,
            quarantine=self.root / "quarantine",
            clean=self.root / "clean",
        )

    def read(self, folder: str, table: str) -> pd.DataFrame:
        return pd.read_parquet(self.root / folder / f"{table}.parquet")

    def has(self, folder: str, table: str) -> bool:
        return (self.root / folder / f"{table}.parquet").exists()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def check(place: Place) -> Callable[..., Report]:
    """Validate one table named t against one suite."""

    def run(frame: pd.DataFrame, suite: str, **arguments: Any) -> Report:
        place.suite("t", suite)
        return place.run({"t": place.table("t", frame)}, **arguments)

    return run


@pytest.fixture
def readings() -> pd.DataFrame:
    """Hourly readings like the weather's, without a fault: the last of 1,000 rows is one hour before AS_OF."""
    count = 1000
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(count)],
            "site": [("EWR", "JFK", "LGA")[i % 3] for i in range(count)],
            "observed_at": pd.date_range(end=AS_OF, periods=count, freq="h"),
            "wind": [float(i % 40) for i in range(count)],
            "count": range(count),
        }
    )

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

from kubeloop import config

settings.register_profile("scaffold", deadline=None)
settings.load_profile("scaffold")


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    os.environ.update(config.QUIET)


def machines(rows: int = 3000, days: int = 200, seed: int = 1) -> pd.DataFrame:
    """Readings of 40 machines; a hot machine fails more often within the day."""
    random = np.random.default_rng(seed)
    who = random.integers(0, 40, rows)
    moments = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(random.integers(0, days * 86400, rows)), unit="s")
    heat = random.normal(60, 10, rows)
    fails = random.uniform(size=rows) < 1 / (1 + np.exp(-(heat - 70) / 8 - (who % 5 == 0)))
    return pd.DataFrame(
        {
            "machine": [f"M{number:02d}" for number in who],
            "read_at": moments,
            "heat": heat,
            "line": np.array(["a", "b", "c"])[who % 3],
            "failed": fails.astype(int),
        }
    )


@pytest.fixture(scope="session")
def readings() -> pd.DataFrame:
    return machines()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no terminal for questions."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def nasty() -> pd.DataFrame:
    """Column names that Python, SQL, YAML, Feast or a shell could stumble on."""
    random = np.random.default_rng(5)
    rows = 2500
    frame = machines(rows, seed=5)
    numbers = [
        "select", 'from "x"', "import", "moment", "日本", "new\nline", "label", "event_timestamp2", "probability",
        "request", "plan now", "plan_now", "1", "", "a" * 70, "a" * 71, "self", "Feature", "float64", "hour", "inputs",
        "{{ case }}", "# no comment", "-- no", "a: b", "'", "${HOME}", "customer_rate_30d", "NaN", "null", "list",
    ]  # fmt: skip
    columns = {name: random.normal(size=rows) for name in numbers}
    columns["inf"] = np.where(random.uniform(size=rows) < 0.01, np.inf, random.normal(size=rows))
    columns["class"] = random.choice(["a'b", 'c"d', "e\\f", "", "日本 ü"], rows)
    columns["maybe"] = np.where(random.uniform(size=rows) < 0.3, None, random.integers(0, 2, rows).astype(object))
    columns["flag"] = pd.array(columns["maybe"], dtype="boolean")
    columns["whole"] = pd.array(columns.pop("maybe"), dtype="Int32")
    columns["event_timestamp"] = frame["read_at"] - pd.to_timedelta(random.integers(1, 400, rows), unit="D")
    columns["ends"] = frame["read_at"] + pd.Timedelta(days=5)
    columns["remarks"] = [f"remark {number} {random.integers(9)}" for number in range(rows)]
    columns["always"] = 1
    columns["pairs"] = [[1, 2]] * rows
    columns["site id"] = random.integers(0, 7, rows)
    columns["Wer?"] = frame["machine"]
    columns["TIME"] = frame["read_at"].dt.strftime("%Y-%m-%d %H:%M:%S")
    columns["Is it?"] = np.where(frame["failed"] == 1, "gone 'away'", "still here")
    columns["heat"] = frame["heat"]
    # A date as a number: float32 can represent only every second one of these numbers.
    columns["from day"] = pd.array(20_240_101 + np.arange(rows) * 37 % 28, dtype="Int64")
    columns["from day"][::9] = pd.NA
    return pd.DataFrame(columns)

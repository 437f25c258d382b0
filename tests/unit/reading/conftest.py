from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kubeloop.data import sources
from kubeloop.reading import files, infer

Decide = Callable[..., tuple[files.Opened, infer.Decided]]


@pytest.fixture(scope="session")
def visits() -> pd.DataFrame:
    """300 visits over five months, and additional columns that a test gives."""
    random = np.random.default_rng(0)
    rows = 300
    return pd.DataFrame(
        {
            "ts": pd.date_range("2024-01-15", "2024-06-15", periods=rows).round("s"),
            "who": [f"c{number % 20:03d}" for number in range(rows)],
            "amount": (random.normal(size=rows) * 1000).round(2),
            "bought": random.integers(0, 2, rows),
        }
    )


@pytest.fixture
def decide(tmp_path: Path) -> Decide:
    """Open a file as `kubeloop init` does, and decide how to read its columns."""

    def look(path: Path, **asked: object) -> tuple[files.Opened, infer.Decided]:
        said = infer.Asked(**asked)  # type: ignore[arg-type]
        with sources.connect() as db, files.opened(db, path, said.read, tmp_path, first=True) as opened:
            return opened, infer.columns(db, opened, said)

    return look

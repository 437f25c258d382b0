"""An event id stays with its row, and rows that arrive later stop no run."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from kubeloop.data import sources, validation
from kubeloop.scaffold import design, render
from kubeloop.scaffold import suites as scaffold_suites
from kubeloop.scaffold.design import Wish
from kubeloop.scaffold.table import Table

ROLES: dict[str, Any] = {"label": "bought", "timestamp": "day", "keys": ("shop",)}


def sales(rows: int = 4000, days: int = 120) -> pd.DataFrame:
    """Dates without a time, so that a shop has several rows per day; the newest day has no label yet."""
    random = np.random.default_rng(3)
    day = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(random.integers(0, days, rows)), unit="D")
    amount = random.normal(size=rows).round(4)
    bought = pd.array((random.uniform(size=rows) < 1 / (1 + np.exp(-amount))).astype(int), dtype="Int64")
    return pd.DataFrame(
        {
            "day": day,
            "shop": [f"s{number % 10}" for number in range(rows)],
            "amount": amount,
            "open": random.uniform(size=rows) < 0.5,
            "visitor_id": random.integers(1, 9, rows),
            "bought": bought,
        }
    )


def events(frame: pd.DataFrame, folder: Path, query: str) -> dict[tuple[Any, ...], list[str]]:
    """Return the event ids by the content of their rows, without the label."""
    frame.to_parquet(folder / "sales.parquet")
    with sources.connect({"sales": folder / "sales.parquet"}) as db:
        found: dict[tuple[Any, ...], list[str]] = {}
        columns = "event_timestamp, shop, amount, open_field, visitor_id"
        for name, *values in db.execute(f"SELECT event_id, {columns} FROM ({query})").fetchall():  # noqa: S608
            found.setdefault(tuple(values), []).append(name)
    return {key: sorted(names) for key, names in found.items()}


@pytest.fixture
def query(folder: Path) -> tuple[pd.DataFrame, str]:
    frame = sales()
    # Two rows are equal in everything that was known, but their labels differ.
    frame.loc[2001, list(frame.columns)] = frame.loc[2000, list(frame.columns)]
    frame.loc[[2000, 2001], "bought"] = [1, 0]
    frame["bought"] = frame["bought"].mask(frame["day"] == frame["day"].max())
    frame.to_parquet(folder / "sales.parquet")
    (folder / "raw").mkdir()
    table = Table(folder / "sales.parquet", folder / "raw")
    case, _, _ = design.design(table, Wish(**ROLES, into=folder / "out"))
    assert case.event_id.doubles == 1
    return frame, render.feature_repo(case)["sql/events.sql"]


def late(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows that arrive later for existing days: before, between and after the other rows."""
    more = frame.sample(300, random_state=1).assign(amount=lambda rows: rows["amount"] + 7)
    return pd.concat([more.head(150), frame, more.tail(150)]).sort_values(["day", "shop"], kind="stable")


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.assign(bought=f["bought"].fillna(1)),
        lambda f: f.assign(bought=1 - f["bought"]),
        lambda f: f.sample(frac=1, random_state=2),
        late,
        # pandas turns whole numbers into floats as soon as one is missing.
        lambda f: pd.concat([f.assign(visitor_id=f["visitor_id"].astype(float)), f.tail(1).assign(visitor_id=np.nan)]),
        lambda f: pd.concat([f, f.loc[[2000]].assign(bought=np.nan).astype({"bought": f["bought"].dtype})]),
    ],
    ids=["labels arrive", "labels change", "another order", "late rows", "floats", "the same row once more"],
)
def test_an_id_stays_with_its_row(
    query: tuple[pd.DataFrame, str], folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    frame, text = query
    before, after = events(frame, folder, text), events(change(frame), folder, text)
    assert sum(len(names) for names in before.values()) == len({name for names in before.values() for name in names})
    for row, names in before.items():
        assert after[row][: len(names)] == names


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """A use case whose table had no gap when init wrote it."""
    folder = tmp_path_factory.mktemp("drafted")
    frame = sales()
    frame.to_parquet(folder / "sales.parquet")
    (folder / "scratch" / "raw").mkdir(parents=True)
    table = Table(folder / "sales.parquet", folder / "scratch" / "raw")
    design.write(table, Wish(**ROLES, into=folder / "case"), folder / "scratch", lambda _: None)
    return frame, folder / "case" / "feature_repo" / "expectations"


@pytest.mark.parametrize(
    ("change", "aside"),
    [
        (lambda f: f.assign(bought=f["bought"].mask(f.index >= len(f) - 60)), 0),
        (lambda f: f.assign(bought=f["bought"].mask(f.index % 2 == 0)), 0),
        (lambda f: f.assign(open=f["open"].astype(object).mask(f.index == 5)), 0),
        (lambda f: f.assign(amount=f["amount"].mask(f.index == 5)), 0),
        (lambda f: f.assign(visitor_id=f["visitor_id"].mask(f.index == 5)), 0),
        (lambda f: f.assign(shop=f["shop"].mask(f.index == 5)), 1),
        (lambda f: f.assign(bought=f["bought"].mask(f.index == 5, 2)), 1),
    ],
    ids=["no label yet", "half without", "a boolean", "a number", "a whole number", "a key", "another label"],
)
def test_a_gap_stops_no_run(
    drafted: tuple[pd.DataFrame, Path], tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], aside: int
) -> None:
    frame, suites = drafted
    changed = change(frame)
    changed["day"] = changed["day"].dt.tz_localize("UTC")
    changed.to_parquet(tmp_path / "sales.parquet")
    report = validation.validate(
        {"sales": tmp_path / "sales.parquet"},
        suites,
        as_of=datetime(2024, 4, 30, tzinfo=UTC) + timedelta(hours=12),
        docs=tmp_path / "docs",
        quarantine=tmp_path / "quarantine",
        clean=tmp_path / "clean",
    )
    assert report.failures == ()
    assert report.tables["sales"].quarantined == aside


def test_what_waits_for_the_label_may_be_missing_as_often_as_it_likes() -> None:
    frame = sales().assign(closed=lambda f: f["day"], bought=lambda f: np.where(f["bought"] == 1, "yes", "no"))
    frame = frame.assign(day=frame["day"].dt.tz_localize("UTC"), closed=frame["closed"].dt.tz_localize("UTC"))
    runs = scaffold_suites.Runs((len(frame),), (len(frame),), (0.5,))
    written = scaffold_suites.raw(frame, "day", None, ["shop"], None, runs, "1d", waiting=["bought", "closed"])
    checked = {
        item["expect_column_values_to_not_be_null"]["column"]
        for item in yaml.safe_load(written)
        if "expect_column_values_to_not_be_null" in item
    }
    assert checked == {"day", "shop", "amount", "open", "visitor_id"}

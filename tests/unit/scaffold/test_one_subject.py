"""Tables about one subject, names in any script, labels that say when they became known."""

import os
import pty
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from kubeloop import features
from kubeloop.cli.main import app
from kubeloop.data import sources
from kubeloop.features.online import Materializer, OnlineFeatures
from kubeloop.scaffold import design as scaffold
from kubeloop.scaffold import growth, render
from kubeloop.scaffold.design import Wish
from kubeloop.scaffold.render import Case
from kubeloop.scaffold.table import ScaffoldError, Table


def opened(frame: pd.DataFrame, folder: Path) -> Table:
    (folder / "raw").mkdir(exist_ok=True)
    frame.to_parquet(folder / "measured.parquet")
    return Table(folder / "measured.parquet", folder / "raw")


def design(frame: pd.DataFrame, folder: Path, *keys: str, **wish: Any) -> Case:
    asked = {"label": "failed", "timestamp": "read_at", "keys": keys, "into": folder / "out"}
    return scaffold.design(opened(frame, folder), Wish(**asked | wish))[0]


def served(case: Case, folder: Path) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Build a use case's features; return the training set, and the values served for its newest rows."""
    repo, built = folder / "repo", folder / "built"
    for path, content in render.feature_repo(case).items():
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_text(content)
    features.build(repo, folder / "raw", built)
    rows = features.events(repo, folder / "raw", start=case.moment.start, end=case.timeline.until)
    learned = features.training_set(built, case.service, rows).to_pandas()
    materializer, online = Materializer(built, case.service), OnlineFeatures.open(built, case.service)
    answers = []
    for row in rows.slice(rows.num_rows - 3).to_pylist():
        materializer.advance(row["event_timestamp"])
        asked = {field.name: row[field.name] for field in online.fields}
        asked = {name: [value.isoformat() if isinstance(value, datetime) else value] for name, value in asked.items()}
        answers.append({name: value for name, (value,) in online.read(asked, row["event_timestamp"]).items()})
    return learned, answers


SCRIPTS = {"heat": "Температура °C", "line": "渠道", "read_at": 'Über "Zeit"', "failed": "saiu?", "machine": "माशीन"}


@pytest.mark.parametrize("key", [None, "माशीन"])
def test_what_is_learned_is_what_is_served(readings: pd.DataFrame, folder: Path, key: str | None) -> None:
    frame = readings.rename(columns=SCRIPTS).assign(**{"माशीन": "М-1"})
    keys = [key] if key else []
    case = design(frame, folder, *keys, label="saiu?", timestamp='über "zeit"')
    assert [name for name, _ in case.columns] == [*keys, "über_zeit", "температура_c", "渠道"]
    learned, answers = served(case, folder)
    assert len(learned) == len(frame)
    assert learned["event_id"].is_unique
    for (_, row), answer in zip(learned.tail(3).iterrows(), answers, strict=True):
        assert answer == {
            name: row[name] if isinstance(row[name], str) else pytest.approx(row[name], rel=1e-6) for name in answer
        }
        assert {"температура_c_now", "渠道_now", "hour", "weekday"} <= answer.keys()
    ruff = [str(Path(sys.executable).with_name("ruff")), "--isolated"]
    for command in (
        ["format", "--diff", "--line-length", "120"],
        ["check", "--select", "E,F,I,UP,B", "--ignore", "E501"],
    ):
        done = subprocess.run(
            [ruff[0], command[0], ruff[1], *command[1:], "repo"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_ids_that_pandas_made_floats_of_are_the_ids_they_were(readings: pd.DataFrame, folder: Path) -> None:
    numbers = readings["machine"].str[1:].astype(int)
    frame = readings.assign(site_id=(numbers % 7).astype(float).mask(readings.index % 9 == 0), unit_nr=numbers * 1.0)
    table = opened(frame, folder)
    assert table.likely_key(("failed", "read_at")) == "unit_nr"
    case = design(frame, folder, "unit_nr")
    assert {item.name: item.kind for item in case.inputs if item.name == "site_id"} == {"site_id": "category"}
    (sql,) = [item.sql for item in case.inputs if item.name == "site_id"]
    asked = f"SELECT DISTINCT {sql} FROM {case.table} ORDER BY 1 NULLS LAST"  # noqa: S608
    assert [row[0] for row in table.query(asked)] == [*"0123456", None]
    assert table.query(f"SELECT DISTINCT {case.keys[0].sql} FROM {case.table} WHERE unit_nr = 7") == [("7",)]  # noqa: S608


def test_a_table_with_nothing_to_predict_from_is_refused(readings: pd.DataFrame, folder: Path) -> None:
    frame = readings[["read_at", "failed"]].assign(
        read_at=pd.Timestamp("2024-01-01") + pd.to_timedelta(readings.index, unit="min"), same=1
    )
    with pytest.raises(ScaffoldError, match="nothing to predict 'failed' from: 'same' has one value"):
        design(frame, folder)


def known_later(readings: pd.DataFrame) -> pd.DataFrame:
    days = np.random.default_rng(2).uniform(0.5, 6, len(readings))
    known = (readings["read_at"] + pd.to_timedelta(days, unit="D")).dt.floor("s").copy()
    # One label takes very long, one was known too early, one row has a time but no label, and one the reverse.
    known.iloc[10] += pd.Timedelta(days=40)
    known.iloc[11] = readings["read_at"].iloc[11] - pd.Timedelta(hours=1)
    known.iloc[13] = pd.NaT
    label = readings["failed"].astype("Int64")
    label.iloc[12] = pd.NA
    return readings.assign(failed=label, closed=known)


def test_labels_are_known_when_their_column_says(readings: pd.DataFrame, folder: Path) -> None:
    frame = known_later(readings)
    case = design(frame, folder, "machine", label_known_at="closed")
    assert case.known
    assert case.known.early == 1
    assert case.assumptions == ()
    assert case.timeline.label_delay == timedelta(days=6)
    assert case.timeline.history > timedelta(days=70)
    assert "closed" not in [item.column for item in case.inputs]
    files = render.feature_repo(case)
    with sources.connect({case.table: folder / "raw" / "measured.parquet"}) as db:
        found = db.execute(f"FROM ({files['sql/events.sql']})").df().set_index("event_timestamp")["label_available_at"]
        history = db.execute(f"FROM ({files['sql/machine_history.sql']})").df()
    expected = (
        frame["closed"].where(frame["closed"] >= frame["read_at"], frame["read_at"]).where(frame["closed"].notna())
    )
    pairs = {(moment.tz_localize("UTC"), known) for moment, known in zip(frame["read_at"], expected, strict=True)}
    found = found.dt.tz_localize(None)
    assert {pair for pair in pairs if pair[1] == pair[1]} == set(found.dropna().items())
    assert found.isna().sum() == 1
    # Counted by hand: one machine's rows, as known at the newest whole day, of the 30 days before.
    mine = frame[frame["machine"] == "M07"].assign(known=expected)
    at = history["event_timestamp"][history["machine"] == "M07"].sort_values().iloc[-40].tz_localize(None)
    begins = (mine["known"] - pd.Timedelta(microseconds=1)).dt.floor("D") + pd.Timedelta(days=1)
    labels = mine["failed"][(begins <= at) & (begins > at - pd.Timedelta(days=30))].dropna()
    (rate,) = history[(history["machine"] == "M07") & (history["event_timestamp"] == at.tz_localize("UTC"))][
        "machine_rate_30d"
    ]
    assert rate == pytest.approx(labels.mean())


def test_a_delay_that_nobody_gave_is_an_assumption(readings: pd.DataFrame, folder: Path) -> None:
    (assumed,) = design(readings, folder, "machine").assumptions
    assert "known 1d after its row's moment" in assumed
    assert design(readings, folder, "machine", label_delay=timedelta(days=1)).assumptions == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-known-at", "heat"], "holds DOUBLE, but must hold times"),
        (["--label-known-at", "empty"], "is empty wherever there is a label"),
        (["--label-known-at", "closed", "--label-delay", "2d"], "exclude each other"),
        (["--where", "heat >"], "--where 'heat >' fails"),
        (["--where", "heat > 1000"], "--where 'heat > 1000' leaves no row"),
    ],
)
def test_an_option_that_does_not_fit_gets_a_sentence(
    readings: pd.DataFrame, folder: Path, options: list[str], message: str
) -> None:
    known_later(readings).assign(empty=pd.NaT).to_parquet("readings.parquet")
    roles = ["--label", "failed", "--timestamp", "read_at", "--no-key"]
    answer = CliRunner().invoke(app, ["init", "readings.parquet", *roles, *options])
    assert answer.exit_code
    assert message in answer.output


def test_a_delay_is_asked_for_in_a_terminal(readings: pd.DataFrame, folder: Path) -> None:
    readings.to_parquet("readings.parquet")
    here, there = pty.openpty()
    os.write(here, b"heat\n")
    roles = ["--label", "failed", "--timestamp", "read_at", "--no-key"]
    done = subprocess.run(
        [sys.executable, "-m", "kubeloop.cli", "init", "readings.parquet", *roles],
        stdin=there, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "label known?" in done.stdout
    assert "[1d]" in done.stdout
    assert "--label-known-at 'heat' holds DOUBLE" in done.stderr, "a column answers the question, too"


LABELS: list[tuple[Any, str | None, list[int | None]]] = [
    ([True, False, None], None, [1, 0, None]),
    (["yes", "no", None], None, [1, 0, None]),
    (["lost", "won", None], "lost", [1, 0, None]),
    (["low", "mid", "high", None], "high", [0, 0, 1, None]),
    ([1.0, 0.0, None], None, [1, 0, None]),
    ([2, 1, None], "2", [1, 0, None]),
]


@pytest.mark.parametrize(("values", "positive", "read"), LABELS)
def test_labels_of_every_kind_are_read(
    readings: pd.DataFrame, folder: Path, values: list[Any], positive: str | None, read: list[int | None]
) -> None:
    shares = [*[0.9 / (len(values) - 1)] * (len(values) - 1), 0.1]
    drawn = np.random.default_rng(1).choice(len(values), len(readings), p=shares)
    frame = readings.assign(failed=pd.Series([values[number] for number in drawn], dtype=object))
    case = design(frame, folder, "machine", positive=positive)
    with sources.connect({case.table: folder / "raw" / "measured.parquet"}) as db:
        found = db.execute(f"SELECT failed, {case.label.sql} FROM {case.table}").fetchall()  # noqa: S608
    assert set(found) == set(zip(values, read, strict=True))


def test_a_value_that_appears_later_is_not_a_label(readings: pd.DataFrame, folder: Path) -> None:
    lost = np.where(readings["failed"] == 1, "lost", "won")
    case = design(readings.assign(failed=lost), folder, positive="lost")
    with sources.connect() as db:
        db.execute("CREATE TABLE later AS SELECT 'withdrawn' AS failed")
        assert db.execute(f"SELECT {case.label.sql} FROM later").fetchall() == [(None,)]  # noqa: S608


def test_columns_that_only_grow_are_named(readings: pd.DataFrame, folder: Path) -> None:
    random = np.random.default_rng(4)
    ordinal = readings.groupby("machine").cumcount()
    offset = readings["machine"].str[1:].astype(int)
    frame = readings.assign(
        odometer=offset * 3.0 + ordinal + random.uniform(0, 0.5, len(readings)),
        since_start=np.arange(len(readings)) + random.uniform(0, 0.5, len(readings)),
        left=5000.0 - np.arange(len(readings)),
        serial=offset * 1000.0 + ordinal,
        walk=random.normal(size=len(readings)).cumsum(),
        season=np.sin(np.arange(len(readings)) / 300),
        built=readings["read_at"].min() - pd.to_timedelta(offset, unit="D"),
    )
    table = opened(frame, folder)
    case, _, _ = scaffold.design(table, Wish("failed", "read_at", ("machine",), folder / "out"))
    found = growth.find(table, case.moment, case.keys, case.inputs)
    assert {(item.column, item.grows, item.key) for item in found} == {
        ("odometer", True, "machine"), ("since_start", True, ""), ("left", False, ""), ("built", True, "machine"),
    }  # fmt: skip

"""The other main job: `kubeloop init` on a user's own table, and the whole loop on it with real services."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubeloop import config

DAY = pd.Timedelta(days=1)
# Settings of this process must not reach the program, which must find its own.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("KUBELOOP_")}

pytestmark = pytest.mark.timeout(900)


def subscriptions(rows: int = 30_000, customers: int = 400, days: int = 270) -> pd.DataFrame:
    """Renewals over nine months; after two thirds of them, a new price reverses the effect of heavy use."""
    random = np.random.default_rng(11)
    who = random.integers(0, customers, rows)
    moments = pd.Timestamp("2023-01-01") + pd.to_timedelta(np.sort(random.integers(0, days * 86400, rows)), unit="s")
    day = (moments - moments[0]).total_seconds().to_numpy() / 86400
    loyal = random.normal(0, 0.8, customers)[who]
    plan = np.array(["basic", "plus", "pro"])[random.choice(3, rows, p=[0.5, 0.3, 0.2])]
    changed = day > 0.6 * days
    minutes = random.gamma(2, 30 * np.where(changed, 2.0, 1.0))
    tickets = random.poisson(1, rows)
    logit = -1.3 - loyal + 0.4 * tickets + 0.7 * (plan == "basic") + 0.3 * np.sin(2 * np.pi * day / 365)
    logit += np.where(changed, 0.012, -0.012) * (minutes - 60)
    return pd.DataFrame(
        {
            "Customer ID": [f"C{number:04d}" for number in who],
            "Renewal Time": moments,
            "Plan": plan,
            "minutes used": minutes.round(1),
            "class": np.where(random.uniform(size=rows) < 0.02, None, plan),
            "support tickets": tickets,
            "Churned?": np.where(random.uniform(size=rows) < 1 / (1 + np.exp(-logit)), "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    subscriptions().to_parquet(folder / "my renewals.parquet")
    return folder


def kubeloop(place: Path, *arguments: str) -> Any:
    """Run the command line in `place` and return its JSON; a failure shows the output."""
    done = subprocess.run(
        [sys.executable, "-m", "kubeloop.cli", *arguments, "--json"],
        cwd=place,
        env={**ENVIRONMENT, "KUBELOOP_STATE": str(place / "state")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def summary(place: Path) -> dict[str, Any]:
    columns = ["--label", "Churned?", "--timestamp", "Renewal Time", "--key", "Customer ID"]
    written = kubeloop(place, "init", "my renewals.parquet", *columns, "--into", "use case")
    assert written["warnings"] == []
    assert all(finding["ok"] for finding in kubeloop(place, "doctor", "-C", "use case"))
    kubeloop(place, "run", "-C", "use case", "--fast")
    content: dict[str, Any] = json.loads((place / "state" / "summary.json").read_text())
    return content


def test_every_prediction_is_served_and_accounted_for(summary: dict[str, Any]) -> None:
    predictions = summary["predictions"]
    assert predictions["served"] > 1500
    assert predictions["served"] == predictions["logged"] + predictions["dropped"]
    assert predictions["errors"] == 0
    assert summary["labels"] > 0.95 * predictions["served"]


def test_a_model_learned_from_the_table_and_serves(summary: dict[str, Any]) -> None:
    (champion,) = [version for version in summary["versions"] if version["champion"]]
    assert champion["promoted"]
    first = summary["versions"][0]
    assert first["gate"]["challenger"] > 0.65


def test_the_change_of_the_world_is_noticed_and_answered(summary: dict[str, Any], place: Path) -> None:
    assert summary["windows"] >= 10
    judged = [row for row in kubeloop(place, "monitor", "-C", "use case")["windows"] if row["status"] == "judged"]
    assert len(judged) >= 10
    first, *_ = summary["episodes"]
    assert first["opened_at"] >= "2023-06-12", "before the change, the data were as in training"
    assert any("minutes_used_now" in episode["features"] for episode in summary["episodes"])


def test_the_retrained_models_beat_the_frozen_one(summary: dict[str, Any]) -> None:
    newer = [version for version in summary["versions"][1:] if version["promoted"]]
    assert newer, [version["reason"] for version in summary["versions"]]
    assert newer[0]["gate"]["difference"] > 0.1
    assert summary["quality"]["loop"] > summary["quality"]["frozen"] + 0.1


def test_rows_that_were_appended_are_learned_from_and_nothing_is_replayed_twice(
    summary: dict[str, Any], place: Path
) -> None:
    file = place / "my renewals.parquet"
    table = pd.read_parquet(file)
    later = table.tail(1200).assign(**{"Renewal Time": table["Renewal Time"].tail(1200) + pd.Timedelta(days=20)})
    pd.concat([table, later]).to_parquet(file)
    kubeloop(place, "retrain", "-C", "use case", "--reason", "the newest rows")
    kubeloop(place, "run", "-C", "use case", "--fast")
    again = json.loads((place / "state" / "summary.json").read_text())
    assert len(again["versions"]) == len(summary["versions"]) + 1
    newest = again["versions"][-1]
    holdout = config.load(place / "use case" / "loop.yaml").training.holdout
    assert pd.Timestamp(newest["trained_to"]) > table["Renewal Time"].max().tz_localize("UTC") - holdout + DAY
    assert again["predictions"]["served"] == summary["predictions"]["served"]
    assert again["predictions"]["errors"] == 0

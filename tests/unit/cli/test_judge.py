"""`kubeloop judge`: its exit codes, its JSON, and what it says of what it cannot read."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from kubeloop.cli.main import app
from tests.conftest import PROJECT


def events(path: Path, factor: float, requests: int = 60_000) -> Path:
    """Write a rollout of two steps with errors of 1 %, times `factor` at the canary."""
    rng = np.random.default_rng(1)
    share = np.repeat([0.25, 0.5], requests // 2)
    canary = rng.random(requests) < share
    failed = rng.random(requests) < np.where(canary, 0.01 * factor, 0.01)
    moments = np.datetime64("2013-04-01", "us") + np.arange(requests).astype("timedelta64[s]")
    columns = {
        "event_time": moments,
        "arm": np.where(canary, "canary", "champion"),
        "share": share,
        "status": np.where(failed, 503, 200),
        "seconds": rng.lognormal(-4, 0.5, requests),
    }
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("factor", "requests", "action", "code"),
    [(1.0, 60_000, "promote", 0), (1.0, 1_000, "hold", 3), (1.0, 60, "hold", 3), (5.0, 60_000, "rollback", 4)],
)
def test_the_exit_code_is_the_verdict(tmp_path: Path, factor: float, requests: int, action: str, code: int) -> None:
    path = events(tmp_path / "events.parquet", factor, requests)
    found = CliRunner().invoke(app, ["judge", str(path), "-C", str(PROJECT), "--json"])
    assert found.exit_code == code, found.output
    # Strictly: an interval without an end is null, since JSON knows no infinity.
    verdict = json.loads(found.stdout, parse_constant=pytest.fail)
    assert verdict["action"] == action
    assert verdict["findings"][0]["name"] == "errors"
    text = CliRunner().invoke(app, ["judge", str(path), "-C", str(PROJECT)])
    assert text.exit_code == code
    assert f"{action}: " in text.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["away.parquet"], 65),
        (["events.parquet", "--slice", "color=red"], 65),
        (["events.parquet", "--as-of", "soon"], 65),
        (["--errors", "0.01", "--step", "half"], 2),
    ],
)
def test_what_cannot_be_judged_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    events(tmp_path / "events.parquet", 1.0, 100)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["judge", *words, "-C", str(PROJECT)]).exit_code == code


def test_a_rollout_is_forecast_before_it_starts() -> None:
    words = ["judge", "-C", str(PROJECT), "--errors", "0.01", "--step", "5:20000", "--step", "50:20000", "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    needed = [one["requests"] for one in told["harm"]]
    assert needed == sorted(needed)
    assert told["proof"]["share"] == 0.5
    assert told["proof"]["requests"] > 1_000

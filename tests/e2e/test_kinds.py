"""The walkthrough of docs/kinds.md on the flights: a regression and a multiclass loop, from `init` to the report."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "kinds.md"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("KUBELOOP_")}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the table that the page's first block of Python writes."""
    folder = tmp_path_factory.mktemp("kinds")
    (code,) = re.findall(r"```python\n(from importlib.*?)```", PAGE.read_text(), flags=re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=120)
    return folder


def walk(place: Path, name: str) -> dict[str, Any]:
    """Run the page's commands for one use case as a shell would, and return the summary."""
    (block,) = [block for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL) if name in block]
    path = f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", block], cwd=place, env={**ENVIRONMENT, "PATH": path}, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    summary: dict[str, Any] = json.loads((place / name / ".kubeloop" / "summary.json").read_text())
    return summary


def kubeloop(place: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "kubeloop.cli", *arguments, "--json"],
        cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "metric", "title", "outputs"),
    [
        ("minutes", "rmse", "RMSE", {"value", "low", "high"}),
        ("words", "log_loss", "Log loss", {"probabilities", "class"}),
    ],
)
def test_the_whole_loop(place: Path, name: str, metric: str, title: str, outputs: set[str]) -> None:
    summary = walk(place, name)
    predictions = summary["predictions"]
    assert predictions["served"] > 1000
    assert predictions["served"] == predictions["logged"]
    assert predictions["errors"] == 0
    assert summary["labels"] > 0.9 * predictions["served"]
    assert summary["quality"]["metric"] == metric
    first = summary["versions"][0]
    assert first["promoted"], first["reason"]
    assert first["gate"]["metric"] == metric
    assert first["gate"]["challenger_interval"][0] < first["gate"]["challenger"]

    windows = kubeloop(place, "monitor", "-C", name)["windows"]
    measured = [row for row in windows if row["value"] is not None]
    assert len(measured) >= 3
    assert all(row["metric"] == metric and row["low"] < row["value"] < row["high"] for row in measured)
    assert all(0.5 < row["value"] / first["gate"]["challenger"] < 2 for row in measured), "live as on the hold-out"
    report = (place / name / ".kubeloop" / "report.html").read_text()
    assert f"Live {title}" in report

    folder = next((place / name / ".kubeloop" / "mlartifacts").rglob("model.json")).parent
    assert json.loads((folder / "model.json").read_text().partition("\n#")[0])["task"] in ("regression", "multiclass")
    assert outputs == {output["name"] for output in _outputs(folder)}


def _outputs(folder: Path) -> list[dict[str, Any]]:
    """Return the outputs that MLflow's own model file declares."""
    text = (folder / "MLmodel").read_text()
    (found,) = re.findall(r"outputs: '(.*?)'\n", text, flags=re.DOTALL)
    outputs: list[dict[str, Any]] = json.loads(re.sub(r"\s*\n\s*", " ", found))
    return outputs

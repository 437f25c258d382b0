"""docs/walkthrough.md from its table to its first retraining: the page's commands and the outputs that it shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kubeloop import config

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "walkthrough.md").read_text()
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
UNTIL = "2013-06-26"
"""The replay of the test ends here, after the page's first retraining."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("walkthrough")


def shell(home: Path, part: str, folder: str = ".") -> str:
    """Run the one command block that contains `part`, as a reader in a folder of the walkthrough does."""
    (block,) = [block for block in COMMANDS if part in block]
    place = home / "kubeloop-walkthrough" / folder
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KUBELOOP_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=place if place.is_dir() else home,
        env=kept | {"HOME": str(home), "PATH": path, "COLUMNS": "200"},
        # As shown in a terminal.
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def drafted(home: Path) -> str:
    shell(home, "COPY (SELECT")
    return shell(home, "kubeloop init")


@pytest.fixture(scope="module")
def summary(home: Path, drafted: str) -> dict[str, Any]:
    folder = home / "kubeloop-walkthrough" / "weather"
    file = folder / "loop.yaml"
    text, changes = re.subn(r"fast_until: \S+", f"fast_until: {UNTIL}", file.read_text())
    assert changes == 1
    file.write_text(text)
    shell(home, "kubeloop run --fast", "weather")
    content: dict[str, Any] = json.loads((folder / ".kubeloop" / "summary.json").read_text())
    return content


def shown(part: str) -> list[float]:
    """Return the numbers in the page's sentence that begins with `part`."""
    (found,) = re.findall(rf"{re.escape(part)}(.*?)every check holds", re.sub(r"\s+", " ", PAGE))
    return [float(number) for number in NUMBER.findall(found)]


def test_init_says_what_the_page_shows(drafted: str) -> None:
    said = [" ".join(line.split()) for line in drafted.splitlines() if line.strip()]
    block = re.search(r"```text\n(26,115 rows.*?)```", PAGE, re.DOTALL)
    assert block
    assert said == [" ".join(line.split()) for line in block[1].splitlines() if line.strip()]


def test_doctor_finds_nothing(home: Path, drafted: str) -> None:
    said = shell(home, "kubeloop doctor").splitlines()
    assert said
    assert all(line.startswith("ok ") for line in said)


def test_drift_starts_a_retraining_that_the_gate_promotes(summary: dict[str, Any]) -> None:
    first, second = summary["versions"]
    assert first["promoted"]
    assert second["promoted"]
    for version, part in ((first, "Promoted: first model, rmse"), (second, "e051d31b: promoted. Promoted: rmse")):
        said = [float(number) for number in NUMBER.findall(version["reason"])]
        # Other processors may add floats in another order.
        assert said[:3] == pytest.approx(shown(part)[:3], rel=0.02)
    assert len(summary["absorbed"]) == 1
    assert [episode["opened_at"][:10] for episode in summary["episodes"]] == ["2013-06-23"]


def test_the_pages_change_of_the_model_is_valid(home: Path, summary: dict[str, Any]) -> None:
    block = next(block for block in COMMANDS if "algorithm: ridge" in block)
    change, retrain = block.splitlines()
    folder = home / "kubeloop-walkthrough" / "weather"
    subprocess.run(["bash", "-c", change], cwd=folder, check=True)
    assert config.load(folder / "loop.yaml").training.algorithm == "ridge"
    assert retrain.startswith("kubeloop retrain ")

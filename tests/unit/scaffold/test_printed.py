"""Whatever init tells its user to type is typed here, in a shell, with names that need every kind of quote."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROLES = "--label 'Is it?' --timestamp 'gelesen um' --key 'größe'\"'s\""
"""The label has a question mark, the timestamp a space, the key an umlaut and a quote."""


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBELOOP_")}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env={**environment, "PATH": path}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def odd(readings: pd.DataFrame) -> pd.DataFrame:
    return readings.rename(
        columns={"failed": "Is it?", "read_at": "gelesen um", "machine": "größe's", "line": "die 'Linie'"}
    )


@pytest.mark.parametrize(
    ("change", "printed"),
    [
        (lambda f: f.assign(**{"größe's": f["größe's"].where(f.index != 7)}), r"--where .*$"),
        (lambda f: f.assign(**{"gelesen um": f["gelesen um"].where(f.index != 9, pd.Timestamp(0))}), r"--where .*$"),
        (lambda f: f.assign(**{"Is it?": np.where(f["Is it?"] == 1, "so 'n $x", "good")}), r"--positive .*$"),
        (lambda f: f.assign(**{"Is it?": np.where(f["heat"] > 65, "-1", f["Is it?"])}), r"--positive.*$"),
    ],
)
def test_the_option_that_a_message_ends_with_is_the_way_out(
    odd: pd.DataFrame, folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame], printed: str
) -> None:
    (folder / "O'Neill & Söhne").mkdir()
    change(odd).to_parquet(folder / "O'Neill & Söhne" / "my $table.parquet")
    line = f"""kubeloop init "O'Neill & Söhne/my \\$table.parquet" {ROLES}"""
    refused = shell(folder, line)
    assert refused.returncode
    found = re.search(printed, refused.stderr.strip())
    assert found, refused.stderr
    # That the id is not unique is found after label, keys and timestamp were taken.
    again = shell(folder, f"{line} {found[0]} --into mine --id 'die '\"'Linie'\"")
    assert "--id \"die 'Linie'\" is not unique" in again.stderr, again.stderr


def test_a_folder_is_answered_with_the_line_that_makes_one_file(odd: pd.DataFrame, folder: Path) -> None:
    parts = folder / "teile [1] *'s"
    parts.mkdir()
    odd.head(1000).to_parquet(parts / "1.parquet")
    odd.tail(2000).drop(columns="heat").to_parquet(parts / "2.parquet")
    refused = shell(folder, f"""kubeloop init "teile [1] *'s" {ROLES}""")
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("  python")]
    done = shell(folder, line)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(folder / "table.parquet")) == 3000
    (parts / "2.parquet").write_bytes(b"PAR1 but no table")
    assert "python" not in shell(folder, f"""kubeloop init "teile [1] *'s" {ROLES}""").stderr


def test_what_is_printed_at_the_end_runs(odd: pd.DataFrame, folder: Path) -> None:
    """A leak's options, the folder to go to, and the example of the README."""
    odd.assign(**{"the 'why'": odd["Is it?"] * 2.0}).to_csv(folder / "it's.csv", index=False)
    line = f'kubeloop init "it\'s.csv" {ROLES} --into "-o\'s"'
    first = shell(folder, line)
    assert first.returncode == 0, first.stderr
    options = re.search(r"init again with (.*)$", first.stdout, re.MULTILINE)
    assert options, first.stdout
    assert options[1] == """--exclude 'the '"'"'why'"'"'' --force"""
    second = shell(folder, f"{line} {options[1]}")
    assert second.returncode == 0, second.stderr
    assert "almost perfectly" not in second.stdout
    steps = [step.strip() for step in second.stdout.split("Next:")[1].splitlines() if step.strip()]
    assert len(steps) == 3
    done = shell(folder, f"{steps[0]} && pwd && {steps[1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(str(folder / "-o's"))
    (example,) = re.findall(r"^    kubeloop predict (.*)$", (folder / "-o's" / "README.md").read_text(), re.MULTILINE)
    echoed = shell(folder, f"python -c 'import json, sys; print(json.loads(sys.argv[1]).keys())' {example}")
    assert "größe_s" in echoed.stdout, echoed.stderr

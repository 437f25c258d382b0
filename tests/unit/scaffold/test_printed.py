"""Every command that init prints is run in a shell here, with names that need every kind of quote."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from kubeloop.cli import init
from kubeloop.cli.main import app
from kubeloop.data import sources
from kubeloop.reading import files, infer
from tests.unit.reading.test_files import workbook

ROLES = "--label 'Is it?' --timestamp 'gelesen um' --key 'größe'\"'s\""
"""The label has a question mark, the timestamp a space, the key an umlaut and a quote."""


def shell(line: str) -> str:
    """Run a line in a shell, with the programs of this environment, and return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", line], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def kubeloop(line: str) -> Result:
    """Run the command line with the arguments that a shell makes of a line."""
    return CliRunner().invoke(app, shell(f"printf '%s\\0' {line}").split("\0")[:-1])


@pytest.fixture
def odd(readings: pd.DataFrame) -> pd.DataFrame:
    names = {"failed": "Is it?", "read_at": "gelesen um", "machine": "größe's", "line": "die 'Linie'"}
    return readings.rename(columns=names)


@pytest.mark.parametrize(
    ("change", "printed"),
    [
        (lambda f: f.assign(**{"größe's": f["größe's"].where(f.index != 7)}), r"--where .*$"),
        (lambda f: f.assign(**{"gelesen um": f["gelesen um"].where(f.index != 9, pd.Timestamp(0))}), r"--where .*$"),
        (lambda f: f.assign(**{"Is it?": np.where(f["Is it?"] == 1, "so 'n $x", "good")}), r"--positive .*$"),
    ],
)
def test_the_option_that_a_message_ends_with_is_the_way_out(
    odd: pd.DataFrame, folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame], printed: str
) -> None:
    (folder / "O'Neill & Söhne").mkdir()
    change(odd).to_parquet(folder / "O'Neill & Söhne" / "my $table.parquet")
    line = f"""init "O'Neill & Söhne/my \\$table.parquet" {ROLES}"""
    refused = kubeloop(line)
    assert refused.exit_code
    found = re.search(printed, refused.output.strip())
    assert found, refused.output
    # The duplicate id is found only after label, keys and timestamp were accepted.
    again = kubeloop(f"{line} {found[0]} --into mine --id \"die 'Linie'\"")
    assert "--id \"die 'Linie'\" is not unique" in again.output


@pytest.mark.parametrize(
    ("change", "printed"),
    [
        (
            lambda f: f.assign(
                **{"gelesen um": f["gelesen um"].map(lambda t: f"{t.day % 12 + 1:02}/{t.month:02}/{t:%Y %H:%M}")}
            ),
            r"--date-format .*? %H:%M'",
        ),
        (
            lambda f: f.assign(**{"gelesen um": f["gelesen um"].dt.strftime("%Y-%m-%d %H:%M:%S IST")}),
            r"--timezone \S+",
        ),
        (
            lambda f: f.drop(columns="heat").assign(
                **{"die $HOME 'x'": [f"{n % 9 + 1}.{n % 900 + 100}" for n in range(len(f))]}
            ),
            r"--decimal .*(?= or )",
        ),
    ],
    ids=["date format", "timezone", "decimal"],
)
def test_what_decides_between_two_readings_is_taken_as_it_is_printed(
    odd: pd.DataFrame, folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame], printed: str
) -> None:
    change(odd).to_csv("it's.csv", index=False)
    line = f'init "it\'s.csv" {ROLES}'
    refused = kubeloop(line)
    assert refused.exit_code
    found = re.search(printed, refused.output)
    assert found, refused.output
    again = kubeloop(f"{line} {found[0]} --into mine --id \"die 'Linie'\"")
    assert "--id \"die 'Linie'\" is not unique" in again.output


def test_the_encoding_that_is_printed_reads_the_file(odd: pd.DataFrame, folder: Path) -> None:
    table = odd.assign(**{"die 'Linie'": odd["die 'Linie'"].map({"a": "Köln", "b": "Halle", "c": "Łódź"})})
    table.to_csv("it's.csv", index=False, encoding="cp1250")
    line = f'init "it\'s.csv" {ROLES}'
    # Select by the word in which the encodings differ, not by the first one: cp1252 has the same ö.
    option = re.search(r"'Łódź' \((--encoding .*?)\)", kubeloop(line).output)
    assert option, kubeloop(line).output
    again = kubeloop(f"{line} {option[1]} --into mine --id \"die 'Linie'\"")
    assert "--id \"die 'Linie'\" is not unique" in again.output


def test_the_encoding_that_not_all_of_a_file_fits_is_not_printed(folder: Path) -> None:
    (folder / "t.csv").write_bytes(b"ts,who,n\n2024-01-31,h\xf4tel,1\n2024-01-31,\x81,1\n")
    refused = kubeloop("init t.csv --label n --timestamp ts")
    assert "(--encoding cp1251)" in refused.output
    assert "--encoding cp1252" not in refused.output, "cp1252 has no 0x81"


def test_the_sheet_that_is_printed_is_read(odd: pd.DataFrame, folder: Path) -> None:
    sheets = {"it's 'old'": odd, "$new": odd.assign(more=1)}
    workbook(folder / "a table.xlsx", {name: [[*rows.columns], *rows.values.tolist()] for name, rows in sheets.items()})
    line = f"init 'a table.xlsx' {ROLES}"
    options = re.search(r"choose one: (--sheet .*) or (--sheet .*)$", kubeloop(line).output.strip())
    assert options
    for option in options.groups():
        again = kubeloop(f"{line} {option} --into mine --id \"die 'Linie'\"")
        assert "--id \"die 'Linie'\" is not unique" in again.output, option


def test_the_word_for_a_missing_value_that_is_printed_makes_numbers(odd: pd.DataFrame, folder: Path) -> None:
    words = np.where(odd.index % 9 == 0, "k'A 1", odd["heat"].round(2).astype(str))
    odd.assign(heat=words).rename(columns={"heat": "wie heiß?"}).to_csv("t.csv", index=False)

    def decided(said: list[str]) -> infer.Decided:
        asked = infer.Asked(missing=init._words(said))
        with sources.connect() as db, files.opened(db, folder / "t.csv", asked.read, folder, first=True) as opened:
            return infer.columns(db, opened, asked)

    (look,) = [text for text in decided([]).look if "stays text" in text]
    typed = shell(f"printf '%s\\0' {look.partition('if that means a missing value, give ')[2]}").split("\0")
    assert typed == ["--missing", "wie heiß?=k'A 1", ""]
    assert decided(typed[1:2]).columns["wie heiß?"].kind == "number"


def test_a_second_condition_joins_the_first(odd: pd.DataFrame, folder: Path) -> None:
    odd.assign(**{"größe's": odd["größe's"].where(odd.index != 7)}).to_parquet("t.parquet")
    refused = kubeloop(f"init t.parquet {ROLES} --where 'heat > 50 OR heat < 40'")
    (advice,) = re.findall(r"--where .*$", refused.output.strip())
    assert shell(f"printf %s {advice.removeprefix('--where ')}") == (
        '(heat > 50 OR heat < 40) AND "größe\'s" IS NOT NULL'
    )


def test_what_cannot_help_is_not_proposed(odd: pd.DataFrame, folder: Path) -> None:
    odd.assign(**{"größe's": pd.NA}).astype({"größe's": "string"}).to_parquet("t.parquet")
    refused = kubeloop(f"init t.parquet {ROLES}")
    assert "3,000 rows have no" in refused.output
    assert "--where" not in refused.output


def test_a_folder_is_answered_with_the_line_that_makes_one_file(odd: pd.DataFrame, folder: Path) -> None:
    parts = folder / "teile [1] *'s"
    parts.mkdir()
    odd.head(1000).to_parquet(parts / "1.parquet")
    odd.tail(2000).drop(columns="heat").to_parquet(parts / "2.parquet")
    refused = kubeloop(f"""init "teile [1] *'s" {ROLES}""")
    (line,) = [line for line in refused.output.splitlines() if line.startswith("  python")]
    shell(line)
    assert len(pd.read_parquet(folder / "table.parquet")) == 3000
    (parts / "2.parquet").write_bytes(b"PAR1 but no table")
    assert "python" not in kubeloop(f"""init "teile [1] *'s" {ROLES}""").output


def test_what_is_printed_at_the_end_runs(odd: pd.DataFrame, folder: Path) -> None:
    """A leak's options, the folder to change to, and the example in the README."""
    odd.assign(**{"the 'why'": odd["Is it?"] * 2.0}).to_csv("it's.csv", index=False)
    line = f'init "it\'s.csv" {ROLES} --into "-o\'s"'
    first = kubeloop(line)
    assert first.exit_code == 0, first.output
    options = re.search(r"init again with (.*)$", first.output, re.MULTILINE)
    assert options, first.output
    second = kubeloop(f"{line} {options[1]}")
    assert second.exit_code == 0, second.output
    assert "almost perfectly" not in second.output
    assert "left out with --exclude" in second.output
    go, look, run = [step.strip() for step in second.output.split("Next:")[1].splitlines() if step.strip()]
    assert shell(f"{go} && pwd").strip() == str(folder / "-o's")
    assert (look, run) == ("kubeloop doctor", "kubeloop run --fast")
    (example,) = re.findall(r"^    kubeloop predict (.*)$", (folder / "-o's" / "README.md").read_text(), re.MULTILINE)
    assert {"größe_s", "gelesen_um", "heat"} <= json.loads(shell(f"printf %s {example}")).keys()

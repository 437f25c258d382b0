"""`kubeloop init` answers a wrong option, or an ambiguous column, in one sentence and writes nothing."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from kubeloop import errors
from kubeloop.cli.main import app

ROLES = ["--label", "bought", "--timestamp", "ts", "--key", "who"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decimal", "dot"], "--decimal is 'dot'; write point or comma"),
        (
            ["--date-format", "dd/mm/yyyy"],
            "--date-format 'dd/mm/yyyy' is not a time format; write one such as %d/%m/%Y",
        ),
        (["--date-format", "ts=%d.%m.%Y"], "--date-format %d.%m.%Y does not fit 300 of 300 values of 'ts', such as '"),
        (["--timezone", "Mars/Base"], "--timezone: 'Mars/Base' is not a time zone; write one such as Europe/Berlin"),
        (["--delimiter", ";;"], "--delimiter: String should have at most 1 character"),
        (["--skip-rows", "-1"], "--skip-rows: Input should be greater than or equal to 0"),
        (["--encoding", "klingon"], "--encoding 'klingon' is unknown"),
        (
            ["--missing", "amuont=x"],
            "--missing names the column 'amuont', but the file has 'ts', 'who', 'amount', 'bought'",
        ),
        (["--timestamp", "day+time"], "has no column 'day' (the timestamp)"),
        (["--delimiter", "tab"], ", but a use case needs a label"),
    ],
)
def test_a_wrong_option_is_named(
    visits: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    visits.to_csv("visits.csv", index=False)
    answer = CliRunner().invoke(app, ["init", "visits.csv", *ROLES, *options])
    assert answer.exit_code == errors.LASTING, answer.output
    assert message in answer.output
    assert "LINE 1" not in answer.output
    assert not Path("visits").exists()


def test_all_that_could_be_read_in_two_ways_is_named_at_once(
    visits: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    firsts = pd.Series(pd.date_range("2020-01-01", periods=300, freq="MS")).dt.strftime("%d/%m/%Y")
    visits.assign(ts=firsts, amount=[f"{n % 9 + 1}.{n % 900 + 100}" for n in range(300)], seen=firsts).to_csv(
        "visits.csv", index=False
    )
    answer = CliRunner().invoke(app, ["init", "visits.csv", *ROLES])
    assert answer.exit_code == errors.LASTING
    for text in (
        "--date-format ts=%d/%m/%Y or --date-format ts=%m/%d/%Y",
        "--date-format seen=",
        "--decimal amount=comma",
    ):
        assert text in answer.output
    more = ["--date-format", "%d/%m/%Y", "--decimal", "comma", "--exclude", "seen"]
    answer = CliRunner().invoke(app, ["init", "visits.csv", *ROLES, *more])
    assert "could be" not in answer.output
    assert "too few to train" in answer.output, "a fault of the table itself"

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from kubeloop.data.expectations import SuiteError, dump, load, resolve

AS_OF = datetime(2013, 3, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def tables(folder: Path) -> dict[str, Path]:
    frames = {
        "flights": pd.DataFrame({"tailnum": ["N1", "N2", "N9", None, "N9"], "delay": [1.0, 2.0, 3.0, 4.0, 5.0]}),
        "planes": pd.DataFrame({"tailnum": ["N1", "N2", "N2", None], "seats": [10, 20, 20, 30]}),
    }
    for name, frame in frames.items():
        frame.to_parquet(folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in frames}


def test_loads_every_entry_with_its_place(folder: Path) -> None:
    (folder / "t.yaml").write_text(
        "- expect_table_row_count_to_be_between: {min_value: 1}\n"
        "- expect_compound_columns_to_be_unique: {column_list: [a, b], meta: {rows: keep}}\n"
    )
    first, second = load(folder, ["t"])["t"]
    assert (first.name, first.arguments, first.columns) == (
        "expect_table_row_count_to_be_between",
        {"min_value": 1},
        (),
    )
    assert (second.columns, second.keeps_rows) == (("a", "b"), True)
    assert second.label == "expect_compound_columns_to_be_unique(a, b)"
    assert "t.yaml, entry 2" in second.origin


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one expectation"),
        ("a: 1", "must be a list"),
        ("- [", "not valid YAML"),
        ("- 3", "entry 1: an entry is one expectation"),
        ("- expect_a: {}\n  expect_b: {}", "entry 1: an entry is one expectation"),
        ("- expect_a: {}\n- expect_b: [1]", r"entry 2 \(expect_b\): .* mapping"),
        ("- expect_a: {meta: {rows: drop}}", r"entry 1 \(expect_a\): meta must be .* keep or quarantine"),
        ("- expect_a: {meta: keep}", r"entry 1 \(expect_a\): meta must be a mapping"),
    ],
)
def test_refuses_a_file_that_is_not_a_suite(folder: Path, text: str, message: str) -> None:
    (folder / "t.yaml").write_text(text)
    with pytest.raises(SuiteError, match=message):
        load(folder, ["t"])


def test_refuses_a_table_without_suite(folder: Path) -> None:
    with pytest.raises(SuiteError, match=r"table ghost has no suite: write .*ghost\.yaml"):
        load(folder, ["ghost"])


@pytest.mark.parametrize(
    ("offset", "shift"),
    [("-2d", timedelta(days=-2)), ("0d", timedelta()), ("+6h", timedelta(hours=6)), ("90m", timedelta(minutes=90))],
)
def test_resolves_moments_against_the_run(folder: Path, tables: dict[str, Path], offset: str, shift: timedelta) -> None:
    (folder / "flights.yaml").write_text(
        f"- expect_column_max_to_be_between: {{column: d, min_value: {{as_of: {offset}}}}}"
    )
    (entry,) = resolve(load(folder, ["flights"]), tables, AS_OF)["flights"]
    assert entry.arguments == entry.shown == {"column": "d", "min_value": AS_OF + shift}


def test_resolves_a_column_of_another_table(folder: Path, tables: dict[str, Path]) -> None:
    (folder / "flights.yaml").write_text(
        "- expect_column_distinct_values_to_contain_set: {column: tailnum, value_set: {from: planes.tailnum}}"
    )
    (entry,) = resolve(load(folder, ["flights"]), tables, AS_OF)["flights"]
    assert entry.arguments["value_set"] == ["N1", "N2"]
    assert entry.shown["value_set"] == ["2 values of planes.tailnum"]
    assert entry.runs_as == entry.name


def test_a_referential_check_runs_only_on_unknown_values(folder: Path, tables: dict[str, Path]) -> None:
    (folder / "flights.yaml").write_text(
        "- expect_column_values_to_be_in_set: {column: tailnum, value_set: {from: planes.tailnum}, mostly: 0.5}"
    )
    (entry,) = resolve(load(folder, ["flights"]), tables, AS_OF)["flights"]
    assert entry.name == "expect_column_values_to_be_in_set"
    assert entry.runs_as == "expect_column_values_to_not_be_in_set"
    assert entry.arguments == {"column": "tailnum", "value_set": ["N9"], "mostly": 0.5}
    assert entry.shown["value_set"] == ["2 values of planes.tailnum"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{from: ghosts.tailnum}", r"entry 1 .*no table 'ghosts' in this run; it has flights, planes"),
        ("{from: planes.wings}", r"entry 1 .*table planes has no column 'wings'; it has tailnum, seats"),
        ("{from: planes}", r"entry 1 .*has no column ''"),
        ("{from: planes.tailnum, mostly: 1}", r"entry 1 .*is not a reference"),
        ("{as_of: yesterday}", r"entry 1 .*as_of: .*'yesterday' is not a duration"),
    ],
)
def test_refuses_a_reference_to_nothing(folder: Path, tables: dict[str, Path], reference: str, message: str) -> None:
    (folder / "flights.yaml").write_text(
        f"- expect_column_values_to_be_in_set: {{column: tailnum, value_set: {reference}}}"
    )
    with pytest.raises(SuiteError, match=message):
        resolve(load(folder, ["flights"]), tables, AS_OF)


def test_refuses_a_moment_without_time_zone(folder: Path, tables: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        resolve({}, tables, AS_OF.replace(tzinfo=None))


def test_what_is_dumped_loads_unchanged(folder: Path) -> None:
    suite = [
        {"expect_column_values_to_match_regex": {"column": "carrier", "regex": "^[A-Z0-9]{2}: é$"}},
        {"expect_column_max_to_be_between": {"column": "at", "min_value": {"as_of": "-2d"}}},
        {
            "expect_column_values_to_be_in_set": {
                "column": "s",
                "value_set": ["no", "007", ""],
                "meta": {"rows": "keep"},
            }
        },
    ]
    (folder / "t.yaml").write_text(dump(suite))
    assert (folder / "t.yaml").read_text().count("\n") == len(suite)
    assert [{entry.name: entry.arguments} for entry in load(folder, ["t"])["t"]] == suite

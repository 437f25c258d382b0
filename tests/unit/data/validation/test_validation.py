import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubeloop.data.expectations import SuiteError
from kubeloop.data.validation import Report, ValidationFailed, require
from kubeloop.data.validation_report import SHARED

WIND = "expect_column_values_to_be_between"


def hits(report: Report) -> list[tuple[str, str]]:
    return [(failure.expectation, failure.column) for failure in report.failures]


def test_rows_that_miss_within_the_tolerance_go_to_the_quarantine(place: Any, readings: pd.DataFrame) -> None:
    readings.loc[[3, 7], "wind"] = 1048.4
    readings.loc[7, "site"] = "XXX"
    place.suite(
        "weather",
        f"- {WIND}: {{column: wind, min_value: 0, max_value: 150, mostly: 0.99}}\n"
        "- expect_column_values_to_be_in_set: {column: site, value_set: [EWR, JFK, LGA], mostly: 0.99}\n"
        "- expect_column_values_to_not_be_null: {column: id}\n",
    )
    path = place.table("weather", readings)
    report = place.run({"weather": path})
    require(report)
    wind, site = f"{WIND}(wind)", "expect_column_values_to_be_in_set(site)"
    bad = place.read("quarantine", "weather")
    assert bad["id"].tolist() == ["r3", "r7"]
    assert [list(reasons) for reasons in bad["reasons"]] == [[wind], [wind, site]]
    good = pq.read_table(place.root / "clean" / "weather.parquet")
    assert good["id"].to_pylist() == [f"r{i}" for i in range(1000) if i not in (3, 7)]
    assert good.schema.types == pq.read_table(path).schema.types
    table = report.tables["weather"]
    assert (table.rows, table.quarantined, table.expectations) == (1000, 2, 3)
    assert table.reasons == {wind: 2, site: 1}


def test_rows_that_share_an_event_id_are_all_held_back_under_the_known_reason(
    check: Callable[..., Report], readings: pd.DataFrame
) -> None:
    rows = readings.rename(columns={"id": "event_id"})
    twice = pd.concat([rows, rows[:2]], ignore_index=True)
    report = check(twice, "- expect_column_values_to_be_unique: {column: event_id, mostly: 0.99}")
    assert report.tables["t"].reasons == {SHARED: 4}
    assert report.passed


def test_kept_rows_stay_in_the_table(place: Any, check: Callable[..., Report], readings: pd.DataFrame) -> None:
    readings.loc[3, "wind"] = np.nan
    report = check(readings, "- expect_column_values_to_not_be_null: {column: wind, mostly: 0.9, meta: {rows: keep}}")
    assert report.passed
    assert len(place.read("clean", "t")) == 1000
    assert not place.has("quarantine", "t")


@pytest.mark.parametrize(
    ("suite", "broken", "failure", "message"),
    [
        (f"- {WIND}: {{column: wind, max_value: 39, mostly: 0.99}}", lambda f: f.assign(wind=f["wind"] * 10),
         (WIND, "wind"), r"t\.wind: .*observed 900 of 1000 values that miss \(90\.00%\); expected max_value 39"),
        ("- expect_column_values_to_be_unique: {column: id}", lambda f: pd.concat([f, f[:5]], ignore_index=True),
         ("expect_column_values_to_be_unique", "id"), r"t\.id: .*observed 10 of 1005"),
        ("- expect_compound_columns_to_be_unique: {column_list: [site, id]}",
         lambda f: pd.concat([f, f[:1]], ignore_index=True),
         ("expect_compound_columns_to_be_unique", "site, id"), r"t\.site, id: .*observed 2 of 1001"),
        ("- expect_table_row_count_to_be_between: {min_value: 500}", lambda f: f[:20],
         ("expect_table_row_count_to_be_between", ""), r"t: .*observed 20; expected min_value 500"),
        ("- expect_table_columns_to_match_set: {column_set: [id, wind], exact_match: false}",
         lambda f: f.drop(columns="wind"),
         ("expect_table_columns_to_match_set", ""), r"observed .*missing wind"),
        (f"- {WIND}: {{column: wind, max_value: 40}}", lambda f: f.drop(columns="wind"),
         (WIND, "wind"), r'observed The column "wind" in BatchData does not exist'),
        (f"- {WIND}: {{column: wind, max_value: 40}}", lambda f: f.assign(wind=f["wind"].astype(str)),
         (WIND, "wind"), r"observed .*same type"),
        ('- expect_column_type_to_be: {column: observed_at, type_: "datetime64[us, UTC]"}',
         lambda f: f.assign(observed_at=f["observed_at"].dt.tz_localize(None)),
         ("expect_column_type_to_be", "observed_at"), r"observed datetime64\[.s\]"),
        ("- expect_column_mean_to_be_between: {column: wind, max_value: 1}", lambda f: f[:0],
         ("expect_column_mean_to_be_between", "wind"), r"observed None"),
        ("- expect_column_to_exist: {column: ghost}", lambda f: f,
         ("expect_column_to_exist", "ghost"), r"that it does not hold"),
    ],
)  # fmt: skip
def test_broken_data_fail_and_name_the_expectation(
    place: Any,
    check: Callable[..., Report],
    readings: pd.DataFrame,
    suite: str,
    broken: Callable[[pd.DataFrame], pd.DataFrame],
    failure: tuple[str, str],
    message: str,
) -> None:
    report = check(broken(readings), suite)
    assert not report.passed
    assert hits(report) == [failure]
    with pytest.raises(ValidationFailed, match=message) as caught:
        require(report)
    assert failure[0] in str(caught.value)
    assert str(place.docs / "index.html") in str(caught.value)
    assert str(place.root / "quarantine") in str(caught.value)


def test_a_failed_table_shows_its_rows_and_leaves_no_clean_file(place: Any, readings: pd.DataFrame) -> None:
    suite = f"- {WIND}: {{column: wind, max_value: 38, mostly: 0.99}}"
    place.suite("good", suite.replace("38", "39"))
    place.suite("bad", suite)
    path = place.table("good", readings)
    tables = {"good": path, "bad": path}
    place.root.joinpath("clean").mkdir()
    place.root.joinpath("clean", "bad.parquet").write_text("of an earlier run")
    report = place.run(tables)
    (failure,) = report.failures
    assert (failure.table, failure.share, failure.examples) == ("bad", 0.025, (39.0,))
    assert place.has("clean", "good")
    assert not place.has("clean", "bad")
    assert set(place.read("quarantine", "bad")["wind"]) == {39.0}


@pytest.mark.parametrize("severity", ["warning", "info"])
def test_less_than_critical_is_reported_and_changes_nothing(
    place: Any, check: Callable[..., Report], readings: pd.DataFrame, severity: str
) -> None:
    report = check(readings, f"- {WIND}: {{column: wind, max_value: 20, mostly: 0.99, severity: {severity}}}")
    assert report.passed
    require(report)
    assert [(failure.severity, failure.column) for failure in report.failures] == [(severity, "wind")]
    assert len(place.read("clean", "t")) == 1000
    assert not place.has("quarantine", "t")


def test_every_failure_is_named(check: Callable[..., Report], readings: pd.DataFrame) -> None:
    report = check(readings, f"- {WIND}: {{column: wind, max_value: 1}}\n- {WIND}: {{column: count, max_value: 1}}")
    with pytest.raises(ValidationFailed, match=r"2 expectations do not hold.*\n.*t\.wind.*\n.*t\.count"):
        require(report)


@pytest.mark.parametrize(("known", "passed"), [(["EWR", "JFK", "LGA"], True), (["EWR", "JFK"], True), (["EWR"], False)])
def test_references_are_checked_against_the_other_table(
    place: Any, readings: pd.DataFrame, known: list[str], passed: bool
) -> None:
    place.suite("r", "- expect_column_values_to_be_in_set: {column: site, value_set: {from: sites.code}, mostly: 0.6}")
    place.suite("sites", "- expect_column_values_to_be_unique: {column: code}")
    readings.loc[:9, "site"] = None
    sites = place.table("sites", pd.DataFrame({"code": known}))
    report = place.run({"r": place.table("r", readings), "sites": sites})
    assert report.passed is passed
    strangers = readings["site"].notna() & ~readings["site"].isin(known)
    assert report.tables["r"].quarantined == strangers.sum()
    if not passed:
        (failure,) = report.failures
        assert failure.expectation == "expect_column_values_to_be_in_set"
        assert failure.share == pytest.approx(strangers.sum() / 990)
        assert failure.expected == "value_set [1 values of sites.code], mostly 0.6"
        assert set(failure.examples) == {"JFK", "LGA"}


@pytest.mark.parametrize(
    ("late", "passed"),
    [(timedelta(), True), (timedelta(days=2), True), (timedelta(days=2, hours=1), False), (timedelta(hours=-1), False)],
)
def test_freshness_is_measured_from_the_runs_moment(
    check: Callable[..., Report], readings: pd.DataFrame, late: timedelta, passed: bool
) -> None:
    newest = readings["observed_at"].max().to_pydatetime()
    report = check(
        readings,
        "- expect_column_max_to_be_between: {column: observed_at, min_value: {as_of: -2d}, max_value: {as_of: 0d}}",
        as_of=newest + late,
    )
    assert report.passed is passed
    if not passed:
        assert report.failures[0].observed == newest.isoformat()


def test_only_rows_under_the_condition_are_looked_at(
    place: Any, check: Callable[..., Report], readings: pd.DataFrame
) -> None:
    readings.loc[10:14, "wind"] = np.nan
    condition = "{type: comparison, column: {name: site}, operator: '==', parameter: EWR}"
    report = check(
        readings,
        f"- expect_column_values_to_not_be_null: {{column: wind, mostly: 0.9, row_condition: {condition}}}",
    )
    assert report.passed
    assert place.read("quarantine", "t")["id"].tolist() == ["r12"]


def test_narrow_numbers_keep_their_type(place: Any, readings: pd.DataFrame) -> None:
    table = pa.table({"x": pa.array([1.5, 2.5, None], pa.float32()), "n": pa.array([1, 2, 3], pa.int16())})
    pq.write_table(table, place.root / "t.parquet")
    place.suite("t", f"- {WIND}: {{column: x, max_value: 2, mostly: 0.5}}\n- {WIND}: {{column: n, max_value: 5}}")
    assert place.run({"t": place.root / "t.parquet"}).passed
    assert pq.read_table(place.root / "clean" / "t.parquet").equals(table.take([0, 2]))


def test_the_frames_own_index_does_not_misplace_rows(place: Any, readings: pd.DataFrame) -> None:
    readings.loc[5, "wind"] = 999.0
    place.suite("t", f"- {WIND}: {{column: wind, max_value: 150, mostly: 0.9}}")
    path = place.root / "t.parquet"
    readings.astype({"observed_at": "datetime64[us, UTC]"}).sample(frac=1, random_state=1).set_index(
        "count"
    ).to_parquet(path)
    place.run({"t": path})
    assert place.read("quarantine", "t")["id"].tolist() == ["r5"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("expect_column_values_to_be_betwen: {column: wind}", r"entry 1 .*does not have this expectation"),
        ("expect_column_values_to_be_between: {column: wind, max: 3}", r"entry 1 .*max\n  extra fields not permitted"),
        ("expect_column_values_to_be_between: {max_value: 3}", r"entry 1 .*column\n  field required"),
        ("expect_column_values_to_be_between: {column: wind, max_value: 3, severity: high}", r"entry 1 .*severity"),
    ],
)
def test_an_entry_that_the_library_does_not_know_is_refused(
    place: Any, check: Callable[..., Report], readings: pd.DataFrame, entry: str, message: str
) -> None:
    with pytest.raises(SuiteError, match=rf"(?s)t\.yaml, {message}"):
        check(readings, f"- {entry}")
    assert not place.docs.exists()


def test_a_column_named_reasons_is_refused(check: Callable[..., Report], readings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="'reasons'"):
        check(readings.rename(columns={"count": "reasons"}), "- expect_column_to_exist: {column: id}")


def test_data_docs_link_to_every_result(place: Any, readings: pd.DataFrame) -> None:
    place.suite("good", "- expect_column_values_to_be_in_set: {column: site, value_set: {from: good.site}}")
    place.suite("bad", f"- {WIND}: {{column: wind, max_value: 1}}")
    path = place.table("good", readings)
    place.run({"good": path, "bad": path})
    links = set(re.findall(r"validations/[^'\"]+\.html", (place.docs / "index.html").read_text()))
    assert {Path(link).name for link in links} == {"good.html", "bad.html"}
    pages = {Path(link).name: (place.docs / link).read_text() for link in links}
    assert "Failed" in pages["bad.html"]
    assert "Succeeded" in pages["good.html"]
    assert "3 values of good.site" in pages["good.html"]


def test_data_docs_carry_no_file_that_no_page_shows_and_every_link_leads_somewhere(
    place: Any, readings: pd.DataFrame
) -> None:
    place.suite("good", "- expect_column_to_exist: {column: site}")
    place.suite("bad", f"- {WIND}: {{column: wind, max_value: 1}}")
    path = place.table("good", readings)
    place.run({"good": path, "bad": path})
    files = [path for path in place.docs.rglob("*") if path.is_file()]
    pages = [path for path in files if path.suffix == ".html"]
    assert len(pages) == 5, "an index, two suites, two results"
    index = (place.docs / "index.html").read_text()
    linked = {place.docs / found for found in re.findall(r"(?:validations|expectations)/[^'\"&]+\.html", index)}
    for page in pages:
        for link in re.findall(r"""(?:href|src)=["']([^"'#][^"']*)["']""", page.read_text()):
            if not re.match(r"https?:|data:|mailto:", link):
                target = (page.parent / unquote(urlsplit(link).path)).resolve()
                assert target.is_file(), f"{page.relative_to(place.docs)} links to {link}"
                linked.add(target)
    assert {path.resolve() for path in files} == {path.resolve() for path in linked}
    assert sum(path.stat().st_size for path in files) < 250_000, "4 MB with the library's images and fonts"


def test_two_runs_into_the_same_folders_leave_the_second(place: Any, readings: pd.DataFrame) -> None:
    place.suite("t", f"- {WIND}: {{column: wind, max_value: 150, mostly: 0.9}}")

    def files() -> dict[str, int]:
        found = [path for path in place.root.rglob("*") if path.is_file() and "raw" not in path.parts]
        return {str(path.relative_to(place.root)): path.stat().st_size for path in found}

    faulty = readings.copy()
    faulty.loc[5, "wind"] = 999.0
    first = place.run({"t": place.table("t", faulty)})
    before = files()
    assert place.run({"t": place.table("t", faulty)}) == first
    assert files() == before
    (place.docs / "notes.txt").write_text("not a page of the site")
    place.run({"t": place.table("t", readings)}, as_of=first.as_of + timedelta(days=1))
    assert (place.docs / "notes.txt").exists()
    assert not place.has("quarantine", "t")
    assert len(place.read("clean", "t")) == 1000
    pages = list((place.docs / "validations").rglob("*.html"))
    assert len(pages) == 1
    assert "2013-03-02" in str(pages[0])


def test_a_report_is_json(check: Callable[..., Report], readings: pd.DataFrame) -> None:
    readings.loc[0, "wind"] = np.inf
    report = check(
        readings,
        f"- {WIND}: {{column: wind, max_value: 1}}\n"
        "- expect_column_max_to_be_between: {column: observed_at, max_value: {as_of: -9d}}\n"
        "- expect_column_pair_values_a_to_be_greater_than_b: {column_A: wind, column_B: count}\n"
        "- expect_compound_columns_to_be_unique: {column_list: [site, wind]}\n",
    )
    assert len(report.failures) == 4
    read = json.loads(json.dumps(report.to_dict()))
    assert read["passed"] is False
    assert read["tables"]["t"]["rows"] == 1000
    assert [failure["column"] for failure in read["failures"]] == ["wind", "observed_at", "wind, count", "site, wind"]
    assert read["failures"][1]["expected"] == f"max_value {(report.as_of - timedelta(days=9)).isoformat()}"


def test_nothing_is_printed(check: Callable[..., Report], readings: pd.DataFrame, capfd: Any) -> None:
    check(readings, f"- {WIND}: {{column: wind, max_value: 1}}")
    assert capfd.readouterr() == ("", "")

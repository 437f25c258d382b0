"""How a text column is read: decided from all of its values, reported, and refused if it is ambiguous."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubeloop.config import Table as Source
from kubeloop.config.reading import Read
from kubeloop.data import sources
from kubeloop.reading import infer
from tests.unit.reading.conftest import Decide


def written(frame: pd.DataFrame, folder: Path, **columns: Any) -> Path:
    frame.assign(**columns).to_csv(folder / "visits.csv", index=False)
    return folder / "visits.csv"


def taken_in(path: Path, decided: infer.Decided, read: Read | None = None) -> pd.DataFrame:
    source = Source(available_at="ts", columns=decided.columns, read=read or Read())
    sources.copy(path, path.with_suffix(".parquet"), source)
    return pd.read_parquet(path.with_suffix(".parquet"))


@pytest.mark.parametrize(
    ("written_as", "form", "unit"),
    [
        ("%Y-%m-%d %H:%M:%S", "iso", "s"),
        ("%Y-%m-%dT%H:%M:%SZ", "iso", "s"),
        ("%Y-%m-%d %H:%M:%S.250000", "iso", "s"),
        ("%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M", "min"),
        ("%d/%m/%Y", "%d/%m/%Y", "D"),
        ("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M:%S", "s"),
        ("%Y/%m/%d %H:%M", "%Y/%m/%d %H:%M", "min"),
        ("%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M %p", "min"),
        ("%m/%d/%Y %I:%M:%S%p", "%m/%d/%Y %I:%M:%S%p", "s"),
        ("%m/%d/%y", "%m/%d/%y", "D"),
        ("%d %b %Y %H:%M", "%d %b %Y %H:%M", "min"),
        ("%d-%b-%Y", "%d-%b-%Y", "D"),
        ("%B %d, %Y", "%B %d, %Y", "D"),
        ("%a, %d %b %Y %H:%M:%S +0000", "%a, %d %b %Y %H:%M:%S %z", "s"),
        ("%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S %Z", "s"),
        ("%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S %Y", "s"),
        ("%d/%b/%Y:%H:%M:%S +0000", "%d/%b/%Y:%H:%M:%S %z", "s"),
        ("%Y-%m-%d %H:%M:%S,000", "%Y-%m-%d %H:%M:%S,%f", "s"),
        ("%d-%b-%y", "%d-%b-%y", "D"),
        ("%Y%m%dT%H%M%S", "%Y%m%dT%H%M%S", "s"),
        ("%Y%m%dT%H%M%S+0000", "%Y%m%dT%H%M%S%z", "s"),
        ("%Y%m%dT%H%M%SZ", "%Y%m%dT%H%M%S%z", "s"),
        ("%Y/%m/%d %H:%M:%SZ", "%Y/%m/%d %H:%M:%S%z", "s"),
        ("%Y-%m", "%Y-%m", "M"),
        ("%m/%Y", "%m/%Y", "M"),
        ("%b-%Y", "%b-%Y", "M"),
    ],
)
def test_times_are_read_in_the_one_format_that_fits_all(
    visits: pd.DataFrame, tmp_path: Path, decide: Decide, written_as: str, form: str, unit: str
) -> None:
    path = written(visits, tmp_path, ts=visits["ts"].dt.strftime(written_as))
    _, decided = decide(path)
    assert (decided.columns["ts"].kind, decided.columns["ts"].format) == ("time", form)
    assert bool(decided.said) == (form != "iso"), "a format that is not obvious is reported"
    found = taken_in(path, decided)["ts"].dt.floor("s").dt.tz_localize(None)
    begun = visits["ts"].dt.to_period("M").dt.to_timestamp() if unit == "M" else visits["ts"].dt.floor(unit)
    assert (found.to_numpy() == begun.to_numpy()).all()


@pytest.mark.parametrize(
    ("written_as", "form", "moments"),
    [
        (
            # Offsets on both sides of Greenwich, as in the log of a repository.
            ["Sat, 22 Apr 2017 15:11:58 -0500", "Fri, 1 Aug 2014 12:14:47 +0100"],
            "%a, %d %b %Y %H:%M:%S %z",
            ["2017-04-22 20:11:58", "2014-08-01 11:14:47"],
        ),
        (
            ["04/11/2021 5:00 a.m.", "04/13/2021 10:30 P.M."],
            "%m/%d/%Y %I:%M %p",
            ["2021-04-11 05:00", "2021-04-13 22:30"],
        ),
        (
            ["2024-07-01 12:00 CEST", "2024-01-01 12:00 CET"],
            "%Y-%m-%d %H:%M %Z",
            ["2024-07-01 10:00", "2024-01-01 11:00"],
        ),
        (
            ["07/13/2024 10:00:00 PM PDT", "12/13/2024 10:00:00 PM PST"],
            "%m/%d/%Y %I:%M:%S %p %Z",
            ["2024-07-14 05:00", "2024-12-14 06:00"],
        ),
        (["Sun Nov 29 01:33:27 EST 2026"], "%a %b %d %H:%M:%S %Z %Y", ["2026-11-29 06:33:27"]),
        (["2024-01-01T10:00:00.000+02:00[Europe/Berlin]"], "iso", ["2024-01-01 08:00"]),
        (["Wed Aug 27 13:08:45 +0000 2008"], "%a %b %d %H:%M:%S %z %Y", ["2008-08-27 13:08:45"]),
        (["[10/Oct/2000:13:55:36 -0700]"], "[%d/%b/%Y:%H:%M:%S %z]", ["2000-10-10 20:55:36"]),
        (
            ["Tue Jul 02 2024 10:00:00 GMT+0200 (Central European Summer Time)"],
            "%a %b %d %Y %H:%M:%S GMT%z",
            ["2024-07-02 08:00"],
        ),
        (["3. März 2020", "14. Oktober 2019"], "%d %B %Y", ["2020-03-03", "2019-10-14"]),
        (["03-Okt-2020", "05-Jan-2020"], "%d-%b-%Y", ["2020-10-03", "2020-01-05"]),
        (["Montag, 3. Februar 2020 um 14:30 Uhr"], "%a, %d %B %Y %H:%M", ["2020-02-03 14:30"]),
        (
            ["1er janvier 2020 à 14h30", "15 févr. 2020 à 09h05"],
            "%d %B %Y %H:%M",
            ["2020-01-01 14:30", "2020-02-15 09:05"],
        ),
        (["3 de enero de 2020", "4 de diciembre de 2020"], "%d %B %Y", ["2020-01-03", "2020-12-04"]),
        (["3 gennaio 2020 10:20", "4 luglio 2020 11:30"], "%d %B %Y %H:%M", ["2020-01-03 10:20", "2020-07-04 11:30"]),
        (["3 de março de 2020", "2 de fev. de 2021"], "%d %B %Y", ["2020-03-03", "2021-02-02"]),
        (["3 mrt 2020", "1 mei 2020"], "%d %b %Y", ["2020-03-03", "2020-05-01"]),
        (["août 2020", "janvier 2020"], "%B %Y", ["2020-08-01", "2020-01-01"]),
        (["Sept. 3, 2019", "Jan. 4, 2020"], "%B %d, %Y", ["2019-09-03", "2020-01-04"]),
        (["31.12.2019 14:30 Uhr"], "%d.%m.%Y %H:%M Uhr", ["2019-12-31 14:30"]),
        (
            ["2019Q3", "2020-Q1", "Q4 2019", "3Q2019"],
            "quarter",
            ["2019-07-01", "2020-01-01", "2019-10-01", "2019-07-01"],
        ),
        (["2019-W32", "2020-W01", "KW 32/2019"], "week", ["2019-08-05", "2019-12-30", "2019-08-05"]),
        (["2019-W32-3", "2019W321"], "week", ["2019-08-07", "2019-08-05"]),
        # A spreadsheet leaves out midnight, and Python leaves out the fraction of a whole second.
        (
            ["13.02.2020", "13.02.2020 10:30", "01.02.2020"],
            "%d.%m.%Y %H:%M",
            ["2020-02-13", "2020-02-13 10:30", "2020-02-01"],
        ),
        (
            ["13/01/2020 10:30:00", "13/01/2020 10:30:00.250", "01/01/2020"],
            "%d/%m/%Y %H:%M:%S.%f",
            ["2020-01-13 10:30", "2020-01-13 10:30:00.25", "2020-01-01"],
        ),
    ],
)
def test_times_are_read_as_people_write_them(
    tmp_path: Path, decide: Decide, written_as: list[str], form: str, moments: list[str]
) -> None:
    path = written(pd.DataFrame({"ts": written_as * 5, "who": "a"}), tmp_path)
    _, decided = decide(path)
    assert decided.columns["ts"].format == form
    found = taken_in(path, decided)["ts"].dt.tz_localize(None)
    assert list(found[: len(moments)]) == list(map(pd.Timestamp, moments))


@pytest.mark.parametrize(
    ("word", "zone", "utc"),
    [
        ("CST", "America/Chicago", "18:00"), ("CST", "Asia/Shanghai", "04:00"), ("IST", "Asia/Kolkata", "06:30"),
        ("IST", "Asia/Jerusalem", "10:00"), ("BST", "Europe/London", "11:00"), ("AST", "Asia/Riyadh", "09:00"),
    ],
)  # fmt: skip
def test_a_word_of_several_zones_is_decided_by_an_option(
    tmp_path: Path, decide: Decide, word: str, zone: str, utc: str
) -> None:
    path = written(pd.DataFrame({"ts": [f"13.07.2024 12:00 {word}"] * 9, "who": "a"}), tmp_path)
    _, decided = decide(path)
    assert f"the zone of '13.07.2024 12:00 {word}' in 'ts' has a word of several" in decided.unclear["ts"]
    assert f"--timezone {zone}" in decided.unclear["ts"]
    _, decided = decide(path, read=Read(timezone=zone))
    assert f"{taken_in(path, decided, Read(timezone=zone))['ts'][0]:%H:%M}" == utc


@pytest.mark.parametrize(
    ("written_as", "form", "first"),
    [
        ([*range(1871, 1951)], "%Y", "1871-01-01"),
        ([19500103, 19500220], "%Y%m%d", "1950-01-03"),
        (["45292,01153", "45293,5"], "excel", "2024-01-01 00:16:36.192"),
    ],
)
def test_old_dates_and_local_serials_are_times(tmp_path: Path, written_as: list[Any], form: str, first: str) -> None:
    from kubeloop.scaffold.table import Table

    frame = pd.DataFrame({"ts": written_as * 10, "who": "a", "bought": 1})
    frame.to_csv(tmp_path / "visits.csv", index=False, sep=";")
    (tmp_path / "raw").mkdir()
    table = Table(tmp_path / "visits.csv", tmp_path / "raw")
    assert table.take_moment("ts") == "ts"
    assert table.source.columns["ts"].format == form
    assert pd.read_parquet(table.parquet)["ts"].dt.tz_localize(None).min() == pd.Timestamp(first)
    assert sum("'ts'" in text for text in table.said) == 1, "only the final type is reported"


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (lambda ts: ts.astype("int64") // 10**9, "epoch_s"),
        (lambda ts: ts.astype("int64") / 10**9, "epoch_s"),
        (lambda ts: ts.astype("int64") // 10**6, "epoch_ms"),
        (lambda ts: ts.astype("int64") // 10**3, "epoch_us"),
        (lambda ts: ts.astype("int64"), "epoch_ns"),
        (lambda ts: (ts - pd.Timestamp("1899-12-30")) / pd.Timedelta(days=1), "excel"),
        (lambda ts: ts.dt.strftime("%Y%m%d%H%M%S").astype(int), "%Y%m%d%H%M%S"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_numbers_are_times_where_the_timestamp_is_one(
    visits: pd.DataFrame, tmp_path: Path, values: Any, form: str, ending: str
) -> None:
    from kubeloop.scaffold.table import Table

    frame = visits.assign(ts=values(visits["ts"].astype("datetime64[ns]")))
    path = tmp_path / f"visits.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    (tmp_path / "raw").mkdir()
    table = Table(path, tmp_path / "raw")
    assert table.likely_moment() == "ts"
    assert table.take_moment("ts") == "ts"
    assert table.source.columns["ts"].format == form
    found = pd.read_parquet(table.parquet)["ts"].dt.tz_localize(None).dt.round("s")
    assert (found.to_numpy() == visits["ts"].to_numpy()).all()


FIRSTS = pd.date_range("2020-01-01", periods=12, freq="MS")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"ts": FIRSTS.strftime("%d/%m/%Y")},
            "'01/02/2020' in 'ts' could be 2020-02-01 (%d/%m/%Y) or 2020-01-02 (%m/%d/%Y): say which one, "
            "--date-format ts=%d/%m/%Y or --date-format ts=%m/%d/%Y",
        ),
        (
            {"born on": pd.date_range("2024-01-15", periods=12).strftime("%d/%m/%y")},
            "'15/01/24' in 'born on' could be 2024-01-15 (%d/%m/%y) or 2015-01-24 (%y/%m/%d): say which one, "
            "--date-format 'born on=%d/%m/%y' or --date-format 'born on=%y/%m/%d'",
        ),
        (
            {"amount": [f"{place}.{100 + place}" for place in range(1, 13)], "other": 1},
            "'1.101' in 'amount' could be 1.101 or 1101: say which one, such as --decimal amount=comma or "
            "--decimal amount=point",
        ),
        (
            {"amount": [f"{place},{100 + place}" for place in range(1, 13)], "other": 1},
            "'1,101' in 'amount' could be 1.101 or 1101: say which one, such as --decimal amount=comma or "
            "--decimal amount=point",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_both(
    tmp_path: Path, decide: Decide, columns: dict[str, Any], message: str
) -> None:
    path = written(pd.DataFrame({"ts": FIRSTS, "who": "a"}), tmp_path, **columns)
    _, decided = decide(path)
    assert list(decided.unclear.values()) == [message]


def test_an_option_decides_and_one_that_does_not_fit_is_refused(tmp_path: Path, decide: Decide) -> None:
    frame = pd.DataFrame({"ts": FIRSTS.strftime("%d/%m/%Y"), "who": "a", "seen": FIRSTS.strftime("%m/%d/%Y")})
    path = written(frame, tmp_path)
    _, decided = decide(path, formats={"": "%d/%m/%Y", "seen": "%m/%d/%Y"}, timestamp="ts")
    assert not decided.unclear
    found = taken_in(path, decided)
    assert (found["ts"].dt.tz_localize(None).to_numpy() == FIRSTS.to_numpy()).all()
    assert (found["seen"] == found["ts"]).all()
    with pytest.raises(infer.ReadingError, match=r"does not fit 12 of 12 values of 'ts'"):
        decide(path, formats={"ts": "%d-%m-%Y"})
    with pytest.raises(infer.ReadingError, match="names the column 'tz', but the file has 'ts', 'who', 'seen'"):
        decide(path, formats={"tz": "%d-%m-%Y"})
    with pytest.raises(infer.ReadingError, match="'%q' is not a time format"):
        decide(path, formats={"ts": "%q"})


@pytest.mark.parametrize(
    ("values", "reading", "words"),
    [
        (lambda a: a.map("{:.2f}".format).str.replace(".", ","), {"kind": "number", "decimal": ","}, "decimal comma"),
        (lambda a: a.map("${:,.2f}".format), {"kind": "number", "thousands": ",", "sign": "$"}, "without the $"),
        (lambda a: a.map("{:.1f} %".format), {"kind": "number", "sign": "%"}, "without the %"),
        (lambda a: a.map("{:.2f} kg".format), {"kind": "number", "sign": "kg"}, "without the kg"),
        (lambda a: a.map("{:.2f}°C".format), {"kind": "number", "sign": "°C"}, "without the °C"),
        (lambda a: a.map("{:,.2f}".format).str.replace(",", " "), {"kind": "number", "thousands": " "}, "spaces"),
        (lambda a: a.map("{:,.2f}".format).str.replace(",", "’"), {"kind": "number", "thousands": "'"}, "apostrophes"),
        (
            lambda a: a.map("{:,.2f}\u00a0€".format).str.translate(str.maketrans(",.", "\u202f,")),
            {"kind": "number", "decimal": ",", "thousands": " ", "sign": "€"},
            "decimal comma; spaces between thousands; without the €",
        ),
        (
            lambda a: a.map("{:,.2f} €".format).str.translate(str.maketrans(",.", ".,")),
            {"kind": "number", "decimal": ",", "thousands": ".", "sign": "€"},
            "decimal comma; points between thousands; without the €",
        ),
        (
            lambda a: a.map(lambda value: f"({-value:,.2f})" if value < 0 else f"{value:,.2f}"),
            {"kind": "number", "thousands": ","},
            "commas between thousands",
        ),
        (lambda a: a.map("{:.2f}".format).str.replace("-", "−"), {"kind": "number"}, ""),
    ],
)
def test_local_numbers_are_numbers(
    visits: pd.DataFrame, tmp_path: Path, decide: Decide, values: Any, reading: dict[str, str], words: str
) -> None:
    amounts = visits["amount"]
    path = written(visits, tmp_path, amount=values(amounts))
    _, decided = decide(path)
    found = decided.columns["amount"].model_dump(exclude_defaults=True)
    assert found == reading
    assert words in " ".join(decided.said)
    step = 0.1 if reading.get("sign") == "%" else 0.01
    assert np.allclose(taken_in(path, decided)["amount"], amounts, atol=step / 1.9)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda n: [f"{place / 7:.1f}{'KM'[place % 2]}" for place in range(n)], "has several units (K, M)"),
        (lambda n: [f"{place % 30}A" for place in range(n)], ""),
        (lambda n: [f"{place % 9 + 1}{('th', 'st')[place % 2]}" for place in range(n)], ""),
    ],
)
def test_units_that_differ_are_said_and_codes_stay_codes(
    visits: pd.DataFrame, tmp_path: Path, decide: Decide, values: Any, said: str
) -> None:
    _, decided = decide(written(visits, tmp_path, code=values(len(visits))))
    assert "code" not in decided.columns
    assert (said in " ".join(decided.look)) if said else not decided.look


def test_words_for_a_missing_value_are_counted_and_kept(visits: pd.DataFrame, tmp_path: Path, decide: Decide) -> None:
    frame = visits.astype(object)
    frame["channel"] = "web"
    frame["land"] = ["DE", "NA", "FR"] * 100
    frame.loc[:5, "amount"] = ["NA", "?", "", "nan", "\\N", "unknown"]
    frame.loc[:2, "channel"] = ["NULL", "None", "-"]
    frame.loc[:1, "bought"] = ["N/A", "null"]
    path = written(frame, tmp_path)
    _, decided = decide(path)
    assert "read 'amount' as a number (5 missing: ?, NA, \\N, nan, unknown)" in decided.said
    assert "read 'channel' as text (3 missing: -, NULL, None)" in decided.said
    assert any("NA is kept as a value of 'land'" in text for text in decided.said)
    found = taken_in(path, decided)
    assert found[["amount", "channel", "bought", "land"]].isna().sum().tolist() == [6, 3, 2, 0]
    assert found["amount"].dtype == float
    _, decided = decide(path, missing={"channel": ("-",), "land": ("NA",)})
    assert taken_in(path, decided)[["channel", "land"]].isna().sum().tolist() == [1, 100]


def test_codes_stay_text_and_mixed_columns_are_named(visits: pd.DataFrame, tmp_path: Path, decide: Decide) -> None:
    numbers = range(300)
    path = written(
        visits,
        tmp_path,
        zip=[f"{number:05d}" for number in numbers],
        phone=[f"+49{number + 1000000}" for number in numbers],
        extension=[f"555-{number:04d}" for number in numbers],
        sku=[f"A{number}" for number in numbers],
        ticket=["X1" if number == 7 else str(number) for number in numbers],
        big=[str(10**25 + number) for number in numbers],
        card="4111 1111 1111 1111",
        share=[f"{number}%" if number % 3 else f"{number / 100}" for number in numbers],
        price=[f"${number}" if number % 3 else f"€{number}" for number in numbers],
        wild=[np.inf if number % 9 == 0 else number / 7 for number in numbers],
    )
    _, decided = decide(path)
    assert {name: column.kind for name, column in decided.columns.items()} == {
        "ts": "time",
        "amount": "number",
        "bought": "integer",
        "wild": "number",
    }
    told = " ".join(decided.look)
    assert "'ticket' stays text, since 1 of its 300 values are not numbers, such as 'X1'; if" in told
    assert "--missing ticket=X1" in told
    assert "'share' has % in 200 of 300 values, so it stays text" in told
    assert "'price' has several units ($, €), so it stays text" in told
    assert np.isinf(taken_in(path, decided)["wild"]).sum() == 34


def test_one_column_with_decimals_tells_what_a_point_is(visits: pd.DataFrame, tmp_path: Path, decide: Decide) -> None:
    path = written(visits, tmp_path, steps=[f"{1 + place % 8}.{100 + place}" for place in range(300)])
    _, decided = decide(path)
    assert not decided.unclear
    assert taken_in(path, decided)["steps"].max() < 10


def test_texts_of_a_file_with_types_are_read_too_but_its_digits_are_codes(tmp_path: Path, decide: Decide) -> None:
    frame = pd.DataFrame({"ts": ["2024-01-31 10:00"] * 9, "price": ["1.234,50 €"] * 9, "code": ["12"] * 9, "n": 1.5})
    frame.to_parquet(tmp_path / "t.parquet")
    _, decided = decide(tmp_path / "t.parquet")
    assert {name: column.kind for name, column in decided.columns.items()} == {"ts": "time", "price": "number"}
    assert taken_in(tmp_path / "t.parquet", decided)["price"].tolist() == [1234.5] * 9

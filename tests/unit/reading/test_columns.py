"""What a column of texts is read as: decided from all of its values, said, and refused where it could be two things."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubeloop import sources
from kubeloop.config import Table as Source
from kubeloop.reading import infer
from kubeloop.reading.spec import Read
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
    ],
)
def test_times_are_read_in_the_one_format_that_fits_all(
    visits: pd.DataFrame, tmp_path: Path, decide: Decide, written_as: str, form: str, unit: str
) -> None:
    path = written(visits, tmp_path, ts=visits["ts"].dt.strftime(written_as))
    _, decided = decide(path)
    assert (decided.columns["ts"].kind, decided.columns["ts"].format) == ("time", form)
    assert bool(decided.said) == (form != "iso"), "what is not plain is said"
    found = taken_in(path, decided)["ts"].dt.floor("s").dt.tz_localize(None)
    assert (found.to_numpy() == visits["ts"].dt.floor(unit).to_numpy()).all()


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
    from kubeloop.scaffold_table import Table

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
            "--date-format ts=%d/%m/%Y or ts=%m/%d/%Y",
        ),
        (
            {"born on": pd.date_range("2024-01-15", periods=12).strftime("%d/%m/%y")},
            "'15/01/24' in 'born on' could be 2024-01-15 (%d/%m/%y) or 2015-01-24 (%y/%m/%d): say which one, "
            "--date-format 'born on=%d/%m/%y' or 'born on=%y/%m/%d'",
        ),
        (
            {"amount": [f"{place}.{100 + place}" for place in range(1, 13)], "other": 1},
            "'1.101' in 'amount' could be 1.101 or 1101: say which one, such as --decimal amount=comma or amount=point",
        ),
        (
            {"amount": [f"{place},{100 + place}" for place in range(1, 13)], "other": 1},
            "'1,101' in 'amount' could be 1.101 or 1101: say which one, such as --decimal amount=comma or amount=point",
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
    with pytest.raises(infer.ReadingError, match="'%q' is not a format of times"):
        decide(path, formats={"ts": "%q"})


@pytest.mark.parametrize(
    ("values", "reading", "words"),
    [
        (lambda a: a.map("{:.2f}".format).str.replace(".", ","), {"kind": "number", "decimal": ","}, "decimal comma"),
        (lambda a: a.map("${:,.2f}".format), {"kind": "number", "thousands": ",", "sign": "$"}, "without the $"),
        (lambda a: a.map("{:.1f} %".format), {"kind": "number", "sign": "%"}, "without the %"),
        (lambda a: a.map("{:,.2f}".format).str.replace(",", " "), {"kind": "number", "thousands": " "}, "spaces"),
        (lambda a: a.map("{:,.2f}".format).str.replace(",", "’"), {"kind": "number", "thousands": "'"}, "apostrophes"),
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
    assert "'ticket' stays text, since 1 of its 300 values are no numbers, such as 'X1'" in told
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

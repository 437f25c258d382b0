"""Files as people have them: encodings, compressions, preambles, footers, workbooks; an error names our option."""

import gzip
import re
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kubeloop.config import Table
from kubeloop.config.reading import Read
from kubeloop.data import sources
from kubeloop.reading import files
from kubeloop.reading.files import FileError
from kubeloop.reading.infer import Asked
from kubeloop.scaffold.table import Table as Ours
from tests.unit.reading.conftest import Decide


def taken_in(path: Path, folder: Path, read: Read | None = None) -> tuple[pd.DataFrame, Ours]:
    """Read a file as `init` does, and again as every later run does; both results must be equal."""
    (folder / "raw").mkdir()
    ours = Ours(path, folder / "raw", asked=Asked(read=read or Read(), timestamp="ts"))
    first = pd.read_parquet(ours.parquet)
    sources.copy(path, folder / "again.parquet", Table.model_validate(ours.source.model_dump(exclude_defaults=True)))
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "again.parquet"), first)
    return first, ours


def workbook(path: Path, sheets: dict[str, list[list[Any]]]) -> None:
    """Write the smallest workbook that Excel accepts."""

    def cell(value: Any) -> str:
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
        if isinstance(value, pd.Timestamp):
            return f'<c s="1"><v>{(value - pd.Timestamp("1899-12-30")) / pd.Timedelta(days=1)!r}</v></c>'
        return f"<c><v>{value}</v></c>"

    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    listed = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in enumerate(sheets, 1))
    links = "".join(
        f'<Relationship Id="r{n}" Type="{office}/worksheet" Target="s{n}.xml"/>' for n in range(1, len(sheets) + 1)
    )
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("[Content_Types].xml", f'<Types xmlns="{package}/content-types"/>')
        book.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r" Type="{office}/officeDocument" '
            'Target="xl/workbook.xml"/></Relationships>',
        )
        book.writestr("xl/workbook.xml", f'<workbook {main} xmlns:r="{office}"><sheets>{listed}</sheets></workbook>')
        book.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}/relationships">{links}<Relationship Id="s" Type="{office}/styles" '
            'Target="styles.xml"/></Relationships>',
        )
        book.writestr(
            "xl/styles.xml",
            f'<styleSheet {main}><cellXfs count="2"><xf numFmtId="0"/><xf numFmtId="22"/></cellXfs></styleSheet>',
        )
        for number, rows in enumerate(sheets.values(), 1):
            cells = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
            book.writestr(f"xl/s{number}.xml", f"<worksheet {main}><sheetData>{cells}</sheetData></worksheet>")


def _rows(visits: pd.DataFrame) -> list[list[Any]]:
    return [list(visits.columns), *visits.to_numpy().tolist()]


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("plain.csv", lambda csv: csv.encode(), ""),
        ("bom.csv", lambda csv: csv.encode("utf-8-sig"), ""),
        ("utf16.csv", lambda csv: csv.encode("utf-16"), "utf-16"),
        ("packed.csv.gz", lambda csv: gzip.compress(csv.encode()), ""),
        ("tabs.tsv", lambda csv: csv.replace(",", "\t").encode(), "tabs between the fields"),
        ("bars.txt", lambda csv: csv.replace(",", "|").encode(), "bars between the fields"),
        ("windows.csv", lambda csv: csv.replace("\n", "\r\n").encode(), ""),
        (
            "report.csv",
            lambda csv: f"Visits\nfrom: CRM, Berlin\n\n{csv}".encode(),
            "3 lines before the names of the columns left out: 'Visits'",
        ),
    ],
)
def test_text_files_are_opened_as_they_come(
    visits: pd.DataFrame, tmp_path: Path, name: str, write: Any, said: str
) -> None:
    visits = visits.assign(who="Zoë")
    (tmp_path / name).write_bytes(write(visits.to_csv(index=False)))
    found, ours = taken_in(tmp_path / name, tmp_path)
    assert (found["who"] == "Zoë").all()
    assert found["amount"].tolist() == visits["amount"].tolist()
    assert (found["ts"].dt.tz_localize(None).to_numpy() == visits["ts"].to_numpy()).all()
    assert [said] * bool(said) == ours.said


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "t.jsonl", "t.json", "t.xlsx", "t.zip"])
def test_other_formats_hold_the_same_table(visits: pd.DataFrame, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(("parquet", "feather")):
        frame = visits.assign(who=visits["who"].astype("category"))
        frame.to_parquet(path) if name.endswith("parquet") else frame.to_feather(path)
    elif name.endswith(("json", "jsonl")):
        visits.to_json(path, orient="records", lines=name.endswith("jsonl"), date_format="iso")
    elif name.endswith("xlsx"):
        workbook(path, {"Notes": [["nothing"]], "Data": [["My visits"], [], *_rows(visits)]})
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inside.csv", visits.to_csv(index=False))
    found, _ = taken_in(path, tmp_path)
    assert found["who"].tolist() == visits["who"].tolist()
    assert found["amount"].tolist() == visits["amount"].tolist()
    assert found["bought"].tolist() == visits["bought"].tolist()
    assert (found["ts"].dt.tz_localize(None).dt.round("s").to_numpy() == visits["ts"].to_numpy()).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda csv: f"sep=;\n{csv.replace(',', ';')}", "1 line before the names of the columns left out: 'sep=;'"),
        (lambda csv: csv.replace(",", ";").replace("\n", ";\n"), "semicolons between the fields"),
        (lambda csv: csv.replace(",", ";").replace("\n", ";\n").replace(";\n", "\n", 1), "semicolons between"),
        (lambda csv: "\n".join(f"{place},{line}" if place else line for place, line in enumerate(csv.split())), ""),
        (lambda csv: re.sub(r"(?m)^([^,]+),([^,]+),([^,]+),(\d)$", r'="\1",\2,="\3",="\4"', csv), 'without the =""'),
        (
            lambda csv: f"Dynamische Listenausgabe,,,\n\n{csv}Summe,,1,\n",
            "2 lines before the names of the columns left out: 'Dynamische Listenausgabe,,,'",
        ),
        (lambda csv: csv + csv, "1 more line with the names of the columns left out"),
    ],
)
def test_exports_of_spreadsheets_are_opened_as_they_come(
    visits: pd.DataFrame, tmp_path: Path, change: Any, said: str
) -> None:
    visits = visits.assign(ts=visits["ts"].dt.strftime("%Y-%m-%dT%H:%M:%S"))
    (tmp_path / "t.csv").write_text(change(visits.to_csv(index=False)))
    found, ours = taken_in(tmp_path / "t.csv", tmp_path)
    found = found.head(300)
    assert found["amount"].tolist() == visits["amount"].tolist()
    assert found["bought"].tolist() == visits["bought"].tolist()
    assert found["ts"].dt.strftime("%Y-%m-%dT%H:%M:%S").tolist() == visits["ts"].tolist()
    assert said in "; ".join(ours.said)


def test_what_a_killed_reader_left_goes_and_what_a_live_one_needs_stays(visits: pd.DataFrame, tmp_path: Path) -> None:
    visits.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / ".reading-old").mkdir()
    (tmp_path / ".reading-old" / "rows.parquet").write_bytes(b"half")
    with sources.connect() as db, files.opened(db, tmp_path / "t.csv", Read(), tmp_path):
        (live,) = tmp_path.glob(".reading-*")
        with sources.connect() as other, files.opened(other, tmp_path / "t.csv", Read(), tmp_path):
            assert live.is_dir()
            assert len(list(tmp_path.glob(".reading-*"))) == 2
    assert not list(tmp_path.glob(".reading-*"))


def test_rows_with_another_number_of_fields_are_named_and_left_out(visits: pd.DataFrame, tmp_path: Path) -> None:
    lines = visits.to_csv(index=False).splitlines()
    lines[100] += ",more"
    lines += ["Total: 300 visits", "Sum,,12.5,"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found, ours = taken_in(tmp_path / "t.csv", tmp_path)
    assert len(found) == 299
    assert any("line 101 of t.csv has 5 fields, the header 4, as 1 more" in text for text in ours.look)
    assert any("1 row has no 'ts'" in text for text in ours.look), "the row of totals"
    apart = pd.read_parquet(tmp_path / "misfits" / "again.parquet")["reasons"].explode().tolist()
    assert sorted(text.partition(":")[0] for text in apart) == ["fields(line 101)", "fields(line 302)", "missing(ts)"]


@pytest.mark.parametrize(
    ("content", "read", "message"),
    [
        (
            "ts,who,n\n2024-01-31,hôtel,1\n".encode("latin-1"),
            {},
            "line 2 of .* is not UTF-8; choose one: 'hôtel' .--encoding cp1252",
        ),
        ("ts,who,n\n2024-01-31,a,1\n".encode("utf-16-le"), {}, "probably utf-16-le: give --encoding utf-16-le"),
        (b"ts,who,n\n2024-01-31,a,1\n", {"encoding": "klingon"}, "--encoding 'klingon' is unknown"),
        (
            b"ts,who,n\n" + b"2024-01-31,a,1,2\n" * 9,
            {},
            "line 2 of .* has 4 fields, the header 3, as 8 more.*--delimiter",
        ),
        (b"2024-01-31,a,1\n" * 9, {}, "the first line of .* holds data.*--skip-rows"),
        (b'{"ts": 1}\n{"ts": \n', {}, "line 2 is not JSON"),
        (b"<html><table><tr><td>ts</td></tr></table></html>\n" * 3, {}, "holds HTML or XML.*save it as CSV"),
        (b'{"data": [{"ts": 1}, {"ts": 2}]}', {}, "is one JSON object with 'data' in it.*orient='records'"),
        (b'{"ts": {"0": 1, "1": 2}, "who": {"0": 1}}', {}, "is one JSON object with 'ts', 'who' in it"),
        (b"\x1f\x8b\x08 no gzip", {}, "its compression is damaged"),
        (b"PAR1 and nothing more", {}, "it is damaged, or cut off"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_an_option(
    tmp_path: Path, decide: Decide, content: bytes, read: dict[str, Any], message: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        decide(tmp_path / "t.csv", read=Read(**read))
    assert "\n" not in str(caught.value)
    assert "reading-" not in str(caught.value), "the message must name the user's file, not our copy"


def test_a_workbook_with_several_sheets_asks_for_one(visits: pd.DataFrame, tmp_path: Path, decide: Decide) -> None:
    workbook(tmp_path / "t.xlsx", {"May": _rows(visits), "June": _rows(visits.head(5))})
    with pytest.raises(FileError, match="several sheets with data; choose one: --sheet May or --sheet June"):
        decide(tmp_path / "t.xlsx")
    with pytest.raises(FileError, match=r"has no sheet 'July'; name one of its sheets: --sheet May or --sheet June"):
        decide(tmp_path / "t.xlsx", read=Read(sheet="July"))
    found, ours = taken_in(tmp_path / "t.xlsx", tmp_path, Read(sheet="June"))
    assert len(found) == 5
    assert ours.source.read.sheet == "June"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1251", "utf-16-le"])
def test_an_encoding_that_was_said_is_kept(tmp_path: Path, encoding: str) -> None:
    text = "ты" if encoding == "cp1251" else "hôtel"
    (tmp_path / "t.csv").write_bytes(f"ts,who,n\n2024-01-31,{text},1\n2024-02-01,{text},2\n".encode(encoding))
    found, ours = taken_in(tmp_path / "t.csv", tmp_path, Read(encoding=encoding))
    assert found["who"].tolist() == [text] * 2
    assert ours.source.read.encoding == encoding


@pytest.mark.parametrize(
    ("day", "clock", "form"),
    [
        ("%Y-%m-%d", "%H:%M", "iso"),
        ("%d/%m/%Y", "%I:%M:%S %p", "%d/%m/%Y %I:%M:%S %p"),
        ("%d/%m/%Y", "%H:%M", "%d/%m/%Y %H:%M"),
    ],
)
@pytest.mark.parametrize("named", ["visit_date", "visit_date+visit_time"])
def test_date_and_time_in_two_columns_are_one_moment(
    visits: pd.DataFrame, tmp_path: Path, day: str, clock: str, form: str, named: str
) -> None:
    frame = visits.assign(visit_date=visits["ts"].dt.strftime(day), visit_time=visits["ts"].dt.strftime(clock))
    frame.drop(columns="ts").to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "raw").mkdir()
    ours = Ours(tmp_path / "t.csv", tmp_path / "raw", asked=Asked(timestamp=named))
    assert ours.take_moment(named) == "visit_date visit_time"
    assert ours.parts == ("visit_date", "visit_time")
    assert ours.source.columns["visit_date visit_time"].format == form
    sources.copy(tmp_path / "t.csv", tmp_path / "again.parquet", ours.source)
    found = pd.read_parquet(tmp_path / "again.parquet")["visit_date visit_time"].dt.tz_localize(None)
    assert (found.to_numpy() == visits["ts"].dt.floor("s" if "%S" in clock else "min").to_numpy()).all()


@pytest.mark.parametrize("named", ["year+month+day+hour", "day+month+hour+year", "year", None])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_year_month_day_and_hour_in_columns_are_one_moment(
    visits: pd.DataFrame, tmp_path: Path, named: str | None, ending: str
) -> None:
    ts = visits["ts"].dt
    frame = visits.drop(columns="ts").assign(year=ts.year, month=ts.month, day=ts.day, hour=ts.hour)
    path = tmp_path / f"t.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    (tmp_path / "raw").mkdir()
    ours = Ours(path, tmp_path / "raw", asked=Asked(timestamp=named))
    assert ours.take_moment(named or ours.likely_moment() or "") == "year month day hour"
    assert ours.parts == ("year", "month", "day", "hour")
    found = pd.read_parquet(ours.parquet)["year month day hour"].dt.tz_localize(None)
    assert (found.to_numpy() == visits["ts"].dt.floor("h").to_numpy()).all()


def test_a_table_with_a_time_keeps_its_year_as_a_number(visits: pd.DataFrame, tmp_path: Path) -> None:
    visits.assign(year=visits["ts"].dt.year, month=visits["ts"].dt.month).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "raw").mkdir()
    ours = Ours(tmp_path / "t.csv", tmp_path / "raw")
    assert (ours.likely_moment(), ours.columns["year"].kind) == ("ts", "BIGINT")


def test_a_zip_made_on_a_mac_holds_one_table(visits: pd.DataFrame, tmp_path: Path, decide: Decide) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.csv", visits.to_csv(index=False))
        archive.writestr("__MACOSX/._t.csv", b"\0\5\x16\7")
    opened, _ = decide(tmp_path / "t.zip")
    assert list(opened.columns) == list(visits.columns)

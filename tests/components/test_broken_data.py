"""Broken data stop a run before training, and the error names the expectation that failed."""

import dataclasses
import io
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from kfp import dsl

from kubeloop.config import instant
from kubeloop.data.validation import ValidationFailed
from kubeloop.stores.bucket import Bucket


def change(path: Path, query: str) -> None:
    """Replace a Parquet file by the result of a query over it (as `t`)."""
    part = path.with_suffix(".part")
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.execute(f"CREATE VIEW t AS FROM read_parquet('{path}')")
        db.execute(f"COPY ({query}) TO '{part}' (FORMAT parquet)")
    part.replace(path)


@pytest.fixture
def raw(extracted: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted.made["raw"].path, tmp_path / "raw"))


def validate(bench: Any, raw: Path, out: Path, days: int = 0) -> Any:
    from components.validate_data import validate_data

    clean = dsl.Dataset(name="clean", uri=str(out / "clean"), metadata={})
    bench.call(
        validate_data,
        bench.loop,
        (instant(bench.as_of) + timedelta(days=days)).isoformat(),
        out.name,
        dsl.Dataset(name="raw", uri=str(raw), metadata={}),
        clean,
        dsl.HTML(name="report", uri=str(out / "report.html"), metadata={}),
    )
    return clean


@pytest.mark.parametrize(
    ("table", "query", "days", "expectation"),
    [
        ("arrivals", "SELECT * EXCLUDE late FROM t", 0, "expect_table_columns_to_match_set"),
        ("arrivals", "SELECT * REPLACE (FALSE AS late) FROM t", 0, "expect_column_mean_to_be_between"),
        ("arrivals", "SELECT * REPLACE (late::VARCHAR AS late) FROM t", 0, "expect_column_type_to_be"),
        ("arrivals", "FROM t UNION ALL FROM t", 0, "expect_column_values_to_be_unique"),
        (
            "weather",
            "SELECT * REPLACE ((temp - 32) / 1.8 * 10 AS temp) FROM t",
            0,
            "expect_column_values_to_be_between",
        ),
        ("weather", "SELECT * REPLACE (NULL::DOUBLE AS temp) FROM t", 0, "expect_column_values_to_not_be_null"),
        ("schedule", "SELECT * REPLACE (lower(origin) AS origin) FROM t", 0, "expect_column_values_to_be_in_set"),
        ("schedule", "FROM t LIMIT 100", 0, "expect_table_row_count_to_be_between"),
        ("planes", "FROM t WHERE FALSE", 0, "expect_table_row_count_to_be_between"),
        ("departures", "FROM t", 5, "expect_column_max_to_be_between"),
    ],
    ids=lambda value: str(value).replace(" ", "_")[:40],
)
def test_a_broken_table_stops_the_run(
    extracted: Any, raw: Path, tmp_path: Path, table: str, query: str, days: int, expectation: str
) -> None:
    change(raw / f"{table}.parquet", query)
    with pytest.raises(ValidationFailed) as raised:
        validate(extracted, raw, tmp_path, days)
    assert expectation in str(raised.value)
    assert table in str(raised.value)
    page = (tmp_path / "report.html").read_text()
    assert expectation in page


def test_a_few_bad_rows_go_to_the_quarantine(extracted: Any, raw: Path, tmp_path: Path) -> None:
    path = raw / "weather.parquet"
    change(
        path, "SELECT * REPLACE (CASE WHEN hash(observed_at, origin) % 1000 = 0 THEN 999 ELSE temp END AS temp) FROM t"
    )
    bad = pq.read_table(path, filters=[("temp", "=", 999)]).num_rows
    assert bad
    clean = validate(extracted, raw, tmp_path)
    kept = pq.read_table(tmp_path / "clean" / "weather.parquet")
    assert kept.num_rows == pq.read_metadata(path).num_rows - clean.metadata["quarantined"]["weather"]
    assert clean.metadata["quarantined"]["weather"] >= bad
    assert 999 not in kept["temp"].to_pylist()
    quarantined = extracted.settings.state / "quarantine" / tmp_path.name
    assert pq.read_table(quarantined, filters=[("temp", "=", 999)]).num_rows == bad


def test_with_a_bucket_the_bad_rows_and_the_data_docs_outlive_the_pod(
    extracted: Any, raw: Path, tmp_path: Path, s3: Any
) -> None:
    change(raw / "weather.parquet", "SELECT * REPLACE (999.0 AS temp) FROM t")
    place = extracted.settings.model_copy(update={"bucket": s3.bucket, "state": tmp_path / "pod"})
    with pytest.raises(ValidationFailed) as raised:
        validate(dataclasses.replace(extracted, settings=place), raw, tmp_path)
    shutil.rmtree(tmp_path / "pod")
    docs, quarantine = (f"{kind}/flight-delay/{tmp_path.name}" for kind in ("data-docs", "quarantine"))
    for said in (str(raised.value), (tmp_path / "report.html").read_text()):
        assert f"{s3.bucket}/{docs}/raw" in said
        assert f"{s3.bucket}/{quarantine}" in said
        assert str(place.state) not in said
    bucket = Bucket.open(place.model_copy(update={"s3_endpoint": s3.endpoint}))
    bad = pq.read_table(io.BytesIO(bucket.get(f"{quarantine}/weather.parquet") or b""))
    assert bad.num_rows == pq.read_metadata(raw / "weather.parquet").num_rows
    assert any("expect_column_values_to_be_between" in reason for reason in bad["reasons"][0].as_py())
    index = bucket.get(f"{docs}/raw/index.html") or b""
    links = set(re.findall(rb"validations/[^'\"]+\.html", index))
    assert links
    assert links <= {f"{name}".encode() for name in bucket.names(f"{docs}/raw")}
    with bucket.store.open_input_stream(f"{bucket.root}/{docs}/raw/index.html") as page:
        assert page.metadata()["Content-Type"] == b"text/html"


@pytest.mark.parametrize(
    ("query", "expectation"),
    [
        ("SELECT * REPLACE (0 AS label) FROM t", "expect_column_mean_to_be_between"),
        ("SELECT * REPLACE (NULL::FLOAT AS dest_late_7d) FROM t", "expect_column_values_to_not_be_null"),
        ("SELECT * REPLACE ((origin_late_3h * 100)::FLOAT AS origin_late_3h) FROM t", "expect_column_values_to_be_bet"),
        ("SELECT * REPLACE ('e' AS event_id) FROM t", "expect_column_values_to_be_unique"),
    ],
)
def test_a_broken_training_set_stops_the_run(joined: Any, tmp_path: Path, query: str, expectation: str) -> None:
    from components.validate_features import validate_features

    table = Path(shutil.copy(joined.made["joined"].path, tmp_path / "training_set"))
    change(table, query)
    with pytest.raises(ValidationFailed, match=expectation):
        joined.call(
            validate_features,
            joined.loop,
            joined.as_of,
            tmp_path.name,
            dsl.Dataset(name="training_set", uri=str(table), metadata={}),
            dsl.Dataset(name="clean", uri=str(tmp_path / "clean"), metadata={}),
            dsl.HTML(name="report", uri=str(tmp_path / "report.html"), metadata={}),
        )
    assert not (tmp_path / "clean").exists()
    assert expectation in (tmp_path / "report.html").read_text()

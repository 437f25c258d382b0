"""Events from a user's file: read as they mean it, or refused with a sentence."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from kubeloop.config import Loop
from kubeloop.judge import ExposureError, table

ROWS: dict[str, list[Any]] = {
    "event_time": ["2013-04-01T10:00:00Z", "2013-04-01T09:00:00+02:00", "2013-04-02T00:00:00Z"],
    "arm": ["canary", "champion", "champion"],
    "share": [0.25, 0.05, 0.25],
    "status": [503, None, 0],
    "seconds": [None, 0.02, 10.0],
    "score": [None, 0.7, None],
    "label": [None, 1, None],
    "origin": ["JFK", None, "LGA"],
}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_every_format_says_the_same(demo: Loop, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"events.{kind}"
    events = pa.table(ROWS)
    if kind == "parquet":
        pyarrow.parquet.write_table(events, path)
    elif kind == "csv":
        pyarrow.csv.write_csv(events, path)
    else:
        events.to_pandas().to_json(path, orient="records", lines=True)
    found = table.exposures(demo, table.read(path))
    # In the order of time: 07:00, 10:00, and the next day.
    assert found.canary.tolist() == [False, True, False]
    assert found.failed.tolist() == [False, True, True]
    assert found.share.tolist() == [0.05, 0.25, 0.25]
    assert found.answered.tolist() == [True, False, False]
    np.testing.assert_equal(found.truths, [1.0, np.nan, np.nan])
    np.testing.assert_equal(found.seconds, [0.02, np.nan, 10.0])


def test_labels_count_once_their_whole_block_is_due(demo: Loop) -> None:
    """Blocks of a day, and a day for labels: the first day is due when the second has ended."""
    rows = table.exposures(demo, pa.table(ROWS))
    assert len(table.due(demo, rows, datetime(2013, 4, 2, 23, 59, tzinfo=UTC))) == 0
    assert len(table.due(demo, rows, datetime(2013, 4, 3, tzinfo=UTC))) == 2
    assert len(table.due(demo, rows, datetime(2013, 4, 4, tzinfo=UTC))) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arm": ["a", "champion", "champion"]}, "'a'"),
        ({"share": [25, 5, 25]}, "share"),
        ({"share": [0.0, 0.05, 0.25]}, "share"),
        ({"share": [None, 0.05, 0.25]}, "share"),
        ({"event_time": ["yesterday", "2013-04-01", "2013-04-02"]}, "event_time"),
        ({"event_time": [None, "2013-04-01", "2013-04-02"]}, "event_time"),
        ({"status": ["ok", "ok", "ok"]}, "status"),
        ({"label": [2, 1, 0]}, "label"),
        ({"label": ["yes", None, ""]}, "label"),
        ({"event_time": [1, 2, 3]}, "event_time"),
        ({"status": [True, True, False]}, "status"),
        ({"arm": None}, "arm"),
    ],
)
def test_what_cannot_be_read_is_named(demo: Loop, change: dict[str, Any], told: str) -> None:
    columns = {name: values for name, values in (ROWS | change).items() if values is not None}
    with pytest.raises(ExposureError, match=told):
        table.exposures(demo, pa.table(columns))


@pytest.mark.parametrize("name", ["away.parquet", "events.txt", "broken.parquet", "empty.csv"])
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name != "away.parquet":
        path.write_text("" if name == "empty.csv" else "x")
    with pytest.raises(ExposureError, match=name):
        table.read(path)


def test_files_of_strangers_are_read_as_they_mean_it(demo: Loop) -> None:
    columns = ROWS | {"status": ["503", "", "0"], "label": [float("nan"), 1.0, None]}
    events = pa.table(columns)
    events = events.set_column(0, "event_time", events["event_time"].cast(pa.large_string()).dictionary_encode())
    found = table.exposures(demo, events)
    assert found.failed.tolist() == [False, True, True]
    np.testing.assert_equal(found.truths, [1.0, np.nan, np.nan])


def test_without_a_status_nothing_is_said_of_failures(demo: Loop) -> None:
    found = table.exposures(demo, pa.table({name: values for name, values in ROWS.items() if name != "status"}))
    assert not found.told
    assert len(found.take(slice(0, 2))) == 2


def test_entities_must_be_named(demo: Loop) -> None:
    loop = demo.model_copy(update={"rollout": demo.rollout.model_copy(update={"unit": "entity"})})
    with pytest.raises(ExposureError, match="unit"):
        table.exposures(loop, pa.table(ROWS))
    assert table.exposures(loop, pa.table(ROWS | {"unit": ["a", "b", "c"]})).unit.tolist() == ["b", "a", "c"]

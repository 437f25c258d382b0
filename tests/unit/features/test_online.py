import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kubeloop import features
from kubeloop.features import online as online_module
from kubeloop.features.online import Materializer, OnlineFeatures, stands

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
Write = Callable[[str, dict[str, Any]], Path]


def moments(rows: pa.Table) -> list[tuple[datetime, pa.Table]]:
    """Split events by their moment, oldest first."""
    stamps = rows["event_timestamp"]
    return [(moment.as_py(), rows.filter(pc.equal(stamps, moment))) for moment in pc.unique(stamps)]


def asked(rows: pa.Table, online: OnlineFeatures) -> dict[str, list[Any]]:
    """Return the columns that a client sends, with times as ISO 8601 strings."""
    columns: dict[str, list[Any]] = {field.name: rows[field.name].to_pylist() for field in online.fields}
    return {
        name: [value.isoformat() if isinstance(value, datetime) else value for value in values]
        for name, values in columns.items()
    }


def float32(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else float(np.float32(value))


def replay(
    folder: Path, service: str, rows: pa.Table, materializer: Materializer | None = None
) -> list[dict[str, Any]]:
    """Request every event at its moment, and return what the training set should hold."""
    online = OnlineFeatures.open(folder, service)
    materializer = materializer or Materializer(folder, service)
    found = []
    for moment, group in moments(rows):
        materializer.advance(moment)
        answer = online.read(asked(group, online), moment)
        assert list(answer) == [field.name for field in online.features]
        for position, event in enumerate(group.select(["event_id", "event_timestamp", "label"]).to_pylist()):
            found.append(event | {name: float32(values[position]) for name, values in answer.items()})
    return found


def test_a_week_of_flights_is_served_as_it_is_learned(repo: Path, weeks: Path, built: Path, as_of: datetime) -> None:
    rows = features.events(repo, weeks, start=as_of - timedelta(days=7), end=as_of)
    offline = features.training_set(built, "flight_delay_v1", rows).to_pylist()
    assert len(offline) > 5000
    assert any(None in row.values() for row in offline)
    served = replay(built, "flight_delay_v1", rows)
    differences = [
        (name, learned[name], row[name])
        for row, learned in zip(served, offline, strict=True)
        for name in learned
        if row[name] != learned[name]
    ]
    assert differences == []


@pytest.mark.parametrize("service", ["shop_v1", "derived_v1"])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_values_are_served_as_they_are_learned(
    shop: Path, write: Write, tmp_path: Path, service: str, seed: int
) -> None:
    """Values at the edge of their TTL, keys without values, and features derived from an old value."""
    draw = random.Random(seed)

    def moment(low: int, high: int) -> datetime:
        return NOON + draw.randint(low, high) * 10 * MINUTE + timedelta(seconds=draw.choice((0, 0, 1, 59)))

    write("stock", {"sku": ["1", "2"], "seen": [moment(0, 5), moment(0, 50)], "units": [3, 4]})
    prices = sorted({(draw.choice("ab"), draw.choice("12"), moment(0, 60)) for _ in range(40)})
    raw = write(
        "prices",
        {
            "shop": [price[0] for price in prices],
            "sku": [price[1] for price in prices],
            "seen": pa.array([price[2] for price in prices], pa.timestamp("us", "UTC")),
            "price": [draw.choice((None, 0.1, 1e9)) for _ in prices],
            "kind": [draw.choice((None, "", "é")) for _ in prices],
        },
    )
    features.build(shop, raw, tmp_path / "out")
    events = sorted((moment(-1, 80), f"o{number}") for number in range(200))
    rows = pa.table(
        {
            "event_id": [name for _, name in events],
            "event_timestamp": pa.array([at for at, _ in events], pa.timestamp("us", "UTC")),
            "label": pa.array([draw.randint(0, 1) for _ in events], pa.int32()),
            "label_available_at": pa.array([NOON] * len(events), pa.timestamp("us", "UTC")),
            "shop": [draw.choice("abc") for _ in events],
            "sku": [draw.choice("123") for _ in events],
            "count": [draw.choice((0.0, 2.0, 1e6)) for _ in events],
            "opened": pa.array([moment(0, 10) + timedelta(microseconds=7) for _ in events], pa.timestamp("us", "UTC")),
        }
    )
    offline = {row["event_id"]: row for row in features.training_set(tmp_path / "out", service, rows).to_pylist()}
    served = {row["event_id"]: row for row in replay(tmp_path / "out", service, rows)}
    differences = [
        (row["event_id"], name, offline[event][name], row[name])
        for event, row in served.items()
        for name in row
        if row[name] != offline[event][name]
    ]
    assert differences == []
    assert served.keys() == offline.keys()
    for name in ("price", "total", "units") if service == "shop_v1" else ("total",):
        assert len({row[name] for row in offline.values()}) > 2
        assert None in {row[name] for row in offline.values()}


def test_a_restart_goes_on_where_it_was(repo: Path, weeks: Path, tmp_path: Path, as_of: datetime) -> None:
    """Another process does not know the last one's position."""
    features.build(repo, weeks, tmp_path)
    rows = features.events(repo, weeks, start=as_of - timedelta(hours=9), end=as_of)
    offline = features.training_set(tmp_path, "flight_delay_v1", rows).to_pylist()
    half = [row["event_timestamp"] for row in offline][len(offline) // 2]
    early = rows.filter(pc.less_equal(rows["event_timestamp"], pa.scalar(half)))
    late = rows.filter(pc.greater(rows["event_timestamp"], pa.scalar(half)))
    assert early.num_rows
    assert late.num_rows
    served = replay(tmp_path, "flight_delay_v1", early) + replay(tmp_path, "flight_delay_v1", late)
    assert served == offline


def test_each_row_is_written_once(built: Path, as_of: datetime) -> None:
    materializer = Materializer(built, "flight_delay_v1")
    assert materializer.advance(as_of) > 3000
    assert materializer.advance(as_of) == 0
    # Three airports: the weather and the state of each one.
    assert materializer.advance(as_of + timedelta(hours=1)) == 6


def test_a_sample_of_the_events_is_served_from_the_rows_of_their_keys(
    repo: Path, weeks: Path, built: Path, tmp_path: Path, as_of: datetime
) -> None:
    drawn = features.moments(repo, weeks, start=as_of - timedelta(hours=9), end=as_of)[::7]
    rows = features.events(repo, weeks, start=as_of - timedelta(hours=9), end=as_of, at=drawn)
    offline = features.training_set(built, "flight_delay_v1", rows).to_pylist()
    some, all_ = (shutil.copytree(built, tmp_path / name) for name in ("some", "all"))
    materializer = Materializer(some, "flight_delay_v1", asked=rows)
    assert replay(some, "flight_delay_v1", rows, materializer) == offline
    whole = Materializer(all_, "flight_delay_v1").advance(as_of)
    part = Materializer(some, "flight_delay_v1", asked=rows).advance(as_of)
    assert 0 < part < whole / 2


@pytest.fixture
def online(built: Path, as_of: datetime) -> OnlineFeatures:
    Materializer(built, "flight_delay_v1").advance(as_of)
    return OnlineFeatures.open(built, "flight_delay_v1")


FLIGHT = {
    "tailnum": ["N14228"], "carrier": ["UA"], "dest": ["IAH"], "origin": ["EWR"],
    "sched_dep": ["2013-05-20T01:15:00Z"], "distance": [1400.0], "sched_minutes": [210.0],
}  # fmt: skip


def test_an_unknown_key_gives_none(online: OnlineFeatures, as_of: datetime) -> None:
    unknown = FLIGHT | {"tailnum": ["N0"], "carrier": ["??"], "dest": ["???"], "origin": ["???"]}
    known, empty = online.read(FLIGHT, as_of), online.read(unknown, as_of)
    stored = {"temp", "departures_next_2h", "origin_late_3h", "carrier_late_1d", "dest_late_7d", "seats", "plane_age"}
    assert all(known[name][0] is not None for name in stored)
    own = {"carrier", "dest", "origin", "hour", "weekday", "distance_miles", "timetable_minutes"}
    assert {name for name, values in empty.items() if values[0] is not None} == own
    assert (empty["carrier"], empty["hour"], empty["weekday"]) == (["??"], [21.25], [6.0])
    assert online.read(FLIGHT | {"distance": [None]}, as_of)["distance_miles"] == [None]


def test_rows_are_answered_in_their_order(online: OnlineFeatures, as_of: datetime) -> None:
    several = {name: values * 3 for name, values in FLIGHT.items()} | {"origin": ["JFK", "EWR", "JFK"]}
    answer = online.read(several, as_of)
    assert answer["origin"] == ["JFK", "EWR", "JFK"]
    assert answer["departures_next_2h"][0] == answer["departures_next_2h"][2] != answer["departures_next_2h"][1]
    assert answer["departures_next_2h"][1] == online.read(FLIGHT, as_of)["departures_next_2h"][0]


def test_threads_take_turns_with_sqlites_one_connection(
    online: OnlineFeatures, as_of: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since Python 3.12, two threads that run the same statement on one connection may get each other's rows."""
    store = online._store
    read, inside, most = store.get_online_features, [], []

    def watched(*args: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        try:
            return read(*args)
        finally:
            inside.pop()

    monkeypatch.setattr(store, "get_online_features", watched)
    origins = ["JFK", "EWR", "LGA"]
    known = {origin: online.read(FLIGHT | {"origin": [origin]}, as_of) for origin in origins}
    with ThreadPoolExecutor(8) as pool:
        asked = origins * 40
        answers = pool.map(lambda origin: online.read(FLIGHT | {"origin": [origin]}, as_of), asked)
        assert all(answer == known[origin] for origin, answer in zip(asked, answers, strict=True))
    assert max(most) == 1


@pytest.mark.parametrize(
    ("hours", "gone"),
    [(0, set()), (2, set()), (2.01, {"departures_next_2h"}), (7, {"departures_next_2h", "temp"}),
     (87, {"departures_next_2h", "temp", "carrier_late_1d", "dest_late_7d"})],
)  # fmt: skip
def test_a_value_expires(online: OnlineFeatures, as_of: datetime, hours: float, gone: set[str]) -> None:
    answer = online.read(FLIGHT, as_of + timedelta(hours=hours))
    looked_at = ("departures_next_2h", "temp", "carrier_late_1d", "dest_late_7d", "seats", "plane_age")
    assert {name for name in looked_at if answer[name] == [None]} == gone


def test_what_became_known_later_is_none(online: OnlineFeatures, as_of: datetime) -> None:
    """The store is at `as_of`; a month earlier its weather was not known, and what was known then is gone."""
    looked_at = ("departures_next_2h", "temp", "origin_late_3h", "carrier_late_1d", "dest_late_7d")
    assert all(online.read(FLIGHT, as_of)[name] != [None] for name in looked_at)
    before = online.read(FLIGHT, as_of - timedelta(days=30))
    assert all(before[name] == [None] for name in looked_at)
    # A feature that does not come from the store is known at any time.
    assert (before["carrier"], before["hour"]) == (["UA"], [21.25])


def test_a_later_session_does_not_see_what_an_earlier_one_wrote(built: Path, tmp_path: Path, as_of: datetime) -> None:
    """`kubeloop serve` may have written up to a later moment than the replay that continues."""
    folder = shutil.copytree(built, tmp_path / "features")
    assert stands(folder) == as_of
    Materializer(folder, "flight_delay_v1").advance(as_of - timedelta(days=400))
    assert stands(folder) == as_of - timedelta(days=400)
    answer = OnlineFeatures.open(folder, "flight_delay_v1").read(FLIGHT, as_of - timedelta(days=400))
    assert (answer["temp"], answer["carrier_late_1d"]) == ([None], [None])


@pytest.mark.parametrize(
    "value",
    ["", "soon", "2013-05-20T25:00:00Z", "20/05/2013", "0001-01-01T00:00:00+05:00", "9999-12-31T23:00:00-05:00",
     1369011600, None, 1.5, [], True],
)  # fmt: skip
def test_a_malformed_time_is_refused(online: OnlineFeatures, as_of: datetime, value: Any) -> None:
    with pytest.raises(ValueError, match="is not an ISO 8601 time such as 2013-04-01T12:00:00Z"):
        online.read(FLIGHT | {"sched_dep": [value]}, as_of)


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2013-05-20T01:15:00Z", 21.25),
        ("2013-05-20T01:15:00", 21.25),
        ("2013-05-20T03:15:00+02:00", 21.25),
        ("2013-05-20", 20.0),
        ("2013-12-20T01:15:00Z", 20.25),
    ],
)
def test_a_time_without_an_offset_is_utc(online: OnlineFeatures, as_of: datetime, text: str, hour: float) -> None:
    assert online.read(FLIGHT | {"sched_dep": [text]}, as_of)["hour"] == [hour]


def test_a_view_that_fails_on_a_request_is_named(
    online: OnlineFeatures, as_of: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    """The first hour of year 1 has no time in New York."""
    words = "view flight_facts cannot derive its features from these values: OverflowError: date value out of range"
    with pytest.raises(ValueError, match=words):
        online.read(FLIGHT | {"sched_dep": ["0001-01-01T00:00:00Z"]}, as_of)
    (record,) = caplog.records
    assert record.getMessage() == "view flight_facts failed on a request"
    assert record.exc_info is not None


@pytest.mark.parametrize(("field", "value"), [("tailnum", 5), ("distance", "far"), ("origin", None)])
def test_a_value_of_another_type_is_refused(online: OnlineFeatures, as_of: datetime, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        online.read(FLIGHT | {field: [value]}, as_of)


def test_who_answers_requests_imports_no_offline_store(built: Path) -> None:
    """Feast imports what its configuration names, and Ibis takes 15 MiB in every transformer."""
    code = (
        "import sys; from pathlib import Path; from kubeloop.features.online import OnlineFeatures\n"
        "OnlineFeatures.open(Path(sys.argv[1]), 'flight_delay_v1')\n"
        "print(sorted({'dask', 'ibis', 'mlflow', 'scipy', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, built], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(("ahead", "most_reads"), [(100_000, 2), (7, 1000)])
def test_many_small_steps_read_a_table_once_and_give_each_keys_newest_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, most_reads: int
) -> None:
    random = np.random.default_rng(7)
    minutes = np.sort(random.integers(0, 300, 1000))
    stamps = [NOON + timedelta(minutes=int(minute)) for minute in minutes]
    table = pa.table({"sku": random.integers(0, 5, 1000), "event_timestamp": stamps, "price": np.arange(1000.0)})
    pq.write_table(table, tmp_path / "prices.parquet")
    reads = []
    connect = online_module.sources.connect
    monkeypatch.setattr(online_module.sources, "connect", lambda: reads.append(1) or connect())
    monkeypatch.setattr(online_module, "_WRITTEN", ahead)
    source = online_module._Table("prices", ["sku"], tmp_path / "prices.parquet")
    since = None
    for to in (NOON + timedelta(minutes=n) for n in range(-1, 310, 3)):
        known = [row for row in table.to_pylist() if (since is None or row["event_timestamp"] > since)]
        newest = {row["sku"]: row["price"] for row in known if row["event_timestamp"] <= to}
        news = {row.sku: row.price for rows in source.news(since, to) for row in rows.itertuples()}
        assert news == newest
        since = to
    assert len(reads) <= most_reads

"""The files that init writes: linted, causal and satisfied by the table, whatever the names of its columns."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import yaml

from kubeloop import config, features
from kubeloop.config import Loop, Settings
from kubeloop.config.reading import Read
from kubeloop.data import sources, validation
from kubeloop.features.online import Materializer, OnlineFeatures
from kubeloop.reading import infer
from kubeloop.scaffold import design, render
from kubeloop.scaffold.design import Wish
from kubeloop.scaffold.table import Table
from kubeloop.steps import stages

CUT = datetime(2024, 5, 1, tzinfo=UTC)
ZONE = "Europe/Berlin"
"""The time zone of the clocks that wrote the table's times, chosen so that summer time begins within the table."""


@pytest.fixture(scope="module")
def written(nasty: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> design.Result:
    folder = tmp_path_factory.mktemp("nasty")
    nasty.to_parquet(folder / "Its data! 2024.parquet")
    scratch = folder / "scratch"
    (scratch / "raw").mkdir(parents=True)
    asked = infer.Asked(read=Read(timezone=ZONE))
    table = Table(folder / "Its data! 2024.parquet", scratch / "raw", asked=asked)
    wish = Wish("is it?", "time", ("Wer?", "site id"), folder / "case", positive="gone 'away'")
    return design.write(table, wish, scratch, print)


@pytest.fixture(scope="module")
def place(written: design.Result) -> Settings:
    return config.settings(written.folder, written.folder / "state")


@pytest.fixture(scope="module")
def loop(written: design.Result, place: Settings) -> Loop:
    loop = config.load(place.loop_file)
    sources.take_in(loop, place)
    return loop


def test_generated_python_is_what_ruff_writes_and_finds_nothing_in(written: design.Result) -> None:
    ruff = [str(Path(sys.executable).with_name("ruff"))]
    for width in ("88", "120"):
        options = ["--isolated", "--line-length", width, str(written.folder)]
        done = subprocess.run([*ruff, "format", "--diff", *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    rules = ["--select", "E,F,I,UP,B,C4,SIM,RUF,N,D1,ANN", "--ignore", "ANN401,E501", "--no-cache"]
    done = subprocess.run(
        [*ruff, "check", "--isolated", *rules, str(written.folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_choice_in_the_loop_file_has_its_reason(written: design.Result, loop: Loop) -> None:
    lines = (written.folder / "loop.yaml").read_text().splitlines()
    for setting in ("window:", "holdout:", "floors:", "block:", "min_rows:", "cooldown:", "sample:", "available_at:"):
        assert any(line.strip().startswith(setting) and "   # " in line for line in lines), setting
    assert loop.features.service == "its_data_2024_v1"
    assert loop.source.tables["its_data_2024"].available_at == "TIME"


@pytest.fixture(scope="module")
def training_set(loop: Loop, place: Settings, written: design.Result) -> pd.DataFrame:
    repo = written.folder / "feature_repo"
    features.build(repo, place.raw, place.features)
    rows = features.events(
        repo, place.raw, start=datetime(2023, 12, 31, tzinfo=UTC), end=datetime(2025, 1, 1, tzinfo=UTC)
    )
    return features.training_set(place.features, loop.features.service, rows).to_pandas()


def _moments(clocks: pd.Series) -> pd.Series:
    return clocks.dt.tz_localize(ZONE, ambiguous=False, nonexistent=timedelta(hours=1)).dt.tz_convert("UTC")


def test_every_column_reaches_the_model_unchanged(nasty: pd.DataFrame, training_set: pd.DataFrame) -> None:
    assert len(training_set) == len(nasty)
    source = nasty.assign(at=_moments(pd.to_datetime(nasty["TIME"]))).sort_values("at", kind="stable")
    joined = training_set.sort_values("event_timestamp", kind="stable")
    pairs = {
        "select": "select_field_now",
        'from "x"': "from_x_now",
        "new\nline": "new_line_now",
        "a" * 70: "a" * 28 + "_now",
    }
    unique = ~source["at"].duplicated(keep=False).to_numpy()
    for column, feature in pairs.items():
        expected = source[column].to_numpy(dtype=np.float32)
        np.testing.assert_array_equal(joined[feature].to_numpy()[unique], expected[unique])
    age = (source["at"] - _moments(source["event_timestamp"])) / timedelta(days=1)
    np.testing.assert_allclose(joined["event_timestamp_age_now"].to_numpy()[unique], age[unique], rtol=1e-5)
    clocks = source["at"].dt.tz_convert(ZONE)
    np.testing.assert_allclose(joined["hour"][unique], (clocks.dt.hour + clocks.dt.minute / 60)[unique], rtol=1e-6)
    np.testing.assert_array_equal(joined["weekday"][unique], clocks.dt.weekday[unique])
    finite = np.where(np.isfinite(source["inf"]), source["inf"], np.nan).astype(np.float32)
    np.testing.assert_array_equal(joined["inf_now"].to_numpy()[unique], finite[unique])
    days = (source["from day"] - 20_240_101).to_numpy(dtype=np.float32, na_value=np.nan)
    np.testing.assert_array_equal(joined["from_day_now"].to_numpy()[unique], days[unique])
    labels = (source["Is it?"] == "gone 'away'").astype(int).to_numpy()
    np.testing.assert_array_equal(joined["label"].to_numpy()[unique], labels[unique])
    texts = source["class"].to_numpy()[unique]
    assert list(joined["class_field_now"].to_numpy()[unique]) == list(texts)


def test_the_online_features_are_the_offline_ones(
    loop: Loop, place: Settings, written: design.Result, training_set: pd.DataFrame
) -> None:
    rows = features.events(written.folder / "feature_repo", place.raw, start=CUT, end=CUT + timedelta(days=2))
    materializer = Materializer(place.features, loop.features.service)
    online = OnlineFeatures.open(place.features, loop.features.service)
    offline = training_set.set_index("event_id")
    assert rows.num_rows > 5
    for row in rows.to_pylist():
        materializer.advance(row["event_timestamp"])
        asked = {
            field.name: [row[field.name].isoformat() if isinstance(row[field.name], datetime) else row[field.name]]
            for field in online.fields
        }
        answer = online.read(asked, row["event_timestamp"])
        clock = row["event_timestamp"].astimezone(ZoneInfo(ZONE)).replace(tzinfo=None)
        assert online.read(asked | {"time": [clock.isoformat()]}, row["event_timestamp"]) == answer, "a local time"
        for name, (value,) in answer.items():
            expected = offline.loc[row["event_id"], name]
            if pd.isna(expected):
                assert value is None, name
            else:
                assert value == (expected if isinstance(value, str) else pytest.approx(float(expected), rel=1e-6)), name


def test_features_of_the_past_do_not_change_when_the_future_becomes_known(
    loop: Loop, place: Settings, written: design.Result, training_set: pd.DataFrame, tmp_path: Path
) -> None:
    repo = written.folder / "feature_repo"
    since = CUT - loop.features.history - timedelta(days=20)
    sources.cut(loop, place.raw, tmp_path / "raw", since=since, as_of=CUT)
    features.build(repo, tmp_path / "raw", tmp_path / "features")
    rows = features.events(repo, tmp_path / "raw", start=CUT - timedelta(days=20), end=CUT, labelled_by=CUT)
    then = features.training_set(tmp_path / "features", loop.features.service, rows).to_pandas()
    now = training_set.set_index("event_id").loc[then["event_id"]].reset_index()[list(then.columns)]
    assert len(then) > 100
    pd.testing.assert_frame_equal(then, now)


def test_first_and_last_run_of_the_replay_fulfil_the_expectations(loop: Loop, place: Settings, tmp_path: Path) -> None:
    assert loop.replay is not None
    for as_of in (loop.replay.train_to, loop.replay.until):
        out = tmp_path / f"{as_of:%Y%m%d}"
        stages.extract(loop, place, as_of, out / "raw")
        suites = place.home / "feature_repo" / "expectations"
        found = validation.validate(
            sources.tables(out / "raw"),
            suites,
            as_of=as_of,
            docs=out / "docs",
            quarantine=out / "quarantine",
            clean=out / "clean",
        )
        assert found.passed, found.failures
        stages.build_features(loop, place, out / "clean", as_of, out / "training.parquet")
        found = validation.validate(
            {"training": out / "training.parquet"},
            suites,
            as_of=as_of,
            docs=out / "docs",
            quarantine=out / "quarantine",
            clean=out / "clean",
        )
        assert found.passed, found.failures


def test_expectations_stop_a_broken_table(loop: Loop, place: Settings, tmp_path: Path) -> None:
    assert loop.replay is not None
    stages.extract(loop, place, loop.replay.train_to, tmp_path / "raw")
    (path,) = sources.tables(tmp_path / "raw").values()
    broken = pd.read_parquet(path)
    broken["heat"] *= 1000
    broken["Wer?"] = broken["Wer?"].where(broken.index % 2 == 0)
    broken.head(len(broken) // 10).to_parquet(path)
    found = validation.validate(
        {path.stem: path},
        place.home / "feature_repo" / "expectations",
        as_of=loop.replay.train_to,
        docs=tmp_path / "docs",
        quarantine=tmp_path / "quarantine",
        clean=tmp_path / "clean",
    )
    failed = {(failure.expectation, failure.column) for failure in found.failures}
    assert {
        ("expect_column_values_to_be_between", "heat"),
        ("expect_column_values_to_not_be_null", "Wer?"),
        ("expect_table_row_count_to_be_between", ""),
    } <= failed


def test_the_readme_shows_a_request_that_the_service_would_take(
    written: design.Result, place: Settings, loop: Loop
) -> None:
    import json
    import shlex

    lines = (written.folder / "README.md").read_text().splitlines()
    (asks,) = (line for line in lines if line.strip().startswith("kubeloop predict"))
    request = json.loads(shlex.split(asks)[2])
    online = OnlineFeatures.open(place.features, loop.features.service)
    assert request.keys() == {field.name for field in online.fields}
    asked = {name: ["" if value is None else value] for name, value in request.items()}
    answer = online.read(asked, datetime.now(UTC))
    assert answer.keys() == {field.name for field in online.features}


def counted(frame: pd.DataFrame, case: render.Case, at: datetime) -> dict[str, tuple[float, float, float | None]]:
    """Count each key's recent rows and labels with a simple slow loop."""
    step, delay = case.timeline.scale.step, case.timeline.label_delay
    short, long = case.timeline.scale.short, case.timeline.scale.long
    epoch = datetime(1970, 1, 1, tzinfo=UTC)

    def up(moment: datetime) -> datetime:
        return epoch - (epoch - moment) // step * step

    found: dict[str, tuple[float, float, float | None]] = {}
    for key, rows in frame.groupby("machine"):
        entered = [up(moment + timedelta(microseconds=1)) for moment in rows["read_at"]]
        seen = [sum(begin <= at < begin + span for begin in entered) for span in (short, long)]
        known = [(up(moment + delay), label) for moment, label in zip(rows["read_at"], rows["failed"], strict=True)]
        labels = [label for begin, label in known if begin <= at < begin + long and not pd.isna(label)]
        found[str(key)] = (float(seen[0]), float(seen[1]), sum(labels) / len(labels) if labels else None)
    return found


@pytest.mark.parametrize(
    ("days", "delay"),
    [(200.0, timedelta(days=1)), (200.0, timedelta(0)), (200.0, timedelta(days=9, hours=5)), (20.0, None), (1.5, None)],
)
def test_histories_count_what_was_known_and_nothing_else(
    readings: pd.DataFrame, folder: Path, days: float, delay: timedelta | None
) -> None:
    random = np.random.default_rng(int(days))
    begin = readings["read_at"].min().floor("D")
    offsets = random.uniform(0, days * 86400, len(readings)).astype("int64")
    # A half-open interval shows its mistakes at whole days.
    offsets[: len(offsets) // 5] -= offsets[: len(offsets) // 5] % 86400
    frame = readings.assign(
        read_at=(begin + pd.to_timedelta(offsets, unit="s")).tz_localize("UTC"),
        failed=readings["failed"].where(random.uniform(size=len(readings)) < 0.95).astype("Int8"),
    )
    frame.to_parquet(folder / "readings.parquet")
    (folder / "raw").mkdir()
    table = Table(folder / "readings.parquet", folder / "raw")
    case, _, _ = design.design(table, Wish("failed", "read_at", ("machine",), folder / "out", label_delay=delay))
    query = render.feature_repo(case)["sql/machine_history.sql"]
    with sources.connect(sources.tables(folder / "raw")) as db:
        history = db.execute(f"FROM ({query}) ORDER BY event_timestamp").df()
    names = [name for name in history.columns if name not in ("machine", "event_timestamp")]
    span = history["event_timestamp"].max() - history["event_timestamp"].min()
    moments = [history["event_timestamp"].min() + span * float(share) for share in random.uniform(0, 1, 6)]
    moments += list(history["event_timestamp"].sample(4, random_state=1))
    for at in moments:
        newest = history[history["event_timestamp"] <= at].groupby("machine").tail(1).set_index("machine")
        for key, expected in counted(frame, case, at.to_pydatetime()).items():
            if key not in newest.index:
                assert expected == (0, 0, None)
                continue
            got: list[Any] = [None if pd.isna(value) else value for value in newest.loc[key, names]]
            assert got == pytest.approx(list(expected))


def test_long_counts_of_a_handful_of_keys_stay_out_of_the_model(training_set: pd.DataFrame) -> None:
    assert {"wer_rate_30d", "wer_events_30d", "wer_events_7d", "site_id_events_7d"} <= set(training_set)
    assert not {"site_id_rate_30d", "site_id_events_30d"} & set(training_set)


def test_nothing_of_a_history_reaches_past_what_a_run_is_given(written: design.Result, loop: Loop) -> None:
    text = (written.folder / "feature_repo" / "sql" / "wer_history.sql").read_text()
    assert "INTERVAL 30 DAY" in text
    assert loop.features.history > timedelta(days=31)


def test_every_suite_is_read_by_its_own_reader(written: design.Result) -> None:
    for path in (written.folder / "feature_repo" / "expectations").glob("*.yaml"):
        assert len(yaml.safe_load(path.read_text())) > 20

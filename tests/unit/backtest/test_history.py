from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kubeloop.backtest import BacktestError, history
from kubeloop.backtest.history import History, Span
from kubeloop.config import Loop
from kubeloop.steps import stages
from tests.unit.backtest.conftest import CHANGE, DAY, LOOP, START, VISITS, Home, write

LEAK = "SELECT shop, seen AS event_timestamp, price - (SELECT avg(price) FROM visits) AS price, size FROM visits"
"""A feature that reads the whole table at every moment, including later rows."""


def test_rows_built_once_are_those_that_a_run_sees(home: Home, past: History, tmp_path: Path) -> None:
    assert past.whole
    for days in (20, 33, 47):
        moment = START + days * DAY
        stages.extract(home.loop, home.settings, moment, tmp_path / "raw")
        stages.build_features(home.loop, home.settings, tmp_path / "raw", moment, tmp_path / "run.parquet")
        run = pq.read_table(tmp_path / "run.parquet").to_pandas()
        ours = history.cut(past, home.loop, moment).to_pandas()
        assert len(run) > 900
        assert run.equals(ours.astype(run.dtypes.to_dict()))


def test_nothing_of_the_future_is_learned(home: Home, past: History, tmp_path: Path) -> None:
    """Another future changes no row and no model of the present; without the cut at the moment, it would."""
    moment = START + 30 * DAY
    other = write(tmp_path / "other")
    for name, when in (("visits", "seen"), ("labels", "known")):
        path = tmp_path / "other" / f"{name}.parquet"
        table = pq.read_table(path).to_pandas()
        later = table[when] > moment
        assert later.sum() > 1000
        for column in ("price", "size"):
            if column in table:
                table.loc[later, column] = 1e6
        if "label" in table:
            table.loc[later, "label"] = 1 - table.loc[later, "label"]
        table.to_parquet(path)
    changed = other.open()
    assert history.cut(changed, home.loop, moment).equals(history.cut(past, home.loop, moment))
    # The same test detects a cut that comes one day too late.
    late = moment + DAY
    assert not history.cut(changed, home.loop, late).equals(history.cut(past, home.loop, late))


def test_a_feature_that_knows_the_future_is_found_and_cut_window_by_window(tmp_path: Path) -> None:
    said: list[str] = []
    home = write(tmp_path / "shop", LEAK)
    found = history.open_history(home.loop, home.settings, home.span, said.append)
    assert not found.whole
    assert any("its own cut" in text for text in said)
    once = write(tmp_path / "plain", VISITS).open()
    assert found.table["event_id"].equals(once.table["event_id"])
    assert found.table["label"].equals(once.table["label"])
    # The mean is over the rows up to the window's end, not over the whole table.
    rows = found.rows(home.span.start, home.span.start + home.loop.drift.window)
    mean = once.table["price"][rows].to_numpy().mean() - found.table["price"][rows].to_numpy().mean()
    end = home.span.start + home.loop.drift.window
    raw = pq.read_table(tmp_path / "plain" / "visits.parquet").to_pandas()
    since = home.span.start - home.loop.features.history
    assert mean == pytest.approx(raw[(raw["seen"] >= since) & (raw["seen"] <= end)]["price"].mean(), abs=1e-5)
    assert abs(mean - raw["price"].mean()) > 0.05


def test_a_model_scores_nothing_it_learned_from(home: Home, past: History) -> None:
    moment = home.span.start + 2 * home.loop.drift.window
    model = past.model(history.version(home.loop, moment))
    first = int(np.flatnonzero(~np.isnan(model.scores))[0])
    holdout = moment - DAY - home.loop.training.holdout
    assert abs(past.table["event_timestamp"][first].as_py() - holdout) < timedelta(hours=1)
    assert not np.isnan(model.scores[first:]).any()


def test_a_model_that_is_there_is_not_made_again(home: Home, past: History, tmp_path: Path) -> None:
    name = history.version(home.loop, home.span.start)
    stamp = (past.models / name / "model.onnx").stat().st_mtime_ns
    past.train(home.settings, home.loop, home.span.start)
    assert (past.models / name / "model.onnx").stat().st_mtime_ns == stamp
    left = past.folder / ".part-of-a-killed-one"
    left.mkdir()
    assert home.open().folder == past.folder
    assert not left.exists()


def test_the_policy_does_not_shape_a_model(home: Home) -> None:
    def digest(text: str) -> str:
        return history.digest(Loop.parse(text), home.settings, home.span)

    assert digest(LOOP) == digest(LOOP.replace("cooldown: 5d", "cooldown: 6d\n  retrain_on: []"))
    assert digest(LOOP) != digest(LOOP.replace("holdout: 6d", "holdout: 7d"))


def test_why_a_run_would_fail_is_kept(home: Home, past: History) -> None:
    early = home.loop.training.model_copy(update={"window": 13 * DAY, "holdout": 6 * DAY})
    loop = home.loop.model_copy(update={"training": early, "replay": None})
    moment = START + timedelta(hours=1)
    past.train(home.settings, loop, moment)
    assert past.failure(history.version(loop, moment))
    assert not past.has(history.version(loop, moment))


def test_a_history_of_few_windows_is_too_short(home: Home) -> None:
    short = Span(home.span.start, home.span.start + 4 * home.loop.drift.window)
    with pytest.raises(BacktestError, match=r"4 whole windows of 5d.*shorter drift.window"):
        history.open_history(home.loop, home.settings, short, lambda _: None)


def test_without_labels_there_is_nothing_to_measure(tmp_path: Path) -> None:
    bare = write(tmp_path / "bare")
    path = tmp_path / "bare" / "labels.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    without = bare.loop.model_copy(update={"replay": None})
    with pytest.raises(BacktestError, match="no event has a label"):
        history.plan(without, bare.settings, None, None)


def test_one_class_says_so(tmp_path: Path) -> None:
    one = write(tmp_path / "one")
    path = tmp_path / "one" / "labels.parquet"
    table = pq.read_table(path).to_pandas()
    table.loc[table["known"] > one.span.start, "label"] = 0
    table.to_parquet(path)
    with pytest.raises(BacktestError, match=r"are 0, .*: models can be told apart "):
        one.open()


def test_without_a_replay_the_table_says_from_when_to_when(home: Home) -> None:
    loop = home.loop.model_copy(update={"replay": None})
    span = history.plan(loop, home.settings, None, None)
    assert span.until > START + 60 * DAY
    assert span.start == START + 24 * DAY
    assert history.plan(loop, home.settings, START + CHANGE * DAY, None).start == START + CHANGE * DAY
    with pytest.raises(BacktestError, match="must come before"):
        history.plan(loop, home.settings, START + 70 * DAY, START + CHANGE * DAY)

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from kubeloop.backtest import policies, score
from kubeloop.backtest.history import History, moment_of, version
from kubeloop.backtest.policies import Policy
from kubeloop.backtest.walk import Need, Walk, walk
from kubeloop.models import gates
from kubeloop.tasks.binary.task import BINARY
from tests.unit.backtest.conftest import CHANGE, DAY, START, Home, Tests


def go(past: History, **settings: object) -> Walk:
    found = walk(Policy("tried", {"drift": settings} if settings else {}), past, Tests())
    assert isinstance(found, Walk)
    return found


def labelled(past: History, rows: slice) -> np.ndarray:
    return rows.start + np.flatnonzero(~np.isnan(past.labels[rows]))


@pytest.fixture(scope="module")
def frozen(past: History) -> Walk:
    return go(past, retrain_on=[])


@pytest.fixture(scope="module")
def weekly(past: History) -> Walk:
    return go(past, retrain_on=[], retrain_every="5d")


@pytest.fixture(scope="module")
def drift(past: History) -> Walk:
    return go(past, retrain_on=["drift"])


@pytest.fixture(scope="module")
def performance(past: History) -> Walk:
    return go(past, retrain_on=["performance"])


def test_frozen_never_retrains(home: Home, frozen: Walk) -> None:
    assert frozen.served == ((home.span.start, version(home.loop, home.span.start)),)
    assert frozen.retrainings == ()


def test_the_calendar_retrains_at_every_windows_end_and_no_cooldown_holds_it(home: Home, weekly: Walk) -> None:
    ends = home.span.ends(home.loop.drift.window)
    assert [run.moment for run in weekly.retrainings] == ends[:-1], "a last one would not serve any window"
    assert {run.kind for run in weekly.retrainings} == {"schedule"}
    assert "rejected" in [run.outcome for run in weekly.retrainings]
    assert weekly.promotions >= 1


def test_a_longer_calendar_takes_the_first_windows_end_of_each_span(home: Home, past: History) -> None:
    found = go(past, retrain_on=[], retrain_every="12d")
    assert [(run.moment - home.span.start) // DAY for run in found.retrainings] == [15, 25]


def test_a_rejected_retraining_does_not_hold_the_calendar_up(past: History) -> None:
    tried = {"drift": {"retrain_on": [], "retrain_every": "9d", "cooldown": "15d", "max_cooldown": "30d"}}
    found = walk(Policy("strict", tried | {"gates": {"min_gain": 0.9}}), past, Tests())
    assert isinstance(found, Walk)
    assert [(run.moment - past.span.start) // DAY for run in found.retrainings] == [10, 20, 30]
    assert found.promotions == 0


def test_drift_retrains_after_the_change_and_not_before(drift: Walk) -> None:
    assert drift.retrainings
    first = drift.retrainings[0]
    assert first.kind == "drift"
    assert "drifted" in first.reason
    assert START + CHANGE * DAY < first.moment <= START + (CHANGE + 10) * DAY
    assert drift.promotions >= 1


def test_labels_reach_the_monitor_when_they_are_due(home: Home, performance: Walk) -> None:
    """The first window after the change ends on day 40, and its labels arrive by day 42."""
    first = performance.retrainings[0]
    assert first.kind == "performance"
    assert first.moment == START + (CHANGE + 5) * DAY + home.loop.drift.label_wait
    assert moment_of(first.version) <= first.moment - home.loop.drift.label_wait


def test_a_rejection_doubles_the_cooldown(past: History, home: Home) -> None:
    found = walk(Policy("strict", {"drift": {"retrain_on": ["drift"]}, "gates": {"min_gain": 0.9}}), past, Tests())
    assert isinstance(found, Walk)
    assert {run.outcome for run in found.retrainings} == {"rejected"}
    moments = [run.moment for run in found.retrainings]
    assert all(later - earlier >= 10 * DAY for earlier, later in pairwise(moments))


def test_the_gate_is_the_loops_own(home: Home, past: History, weekly: Walk) -> None:
    """A model is never judged on rows that it learned from, and it takes over only if it wins."""
    names = [name for _, name in weekly.served]
    assert names == [version(home.loop, home.span.start)] + [
        run.version for run in weekly.retrainings if run.outcome == "promoted"
    ]
    for run in weekly.retrainings:
        assert ("Promoted" in run.detail) == (run.outcome == "promoted")


def test_a_model_that_is_not_there_is_asked_for(home: Home, past: History) -> None:
    found = walk(Policy("half", {"drift": {"retrain_on": []}, "training": {"window": "15d"}}), past, Tests())
    assert found == Need(home.span.start, 15 * DAY)


def test_a_walk_is_the_same_when_it_is_repeated(past: History, drift: Walk) -> None:
    assert go(past, retrain_on=["drift"]) == drift


def test_scores_are_those_of_the_model_that_served(home: Home, past: History, drift: Walk) -> None:
    scores = score.served_scores(drift, past)
    change = next(run.moment for run in drift.retrainings if run.outcome == "promoted")
    rows = past.rows(home.span.start, change)
    first = past.model(drift.served[0][1]).scores
    assert np.array_equal(scores[rows], first[rows])
    later = past.rows(change, home.span.until)
    assert not np.array_equal(scores[later], first[later])


def test_the_difference_is_that_of_the_gates_own_bootstrap(
    home: Home, past: History, frozen: Walk, drift: Walk
) -> None:
    """A paired interval over windows equals `gates.difference_interval` for the same rows."""
    one, other = score.measure(frozen, past), score.measure(drift, past)
    value, draws = score.better(other, one, 1.0)
    found = score.interval(draws, 8, 0.95)
    rows = labelled(past, past.rows(home.span.start, home.span.until))
    labels = past.labels[rows]
    blocks = (past.moments[rows] - past.moments[rows[0]]) // (5 * 86400 * 10**6)
    old, new = (score.served_scores(each, past)[rows].astype(float) for each in (frozen, drift))
    expected = gates.difference_interval(BINARY, labels, old, new, "auc", blocks, 200, 0.95, home.loop.training.seed)
    assert value == pytest.approx(expected[0], abs=1e-9)
    assert found == pytest.approx(expected[1:], abs=1e-9)
    assert value > 0.05
    assert one.value == pytest.approx(BINARY.score(labels, old)["auc"])


def test_the_worst_window_comes_with_its_positives(home: Home, past: History, frozen: Walk) -> None:
    worst = score.measure(frozen, past).worst
    assert worst
    assert worst.start >= START + CHANGE * DAY
    rows = past.rows(worst.start, worst.start + home.loop.drift.window)
    assert (worst.rows, worst.positives) == (len(labelled(past, rows)), int(np.nansum(past.labels[rows])))
    assert worst.value < 0.7


def test_nobody_beats_the_oracle_in_any_window(
    home: Home, past: History, frozen: Walk, drift: Walk, weekly: Walk
) -> None:
    best = score.oracle(past, "oracle")
    for one in (frozen, drift, weekly):
        for start in [home.span.start, *home.span.ends(home.loop.drift.window)[:-1]]:
            rows = labelled(past, past.rows(start, start + home.loop.drift.window))
            auc = [BINARY.score(past.labels[rows], score.served_scores(w, past)[rows])["auc"] for w in (best, one)]
            assert auc[0] >= auc[1] - 1e-12
    assert all(moment_of(name) <= since for since, name in best.served)


def test_the_fewest_retrainings_are_chosen_among_those_as_good(past: History, drift: Walk, weekly: Walk) -> None:
    measured = [score.measure(one, past) for one in (weekly, drift)]
    assert score.chosen(measured, 1.0, 8, 0.95).walk is drift
    worse = replace(measured[1], value=measured[1].value - 0.1, draws=measured[1].draws - 0.1)
    assert score.chosen([measured[0], worse], 1.0, 8, 0.95).walk is weekly


def test_every_policy_fits_the_demo(demo: object, home: Home) -> None:
    for loop in (demo, home.loop):
        known = policies.known(loop)  # type: ignore[arg-type]
        assert known[0].name == policies.FROZEN
        assert len({policy.name for policy in known}) == len(known)
        for policy in known:
            assert not math.isnan(policy.apply(loop).drift.cooldown.total_seconds())  # type: ignore[arg-type]

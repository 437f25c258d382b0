import json
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kubeloop.models import gates
from kubeloop.tasks.binary import evaluation
from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.task import BINARY, Binary
from kubeloop.tasks.port import EvaluationError

ROWS = 4200
BLOCKS = np.arange(ROWS) * 14 // ROWS
OPEN = {"floors": {}, "ceilings": {}, "resamples": 300}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _world(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the logits from which they were drawn."""
    random = np.random.default_rng(seed)
    logit = 1.5 * random.normal(size=ROWS)
    return (random.random(ROWS) < _sigmoid(logit)).astype(int), logit


def _model(logit: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return _sigmoid(logit + noise * np.random.default_rng(seed).normal(size=len(logit)))


def _check(verdict: gates.Verdict, name: str) -> gates.Check:
    (found,) = [check for check in verdict.checks if check.name == name]
    return found


@pytest.mark.parametrize("metric", ["auc", "pr_auc", "log_loss", "brier"])
@pytest.mark.parametrize(
    ("champion_noise", "challenger_noise", "promote"), [(3.0, 0.3, True), (0.3, 3.0, False), (1.0, 1.0, False)]
)
def test_promotes_what_is_clearly_better(
    metric: str, champion_noise: float, challenger_noise: float, promote: bool
) -> None:
    y, logit = _world()
    old, new = _model(logit, champion_noise, 1), _model(logit, challenger_noise, 2)
    verdict = gates.compare(Binary(metric), y, old, new, binary.Gates(metric=metric, **OPEN), blocks=BLOCKS)
    assert verdict.promote is promote
    assert verdict.reason.startswith("Promoted: " if promote else "Rejected: ")
    assert verdict.champion == pytest.approx(BINARY.score(y, old)[metric])
    assert verdict.challenger == pytest.approx(BINARY.score(y, new)[metric])
    assert verdict.interval
    assert verdict.interval[0] < verdict.difference < verdict.interval[1]
    if champion_noise != challenger_noise:
        assert (verdict.difference > 0) is promote, "positive means better, also for losses"
    for number in (verdict.champion, verdict.challenger, *verdict.interval):
        assert f"{abs(number):.4f}" in verdict.reason


@pytest.mark.parametrize("metric", ["auc", "pr_auc", "log_loss", "brier"])
def test_an_equal_model_is_not_promoted(metric: str) -> None:
    y, logit = _world()
    same = _model(logit, 1.0, 1)
    verdict = gates.compare(Binary(metric), y, same, same.copy(), binary.Gates(metric=metric, **OPEN), blocks=BLOCKS)
    assert not verdict.promote
    assert (verdict.difference, verdict.interval) == (0.0, (0.0, 0.0))
    assert "the gain is not proven" in verdict.reason


def test_a_gain_must_exceed_the_minimum() -> None:
    y, logit = _world()
    old, new = _model(logit, 3.0, 1), _model(logit, 0.3, 2)
    verdict = gates.compare(BINARY, y, old, new, binary.Gates(min_gain=0.5, **OPEN), blocks=BLOCKS)
    assert not verdict.promote
    assert "does not exceed 0.5000" in verdict.reason


@pytest.mark.parametrize(
    ("limits", "name", "told"),
    [
        ({"floors": {"auc": 0.99}}, "floor auc", "below its floor 0.9900"),
        ({"floors": {"auc": 0.5, "pr_auc": 0.99}}, "floor pr_auc", "below its floor 0.9900"),
        ({"ceilings": {"ece": 0.001}}, "ceiling ece", "above its ceiling 0.0010"),
        ({"ceilings": {"log_loss": 0.1}}, "ceiling log_loss", "above its ceiling 0.1000"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_broken_limit_rejects_and_is_named(
    limits: dict[str, dict[str, float]], name: str, told: str, is_first: bool
) -> None:
    y, logit = _world()
    old, new = _model(logit, 3.0, 1), _model(logit, 0.3, 2) ** 0.5
    policy = binary.Gates(**{**OPEN, **limits})
    verdict = (
        gates.first(BINARY, y, new, policy) if is_first else gates.compare(BINARY, y, old, new, policy, blocks=BLOCKS)
    )
    check = _check(verdict, name)
    assert not verdict.promote
    assert not check.passed
    # A model's calibration is not blamed for its expected share of chance.
    assert check.value == pytest.approx(BINARY.score(y, new)[name.split()[1]], rel=0.02)
    assert told in verdict.reason
    assert name.split()[1] in verdict.reason
    assert [other.passed for other in verdict.checks if other != check] == [True] * (len(verdict.checks) - 1)


def test_harm_to_a_slice_rejects_and_is_named() -> None:
    y, logit = _world()
    old, new = _model(logit, 3.0, 1), _model(logit, 0.3, 2)
    origin = np.where(np.arange(ROWS) % 4 == 0, "JFK", "EWR")
    new = np.where(origin == "JFK", _model(logit, 8.0, 3), new)
    policy = binary.Gates(slices=("origin",), **OPEN)
    verdict = gates.compare(BINARY, y, old, new, policy, blocks=BLOCKS, slices=pd.DataFrame({"origin": origin}))
    assert not verdict.promote
    assert _check(verdict, "gain").passed
    assert _check(verdict, "slice origin=EWR").passed
    assert not _check(verdict, "slice origin=JFK").passed
    assert "slice origin=JFK changes by -0." in verdict.reason
    small = policy.model_copy(update={"slice_min_rows": 2000})
    assert gates.compare(BINARY, y, old, new, small, blocks=BLOCKS, slices={"origin": origin}).promote
    tolerant = policy.model_copy(update={"slice_tolerance": 0.9})
    assert gates.compare(BINARY, y, old, new, tolerant, blocks=BLOCKS, slices={"origin": origin}).promote


def test_a_slice_with_one_class_is_not_judged_by_auc() -> None:
    y, logit = _world()
    old, new = _model(logit, 3.0, 1), _model(logit, 0.3, 2)
    policy = binary.Gates(slices=("late",), **OPEN)
    verdict = gates.compare(BINARY, y, old, new, policy, blocks=BLOCKS, slices={"late": y})
    assert verdict.promote
    found = [check for check in verdict.checks if check.name.startswith("slice")]
    assert [(check.passed, check.value, check.note[:4]) for check in found] == [(True, None, "all ")] * 2


def test_slices_that_were_not_passed_are_an_error() -> None:
    y, logit = _world()
    with pytest.raises(EvaluationError, match="'origin'"):
        gates.compare(
            BINARY, y, _sigmoid(logit), _sigmoid(logit), binary.Gates(slices=("origin",), **OPEN), blocks=BLOCKS
        )


def test_few_blocks_reject_and_one_is_an_error() -> None:
    y, logit = _world()
    old, new = _model(logit, 3.0, 1), _model(logit, 0.3, 2)
    verdict = gates.compare(BINARY, y, old, new, binary.Gates(**OPEN), blocks=BLOCKS // 5)
    assert not verdict.promote
    assert "spans 3 blocks of time and the gate needs 5" in verdict.reason
    with pytest.raises(gates.GateError, match="one block; lengthen"):
        gates.compare(BINARY, y, old, new, binary.Gates(**OPEN), blocks=np.zeros(ROWS))


def test_one_class_is_an_error_that_says_what_to_change() -> None:
    p = np.full(ROWS, 0.5)
    with pytest.raises(gates.GateError, match=r"all 4200 labels are 0.*lengthen training\.holdout"):
        gates.compare(BINARY, np.zeros(ROWS), p, p, binary.Gates(), blocks=BLOCKS)
    with pytest.raises(gates.GateError, match=r"lengthen training\.holdout"):
        gates.first(BINARY, np.ones(ROWS), p, binary.Gates())


def test_resamples_that_cannot_hold_both_classes_are_an_error() -> None:
    y = (BLOCKS == 3).astype(int)
    y[np.flatnonzero(y)[:-1]] = 0
    p = np.linspace(0, 1, ROWS)
    blocks = np.where(BLOCKS == 3, 0, 1)
    with pytest.raises(gates.GateError, match=r"metric undefined; .*training.holdout"):
        gates.difference_interval(BINARY, np.where(blocks == 0, 1, 0), p, p, "auc", blocks, 100)


def test_the_first_model_needs_no_champion() -> None:
    y, logit = _world()
    verdict = gates.first(BINARY, y, _sigmoid(logit), binary.Gates())
    assert verdict.promote
    assert verdict.champion is verdict.difference is verdict.interval is None
    assert {check.name for check in verdict.checks} == {"class", "floor auc", "ceiling ece"}


def test_a_verdict_survives_json() -> None:
    y, logit = _world()
    old, new = _model(logit, 3.0, 1), _model(logit, 0.3, 2)
    for verdict in (
        gates.compare(BINARY, y, old, new, binary.Gates(), blocks=BLOCKS),
        gates.first(BINARY, y, new, binary.Gates()),
    ):
        text = json.dumps(verdict.to_dict(), allow_nan=False)
        assert gates.Verdict.from_dict(json.loads(text)) == verdict


def test_the_same_seed_gives_the_same_interval() -> None:
    y, logit = _world()
    a, b = _model(logit, 1.0, 1), _model(logit, 0.9, 2)
    first, again, other = (
        gates.difference_interval(BINARY, y, a, b, "auc", BLOCKS, 200, 0.9, seed) for seed in (7, 7, 8)
    )
    assert first == again
    assert first[0] == other[0]
    assert first[1:] != other[1:]


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_the_draw_is_paired_and_matches_explicit_resampling(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    y, logit = _world()
    a, b = _model(logit, 1.0, 1), _model(logit, 0.8, 2)
    monkeypatch.setattr(gates, "_CELLS", 10_000)  # several chunks
    weights = np.concatenate(list(gates._draws(14, ROWS, 100, 7)))
    assert weights.shape == (100, 14)
    assert (weights.sum(axis=1) == 13).all()
    sign = BINARY.metrics[metric].better
    expected = []
    for counts in weights:
        rows = np.repeat(np.arange(ROWS), counts[BLOCKS])
        before, after = (BINARY.score(y[rows], p[rows])[metric] for p in (a, b))
        expected.append(sign * (after - before))
    tail = stats.norm.cdf(stats.t.ppf(0.05, df=13))
    _, low, high = gates.difference_interval(BINARY, y, a, b, metric, BLOCKS, 100, 0.9, 7)
    assert (low, high) == pytest.approx(tuple(np.quantile(expected, [tail, 1 - tail])), abs=1e-12)


def _moody(logit: np.ndarray, blocks: np.ndarray, seed: int) -> np.ndarray:
    """A model whose sharpness changes from day to day, as with real models."""
    random = np.random.default_rng(seed)
    sharpness = random.choice([0.1, 1.6], size=blocks.max() + 1)[blocks]
    return _sigmoid(sharpness * logit + 0.5 * random.normal(size=len(logit)))


def _trials(count: int, blocks: np.ndarray, drawn: np.ndarray) -> list[tuple[float, float, float]]:
    """Intervals of two models of equal expected quality, on new days each time."""
    found = []
    for trial in range(count):
        random = np.random.default_rng(1000 + trial)
        logit = 1.5 * random.normal(size=len(blocks))
        y = (random.random(len(blocks)) < _sigmoid(logit)).astype(int)
        a, b = _moody(logit, blocks, 5000 + trial), _moody(logit, blocks, 9000 + trial)
        found.append(gates.difference_interval(BINARY, y, a, b, "log_loss", drawn, 200, 0.9, trial))
    return found


@pytest.mark.parametrize("count", [7, 14, 28])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(count: int) -> None:
    blocks = np.arange(count * 80) // 80
    intervals = _trials(600, blocks, blocks)
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    promoted = np.mean([low > 0 for _, low, _ in intervals])
    assert 0.85 <= covered <= 0.94, "nominal 0.90, with a standard error of 0.012"
    assert promoted <= 0.08, "nominal 0.05: two equal models"


def test_rows_of_a_day_are_not_independent() -> None:
    blocks = np.arange(14 * 80) // 80
    by_row = _trials(60, blocks, np.arange(14 * 80))
    assert np.mean([low <= 0 <= high for _, low, high in by_row]) < 0.8, "the interval of single rows is far too narrow"


def test_time_blocks_are_whole_spans_of_utc() -> None:
    moments = pd.Series(
        pd.to_datetime(["2013-04-01T23:59:59-04:00", "2013-04-02T00:00:00Z", "2013-04-02T23:59:59Z", "2013-04-03"],
                       utc=True, format="ISO8601")
    )  # fmt: skip
    days = gates.time_blocks(moments, timedelta(days=1))
    assert (days - days[1]).tolist() == [0, 0, 0, 1]
    hours = gates.time_blocks(moments, timedelta(hours=12))
    assert (hours - hours[1]).tolist() == [0, 0, 1, 2]


def test_few_rows_of_a_class_are_too_few_to_judge() -> None:
    y, logit = _world()
    y[np.flatnonzero(y)[9:]] = 0
    verdict = gates.first(BINARY, y, _sigmoid(logit), binary.Gates(floors={}, ceilings={}))
    assert not verdict.promote
    assert "the hold-out has 9 rows outside its most frequent class and the gate needs 10" in verdict.reason


def _shops(random: np.random.Generator, rows: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels with few positives, and an ideal model's probabilities for them."""
    logit = random.normal(size=rows) * 1.2 + np.log(share / (1 - share))
    return (random.random(rows) < _sigmoid(logit)).astype(int), logit


@pytest.mark.parametrize(("share", "values"), [(0.03, 12), (0.1, 30)])
def test_two_equally_good_models_rarely_fail_a_slice_and_a_harmed_one_does(share: float, values: int) -> None:
    rows, trials = 6_000, 30
    blocks = np.arange(rows) * 21 // rows
    policy = binary.Gates(slices=("shop",), slice_min_rows=200, slice_tolerance=0.03, **OPEN | {"resamples": 100})
    by_point, failed, caught = 0, 0, 0
    for trial in range(trials):
        random = np.random.default_rng(trial)
        y, logit = _shops(random, rows, share)
        shop = random.choice(values, rows, p=np.arange(1, values + 1) / np.arange(1, values + 1).sum()).astype(str)
        old, new = _model(logit, 1.0, 3 * trial + 1), _model(logit, 1.0, 3 * trial + 2)
        verdict = gates.compare(BINARY, y, old, new, policy, blocks=blocks, slices={"shop": shop})
        found = [check for check in verdict.checks if check.name.startswith("slice")]
        failed += any(not check.passed for check in found)
        by_point += any(check.value is not None and check.value < check.limit for check in found)
        if trial < 4:
            harmed = np.where(shop == str(values - 1), _sigmoid(-logit), new)
            verdict = gates.compare(BINARY, y, old, harmed, policy, blocks=blocks, slices={"shop": shop})
            caught += not _check(verdict, f"slice shop={values - 1}").passed
    assert by_point >= 0.5 * trials, "as a decision by the point estimate would"
    assert failed <= 2, "nominal 2.5 % of gates"
    assert caught == 4


@pytest.mark.parametrize("rows", [200, 400])
def test_a_calibrated_model_passes_its_ceiling_on_a_small_holdout(rows: int) -> None:
    ece, kept = [], []
    for trial in range(200):
        random = np.random.default_rng(trial)
        p = random.beta(2, 4, rows)
        y = (random.random(rows) < p).astype(int)
        ece.append(BINARY.score(y, p)["ece"])
        kept.append(evaluation.miscalibration(y, p))
    assert np.mean(ece) > 0.06
    assert np.mean(kept) < 0.03
    assert np.quantile(kept, 0.95) < 0.1
    random = np.random.default_rng(0)
    p = random.beta(2, 4, 20_000)
    y = (random.random(20_000) < p / 2).astype(int)
    assert evaluation.miscalibration(y, p) == pytest.approx(p.mean() / 2, abs=0.01), "a real error still fails"


def test_a_verdict_of_an_older_kubeloop_can_be_read() -> None:
    check = {"name": "floor auc", "passed": True, "value": 0.7, "limit": 0.6}
    old = {
        "promote": True, "reason": "", "metric": "auc", "champion": 0.7, "challenger": 0.7, "difference": 0.0,
        "interval": [0.0, 0.1], "confidence": 0.95, "checks": [check],
    }  # fmt: skip
    read = gates.Verdict.from_dict(old)
    assert (read.interval, read.rows, read.checks[0].interval) == ((0.0, 0.1), None, None)


@pytest.mark.parametrize(("refuse", "promote"), [(False, True), (True, False)])
def test_a_verdict_repeats_what_training_warned_of(refuse: bool, promote: bool) -> None:
    y, logit = _world()
    policy = binary.Gates(refuse_on_warning=refuse, **OPEN)
    plain = gates.first(BINARY, y, _model(logit, 1.0, 1), policy)
    assert gates.warned(plain, [], policy) == plain
    verdict = gates.warned(plain, ["'closed' alone predicts the label", "b", "c", "d"], policy)
    assert verdict.promote is promote
    assert verdict.warnings == ("'closed' alone predicts the label", "b", "c", "d")
    start = "Promoted: first model" if promote else "Rejected: gates.refuse_on_warning is set. Without it: Promoted: "
    assert verdict.reason.startswith(start)
    end = "Warning: 'closed' alone predicts the label. Warning: b. Warning: c. Warnings in the model's card: 4."
    assert verdict.reason.endswith(end)
    assert gates.Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    before = {name: value for name, value in plain.to_dict().items() if name != "warnings"}
    assert gates.Verdict.from_dict(before) == plain, "a verdict of an older kubeloop has none"

"""Bets on the differences of blocks: level, power, intervals."""

import math

import numpy as np
import pytest

from kubeloop.judge import bets

LIMIT = math.log(20)


def crossed(d: np.ndarray, null: float, *, worse: bool) -> bool:
    return any(bets.wealth(d[:n], null, 0.3, worse=worse) >= LIMIT for n in range(1, len(d) + 1))


def test_without_a_difference_looking_daily_costs_nothing() -> None:
    rng = np.random.default_rng(1)
    found = [crossed(rng.normal(0, 0.07, 60), 0.0, worse=True) for _ in range(200)]
    assert np.mean(found) <= 0.05


def test_a_worse_metric_is_found_and_a_better_one_is_proven() -> None:
    rng = np.random.default_rng(2)
    assert np.mean([crossed(rng.normal(-0.1, 0.07, 40), 0.0, worse=True) for _ in range(50)]) > 0.9
    assert np.mean([crossed(rng.normal(0.0, 0.03, 60), -0.05, worse=False) for _ in range(50)]) > 0.9
    assert np.mean([crossed(rng.normal(-0.05, 0.03, 60), -0.05, worse=False) for _ in range(100)]) <= 0.08


def test_heavy_tails_are_clipped_not_believed() -> None:
    d = np.array([-50.0] + [0.01] * 30)
    assert bets.wealth(d, 0.0, 0.3, worse=True) < LIMIT


def test_wealth_is_that_of_the_formula() -> None:
    stakes = np.geomspace(1 / 64, 0.98, 24) / 0.3
    by_hand = np.mean([(1 + s * 0.1) * (1 - s * 0.2) for s in stakes])
    assert bets.wealth([-0.1, 0.2], 0.0, 0.3, worse=True) == pytest.approx(math.log(by_hand))
    assert bets.wealth([], 0.0, 0.3, worse=True) == 0.0


def test_the_interval_holds_the_mean_and_closes_in() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(60):
        d = rng.normal(-0.04, 0.05, 60)
        ends = [bets.interval(d[:n], 0.3, 0.05) for n in (5, 20, 60)]
        inside += all(low <= -0.04 <= high for low, high in ends)
        assert ends[2][1] - ends[2][0] < ends[0][1] - ends[0][0]
    assert inside >= 56


def test_blocks_that_follow_each_other_are_noticed() -> None:
    rng = np.random.default_rng(4)
    walk = np.zeros(200)
    for n in range(1, 200):
        walk[n] = 0.8 * walk[n - 1] + rng.normal()
    assert bets.autocorrelation(walk) > 0.6
    assert abs(bets.autocorrelation(rng.normal(size=200))) < 0.2
    assert bets.autocorrelation(walk[:5]) == 0.0

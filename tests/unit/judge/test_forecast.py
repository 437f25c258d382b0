"""What is said of a rollout before it starts agrees with what a rollout then does."""

import pytest

from kubeloop.config.rollout import Rollout
from kubeloop.judge import forecast

STEPS = ((0.05, 20_000), (0.25, 20_000), (0.5, 20_000))


def test_harm_takes_as_long_as_published() -> None:
    """Errors of 1 % on the schedule 5/25/50 %: some 40, 200, 1,700 and 20,000 requests."""
    found = {delay.factor: delay for delay in forecast.delays(Rollout(), 0.01, STEPS)}
    assert found[100].requests == pytest.approx(45, abs=40)
    assert found[20].requests == pytest.approx(220, rel=0.5)
    assert found[5].requests == pytest.approx(1_900, rel=0.4)
    assert found[2].requests == pytest.approx(20_000, rel=0.3)
    assert found[20].canary == pytest.approx(0.05 * (found[20].requests or 0), abs=1)


def test_more_criteria_take_longer_and_what_is_never_found_is_said() -> None:
    one, five = (forecast.delays(Rollout(), 0.01, STEPS, criteria=n)[2].requests for n in (1, 5))
    assert one is not None
    assert five is not None
    assert one < five
    tolerant = Rollout.model_validate({"errors": {"tolerance": 3, "margin": 6}})
    assert forecast.delays(tolerant, 0.01, STEPS)[-1].requests is None


def test_a_proof_takes_more_requests_the_rarer_errors_are() -> None:
    rare, common = forecast.proof(Rollout(), 0.002, 0.5), forecast.proof(Rollout(), 0.02, 0.5)
    assert rare is not None
    assert common is not None
    assert 5 * common < rare
    guardrail = Rollout.model_validate({"errors": {"margin": None}})
    assert forecast.proof(guardrail, 0.01, 0.5) == 0


def test_a_forecast_follows_the_rate_and_the_share() -> None:
    needed = [forecast.proof(Rollout(), rate, 0.5) for rate in (0.002, 0.003, 0.0035)]
    assert all(needed)
    assert sorted(needed, key=lambda count: count or 0, reverse=True) == needed
    assert len(set(needed)) == 3
    # At 5 % of the traffic a bad event says less than at 50 %, but not seven times less.
    small, half = forecast.proof(Rollout(), 0.01, 0.05), forecast.proof(Rollout(), 0.01, 0.5)
    assert small is not None
    assert half is not None
    assert half < small < 7 * half

"""The judge as a whole: promote, hold and roll back, over a rollout of three steps."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from kubeloop.config import Loop
from kubeloop.config.rollout import Named, Rollout
from kubeloop.judge import ExposureError, Exposures, Judge, Verdict
from kubeloop.tasks import port

START = np.datetime64("2013-04-01T00:00:00", "us")
Draw = Callable[..., Exposures]


def rollout(
    rng: np.random.Generator,
    requests: int = 30_000,
    *,
    days: int = 30,
    failing: float = 1.0,
    slow: float = 1.0,
    blind: float = 0.0,
    shift: float = 0.0,
    unlabelled: float = 0.02,
) -> Exposures:
    """Return a rollout of 5, 25 and 50 percent in which both arms are equally good, except for what is asked for.

    Args:
        rng: draws it.
        requests: of all steps.
        days: that they take.
        failing: times as many errors at the canary, of 0.3 %.
        slow: times as long at the canary.
        blind: share of the canary's answers that are drawn without looking at the request.
        shift: added to the canary's log odds.
        unlabelled: share of the canary's rows without a label; the champion's is 0.02.
    """
    share = np.repeat([0.05, 0.25, 0.5], requests // 3)
    n = len(share)
    canary = rng.random(n) < share
    signal = rng.normal(size=n)
    label = (rng.random(n) < 1 / (1 + np.exp(-2 * signal))).astype(float)
    seen = np.where(canary & (rng.random(n) < blind), rng.normal(size=n), signal)
    label[rng.random(n) < np.where(canary, unlabelled, 0.02)] = np.nan
    failed = rng.random(n) < np.where(canary, 0.003 * failing, 0.003)
    answers = 1 / (1 + np.exp(-(seen + np.where(canary, shift, 0.0))))
    return Exposures(
        at=START + (np.arange(n) * (days * 86_400_000_000 // n)).astype("timedelta64[us]"),
        canary=canary,
        share=share,
        unit=np.arange(n).astype(str).astype(object),
        failed=failed,
        seconds=rng.lognormal(-4, 0.5, n) * np.where(canary, slow, 1.0),
        answers=np.where(failed, np.nan, answers),
        truths=label,
        slices={"origin": rng.choice(["JFK", "LGA"], n).astype(object)},
    )


def follow(judge: Judge, rows: Exposures, days: int = 30) -> tuple[Verdict, int]:
    """Look once a day, as a rollout does, until it is over; return the last verdict and the requests until then."""
    day = np.timedelta64(1, "D")
    for number in range(1, days + 1):
        at = START + number * day
        judge.serve(rows.take((rows.at >= at - day) & (rows.at < at)))
        judge.learn(rows.take((rows.at >= at - 2 * day) & (rows.at < at - day)))
        until = int((rows.at < at).sum())
        verdict = judge.verdict(float(rows.share[until - 1]), waited=timedelta(days=0))
        if verdict.action == "rollback":
            break
    return verdict, until


@pytest.fixture
def judge(demo: Loop) -> Judge:
    return Judge(demo.rollout, demo.gates, port.of(demo), slices=[("origin", "JFK"), ("origin", "LGA")])


def test_a_version_that_is_like_the_champion_is_promoted(judge: Judge) -> None:
    verdict, _ = follow(judge, rollout(np.random.default_rng(1), 90_000))
    assert verdict.action == "promote"
    assert {one.name: one.proven for one in verdict.findings} == {
        "errors": True, "latency": True, "labels": None, "distribution": None, "quality": None,
        "quality origin=JFK": None, "quality origin=LGA": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "name", "most"),
    [
        ({"failing": 300.0}, "errors", 2_000),
        ({"failing": 5.0}, "errors", 15_000),
        ({"slow": 3.0}, "latency", 2_000),
        ({"unlabelled": 0.5}, "labels", 6_000),
        ({"shift": 4.0}, "distribution", 4_000),
        ({"blind": 1.0}, "quality", 30_000),
    ],
)
def test_harm_is_rolled_back_by_its_name(judge: Judge, harm: dict[str, Any], name: str, most: int) -> None:
    verdict, requests = follow(judge, rollout(np.random.default_rng(2), **harm))
    assert verdict.action == "rollback"
    assert verdict.reason.startswith(name)
    assert requests <= most


def test_a_difference_alone_is_not_harm(judge: Judge) -> None:
    verdict, _ = follow(judge, rollout(np.random.default_rng(3), 90_000, shift=0.3))
    assert verdict.action == "promote"


def test_harmless_versions_are_rolled_back_at_most_as_often_as_alpha(demo: Loop) -> None:
    """All criteria together, looked at every day of 30 rollouts."""
    wrong = 0
    for seed in range(30):
        judge = Judge(demo.rollout, demo.gates, port.of(demo), slices=[("origin", "JFK")])
        wrong += follow(judge, rollout(np.random.default_rng(100 + seed), 9_000))[0].action == "rollback"
    assert wrong <= 3


def test_a_harm_in_one_slice_is_named(demo: Loop) -> None:
    rows = rollout(np.random.default_rng(4), 60_000, days=60)
    worse = rows.canary & (rows.slices["origin"] == "JFK")
    noise = np.random.default_rng(5).random(len(rows))
    rows = replace(rows, answers=np.where(worse & np.isfinite(rows.answers), noise, rows.answers))
    judge = Judge(demo.rollout, demo.gates, port.of(demo), slices=[("origin", "JFK"), ("origin", "LGA")])
    judge.serve(rows)
    judge.learn(rows)
    assert judge.verdict(0.5).action == "rollback"
    harmful = {one.name for one in judge.findings(0.5) if one.harmful}
    assert "quality origin=JFK" in harmful
    assert "quality origin=LGA" not in harmful


def test_little_traffic_is_a_hold_that_says_how_much_is_missing(judge: Judge) -> None:
    judge.serve(rollout(np.random.default_rng(1)).take(slice(0, 10_000)))
    verdict = judge.verdict(0.5)
    assert verdict.action == "hold"
    assert verdict.needed is not None
    rest = rollout(np.random.default_rng(101), 300_000)
    rest = rest.take(rest.share == 0.5)
    for end in range(2_000, len(rest) + 1, 2_000):
        judge.serve(rest.take(slice(end - 2_000, end)))
        if judge.verdict(0.5).action == "promote":
            break
    assert verdict.needed / 4 < end < 4 * verdict.needed


@pytest.mark.parametrize("said", ["hold", "promote", "rollback"])
def test_a_rollout_that_waits_too_long_ends_as_its_policy_says(demo: Loop, said: str) -> None:
    policy = Rollout.model_validate({"on_timeout": said, "max_wait": "2d"})
    judge = Judge(policy, demo.gates, port.of(demo))
    judge.serve(rollout(np.random.default_rng(8), 300))
    assert judge.verdict(0.5, waited=timedelta(days=1)).action == "hold"
    assert judge.verdict(0.5, waited=timedelta(days=2)).action == said


def test_no_traffic_proves_nothing(judge: Judge) -> None:
    assert judge.verdict(0.05).action == "hold"


def test_traffic_that_was_divided_otherwise_has_no_verdict(judge: Judge) -> None:
    rows = rollout(np.random.default_rng(9), 3_000)
    judge.serve(replace(rows, share=np.full(len(rows), 0.9)))
    verdict = judge.verdict(0.9)
    assert (verdict.action, verdict.valid) == ("hold", False)
    assert "90.0%" in verdict.reason


def test_entities_that_stay_on_their_arm_count_once(demo: Loop) -> None:
    """A few entities with most of the requests: their failures are one event each."""
    policy = Rollout.model_validate({"unit": "entity", "latency": None, "distribution": None, "quality": None})
    wrong = wrong_by_request = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        entity = rng.zipf(1.5, 4_000) % 400
        canary = (rng.random(400) < 0.5)[entity]
        failed = rng.random(4_000) < (rng.beta(0.05, 1, 400))[entity]
        rows = Exposures(
            at=START + np.arange(4_000).astype("timedelta64[s]"), canary=canary, share=np.full(4_000, 0.5),
            unit=entity.astype(str).astype(object), failed=failed, seconds=np.full(4_000, np.nan),
            answers=np.full(4_000, 0.5), truths=np.full(4_000, np.nan),
        )  # fmt: skip
        by_entity = Judge(policy, demo.gates, port.of(demo))
        by_request = Judge(policy.model_copy(update={"unit": "request"}), demo.gates, port.of(demo))
        for part in range(0, 4_000, 200):
            for one in (by_entity, by_request):
                one.serve(rows.take(slice(part, part + 200)))
            wrong += by_entity.findings(0.5)[0].harmful
            wrong_by_request += by_request.findings(0.5)[0].harmful
    assert wrong <= 3 * 20
    assert wrong_by_request > 3 * wrong + 60


def test_a_metric_of_the_users_own_rolls_back(demo: Loop) -> None:
    policy = demo.rollout.model_copy(update={"metrics": (Named(name="complaint"),)})
    judge = Judge(policy, demo.gates, port.of(demo))
    rows = rollout(np.random.default_rng(10), 6_000)
    with pytest.raises(ExposureError, match="complaint"):
        judge.serve(rows)
    judge = Judge(policy, demo.gates, port.of(demo))
    complaint = np.random.default_rng(11).random(len(rows)) < np.where(rows.canary, 0.2, 0.02)
    judge.serve(replace(rows, metrics={"complaint": complaint.astype(float)}))
    verdict = judge.verdict(0.5)
    assert (verdict.action, verdict.reason.partition(":")[0]) == ("rollback", "complaint")


def test_a_judge_that_was_killed_goes_on_where_it_was(judge: Judge, demo: Loop) -> None:
    rows = rollout(np.random.default_rng(12), failing=4.0)
    day = np.timedelta64(1, "D")
    again = judge
    for number in range(12):
        at = START + number * day
        part = rows.take((rows.at >= at) & (rows.at < at + day))
        for one in {judge, again}:
            one.serve(part)
            one.learn(part)
        fresh = Judge(demo.rollout, demo.gates, port.of(demo), slices=[("origin", "JFK"), ("origin", "LGA")])
        fresh.load(json.loads(json.dumps(again.to_dict())))
        again = fresh
    assert again.verdict(0.25).to_dict() == judge.verdict(0.25).to_dict()
    found = judge.verdict(0.25)
    assert Verdict.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_judge_does_not_take_over_the_state_of_other_criteria(judge: Judge, demo: Loop) -> None:
    other = Judge(demo.rollout.model_copy(update={"latency": None}), demo.gates, port.of(demo))
    with pytest.raises(ExposureError, match="criteria"):
        other.load(judge.to_dict())


def test_events_that_do_not_say_what_failed_prove_nothing(judge: Judge) -> None:
    rows = rollout(np.random.default_rng(13), 60_000)
    judge.serve(replace(rows, failed=np.zeros(0, dtype=bool)))
    verdict = judge.verdict(0.5)
    assert verdict.action == "hold"
    assert verdict.findings[0].proven is False


def test_guardrails_need_a_canary_that_was_asked(demo: Loop) -> None:
    policy = Rollout.model_validate({"errors": {"margin": None, "acceptable": None}, "latency": None})
    judge = Judge(policy, demo.gates, port.of(demo))
    assert judge.verdict(0.05).action == "hold"


def test_of_entities_only_harm_is_proven(demo: Loop) -> None:
    """Each entity meets an error sooner or later: then the arms are equal, whatever their error rates."""
    policy = Rollout.model_validate({"unit": "entity", "distribution": None, "quality": None})
    rng = np.random.default_rng(14)
    entity = rng.integers(0, 500, 40_000)
    canary = (rng.random(500) < 0.5)[entity]
    rows = Exposures(
        at=START + np.arange(40_000).astype("timedelta64[s]"), canary=canary, share=np.full(40_000, 0.5),
        unit=entity.astype(str).astype(object), failed=rng.random(40_000) < np.where(canary, 0.2, 0.05),
        seconds=rng.lognormal(-4, 0.5, 40_000), answers=np.full(40_000, 0.5), truths=np.full(40_000, np.nan),
    )  # fmt: skip
    judge = Judge(policy, demo.gates, port.of(demo))
    judge.serve(rows)
    assert [one.proven for one in judge.findings(0.5)[:2]] == [None, None]


def test_a_metric_that_depends_on_the_number_of_rows_is_compared_on_equally_many(demo: Loop) -> None:
    """The calibration error of few rows is larger: at a share of 5 % an equal canary would look worse."""
    gates = demo.gates.model_copy(update={"metric": "ece"})
    task = port.of(demo.model_copy(update={"gates": gates}))
    wrong = 0
    for seed in range(20):
        rng = np.random.default_rng(200 + seed)
        rows = rollout(rng, 30_000)
        canary = rng.random(len(rows)) < 0.05
        rows = replace(rows, canary=canary, share=np.full(len(rows), 0.05))
        judge = Judge(demo.rollout, gates, task, reference=0.05)
        judge.learn(rows)
        wrong += next(one for one in judge.findings(0.05) if one.name == "quality").harmful
    assert wrong <= 1


def test_answers_that_many_requests_share_are_not_on_an_edge(judge: Judge) -> None:
    rng = np.random.default_rng(15)
    rows = rollout(rng, 12_000)
    answers = np.where(rng.random(len(rows)) < 0.6, 0.5, rows.answers)
    judge.serve(replace(rows, answers=np.where(rows.canary, answers - 1e-9, answers)))
    assert judge.verdict(0.5).action != "rollback"


def test_harm_is_named_also_where_nothing_can_be_compared(judge: Judge) -> None:
    rows = rollout(np.random.default_rng(16), 12_000)
    judge.serve(replace(rows, answers=np.where(rows.canary, np.nan, rows.answers)))
    verdict = judge.verdict(0.5)
    assert "nothing to compare" not in verdict.reason


def test_a_slice_without_its_column_is_named(judge: Judge) -> None:
    rows = rollout(np.random.default_rng(17), 300)
    with pytest.raises(ExposureError, match="origin"):
        judge.learn(replace(rows, slices={}))


def test_a_judge_does_not_take_over_the_state_of_another_policy(judge: Judge, demo: Loop) -> None:
    other = Judge(demo.rollout.model_copy(update={"alpha": 0.01}), demo.gates, port.of(demo))
    with pytest.raises(ExposureError, match="criteria"):
        other.load(judge.to_dict())


def test_written_state_does_not_change_with_the_judge(judge: Judge) -> None:
    judge.serve(rollout(np.random.default_rng(18), 60))
    state = judge.to_dict()
    written = json.dumps(state)
    judge.serve(rollout(np.random.default_rng(19), 60))
    assert json.dumps(state) == written

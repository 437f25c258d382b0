from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kubeloop.config import Drift
from kubeloop.monitoring import policy
from kubeloop.monitoring.detector.port import Score
from kubeloop.monitoring.policy import Episode, Vote
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.intervals import Estimate

DRIFT = Drift(alpha=0.01, min_effect=0.2, min_importance=0.1, votes=2, of=3, min_auc=0.6, max_auc_drop=0.05)
IMPORTANCE = {"a": 0.5, "b": 0.45, "c": 0.05}
START = datetime(2013, 4, 1, tzinfo=UTC)
WEEK = timedelta(weeks=1)


def score(feature: str, p_value: float, effect: float, kind: Any = "numeric") -> Score:
    return Score(feature, kind, effect, p_value, effect, 0.0, 1000, 0.0)


@pytest.mark.parametrize(
    ("case", "scores", "drifted", "features"),
    [
        ("nothing changed", [score("a", 0.5, 0.05), score("b", 0.4, 0.04)], False, []),
        ("certain but small", [score("a", 1e-30, 0.19)], False, []),
        ("large but not certain", [score("a", 0.02, 0.5)], False, []),
        ("certain and large", [score("a", 1e-5, 0.2), score("b", 0.9, 0.01)], True, ["a"]),
        ("at alpha is not under it", [score("a", 0.01, 0.5)], False, []),
        ("Holm makes up for many tests", [score("a", 0.006, 0.5), score("b", 0.9, 0.0)], False, []),
        ("an unimportant feature alone", [score("c", 1e-9, 0.9)], False, ["c"]),
        ("unimportant ones add up", [score("c", 1e-9, 0.9), score("a", 1e-9, 0.3)], True, ["a", "c"]),
        ("the model's own score", [score("score", 1e-9, 0.3, "score")], True, ["score"]),
        ("the model's score, but little", [score("score", 1e-9, 0.1, "score")], False, []),
        ("a feature nobody weighed", [score("x", 1e-9, 0.9)], False, ["x"]),
        ("nothing was measured", [], False, []),
    ],
)
def test_a_window_drifts_by_significance_effect_and_importance(
    case: str, scores: list[Score], drifted: bool, features: list[str]
) -> None:
    verdict = policy.judge(scores, IMPORTANCE, DRIFT)
    assert (verdict.drifted, [j.score.feature for j in verdict.features]) == (drifted, features), case


def test_a_feature_called_score_is_weighed_as_a_feature() -> None:
    verdict = policy.judge([score("score", 1e-9, 0.9)], {"score": 0.05}, DRIFT)
    assert (verdict.drifted, verdict.prediction_drifted, verdict.importance) == (False, False, 0.05)


@pytest.mark.parametrize(
    ("auc", "reference", "drifted", "words"),
    [
        ((0.75, 0.75, 0.75), (0.75, 0.75, 0.75), False, ""),
        ((0.71, 0.71, 0.71), (0.75, 0.75, 0.75), False, ""),
        ((0.69, 0.69, 0.69), (0.75, 0.75, 0.75), True, "AUC 0.690 (0.690 to 0.690), more than 0.050 under the 0.750"),
        ((0.69, 0.67, 0.71), (0.75, 0.75, 0.75), False, ""),
        ((0.69, 0.689, 0.691), (0.75, 0.72, 0.77), False, ""),
        ((0.60, 0.56, 0.64), (0.75, 0.72, 0.77), True, "more than 0.050 under the 0.750"),
        ((0.59, 0.59, 0.59), (0.62, 0.62, 0.62), True, "under the floor of 0.600"),
        ((0.55, 0.48, 0.62), None, False, ""),
        ((0.61, 0.61, 0.61), None, False, ""),
        ((0.50, 0.45, 0.55), None, True, "floor"),
    ],
)
def test_a_model_falls_short_where_the_interval_lies_under_the_floor_or_its_holdout(
    auc: tuple[float, ...], reference: tuple[float, ...] | None, drifted: bool, words: str
) -> None:
    verdict = policy.performance(
        BINARY.headline, Estimate(*auc), None if reference is None else Estimate(*reference), DRIFT
    )
    assert verdict.drifted is drifted
    assert words in verdict.reason


def votes(text: str, first: int = 0) -> list[Vote]:
    """One letter per weekly window, D for a drifted one."""
    return [
        Vote(
            START + WEEK * i, START + WEEK * (i + 1), c == "D", (("a", 0.4, 0.5), ("c", 0.3, 0.05)) if c == "D" else ()
        )
        for i, c in enumerate(text, first)
    ]


def propose(found: list[Vote], past: tuple[Episode, ...] = (), kind: Any = "drift") -> Episode | None:
    return policy.propose("flights", "3", kind, found, found[-1].end, past, DRIFT)


def past(closed_after: int | None) -> Episode:
    closed = None if closed_after is None else START + WEEK * closed_after
    return Episode("e", "flights", "2", "drift", START, START, (), "", closed, closed and "replaced")


@pytest.mark.parametrize(
    ("case", "found", "earlier", "opens"),
    [
        ("one vote of two", votes("D"), (), False),
        ("two in a row", votes("DD"), (), True),
        ("two of the last three", votes("DnD"), (), True),
        ("too far apart", votes("DnnD"), (), False),
        ("calm", votes("nnnn"), (), False),
        ("one is open", votes("DDD"), (past(None),), False),
        ("votes from before the end of the last do not count", votes("DDD"), (past(2),), False),
        ("nor does the window in which it ended", votes("DDDD", 0), (past(2),), True),
        ("a window that began at its end counts", votes("DD", 2), (past(2),), True),
        ("only the newest end counts", votes("DDDD"), (past(1), past(3)), False),
    ],
)
def test_an_episode_opens_by_votes(case: str, found: list[Vote], earlier: tuple[Episode, ...], opens: bool) -> None:
    assert (propose(found, earlier) is not None) == opens, case


def test_an_episode_says_what_drifted_and_where() -> None:
    episode = propose(votes("DnD"))
    assert episode == Episode(
        id="flights-20130422t000000z",
        service="flights",
        version="3",
        kind="drift",
        window_end=START + 3 * WEEK,
        opened_at=START + 3 * WEEK,
        features=("a", "c"),
        reason="a (effect 0.40), c (effect 0.30) drifted, 55% of the model's importance, in 2 of the last 3 windows of "
        "model version 3 (1w from 2013-04-01, 2013-04-15).",
    )


def test_an_episode_of_performance_gives_the_newest_numbers() -> None:
    found = [Vote(START + WEEK * i, START + WEEK * (i + 1), True, (), f"AUC 0.5{i}") for i in range(2)]
    episode = propose(found, kind="performance")
    assert episode is not None
    assert episode.reason == (
        "The model fell short in 2 of the last 2 windows of model version 3 (1w from 2013-04-01, 2013-04-08); "
        "the newest has AUC 0.51."
    )
    assert episode.features == ()


@pytest.mark.parametrize(
    ("replaced", "now", "expected"),
    [
        (None, 1, None),
        (0.5, 1, (0.5, "replaced")),
        (None, 2, (2, "expired")),
        (0.5, 3, (0.5, "replaced")),
        (2.5, 3, (2, "expired")),
    ],
)
def test_an_episode_ends_when_the_model_is_replaced_or_the_cooldown_is_over(
    replaced: float | None, now: float, expected: tuple[float, str] | None
) -> None:
    episode = past(None)
    moment = None if replaced is None else START + WEEK * replaced
    found = policy.end(episode, moment, START + WEEK * now, Drift(cooldown=2 * WEEK))
    assert found == (expected and (START + WEEK * expected[0], expected[1]))

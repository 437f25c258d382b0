"""Sentences that are honest if nothing was promoted, if the gain is not proven, and if the loop did worse."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kubeloop.models.registry import Version
from kubeloop.report import words
from kubeloop.report.facts import Facts


def _facts(promoted: list[bool], episodes: int) -> Facts:
    versions = [
        Version("parcels", str(number), "", "", "", "", 0, tags={"kubeloop.promoted_at": "2026"} if through else {})
        for number, through in enumerate(promoted, 1)
    ]
    return Facts(versions=versions, episodes=[{}] * episodes)


def _summary(difference: float | None = None, low: float = 0.0, high: float = 0.0) -> dict[str, Any]:
    loop = None if difference is None else 0.72 + difference
    return {"quality": {"title": "AUC", "frozen": 0.72, "loop": loop, "difference": difference, "ci95": [low, high]}}


@pytest.mark.parametrize(
    ("promoted", "episodes", "summary", "tone", "said"),
    [
        ([], 0, None, "open", "The run has not finished: no model has been trained yet."),
        ([True], 0, None, "open", "The run has not finished. So far: no episodes, no retrained model, 5 predictions"),
        ([], 0, _summary(), "open", "No episodes, no retrained model; no model has been trained yet."),
        ([False], 0, _summary(), "open", "no model has passed the gate and started, so none serves."),
        ([True], 0, _summary(), "open", "version 1, the first model, still serves"),
        ([True, False], 2, _summary(), "open", "2 episodes, 1 retrained model, none promoted; version 1, the first"),
        ([True, True], 1, _summary(), "open", "has not answered a labelled prediction yet"),
        ([True, True, True], 5, _summary(0.021, 0.018, 0.024), "good",
         "5 episodes, 2 retrained models promoted; the loop's AUC is 0.741 against 0.720 of the frozen first model "
         "(+0.021, 95% interval +0.018 to +0.024)."),
        ([True, True, False], 1, _summary(0.003, -0.002, 0.008), "open",
         "1 episode, 2 retrained models, 1 promoted; no gain is proven: the loop's AUC is 0.723 against 0.720"),
        ([True, True], 1, _summary(-0.02, -0.03, -0.01), "bad",
         "the loop did worse than without retraining: its AUC is 0.700 against 0.720"),
        ([False, True], 0, _summary(), "open", "No episodes, 1 retrained model, none promoted; version 2, the first"),
    ],
)  # fmt: skip
def test_verdict(promoted: list[bool], episodes: int, summary: Any, tone: str, said: str) -> None:
    sentence, found = words.verdict(_facts(promoted, episodes), summary, 5)
    assert said in sentence
    assert found == tone


@pytest.mark.parametrize(
    ("served", "uncertain", "said"),
    [
        (10, 0, []),
        (11, 0, ["Warning: the payload log lacks 1 prediction that clients got"]),
        (8, 0, ["Warning: the payload log holds 2 predictions more than clients of the replay got"]),
        (10, 3, ["3 predictions of a session that was killed: settled later from the log"]),
        (12, 3, ["Warning: the payload log lacks 2", "3 predictions of a session"]),
    ],
)
def test_accounts(served: int, uncertain: int, said: list[str]) -> None:
    counts = {"served": served, "logged": 7, "dropped": 3, "errors": 0, "uncertain": uncertain}
    found = words.accounts({"predictions": counts})
    assert len(found) == len(said)
    assert all(sentence.startswith(start) for sentence, start in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("accepted", "decision", "said"),
    [
        (None, None, "The trigger has not answered yet."),
        (True, "starts run-1", "The trigger started one run."),
        (
            False,
            "absorbed: x is in its cooldown until 2024-02-05T00:00:00+00:00",
            "a run: x is in its cooldown until 2024-02-05.",
        ),
        (
            False,
            "absorbed: x is in its cooldown until 2024-02-05T10:30:00+00:00",
            "a run: x is in its cooldown until 2024-02-05 10:30.",
        ),
        (False, "absorbed: run-1 is running", "a run: run-1 is running."),
    ],
)
def test_trigger(accepted: bool | None, decision: str | None, said: str) -> None:
    assert words.trigger(accepted, decision).endswith(said)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [("refused", "at once"), ("replaced", "on 2024-02-05, when another"), ("expired", "2024-02-05: the cooldown")],
)
def test_ended(outcome: str, said: str) -> None:
    assert said in words.ended(outcome, datetime(2024, 2, 5, tzinfo=UTC))


@pytest.mark.parametrize(
    ("value", "said"),
    [(12.4, "12 s"), (99.0, "99 s"), (300.0, "5 min"), (timedelta(hours=3), "3 h"), (timedelta(days=4), "4 days")],
)
def test_length(value: float | timedelta, said: str) -> None:
    assert words.length(value) == said

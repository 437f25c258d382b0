from typing import Any

from kubeloop.backtest import policies
from kubeloop.report import tradeoff, tradeoff_words


def result(low: float = -0.002, high: float = 0.004) -> dict[str, Any]:
    def row(name: str, difference: float | None, count: int, **more: Any) -> dict[str, Any]:
        against = (
            None if difference is None else {"value": difference, "interval": [difference - 0.01, difference + 0.01]}
        )
        worst = {"start": "2013-07-01T00:00:00+00:00", "value": 0.61, "rows": 900, "positives": 210}
        found = {"policy": name, "oracle": False, "value": 0.7, "interval": [0.69, 0.71], "difference": against}
        return found | {"retrainings": count, "promotions": 1, "failed": 0, "worst": worst} | more

    return {
        "metric": "auc",
        "confidence": 0.95,
        "start": "2013-04-01T00:00:00+00:00",
        "until": "2013-12-30T00:00:00+00:00",
        "window": "1w",
        "windows": 39,
        "rows": 1000,
        "positives": 200,
        "policies": [
            row("frozen", None, 0),
            row(policies.MONTHLY, 0.02, 8),
            row(policies.EITHER, 0.021, 8),
            row("<script>", -0.01, 3, worst=None, failed=1),
            row("oracle", 0.05, 38, oracle=True),
        ],
        "drift_against_monthly": {"value": 0.001, "interval": [low, high]},
        "suggested": policies.MONTHLY,
    }


def test_a_policy_is_drawn_at_its_retrainings_and_its_difference() -> None:
    drawn = tradeoff.build(result())
    plot = str(drawn["chart"].plot)
    assert plot.count("<circle") == 4, "the first is the line that the others are compared with"
    assert plot.count("estimate promoted") == 1
    assert "<script>" not in plot
    assert "&lt;script&gt;" in plot
    assert [row["cells"][0] for row in drawn["rows"]][-1] == "oracle (hindsight)"
    assert [row["suggested"] for row in drawn["rows"]] == [False, True, False, False, False]


def test_the_sceptic_gets_one_of_three_answers() -> None:
    assert "does not show it" in tradeoff_words.answer(result())[0]
    assert "Yes, on this history" in tradeoff_words.answer(result(low=0.0005))[0]
    assert "every month is better" in tradeoff_words.answer(result(high=-0.0005))[0]
    assert tradeoff_words.answer(result() | {"drift_against_monthly": None}) == []


def test_cells_say_what_is_missing() -> None:
    found = [tradeoff_words.cells(row) for row in result()["policies"]]
    assert found[0][3] == "–"
    assert found[3][4] == "3 (1 failed)"
    assert found[3][6] == "–"
    assert found[1][6] == "0.610, from 2013-07-01, 210 of 900 positive"


def test_what_was_just_applied_is_not_advised() -> None:
    found = result()
    assert "--apply suggested" in tradeoff_words.suggestion(found)
    assert "--apply suggested" in tradeoff_words.suggestion(found, "another")
    assert "--apply" not in tradeoff_words.suggestion(found, found["suggested"])

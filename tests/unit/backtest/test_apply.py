import pytest

from kubeloop.backtest import apply
from kubeloop.config import ConfigError, Loop
from tests.unit.backtest.conftest import LOOP

MONTHLY = {"drift": {"retrain_on": [], "retrain_every": "30d"}}


def test_only_the_policy_changes_and_comments_stay() -> None:
    edit = apply.apply(LOOP, MONTHLY, "every month: auc 0.7")
    assert edit.text == LOOP.replace("drift:   #", "# kubeloop backtest: every month: auc 0.7\ndrift:   #").replace(
        "  label_wait: 2d\n", "  label_wait: 2d\n  retrain_on: []\n  retrain_every: 30d\n"
    )
    assert edit.changes == ["drift.retrain_on: [drift, performance] → []", "drift.retrain_every: None → 30d"]


def test_another_policy_takes_the_place_of_the_first() -> None:
    once = apply.apply(LOOP, MONTHLY, "every month: auc 0.7").text
    edit = apply.apply(once, {"drift": {"retrain_on": ["drift"], "retrain_every": None}}, "on drift: auc 0.8")
    assert edit.text == LOOP.replace("drift:   #", "# kubeloop backtest: on drift: auc 0.8\ndrift:   #").replace(
        "  label_wait: 2d\n", "  label_wait: 2d\n  retrain_on: [drift]\n"
    )
    assert not apply.apply(edit.text, {"drift": {"retrain_on": ["drift"]}}, "again").changes


@pytest.mark.parametrize(
    "drift",
    [
        "drift: {window: 5d, cooldown: 6d}  # flow\n",
        "drift: {window: 5d, retrain_on: [drift], retrain_every: 9d}\n",
        "drift:\n    window: 5d\n    retrain_on:\n    - drift   # one\n    - performance\n\n# about the replay\n",
        "drift:\n  retrain_every: 9d   # nine\n",
        'drift:\n  "retrain_on": [drift]\n  retrain_every: 9d\n  cooldown: 6d',
        "",
    ],
)
@pytest.mark.parametrize("settings", [MONTHLY, {"drift": {"retrain_on": ["performance"], "retrain_every": None}}])
def test_however_the_section_is_written(drift: str, settings: dict[str, dict[str, object]]) -> None:
    head = "name: shop\nsource: {tables: {visits: {path: v.csv, available_at: seen}}}\nfeatures: {service: s_v1}\n"
    before = Loop.parse(head + drift)
    edit = apply.apply(head + drift, settings, "why")
    after = Loop.parse(edit.text)
    assert edit.text.startswith(head)
    assert list(after.drift.retrain_on) == settings["drift"]["retrain_on"]
    assert (after.drift.retrain_every is None) == (settings["drift"]["retrain_every"] is None)
    same = {"retrain_on": (), "retrain_every": None}
    assert after.drift.model_copy(update=same) == before.drift.model_copy(update=same)
    for comment in ("# flow", "# about the replay"):
        assert (comment in edit.text) == (comment in drift)


@pytest.mark.parametrize("text", ['{"name": "shop"}', "name: shop\ndrift:\n"])
def test_what_cannot_be_changed_in_place_says_so(text: str) -> None:
    full = text.replace(
        '"shop"', '"shop", "source": {"tables": {"v": {"available_at": "t"}}}, "features": {"service": "s"}'
    )
    if not text.startswith("{"):
        full += "source: {tables: {v: {available_at: t}}}\nfeatures: {service: s}\n"
    with pytest.raises(ConfigError):
        apply.apply(full, MONTHLY, "why")

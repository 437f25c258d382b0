"""The gate's page in the Kubeflow UI: a narrow frame without scripts or network."""

import html as markup
import re

import numpy as np

from kubeloop.models import gates
from kubeloop.models.gates_page import html
from kubeloop.tasks.binary import settings as binary
from kubeloop.tasks.binary.task import BINARY

RANDOM = np.random.default_rng(3)
LABELS = (RANDOM.random(6000) < 0.3).astype(int)
GOOD = np.clip(0.3 + 0.2 * (LABELS - 0.3) + 0.1 * RANDOM.normal(size=6000), 0, 1)
POOR = np.clip(GOOD + 0.2 * RANDOM.normal(size=6000), 0, 1)
POLICY = binary.Gates(floors={"auc": 0.6}, ceilings={"ece": 0.5}, slices=("origin",), slice_min_rows=100, resamples=100)


def judged(champion: np.ndarray, challenger: np.ndarray) -> gates.Verdict:
    origin = np.where(np.arange(6000) % 2 == 0, "JFK <b>", "EWR")
    blocks = np.arange(6000) // 300
    return gates.compare(BINARY, LABELS, champion, challenger, POLICY, blocks=blocks, slices={"origin": origin})


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr><td.*?</tr>", page, re.DOTALL)
    return [
        [markup.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        for row in rows
    ]


def test_the_page_says_every_check_and_its_limit() -> None:
    verdict = judged(POOR, GOOD)
    page = html("flight-delay", verdict)
    assert '<span class="good">promoted</span>' in page
    assert f"<b>{verdict.difference:+.4f}</b>" in page
    low, high = verdict.interval or (0.0, 0.0)
    assert "95% interval of the gain" in page
    assert f"<b>{low:+.4f} to {high:+.4f}</b>" in page
    checks = {row[0]: row[1:] for row in cells(page)}
    assert checks["Blocks of time in the hold-out"] == ["20", "", "", "≥ 5", "holds"]
    assert checks["Lower end of the gain's interval"] == [f"{low:.4f}", "", "", "> 0.0000", "holds"]
    positives = f"{LABELS.sum():,}"
    assert verdict.challenger_interval
    between = "{:.4f} to {:.4f}".format(*verdict.challenger_interval)
    assert checks["Rows outside the most frequent class"] == [f"{LABELS.sum()}", "", "", "≥ 10", "holds"]
    assert checks["auc"][1:] == [between, positives, "≥ 0.6000", "holds"]
    assert checks["ece"][1:] == ["", positives, "≤ 0.5000", "holds"]
    (there,) = [check for check in verdict.checks if check.name == "slice origin=JFK <b>"]
    assert there.interval
    between = "{:.4f} to {:.4f}".format(*there.interval)
    assert checks["Change of auc where origin=JFK <b>"][1:] == [between, f"{LABELS[::2].sum():,}", "≥ -0.0300", "holds"]
    assert f"<span>95% interval {verdict.challenger_interval[0]:.4f} to" in page
    assert f"<b>6,000, {positives}</b>" in page
    assert len(checks) == len(verdict.checks)


def test_what_fails_stands_out() -> None:
    page = html("flight-delay", judged(GOOD, POOR))
    assert '<span class="bad">rejected</span>' in page
    assert "fails" in {row[-1] for row in cells(page)}


def test_a_first_model_has_no_champion_to_show() -> None:
    page = html("flight-delay", gates.first(BINARY, LABELS, GOOD, POLICY))
    assert "Champion" not in page
    assert "interval of the gain" not in page


def test_an_undefined_value_is_a_dash() -> None:
    check = gates.Check("floor auc", False, None, 0.6)
    verdict = gates.Verdict(False, "no", "auc", None, None, None, None, 0.95, (check,))
    assert cells(html("m", verdict)) == [["auc", "–", "", "≥ 0.6000", "fails"]]


def test_the_page_needs_nothing_else() -> None:
    assert not re.search(r"""(src|href)=|url\(|@import|<script|https?://""", html("m", judged(POOR, GOOD)))

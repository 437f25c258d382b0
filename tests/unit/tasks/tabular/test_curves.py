import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from kubeloop.tasks import slices
from kubeloop.tasks.binary import curves, evaluation
from kubeloop.tasks.binary.page import html
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.port import EvaluationError


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(4)
    p = random.beta(2, 4, 5000).round(3)
    return (random.random(5000) < p).astype(int), p


def test_curves_keep_their_area_when_thinned(case: tuple[np.ndarray, np.ndarray]) -> None:
    drawn = curves.draw(*case)
    assert 150 < len(drawn.roc.x) <= curves.MAX_POINTS
    assert len(drawn.pr.x) <= curves.MAX_POINTS
    assert np.trapezoid(drawn.roc.y, drawn.roc.x) == pytest.approx(sklearn_metrics.roc_auc_score(*case), abs=1e-3)
    assert np.trapezoid(drawn.pr.y, drawn.pr.x) == pytest.approx(
        sklearn_metrics.average_precision_score(*case), abs=0.01
    )
    assert (drawn.roc.x[0], drawn.roc.y[0], drawn.roc.x[-1], drawn.roc.y[-1]) == (0, 0, 1, 1)
    assert drawn.pr.x[-1] == 1
    assert drawn.pr.y[-1] == pytest.approx(case[0].mean())
    json.dumps(asdict(drawn), allow_nan=False)


def test_every_point_is_what_its_threshold_gives(case: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = case
    drawn = curves.draw(y, p)
    for x, up, threshold in list(zip(drawn.roc.x, drawn.roc.y, drawn.roc.threshold, strict=True))[1:]:
        assert (x, up) == pytest.approx(((p[y == 0] >= threshold).mean(), (p[y == 1] >= threshold).mean()))
    for x, up, threshold in list(zip(drawn.pr.x, drawn.pr.y, drawn.pr.threshold, strict=True))[1:]:
        assert (x, up) == pytest.approx(((p[y == 1] >= threshold).mean(), y[p >= threshold].mean()))
    assert all(np.diff(drawn.roc.threshold) <= 0)


def test_short_curves_are_kept_whole() -> None:
    drawn = curves.draw([0, 1, 1, 0], [0.1, 0.9, 0.4, 0.4])
    assert drawn.roc == curves.Curve([0, 0, 0.5, 1], [0, 0.5, 1, 1], [1, 0.9, 0.4, 0.1])
    assert drawn.pr.y == pytest.approx([1, 1, 2 / 3, 0.5])


def test_the_confusion_threshold_maximises_f1(case: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = case
    confusion = curves.draw(y, p).confusion
    best = max(2 * y[p >= t].sum() / (y.sum() + (p >= t).sum()) for t in np.unique(p))
    assert sklearn_metrics.f1_score(y, p >= confusion.threshold) == pytest.approx(best)
    assert confusion.matrix == sklearn_metrics.confusion_matrix(y, p >= confusion.threshold).tolist()
    assert confusion.precision == pytest.approx(sklearn_metrics.precision_score(y, p >= confusion.threshold))
    assert confusion.recall == pytest.approx(sklearn_metrics.recall_score(y, p >= confusion.threshold))
    assert curves.draw(y, p, 0.5).confusion.matrix == sklearn_metrics.confusion_matrix(y, p >= 0.5).tolist()
    assert curves.draw(y, p, 1.0).confusion.precision == 0


def test_calibration_follows_the_truth(case: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = case
    drawn = curves.draw(y, p).calibration
    assert len(drawn.x) == evaluation.BINS
    assert drawn.y == pytest.approx(drawn.x, abs=0.08)
    ece = np.abs(np.subtract(drawn.x, drawn.y)) @ np.bincount(evaluation.calibration_bins(p)) / len(p)
    assert ece == pytest.approx(BINARY.score(y, p)["ece"])


def test_one_class_has_no_curves() -> None:
    with pytest.raises(EvaluationError, match="all 3 labels are 1"):
        curves.draw([1, 1, 1], [0.1, 0.2, 0.3])


def test_figures_can_be_saved(case: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    figures = curves.figures(curves.draw(*case), BINARY.score(*case))
    assert set(figures) == {"roc", "pr", "calibration", "confusion"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert figures["roc"].axes[0].get_title() == f"ROC, AUC {BINARY.score(*case)['auc']:.3f}"
    texts = [text.get_text() for text in figures["confusion"].axes[0].texts]
    assert texts == [f"{count:,}" for row in curves.draw(*case).confusion.matrix for count in row]


class _Page(HTMLParser):
    """Collects text, and checks that every opened element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """Close the element itself, as SVG shapes do."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_page_says_it_all_and_needs_nothing_else(case: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = case
    origin = np.where(np.arange(len(y)) % 2 == 0, "JFK <b>", "EWR")
    one_class = np.where(y == 1, "late", "other")
    parts = slices.measure(BINARY, {"origin": origin, "arrival": one_class}, y, p, ["origin", "arrival"], 10)
    drawn, scores = curves.draw(y, p), BINARY.score(y, p)
    page = html(
        BINARY,
        "flights <7>",
        scores,
        drawn,
        parts,
        importance={"hour": 0.7, "dest": 0.3},
        facts={"Algorithm": "lightgbm"},
    )
    reader = _Page()
    reader.feed(page)
    assert reader.open == []
    for text in ("flights <7>", f"{scores['auc']:.4f}", f"{scores['ece']:.4f}", "origin = JFK <b>", "lightgbm", "70.0%",
                 f"{drawn.confusion.matrix[1][1]:,}"):  # fmt: skip
        assert text in reader.words, text
    assert any("labels are 1, so nothing can be ranked" in text for text in reader.words)
    assert "–" in reader.words, "an undefined metric"
    assert not re.search(r"""(src|href)=|url\(|@import|<script|https?://""", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media (max-width" in page, "the Kubeflow UI shows it in a narrow frame"
    assert not re.search(r'style="[^"]*width: \d+px', page)
    points = re.findall(r'<polyline class="curve" points="([^"]*)"', page)
    assert [len(line.split()) for line in points] == [len(c.x) for c in (drawn.roc, drawn.pr, drawn.calibration)]


def test_the_page_does_without_slices_importance_and_facts(case: tuple[np.ndarray, np.ndarray]) -> None:
    page = html(BINARY, "m", BINARY.score(*case), curves.draw(*case))
    assert "<h2>Slices</h2>" not in page
    assert "<h2>Importance</h2>" not in page
    assert "<h2>Model</h2>" not in page

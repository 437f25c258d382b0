from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from kubeloop.config import Drift
from kubeloop.monitoring import performance, policy
from kubeloop.tasks import intervals
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.intervals import Estimate

START = datetime(2013, 4, 1, tzinfo=UTC)


def predictions(**scores: float | None) -> pa.Table:
    return pa.table({"event_id": list(scores), "score": pa.array(scores.values(), pa.float32())})


def labels(*rows: tuple[str, int, float, int]) -> pa.Table:
    """Rows of event id, label, hour observed, and watermark at arrival."""
    ids, truth, hours, known = zip(*rows, strict=True)
    table = pa.table({"event_id": ids, "label": truth, "observed_at": [START + timedelta(hours=h) for h in hours]})
    return performance.labels(table, np.array(known))


@pytest.mark.parametrize(
    ("case", "arrived", "expected"),
    [
        ("each finds its own", [labels(("b", 1, 1, 0), ("a", 0, 1, 0))], [(0, 0.25), (1, 0.5)]),
        ("some are missing", [labels(("b", 1, 1, 0))], [(1, 0.5)]),
        ("labels of others", [labels(("x", 1, 1, 0))], []),
        ("no labels", [], []),
        ("the one observed last counts", [labels(("a", 1, 2, 0)), labels(("a", 0, 1, 5))], [(1, 0.25)]),
        ("a correction in the same table", [labels(("a", 1, 1, 0), ("a", 0, 2, 0))], [(0, 0.25)]),
        ("too late is too late", [labels(("a", 1, 1, 10), ("b", 1, 1, 9))], [(1, 0.5)]),
    ],
)
def test_predictions_meet_their_labels(case: str, arrived: list[pa.Table], expected: list[tuple[int, float]]) -> None:
    y, p = performance.join(BINARY, performance.scored(BINARY, predictions(a=0.25, b=0.5)), arrived, before=10)
    assert list(zip(y.tolist(), p.tolist(), strict=True)) == expected, case


def test_only_what_a_label_can_name_and_a_score_can_judge_is_kept() -> None:
    table = pa.table(
        {
            "event_id": ["a", None, "b", "a", "c", "d"],
            "score": pa.array([0.25, 0.5, 0.5, 0.75, None, float("nan")], pa.float32()),
            "wind": [1.0] * 6,
        }
    )
    assert performance.scored(BINARY, table).to_pylist() == [
        {"event_id": "b", "score": 0.5},
        {"event_id": "a", "score": 0.75},
    ]
    assert performance.scored(BINARY, table.slice(0, 0)).to_pylist() == []


@pytest.mark.parametrize(
    ("truth", "status"),
    [
        ([0, 1] * 10, "judged"),
        ([0, 1] * 9 + [0, 0], "few"),
        ([0, 1, 1], "small"),
        ([1, 1, 1, 1], "one_class"),
        ([], "small"),
    ],
)
def test_too_few_labels_or_only_one_class_is_not_judged(truth: list[int], status: str) -> None:
    p = np.linspace(0.1, 0.9, len(truth))
    found, metrics = performance.measure(BINARY, np.array(truth, np.int64), p, min_rows=4)
    assert found == status
    assert (metrics is not None) == (status in ("judged", "few"))


def test_metrics_are_those_of_the_evaluation() -> None:
    _, metrics = performance.measure(BINARY, np.array([0, 1, 1, 0]), np.array([0.1, 0.4, 0.8, 0.6]), 4)
    assert metrics is not None
    assert metrics["auc"] == pytest.approx(0.75)
    assert metrics["brier"] == pytest.approx((0.01 + 0.36 + 0.04 + 0.36) / 4)


def window(auc: float | None, positives: int, labelled: int, status: str = "few") -> dict[str, object]:
    sure = {"metric": "auc", "value": auc, "low": auc, "high": auc}
    counts = {"positives": positives, "labelled": labelled, "scarce": min(positives, labelled - positives)}
    return {**sure, **counts, "status": status}


@pytest.mark.parametrize(
    ("case", "windows", "found"),
    [
        ("not yet enough", [window(0.7, 5, 100), window(0.8, 4, 100)], None),
        ("enough", [window(0.7, 5, 105), window(0.8, 5, 105)], (0.75, 10, 2)),
        ("what was judged is not taken again", [window(0.7, 9, 100, "judged"), window(0.8, 5, 105)], None),
        ("nor what came before it", [window(0.7, 9, 99), window(0.7, 9, 99, "judged"), window(0.8, 5, 105)], None),
        ("one class adds nothing", [window(0.7, 9, 109), window(None, 0, 99, "one_class"), window(0.7, 1, 101)],
         (0.7, 10, 2)),
        ("few negatives count the same", [window(0.7, 90, 95), window(0.8, 90, 95)], (0.75, 180, 2)),
    ],
)  # fmt: skip
def test_windows_with_few_positives_are_taken_together(
    case: str, windows: list[dict[str, object]], found: tuple[float, int, int] | None
) -> None:
    told = performance.together(BINARY, windows)
    assert (told and (pytest.approx(told[0].value), *told[1:])) == found, case


def stream(seed: int, windows: int, slope: float) -> list[dict[str, object]]:
    """Judge windows of 166 rows with 0.8 % positives as the monitor does; return the rows that it writes."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for _ in range(windows):
        y = (random.random(166) < 0.008).astype(np.int64)
        # The AUC is 0.75 where the slope is 1, and 0.5 where it is 0.
        p = 1 / (1 + np.exp(4 - random.normal(0.954 * slope * y, 1)))
        status, metrics = performance.measure(BINARY, y, p, 100)
        row = {"status": status, "drifted": None} | performance.measured(BINARY, y, metrics)
        if status == "few" and (found := performance.together(BINARY, [*rows, row])):
            row |= {"status": "judged", "drifted": policy.performance(BINARY.headline, found[0], HOLDOUT, RARE).drifted}
        rows.append(row)
    return rows


HOLDOUT = Estimate(0.75, 0.70, 0.795)
RARE = Drift(min_auc=0.5, max_auc_drop=0.05)


def test_few_positives_call_no_healthy_model_short_and_still_find_a_broken_one() -> None:
    healthy = [row for seed in range(60) for row in stream(seed, 52, 1.0)]
    judged = [row["drifted"] for row in healthy if row["status"] == "judged"]
    naive = [row["value"] < 0.7 for row in healthy if row["status"] == "few"]
    assert np.mean(naive) > 0.2, "by the point estimate, a healthy model fell short in a quarter of the windows"
    assert len(judged) > 250
    assert np.mean(judged) <= 0.025
    broken = [stream(seed, 60, 0.0) for seed in range(30)]
    found = [[row["drifted"] for row in rows if row["drifted"] is not None] for rows in broken]
    assert np.mean([sum(votes) >= 2 for votes in found]) > 0.9, "two votes within 60 windows"


@pytest.mark.parametrize(("positives", "rows"), [(12, 200), (40, 160), (200, 400)])
def test_a_window_at_the_limit_is_called_short_as_often_as_is_said(positives: int, rows: int) -> None:
    """The hold-out's AUC has its usual uncertainty, and the true loss is exactly what is allowed."""
    random, short, missed = np.random.default_rng(0), [], []
    y = np.arange(rows) < positives
    was = np.arange(1500) < 1500 * positives // rows
    for _ in range(400):
        holdout = intervals.auc(was, random.normal(0.954 * was, 1))
        now = intervals.auc(y, random.normal(0.742 * y, 1))  # 0.70
        short.append(policy.performance(BINARY.headline, now, holdout, RARE).drifted)
        now = intervals.auc(y, random.normal(0.0 * y, 1))
        missed.append(not policy.performance(BINARY.headline, now, holdout, RARE).drifted)
    assert np.mean(short) <= 0.025 + 2 * 0.008
    assert np.mean(missed) < {12: 0.75, 40: 0.25, 200: 0.01}[positives]

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from kubeloop.monitoring import performance

START = datetime(2013, 4, 1, tzinfo=UTC)


def predictions(**scores: float | None) -> pa.Table:
    return pa.table({"event_id": list(scores), "score": pa.array(scores.values(), pa.float32())})


def labels(*rows: tuple[str, int, float, int]) -> pa.Table:
    """Rows of event id, label, hour observed, watermark when it came."""
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
    y, p = performance.join(performance.scored(predictions(a=0.25, b=0.5)), arrived, before=10)
    assert list(zip(y.tolist(), p.tolist(), strict=True)) == expected, case


def test_only_what_a_label_can_name_and_a_score_can_judge_is_kept() -> None:
    table = pa.table(
        {
            "event_id": ["a", None, "b", "a", "c", "d"],
            "score": pa.array([0.25, 0.5, 0.5, 0.75, None, float("nan")], pa.float32()),
            "wind": [1.0] * 6,
        }
    )
    assert performance.scored(table).to_pylist() == [
        {"event_id": "b", "score": 0.5},
        {"event_id": "a", "score": 0.75},
    ]
    assert performance.scored(table.slice(0, 0)).to_pylist() == []


@pytest.mark.parametrize(
    ("truth", "status"), [([0, 1, 1, 0], "judged"), ([0, 1, 1], "small"), ([1, 1, 1, 1], "one_class"), ([], "small")]
)
def test_too_few_labels_or_only_one_class_is_not_judged(truth: list[int], status: str) -> None:
    p = np.linspace(0.1, 0.9, len(truth))
    found, metrics = performance.measure(np.array(truth, np.int64), p, min_rows=4)
    assert found == status
    assert (metrics is not None) == (status == "judged")


def test_metrics_are_those_of_the_evaluation() -> None:
    _, metrics = performance.measure(np.array([0, 1, 1, 0]), np.array([0.1, 0.4, 0.8, 0.6]), 4)
    assert metrics is not None
    assert metrics["auc"] == pytest.approx(0.75)
    assert metrics["brier"] == pytest.approx((0.01 + 0.36 + 0.04 + 0.36) / 4)

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeloop.monitoring.detector import port
from kubeloop.monitoring.detector.builtin import BuiltinDetector


@pytest.mark.parametrize(
    ("method", "p_values", "adjusted"),
    [
        # Sorted: .005 .01 .03 .04; times 4 3 2 1: .02 .03 .06 .04; the last may not fall below .06.
        ("holm", [0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ("holm", [0.6, 0.7], [1.0, 1.0]),
        ("holm", [0.02, 0.02], [0.04, 0.04]),
        ("holm", [0.2], [0.2]),
        ("holm", [], []),
        ("bonferroni", [0.01, 0.04, 0.03, 0.005], [0.04, 0.16, 0.12, 0.02]),
        ("bonferroni", [0.6, 0.7], [1.0, 1.0]),
    ],
)
def test_correction_by_hand(method: Any, p_values: list[float], adjusted: list[float]) -> None:
    assert port.correct(p_values, method) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p_values: list[float]) -> None:
    holm, bonferroni = port.correct(p_values), port.correct(p_values, "bonferroni")
    assert all(p <= h <= b for p, h, b in zip(p_values, holm, bonferroni, strict=True))
    assert [h for _, h in sorted(zip(p_values, holm, strict=True))] == sorted(holm)


@pytest.mark.parametrize(
    "window",
    [
        (np.zeros((2, 1)), np.zeros((2, 1), np.int32), np.zeros(2, np.float32)),
        (np.zeros(2, np.float32), np.zeros((2, 1), np.int32), np.zeros(2, np.float32)),
        (np.zeros((2, 1), np.float32), np.zeros((2, 1), np.int64), np.zeros(2, np.float32)),
        (np.zeros((2, 1), np.float32), np.zeros((2, 1), np.int32), np.zeros((2, 1, 1), np.float32)),
        (np.zeros((3, 1), np.float32), np.zeros((2, 1), np.int32), np.zeros(2, np.float32)),
    ],
)
def test_a_window_of_the_wrong_shape_or_type_is_refused(window: Any) -> None:
    with pytest.raises(ValueError, match=r"window\.|rows"):
        port.Window(*window)


def test_the_builtin_engine_needs_no_worker(tmp_path: Path) -> None:
    detector = port.open_detector("builtin", tmp_path / "none", tmp_path)
    assert isinstance(detector, BuiltinDetector)
    detector.close()


def test_a_missing_detector_environment_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(port.DetectorError, match=r"drift\.engine to builtin"):
        port.open_detector("alibi", tmp_path / "none", tmp_path)

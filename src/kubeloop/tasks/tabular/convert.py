"""Convert fitted tree ensembles with onnxmltools and skl2onnx, so that they decide the same in float32."""

import copy
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
"""Old enough for every ONNX Runtime, Triton and TensorRT of recent years, and new enough for our operators."""


def ensemble(algorithm: str, estimator: Any, width: int) -> onnx.ModelProto:
    """Convert a fitted estimator, with input [batch, width]; parts other than a tree ensemble stay as converted."""
    if algorithm == "lightgbm":
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        booster = _float32_booster(estimator.booster_)
        return convert_lightgbm(  # type: ignore[no-any-return]
            booster, initial_types=[("x", FloatTensorType([None, width]))], zipmap=False
        )
    from skl2onnx import to_onnx as convert
    from skl2onnx.common.data_types import FloatTensorType as Floats

    if algorithm == "hist_gradient_boosting":
        estimator = _float32_stages(estimator)
    return convert(  # type: ignore[no-any-return]
        estimator,
        initial_types=[("x", Floats([None, width]))],
        options={id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None,
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
    )


def _float32_below(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the largest float32 that does not exceed each value.

    Trees send x left if x <= t, with t a float64 between two training values. ONNX stores t as float32, and rounding to
    the nearest may give the larger of the two. The next lower float32 decides like t for every float32 x.
    """
    # A split between NaN and all numbers has a threshold beyond float32, which becomes the largest float32.
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    below = np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)
    return np.asarray(below, dtype=np.float64)


def _float32_booster(booster: Any) -> Any:
    """Return a copy of a LightGBM model with float32 thresholds that decide the same."""
    import lightgbm

    def rounded(line: re.Match[str]) -> str:
        return "threshold=" + " ".join(map(repr, _float32_below(np.array(line[1].split(), dtype=np.float64)).tolist()))

    text = re.sub(r"^threshold=(.+)$", rounded, booster.model_to_string(), flags=re.MULTILINE)
    # The sizes are offsets into the text that has just changed; without them, LightGBM finds the trees itself.
    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)
    return lightgbm.Booster(model_str=text)


def _float32_stages(estimator: Any) -> Any:
    """Return a copy of scikit-learn's gradient boosting with float32 thresholds that decide the same."""
    estimator = copy.deepcopy(estimator)
    for stage in estimator._predictors:
        for tree in stage:
            tree.nodes["num_threshold"] = _float32_below(tree.nodes["num_threshold"])
    return estimator

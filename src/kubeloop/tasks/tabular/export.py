"""Write a trained model as one ONNX graph with an input a feature, and prove that it predicts the same."""

import copy
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
from onnx import TensorProto, helper, numpy_helper

from kubeloop.errors import KubeloopError
from kubeloop.tasks.tabular import algorithms, encoding
from kubeloop.tasks.tabular.training import Fitted

OUTPUT = "probability"
OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
"""Old enough for every ONNX Runtime, Triton and TensorRT of the last years, new enough for all we use."""

_BATCH = "batch"
_WORST = 5


class ExportError(KubeloopError, ValueError):
    """The ONNX model cannot be made, or does not predict what the trained model predicts."""

    lasting = True


@dataclass(frozen=True)
class Parity:
    """How far the ONNX model's predictions were from the trained model's."""

    rows: int
    max_abs_difference: float
    mean_abs_difference: float
    tolerance: float


def to_onnx(fitted: Fitted) -> onnx.ModelProto:
    """Write encoder and estimator as one graph.

    Inputs: one a feature, named as the feature, shape [batch]: FLOAT, where NaN is a missing value, or STRING, where
    the empty string is one. Output: `probability`, FLOAT [batch], of class 1.

    Raises:
        ExportError: a feature has the name of the output, or the converted estimator is not what we know.
    """
    if OUTPUT in fitted.encoder.columns:
        raise ExportError(f"a feature cannot be named {OUTPUT!r}, since that is the model's output; rename it")
    graph = _Graph([], [])
    matrix = _encoder(graph, fitted.encoder)
    if fitted.algorithm == "logistic_regression":
        _logistic(graph, matrix, fitted.estimator)
    else:
        _ensemble(graph, matrix, _converted(fitted))
    inputs = [
        helper.make_tensor_value_info(
            name,
            TensorProto.FLOAT if kind == "numeric" else TensorProto.STRING,
            [_BATCH],
        )
        for name, kind in fitted.encoder.kinds.items()
    ]
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [_BATCH])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "kubeloop", inputs, [output], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        ir_version=IR_VERSION,
        producer_name="kubeloop",
    )
    onnx.checker.check_model(model)
    return model


def predict(model: bytes, kinds: Mapping[str, encoding.Kind], frame: pd.DataFrame) -> npt.NDArray[np.float32]:
    """Run a serialised graph on rows of a frame; return the probability of class 1 [n].

    Args:
        model: content of model.onnx.
        kinds: kind of each of its features.
        frame: rows with the feature columns.

    Raises:
        EncodingError: a feature is missing or cannot be read as its kind.
    """
    return np.asarray(_session(model).run([OUTPUT], _feeds(kinds, frame))[0])


def parity(model: onnx.ModelProto, fitted: Fitted, frame: pd.DataFrame, tolerance: float = 1e-5) -> Parity:
    """Run the graph on real rows and compare it with the trained model.

    Args:
        model: of `to_onnx`.
        fitted: the trained model.
        frame: rows with the feature columns; a hold-out is right.
        tolerance: largest allowed difference of a probability.

    Raises:
        ExportError: there are no rows, or a difference exceeds the tolerance; the message shows the worst rows.
    """
    if frame.empty:
        raise ExportError("parity needs rows to predict; pass the hold-out")
    expected = fitted.predict(frame)
    got = predict(model.SerializeToString(), fitted.encoder.kinds, frame)
    gaps = np.abs(got.astype(np.float64) - expected)
    # Not `gaps.max() > tolerance`: a NaN prediction must fail too.
    if not gaps.max() <= tolerance:
        worst = np.argsort(-np.nan_to_num(gaps, nan=np.inf))[:_WORST]
        shown = frame.iloc[worst][list(fitted.encoder.columns)].assign(trained=expected[worst], onnx=got[worst])
        raise ExportError(
            f"{int((~(gaps <= tolerance)).sum())} of {len(gaps)} rows differ by more than {tolerance:g} between the "
            f"trained {fitted.algorithm} and its ONNX graph; the worst:\n{shown.to_string()}"
        )
    return Parity(len(gaps), float(gaps.max()), float(gaps.mean()), tolerance)


def latency(
    model: bytes, kinds: Mapping[str, encoding.Kind], frame: pd.DataFrame, repeats: int = 200
) -> dict[str, float]:
    """Time predictions of 1 and 100 rows on one thread, and weigh the model.

    Args:
        model: content of model.onnx.
        kinds: kind of each of its features.
        frame: rows to take the batches from; repeated when there are fewer than 100.
        repeats: calls of each size.

    Returns:
        latency_<rows>_p50_ms and latency_<rows>_p99_ms for 1 and 100 rows, and size_bytes.
    """
    session = _session(model)
    measured: dict[str, float] = {}
    for rows in (1, 100):
        batch = _feeds(kinds, frame.iloc[np.arange(rows) % len(frame)])
        session.run([OUTPUT], batch)
        spans = []
        for _ in range(repeats):
            start = time.perf_counter()
            session.run([OUTPUT], batch)
            spans.append((time.perf_counter() - start) * 1000)
        measured[f"latency_{rows}_p50_ms"], measured[f"latency_{rows}_p99_ms"] = map(
            float, np.percentile(spans, (50, 99))
        )
    return {**measured, "size_bytes": float(len(model))}


@dataclass(frozen=True)
class _Graph:
    """Nodes and constants under construction; a slash in their names keeps them clear of features."""

    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, kind: npt.DTypeLike) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name


def _encoder(graph: _Graph, encoder: encoding.Encoder) -> str:
    """Add the encoder; return the name of its matrix [batch, F]."""
    columns = list(encoder.fills)
    for position, (name, means) in enumerate(encoder.means.items()):
        # ONNX refuses an empty table.
        table = {"": encoder.prior, **means}
        columns.append(f"encoder/mean_{position}")
        graph.nodes.append(
            helper.make_node(
                "LabelEncoder",
                [name],
                [columns[-1]],
                name=columns[-1],
                domain="ai.onnx.ml",
                keys_strings=list(table),
                values_floats=list(table.values()),
                default_float=encoder.prior,
            )
        )
    matrix = _stack(graph, columns)
    if not encoder.fills:
        return matrix
    unknown = graph.add(
        "Or",
        [
            graph.add("IsNaN", [matrix], "encoder/is_nan"),
            graph.add("IsInf", [matrix], "encoder/is_inf"),
        ],
        "encoder/unknown",
    )
    # A category's mean is never missing, so its place only has to be filled.
    fills = [*encoder.fills.values(), *(encoder.prior for _ in encoder.means)]
    filled = graph.add(
        "Where", [unknown, graph.constant("encoder/fills", [fills], np.float32), matrix], "encoder/filled"
    )
    if not encoder.flags:
        return filled
    flagged = [list(encoder.fills).index(name) for name in encoder.flags]
    where = graph.add("Gather", [unknown, graph.constant("encoder/flagged", flagged, np.int64)], "encoder/at", axis=1)
    flags = graph.add("Cast", [where], "encoder/flags", to=TensorProto.FLOAT)
    return graph.add("Concat", [filled, flags], "encoder/all", axis=1)


def _stack(graph: _Graph, columns: list[str]) -> str:
    """Add the matrix [batch, F] of F columns [batch], in five nodes whatever F is; a batch may be empty."""
    flat = graph.add("Concat", columns, "encoder/flat", axis=0)
    rows = graph.add("Shape", [columns[0]], "encoder/rows")
    width = graph.constant("encoder/width", [len(columns)], np.int64)
    shape = graph.add("Concat", [width, rows], "encoder/shape", axis=0)
    by_column = graph.add("Reshape", [flat, shape], "encoder/by_column", allowzero=1)
    return graph.add("Transpose", [by_column], "encoder/matrix", perm=[1, 0])


def _logistic(graph: _Graph, matrix: str, estimator: Any) -> None:
    """Add sigmoid(x w + b), in float64 since x may be large against its spread."""
    slopes, intercept = algorithms.linear(estimator)
    wide = graph.add("Cast", [matrix], "estimator/wide", to=TensorProto.DOUBLE)
    weights = graph.constant("estimator/slopes", slopes.reshape(-1, 1), np.float64)
    product = graph.add("MatMul", [wide, weights], "estimator/product")
    bias = graph.constant("estimator/intercept", [intercept], np.float64)
    logit = graph.add("Add", [product, bias], "estimator/logit")
    share = graph.add("Sigmoid", [logit], "estimator/sigmoid")
    narrow = graph.add("Cast", [share], "estimator/narrow", to=TensorProto.FLOAT)
    graph.add("Reshape", [narrow, graph.constant("estimator/flat", [-1], np.int64)], OUTPUT)


def _ensemble(graph: _Graph, matrix: str, converted: onnx.ModelProto) -> None:
    """Add the one tree ensemble of a converted model; its labels and ZipMap stay behind."""
    trees = [node for node in converted.graph.node if node.op_type == "TreeEnsembleClassifier"]
    if len(trees) != 1:
        raise ExportError(f"the converted estimator has {len(trees)} tree ensembles instead of one; pin its converter")
    node = onnx.NodeProto()
    node.CopyFrom(trees[0])
    node.name = "estimator/trees"
    del node.input[:], node.output[:]
    node.input.append(matrix)
    node.output.extend(["estimator/label", "estimator/probabilities"])
    graph.nodes.append(node)
    column = graph.constant("estimator/positive", 1, np.int64)
    graph.add("Gather", ["estimator/probabilities", column], OUTPUT, axis=1)


def _converted(fitted: Fitted) -> onnx.ModelProto:
    """Convert the bare estimator with onnxmltools or skl2onnx; input [batch, F]."""
    width = len(fitted.encoder.names)
    if fitted.algorithm == "lightgbm":
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        booster = _float32_booster(fitted.estimator.booster_)
        return convert_lightgbm(  # type: ignore[no-any-return]
            booster, initial_types=[("x", FloatTensorType([None, width]))], zipmap=False
        )
    from skl2onnx import to_onnx as convert
    from skl2onnx.common.data_types import FloatTensorType as Floats

    estimator = fitted.estimator
    if fitted.algorithm == "hist_gradient_boosting":
        estimator = _float32_stages(estimator)
    return convert(  # type: ignore[no-any-return]
        estimator,
        initial_types=[("x", Floats([None, width]))],
        options={id(estimator): {"zipmap": False}},
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
    )


def _float32_below(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the largest float32 that does not exceed each value.

    Trees send x left when x <= t, with t a float64 between two training values. ONNX stores t as float32, and rounding
    to nearest may reach the larger of the two; the float32 below decides as t does for every float32 x.
    """
    # A split between NaN and all numbers has a threshold beyond float32; its largest number stands for that.
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
    # The sizes are offsets into the text that has just changed; without them LightGBM looks for the trees itself.
    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)
    return lightgbm.Booster(model_str=text)


def _float32_stages(estimator: Any) -> Any:
    """Return a copy of a HistGradientBoostingClassifier with float32 thresholds that decide the same."""
    estimator = copy.deepcopy(estimator)
    for stage in estimator._predictors:
        for tree in stage:
            tree.nodes["num_threshold"] = _float32_below(tree.nodes["num_threshold"])
    return estimator


def _feeds(kinds: Mapping[str, encoding.Kind], frame: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    return {
        name: encoding.numbers(frame, name) if kind == "numeric" else encoding.texts(frame, name).to_numpy(dtype=object)
        for name, kind in kinds.items()
    }


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

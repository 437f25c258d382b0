"""Write a trained model as one ONNX graph with one input per feature, and verify that it predicts the same."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
from onnx import TensorProto, helper

from kubeloop.tasks.port import Floats, Task
from kubeloop.tasks.tabular import encoding
from kubeloop.tasks.tabular.convert import IR_VERSION, ML_OPSET, OPSET
from kubeloop.tasks.tabular.graph import BATCH, ExportError, Graph
from kubeloop.tasks.tabular.training import Fitted

_WORST = 5


@dataclass(frozen=True, eq=False)
class Parity:
    """The differences between the predictions of the ONNX model and of the trained model."""

    rows: int
    max_abs_difference: float
    mean_abs_difference: float
    tolerance: float
    answers: Floats
    """The graph's predictions for the rows [n], or [n, k]."""


def to_onnx(fitted: Fitted) -> onnx.ModelProto:
    """Write encoder and estimator as one graph.

    Inputs: one per feature, with its name and the shape [batch]: FLOAT, with NaN for a missing value, or STRING, with
    the empty string for it. Outputs: the tensors of the task's answer, FLOAT, and any others that its kind adds.

    Raises:
        ExportError: a feature has the name of an output, or the converted estimator has an unknown form.
    """
    graph = Graph()
    matrix = graph.encoder(fitted.encoder)
    outputs = fitted.maker.outputs(graph, matrix, fitted.algorithm, fitted.heads)
    if clash := [output.name for output in outputs if output.name in fitted.encoder.columns]:
        raise ExportError(f"a feature cannot be named {clash[0]!r}, since that is a model's output; rename it")
    inputs = [
        helper.make_tensor_value_info(
            name,
            TensorProto.FLOAT if kind == "numeric" else TensorProto.STRING,
            [BATCH],
        )
        for name, kind in fitted.encoder.kinds.items()
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "kubeloop", inputs, [output.info() for output in outputs], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        ir_version=IR_VERSION,
        producer_name="kubeloop",
    )
    onnx.checker.check_model(model)
    return model


def predict(task: Task, model: bytes, kinds: Mapping[str, encoding.Kind], frame: pd.DataFrame) -> Floats:
    """Run a serialised graph on rows of a frame; return the answers [n], or [n, k].

    Args:
        task: whose answers the graph gives.
        model: content of model.onnx.
        kinds: kind of each of its features.
        frame: rows with the feature columns.

    Raises:
        EncodingError: a feature is missing or cannot be read as its kind.
    """
    found = _session(model).run([tensor.name for tensor in task.tensors], _feeds(kinds, frame))
    return found[0] if len(found) == 1 else np.stack(found, axis=1)


def parity(model: onnx.ModelProto, fitted: Fitted, frame: pd.DataFrame, tolerance: float | None = None) -> Parity:
    """Run the graph on real rows and compare it with the trained model.

    Args:
        model: the result of `to_onnx`.
        fitted: the trained model.
        frame: rows with the feature columns, such as a hold-out.
        tolerance: largest allowed difference of a number; `Maker.tolerance` if left out.

    Raises:
        ExportError: there are no rows, or a difference exceeds the tolerance; the message shows the worst rows.
    """
    if frame.empty:
        raise ExportError("parity needs rows to predict; pass the hold-out")
    expected = fitted.predict(frame)
    got = predict(fitted.maker.task, model.SerializeToString(), fitted.encoder.kinds, frame)
    if tolerance is None:
        tolerance = fitted.maker.tolerance(expected)
    gaps = np.abs(got.astype(np.float64) - expected).reshape(len(frame), -1).max(axis=1)
    # Not `gaps.max() > tolerance`: a NaN prediction must fail too.
    if not gaps.max() <= tolerance:
        worst = np.argsort(-np.nan_to_num(gaps, nan=np.inf))[:_WORST]
        answers = {"trained": expected[worst].tolist(), "onnx": got[worst].tolist()}
        shown = frame.iloc[worst][list(fitted.encoder.columns)].assign(**answers)
        raise ExportError(
            f"{int((~(gaps <= tolerance)).sum())} of {len(gaps)} rows differ by more than {tolerance:g} between the "
            f"trained {fitted.algorithm} and its ONNX graph; the worst:\n{shown.to_string()}"
        )
    return Parity(len(gaps), float(gaps.max()), float(gaps.mean()), tolerance, got)


def latency(
    model: bytes, kinds: Mapping[str, encoding.Kind], frame: pd.DataFrame, repeats: int = 200
) -> dict[str, float]:
    """Measure the time of predictions of 1 and 100 rows on one thread, and the size of the model.

    Args:
        model: content of model.onnx.
        kinds: kind of each of its features.
        frame: rows to take the batches from; they are repeated if there are fewer than 100.
        repeats: number of calls of each size.

    Returns:
        latency_<rows>_p50_ms and latency_<rows>_p99_ms for 1 and 100 rows, and size_bytes.
    """
    session = _session(model)
    measured: dict[str, float] = {}
    for rows in (1, 100):
        batch = _feeds(kinds, frame.iloc[np.arange(rows) % len(frame)])
        session.run(None, batch)
        spans = []
        for _ in range(repeats):
            start = time.perf_counter()
            session.run(None, batch)
            spans.append((time.perf_counter() - start) * 1000)
        measured[f"latency_{rows}_p50_ms"], measured[f"latency_{rows}_p99_ms"] = map(
            float, np.percentile(spans, (50, 99))
        )
    return {**measured, "size_bytes": float(len(model))}


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

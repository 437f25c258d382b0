"""An ONNX graph under construction: constants, nodes, and the encoder and estimators that kinds combine."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from kubeloop.errors import KubeloopError
from kubeloop.tasks.tabular import algorithms, convert, encoding

__all__ = ["Graph", "Output"]

BATCH = "batch"


class ExportError(KubeloopError, ValueError):
    """The ONNX model cannot be made, or does not predict what the trained model predicts."""

    lasting = True


@dataclass(frozen=True)
class Output:
    """An output of the graph: [batch], or [batch, width]."""

    name: str
    kind: Literal["number", "text"] = "number"
    width: int | None = None

    def info(self) -> onnx.ValueInfoProto:
        """Return its declaration."""
        kind = TensorProto.FLOAT if self.kind == "number" else TensorProto.STRING
        return helper.make_tensor_value_info(self.name, kind, [BATCH] if self.width is None else [BATCH, self.width])


@dataclass(frozen=True)
class Graph:
    """Nodes and constants; a slash in their names distinguishes them from features."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output, and return its name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, kind: npt.DTypeLike) -> str:
        """Add a constant, and return its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def flat(self, value: str, output: str) -> str:
        """Add a reshape to [batch]."""
        shape = self.constant(f"{value}/flat" if "/" in value else f"estimator/{value}/flat", [-1], np.int64)
        return self.add("Reshape", [value, shape], output)

    def encoder(self, encoder: encoding.Encoder) -> str:
        """Add the encoder; return the name of its matrix [batch, F]."""
        columns = list(encoder.fills)
        for position, (name, means, prior) in enumerate(encoder.tables):
            # ONNX refuses an empty table.
            table = {"": prior, **means}
            columns.append(f"encoder/mean_{position}")
            self.nodes.append(
                helper.make_node(
                    "LabelEncoder",
                    [name],
                    [columns[-1]],
                    name=columns[-1],
                    domain="ai.onnx.ml",
                    keys_strings=list(table),
                    values_floats=list(table.values()),
                    default_float=prior,
                )
            )
        matrix = self._stack(columns)
        if not encoder.fills:
            return matrix
        unknown = self.add(
            "Or",
            [
                self.add("IsNaN", [matrix], "encoder/is_nan"),
                self.add("IsInf", [matrix], "encoder/is_inf"),
            ],
            "encoder/unknown",
        )
        # A category's mean is never missing, so any fill will do.
        fills = [*encoder.fills.values(), *(prior for _, _, prior in encoder.tables)]
        filled = self.add(
            "Where", [unknown, self.constant("encoder/fills", [fills], np.float32), matrix], "encoder/filled"
        )
        if not encoder.flags:
            return filled
        flagged = [list(encoder.fills).index(name) for name in encoder.flags]
        where = self.add("Gather", [unknown, self.constant("encoder/flagged", flagged, np.int64)], "encoder/at", axis=1)
        flags = self.add("Cast", [where], "encoder/flags", to=TensorProto.FLOAT)
        return self.add("Concat", [filled, flags], "encoder/all", axis=1)

    def _stack(self, columns: list[str]) -> str:
        """Add the matrix [batch, F] of F columns [batch], in five nodes for any F; a batch may be empty."""
        flat = self.add("Concat", columns, "encoder/flat", axis=0)
        rows = self.add("Shape", [columns[0]], "encoder/rows")
        width = self.constant("encoder/width", [len(columns)], np.int64)
        shape = self.add("Concat", [width, rows], "encoder/shape", axis=0)
        by_column = self.add("Reshape", [flat, shape], "encoder/by_column", allowzero=1)
        return self.add("Transpose", [by_column], "encoder/matrix", perm=[1, 0])

    def linear(self, matrix: str, estimator: Any, name: str) -> str:
        """Add x w + b as float64 [batch, C], since x may be large compared with its spread."""
        slopes, intercepts = algorithms.linear(estimator)
        wide = self.add("Cast", [matrix], f"{name}/wide", to=TensorProto.DOUBLE)
        weights = self.constant(f"{name}/slopes", slopes, np.float64)
        product = self.add("MatMul", [wide, weights], f"{name}/product")
        bias = self.constant(f"{name}/intercept", intercepts, np.float64)
        return self.add("Add", [product, bias], f"{name}/logit")

    def trees(self, matrix: str, algorithm: str, estimator: Any, name: str) -> str:
        """Add the one tree ensemble of a converted estimator; return its probabilities [batch, K] or values [batch, 1].

        Raises:
            ExportError: the converted estimator has an unknown form.
        """
        converted = convert.ensemble(algorithm, estimator, int(estimator.n_features_in_))
        found = [node for node in converted.graph.node if node.op_type.startswith("TreeEnsemble")]
        if len(found) != 1:
            raise ExportError(
                f"the converted estimator has {len(found)} tree ensembles instead of one; pin its converter"
            )
        node = onnx.NodeProto()
        node.CopyFrom(found[0])
        node.name = f"{name}/trees"
        del node.input[:], node.output[:]
        node.input.append(matrix)
        of_classes = node.op_type == "TreeEnsembleClassifier"
        node.output.extend([f"{name}/label", f"{name}/probabilities"] if of_classes else [f"{name}/values"])
        self.nodes.append(node)
        return str(node.output[-1])

"""Load a model folder into ONNX Runtime and predict; the only module of the data plane that imports onnxruntime."""

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from kubeloop import paths
from kubeloop.errors import KubeloopError
from kubeloop.serving.tensors import DTYPES, Array, ProtocolError, TensorSpec, specs_of
from kubeloop.stores import kept

PLATFORM = "onnxruntime_onnx"
_ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_KINDS = {"numeric": "FP32", "categorical": "BYTES"}
_RUN_ERRORS = (ort.Fail, ort.InvalidArgument, ort.RuntimeException, ort.NotImplemented, RuntimeError, ValueError)
_RUN_OPTIONS = onnxruntime.RunOptions()
"""The default options; without them, each run makes its own, which takes a tenth of a small model's time."""
_LOAD_ERRORS = (*_RUN_ERRORS, ort.InvalidGraph, ort.InvalidProtobuf, ort.NoModel, ort.NoSuchFile)


Device = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: dict[Device, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""ONNX Runtime's execution providers of a device, in the order in which they take parts of the model."""


class ModelError(KubeloopError):
    """The model folder cannot be served; the message says why and what to do."""

    lasting = True


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded and warmed-up model.

    Attributes:
        inputs: declared inputs by name, in the model's order.
        outputs: declared outputs by name, in the model's order.
        sha256: hex digest of model.onnx.
        call_s: seconds of one call with one row, the fastest of a few.
    """

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    sha256: str
    call_s: float
    _session: onnxruntime.InferenceSession

    def predict(self, inputs: Mapping[str, Array], outputs: tuple[str, ...] = ()) -> dict[str, Array]:
        """Run the model; ONNX Runtime lets other threads run meanwhile.

        Args:
            inputs: every declared input by name, with its declared rank and type.
            outputs: outputs to compute; empty means all.

        Raises:
            ProtocolError: the model cannot run on these inputs (400), such as inner dimensions that do not fit.
        """
        names = outputs or tuple(self.outputs)
        try:
            return dict(zip(names, self._session.run(names, inputs, _RUN_OPTIONS), strict=True))
        except _RUN_ERRORS as error:
            # The model ran when it was loaded, so the input is wrong.
            raise ProtocolError(f"the model cannot run on these inputs: {_first_line(error)}") from None


def load(folder: str | Path, *, sha256: str | None = None, threads: int = 1, device: Device = "cpu") -> Model:
    """Load `model.onnx` from a folder or a file:// URI, check it and run it once.

    If there is a `model.json`, its digest and features must agree with the model.

    Args:
        folder: the model folder.
        sha256: hex digest that model.onnx must have.
        threads: threads of one prediction.
        device: where it runs; the parts that an accelerator cannot run fall back to the processor.

    Raises:
        ModelError: the file is missing, is not the requested one, or ONNX Runtime cannot run it there.
    """
    path = folder_of(folder) / "model.onnx"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; --model-dir names a folder with model.onnx") from error
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ModelError(f"{path} has SHA-256 {digest}, not the requested {sha256}; refusing to serve it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning workers would take the cores that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # Loaded from the bytes that were hashed, so that the file cannot change in between.
        session = onnxruntime.InferenceSession(content, options, providers=_providers(device))
    except _LOAD_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error
    # If ONNX Runtime cannot start an accelerator, it only warns and continues without it.
    if PROVIDERS[device][0] not in session.get_providers():
        raise ModelError(f"ONNX Runtime cannot start {PROVIDERS[device][0]}; see that the node's driver fits the image")
    inputs = specs_of(_spec(path, tensor) for tensor in session.get_inputs())
    outputs = specs_of(_spec(path, tensor) for tensor in session.get_outputs())
    _check_card(path.with_name("model.json"), digest, inputs)
    return Model(inputs, outputs, digest, _warm_up(path, session, inputs), session)


def _providers(device: Device) -> list[str]:
    wanted = PROVIDERS[device]
    known = onnxruntime.get_available_providers()
    if wanted[0] not in known:
        raise ModelError(
            f"this ONNX Runtime has no {wanted[0]} for --device {device}, only {', '.join(known)}; use the image "
            "runtime-gpu, or --device cpu"
        )
    return [name for name in wanted if name in known]


def folder_of(location: str | Path) -> Path:
    """Return the folder that a path or file:// URI names.

    Raises:
        ModelError: the URI has another scheme.
    """
    found = paths.local(str(location))
    if found is None:
        raise ModelError(f"{location} is not on this machine; --model-dir takes a folder or a file:// URI")
    return found


def _spec(path: Path, tensor: Any) -> TensorSpec:
    if tensor.type not in _ONNX_TYPES:
        raise ModelError(
            f"{path}: {tensor.name!r} has type {tensor.type}, which the protocol cannot carry; "
            "export plain tensors (for scikit-learn and LightGBM: zipmap=False)"
        )
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in tensor.shape)
    return TensorSpec(tensor.name, _ONNX_TYPES[tensor.type], shape)


def _check_card(path: Path, digest: str, inputs: Mapping[str, TensorSpec]) -> None:
    if not path.exists():
        return
    try:
        card = kept.loads(path)
        stated, features = card["sha256"], {item["name"]: _KINDS[item["kind"]] for item in card["features"]}
    except kept.DamagedError as error:
        raise ModelError(f"{error}; restore it, or train the model again") from error
    except (OSError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a model card ({error!r}); export the model again or delete it") from error
    if stated != digest:
        raise ModelError(
            f"{path} describes a model with SHA-256 {stated}, but model.onnx has {digest}; export it again"
        )
    declared = {name: spec.datatype for name, spec in inputs.items()}
    if features != declared:
        differ = sorted({name for name, _ in features.items() ^ declared.items()})
        raise ModelError(f"{path} and model.onnx disagree on {', '.join(differ)}; export the model again")


def _warm_up(path: Path, session: onnxruntime.InferenceSession, inputs: Mapping[str, TensorSpec]) -> float:
    """Run a row several times, since the first call allocates, and return the fastest in seconds.

    If inner dimensions are free, an example may not fit; then the time is unknown.
    """
    free = any(-1 in spec.shape[1:] for spec in inputs.values())
    row = {name: _example(spec) for name, spec in inputs.items()}
    times = []
    for _ in range(4):
        start = time.perf_counter()
        try:
            session.run(None, row)
        except _RUN_ERRORS as error:
            if free:
                return math.inf
            raise ModelError(f"{path} does not run on one row: {_first_line(error)}") from error
        times.append(time.perf_counter() - start)
    return min(times)


def _example(spec: TensorSpec) -> Array:
    shape = [max(size, 1) for size in spec.shape]
    return np.full(shape, "" if spec.datatype == "BYTES" else 0, dtype=DTYPES[spec.datatype])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__

"""Small ONNX models and real servers for the tests of the data plane."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

COLUMNS = ("distance", "hour", "carrier")


@dataclass
class Running:
    """A server process; `url` is its HTTP address, and `grpc` its gRPC address if it has one."""

    process: subprocess.Popen[str]
    url: str
    grpc: str = ""

    def stop(self) -> tuple[int, str]:
        """End it and return the exit status and what it logged."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


Start = Callable[..., Running]


def start_server(*flags: object, drain_s: float = 0.05, module: str = "kubeloop.serving.server") -> Running:
    command = [sys.executable, "-m", module, "--port=0", f"--drain-s={drain_s}", *map(str, flags)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    said = {}
    while "ready" not in said:
        word, _, address = process.stdout.readline().strip().partition(" ")
        if word not in ("ready", "grpc"):
            raise AssertionError(process.communicate(timeout=20)[1])
        said[word] = address
    return Running(process, said["ready"], said.get("grpc", ""))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders: columns (with model.json), matrix, slow."""
    root = tmp_path_factory.mktemp("models")
    for name, graph in (("columns", _columns()), ("matrix", _matrix()), ("slow", _slow())):
        folder = root / name
        folder.mkdir()
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
            ir_version=8,
        )
        onnx.checker.check_model(model)
        onnx.save(model, folder / "model.onnx")
    content = (root / "columns" / "model.onnx").read_bytes()
    card = {
        "name": "flights",
        "features": [
            {"name": "distance", "kind": "numeric"},
            {"name": "hour", "kind": "numeric"},
            {"name": "carrier", "kind": "categorical"},
        ],
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (root / "columns" / "model.json").write_text(json.dumps(card))
    return root


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that end with the test."""
    running: list[Running] = []

    def begin(*flags: object, drain_s: float = 0.05, module: str = "kubeloop.serving.server") -> Running:
        running.append(start_server(*flags, drain_s=drain_s, module=module))
        return running[-1]

    yield begin
    for server in running:
        server.process.kill()
        server.process.communicate(timeout=20)


@pytest.fixture(scope="session")
def columns(models: Path) -> Iterator[str]:
    """The address of a server of the model `flights`, version 3, with one input per feature."""
    server = start_server(
        "--model-dir", (models / "columns").as_uri(), "--name=flights", "--version=3", "--max-rows=1000",
        "--max-body-bytes=100000", "--timeout-s=1",
    )  # fmt: skip
    yield server.url
    assert server.stop()[0] == 0


@pytest.fixture(scope="session")
def matrix(models: Path) -> Iterator[str]:
    """The address of a server of the model `matrix` with one FP32 input [-1, 30] and two outputs."""
    server = start_server("--model-dir", models / "matrix", "--name=matrix")
    yield server.url
    assert server.stop()[0] == 0


@pytest.fixture(scope="session")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20) as session:
        yield session


@pytest.fixture
def in_threads() -> Callable[[list[Callable[[], None]]], None]:
    """Run functions at the same time, and raise the error of one that failed."""

    def run(functions: list[Callable[[], None]]) -> None:
        with ThreadPoolExecutor(len(functions)) as pool:
            for future in [pool.submit(function) for function in functions]:
                future.result(30)

    return run


def _info(name: str, kind: int, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _columns() -> onnx.GraphProto:
    """probability = sigmoid(distance / 1000 + code(carrier)) if hour is a number; NaN stays NaN."""
    nodes = [
        helper.make_node(
            "LabelEncoder", ["carrier"], ["code"], domain="ai.onnx.ml",
            keys_strings=["AA", "UA", ""], values_floats=[1.0, 2.0, -1.0], default_float=0.0,
        ),
        helper.make_node("Mul", ["distance", "scale"], ["far"]),
        helper.make_node("Mul", ["hour", "zero"], ["nothing"]),
        helper.make_node("Sum", ["far", "nothing", "code"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["probability"]),
    ]  # fmt: skip
    constants = [
        numpy_helper.from_array(np.float32([0.001]), "scale"),
        numpy_helper.from_array(np.float32([0.0]), "zero"),
        numpy_helper.from_array(np.int64([-1]), "flat"),
    ]
    inputs = [
        _info("distance", TensorProto.FLOAT, ["n", 1]),
        _info("hour", TensorProto.FLOAT, ["n", 1]),
        _info("carrier", TensorProto.STRING, ["n", 1]),
    ]
    return helper.make_graph(nodes, "columns", inputs, [_info("probability", TensorProto.FLOAT, ["n"])], constants)


def _matrix() -> onnx.GraphProto:
    """total = the sum of a row; positive = whether it exceeds 0."""
    nodes = [
        helper.make_node("MatMul", ["input", "ones"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["total"]),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
    ]
    constants = [
        numpy_helper.from_array(np.ones((30, 1), np.float32), "ones"),
        numpy_helper.from_array(np.float32([0.0]), "zero"),
        numpy_helper.from_array(np.int64([-1]), "flat"),
    ]
    outputs = [_info("total", TensorProto.FLOAT, ["n"]), _info("positive", TensorProto.BOOL, ["n"])]
    return helper.make_graph(nodes, "matrix", [_info("input", TensorProto.FLOAT, ["n", 30])], outputs, constants)


def _slow() -> onnx.GraphProto:
    """Ten thousand rows take seconds, while one row takes no time."""
    nodes = [helper.make_node("MatMul", ["input", "wide"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{i}", "square"], [f"h{i + 1}"]) for i in range(80)]
    nodes.append(helper.make_node("ReduceMean", ["h80"], ["mean"], axes=[1], keepdims=0))
    constants = [
        numpy_helper.from_array(np.full((1, 256), 0.01, np.float32), "wide"),
        numpy_helper.from_array(np.full((256, 256), 1 / 256, np.float32), "square"),
    ]
    inputs = [_info("input", TensorProto.FLOAT, ["n", 1])]
    return helper.make_graph(nodes, "slow", inputs, [_info("mean", TensorProto.FLOAT, ["n"])], constants)

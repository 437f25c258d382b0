"""gRPC at the transformer and the predictor, as tritonclient and KServe's client speak it."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserves
from kserve.protocol.infer_type import RequestedOutput

from kubeloop.serving.rpc_messages import HEALTH, INFERENCE
from tests.unit.serving.conftest import Running, Start, start_server
from tests.unit.serving.fields import fields

TIME = {"event_time": "2013-04-01T04:00:00Z"}
FIRST = 1 / (1 + math.exp(-3.475))
Inputs = dict[str, tuple[str, np.ndarray]]


@dataclass
class Served:
    """A server of the model `flights`, and two rows for it, the second without a distance."""

    running: Running
    inputs: Inputs

    @property
    def address(self) -> str:
        return self.running.grpc


@pytest.fixture(scope="module")
def predictor(models: Path) -> Iterator[Running]:
    server = start_server(
        "--model-dir", models / "columns", "--name=flights", "--version=3", "--grpc-port=0", "--max-rows=1000",
        "--max-body-bytes=100000", "--timeout-s=1",
    )  # fmt: skip
    yield server
    assert server.stop()[0] == 0


@pytest.fixture(scope="module")
def transformer(predictor: Running) -> Iterator[Running]:
    server = start_server(
        "--name=flights", "--predictor-url", predictor.url, "--grpc-port=0", "--max-rows=1000",
        "--max-body-bytes=100000", module="tests.unit.serving.front",
    )  # fmt: skip
    yield server
    assert server.stop()[0] == 0


@pytest.fixture(params=["predictor", "transformer"])
def served(request: pytest.FixtureRequest, predictor: Running, transformer: Running) -> Served:
    if request.param == "predictor":
        inputs: Inputs = {
            "distance": ("FP32", np.float32([[2475], [np.nan]])),
            "hour": ("FP32", np.float32([[5], [5]])),
            "carrier": ("BYTES", np.array([["AA"], ["AA"]], object)),
        }
        return Served(predictor, inputs)
    texts = {"route": ["JFK-LAX", "nowhere"], "carrier": ["AA", "AA"], "departure": ["2013-04-01T05:00:00Z"] * 2}
    keys: Inputs = {name: ("BYTES", np.array(values, object)) for name, values in texts.items()}
    return Served(transformer, keys | {"delay": ("FP32", np.float32([1.5, np.nan]))})


def as_kserve(inputs: Inputs, binary: bool) -> list[InferInput]:
    made = []
    for name, (datatype, array) in inputs.items():
        made.append(InferInput(name, list(array.shape), datatype))
        if binary:
            made[-1].set_data_from_numpy(array)
        else:
            made[-1].data = [v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()]
    return made


def test_triton(served: Served) -> None:
    inputs = {
        name: [datatype, list(array.shape), [None if v != v else v for v in array.ravel().tolist()]]
        for name, (datatype, array) in served.inputs.items()
    }
    command = [sys.executable, "-m", "tests.unit.serving.triton_grpc", served.address, json.dumps(inputs), *INFERENCE]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout)
    for *head, first, second in said["answers"]:
        assert head == ["r1", "flights", "3", "float32"]
        assert first == pytest.approx(FIRST, rel=1e-4)
        assert math.isnan(second)
    assert said["ready"] == [True] * 4
    assert said["server"] == "kubeloop"
    assert said["model"] == [list(served.inputs), "onnxruntime_onnx", ["3"]]
    version, missing, output = said["errors"]
    assert "StatusCode.NOT_FOUND" in version
    assert "version '9' is not served here" in version
    assert "StatusCode.INVALID_ARGUMENT" in missing
    assert "missing 'carrier'" in missing or "missing 'hour'" in missing
    assert "unknown output 'label'; expected 'probability'" in output
    for name, published in said["fields"].items():
        ours = fields(INFERENCE, name)
        assert ours == {key: published[key] for key in ours}


@pytest.mark.parametrize("binary", [True, False])
def test_kserve(served: Served, binary: bool) -> None:
    request = InferRequest(
        "flights",
        as_kserve(served.inputs, binary),
        "r1",
        parameters=dict(TIME),
        request_outputs=[RequestedOutput("probability")],
    )

    async def talk() -> Any:
        async with InferenceGRPCClient(served.address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("flights")
            return await client.infer(request)

    answer = asyncio.run(talk())
    assert (answer.id, answer.model_name, answer.model_version) == ("r1", "flights", "3")
    scores = answer.outputs[0].as_numpy()
    assert scores[0] == pytest.approx(FIRST, rel=1e-4)
    assert np.isnan(scores[1])


def ask(address: str, body: bytes, method: str = "ModelInfer", **more: Any) -> bytes:
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        return channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(body, timeout=10, **more)


def good(served: Served) -> Any:
    """A valid request in typed contents."""
    return INFERENCE["ModelInferRequest"].FromString(
        InferRequest("flights", as_kserve(served.inputs, False), "r1").to_grpc().SerializeToString()
    )


def _change(name: str, value: Any) -> Any:
    return lambda message: setattr(message, name, value)


REFUSALS = {
    "model": (_change("model_name", "other"), "NOT_FOUND", "model 'other' is not served here"),
    "version": (_change("model_version", "9"), "NOT_FOUND", "version '9' is not served here"),
    "output": (lambda m: m.outputs.add(name="label"), "INVALID_ARGUMENT", "unknown output 'label'; expected 'probab"),
    "input": (lambda m: m.inputs.add(name="y"), "INVALID_ARGUMENT", "unknown name 'y' in 'inputs'"),
    "missing": (lambda m: m.inputs.pop(), "INVALID_ARGUMENT", "missing"),
    "nothing": (lambda m: m.ClearField("inputs"), "INVALID_ARGUMENT", "at least one tensor"),
    "shape": (lambda m: m.inputs[0].shape.append(7), "INVALID_ARGUMENT", "must have shape"),
    "datatype": (lambda m: setattr(m.inputs[0], "datatype", "FP31"), "INVALID_ARGUMENT", "must have datatype"),
    "no values": (lambda m: m.inputs[0].ClearField("contents"), "INVALID_ARGUMENT", "needs 2 values, got 0"),
    "a raw tensor": (lambda m: m.raw_input_contents.append(b""), "INVALID_ARGUMENT", "raw_input_contents has 1 tens"),
    "both": (
        lambda m: m.raw_input_contents.extend([b""] * len(m.inputs)),
        "INVALID_ARGUMENT",
        "has contents and raw_input_contents",
    ),
    "infinity": (lambda m: _fill(m, math.inf), "INVALID_ARGUMENT", "out of the range of FP32"),
    "no text": (lambda m: _fill(m, b"\xff"), "INVALID_ARGUMENT", "takes UTF-8 text"),
    "an empty parameter": (lambda m: m.parameters["k"], "INVALID_ARGUMENT", "parameter 'k' has no value"),
}


def _fill(message: Any, value: Any) -> None:
    field = "bytes_contents" if isinstance(value, bytes) else "fp32_contents"
    for tensor in message.inputs:
        if len(values := getattr(tensor.contents, field)):
            values[0] = value


@pytest.mark.parametrize(("change", "code", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(served: Served, change: Any, code: str, words: str) -> None:
    message = good(served)
    change(message)
    with pytest.raises(grpc.RpcError) as caught:
        ask(served.address, message.SerializeToString())
    assert caught.value.code().name == code
    assert words in caught.value.details()


def test_the_limits_hold(served: Served) -> None:
    message = good(served)
    for tensor in message.inputs:
        tensor.shape[0] = 1001
        values = tensor.contents.bytes_contents or tensor.contents.fp32_contents
        values.extend([values[0]] * 999)
    with pytest.raises(grpc.RpcError, match="1001 rows in one request; send at most 1000") as caught:
        ask(served.address, message.SerializeToString())
    assert caught.value.code().name == "RESOURCE_EXHAUSTED"
    for compression in (None, grpc.Compression.Gzip):
        with pytest.raises(grpc.RpcError) as caught:
            ask(served.address, bytes(50_000_000 if compression else 100_001), compression=compression)
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
    with pytest.raises(grpc.RpcError, match=r"not an inference\.ModelInferRequest") as caught:
        ask(served.address, b"\xff" * 100)
    assert caught.value.code().name == "INVALID_ARGUMENT"
    with pytest.raises(grpc.RpcError) as caught:
        ask(served.address, b"", "ModelExplain")
    assert caught.value.code().name == "UNIMPLEMENTED"


def test_calls_count_as_those_over_http(models: Path, start: Start) -> None:
    server = start("--model-dir", models / "columns", "--name=flights", "--grpc-port=0")
    message = whole()
    ask(server.grpc, message.SerializeToString())
    message.inputs.pop()
    with pytest.raises(grpc.RpcError, match="missing 'carrier'"):
        ask(server.grpc, message.SerializeToString())
    ask(server.grpc, b"", "ServerLive")
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    assert 'kubeloop_requests_total{code="200",path="/v2/models/{name}/infer"} 1.0' in lines
    assert 'kubeloop_requests_total{code="400",path="/v2/models/{name}/infer"} 1.0' in lines
    assert 'kubeloop_requests_total{code="200",path="grpc"} 1.0' in lines
    assert 'kubeloop_inferences_total{outcome="answered"} 1.0' in lines
    assert 'kubeloop_inferences_total{outcome="refused"} 1.0' in lines
    assert "kubeloop_rows_total 1.0" in lines


def whole() -> Any:
    """One row for the predictor."""
    message = INFERENCE["ModelInferRequest"](model_name="flights")
    for name in ("distance", "hour"):
        message.inputs.add(name=name, datatype="FP32", shape=[1, 1], contents={"fp32_contents": [1]})
    message.inputs.add(name="carrier", datatype="BYTES", shape=[1, 1], contents={"bytes_contents": [b"AA"]})
    return message


def check(channel: grpc.Channel, service: str = "") -> int:
    method = channel.unary_unary("/grpc.health.v1.Health/Check")
    body = HEALTH["HealthCheckRequest"](service=service).SerializeToString()
    return HEALTH["HealthCheckResponse"].FromString(method(body, timeout=5)).status


def ended(server: Running) -> int:
    """Return the exit status of a server that was asked to stop; it must not need a second signal."""
    server.process.communicate(timeout=20)
    return server.process.returncode


def test_health(models: Path, start: Start) -> None:
    server = start("--model-dir", models / "columns", "--name=flights", "--grpc-port=0", drain_s=1)
    with grpc.insecure_channel(server.grpc) as channel:
        assert [check(channel), check(channel, "inference.GRPCInferenceService")] == [1, 1]
        with pytest.raises(grpc.RpcError, match="there is no service 'x' here") as caught:
            check(channel, "x")
        assert caught.value.code().name == "NOT_FOUND"
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while check(channel) == 1:
            assert time.monotonic() < deadline
    assert ended(server) == 0


def test_a_server_that_stops_finishes_what_it_began(models: Path, start: Start) -> None:
    server = start("--model-dir", models / "columns", "--name=flights", "--grpc-port=0", drain_s=0.3)
    answers: list[bytes] = []
    failures: list[str] = []
    body = whole().SerializeToString()

    def talk() -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            while not failures:
                try:
                    answers.append(infer(body, timeout=5))
                except grpc.RpcError as error:
                    failures.append(f"{error.code().name}: {error.details()}")

    clients = [threading.Thread(target=talk) for _ in range(4)]
    for each in clients:
        each.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    for each in clients:
        each.join(20)
    assert ended(server) == 0
    assert len(answers) > 20
    # A call that had begun was finished; a later call is cancelled unserved, or finds no server.
    assert len(failures) <= len(clients)
    assert all(failure.startswith(("CANCELLED", "UNAVAILABLE")) for failure in failures), failures


def test_a_client_leaves_an_old_connection_without_losing_a_call(models: Path, start: Start) -> None:
    """The client has found another pod before this one ends."""
    server = start("--model-dir", models / "columns", "--name=flights", "--grpc-port=0", drain_s=2)
    process, port = psutil.Process(server.process.pid), int(server.grpc.rpartition(":")[2])
    clients: set[int] = set()
    body = whole().SerializeToString()
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        deadline = time.monotonic() + 20
        while len(clients) < 3:
            assert time.monotonic() < deadline
            infer(body, timeout=5)
            clients |= {each.raddr.port for each in process.connections() if each.raddr and each.laddr.port == port}


def test_a_port_that_is_taken_ends_the_server(models: Path, predictor: Running, start: Start) -> None:
    port = predictor.grpc.rpartition(":")[2]
    with pytest.raises(AssertionError, match="address"):
        start("--model-dir", models / "columns", "--name=flights", f"--grpc-port={port}")


def test_without_the_flag_grpc_is_not_loaded() -> None:
    code = "import sys, kubeloop.serving.server, kubeloop.serving.calls; print(any(m == 'grpc' for m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("name", INFERENCE)
def test_messages_are_those_of_kserves_stubs(name: str) -> None:
    ours, theirs = fields(INFERENCE, name), fields(kserves, name)
    # The stubs lack the protocol's newer kinds of parameters.
    newer = {"double_param", "uint64_param"}
    assert {key: value for key, value in ours.items() if key not in newer} == theirs

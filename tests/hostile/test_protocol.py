"""Requests with binary tensors and gRPC messages with one or many errors: refused as bad requests, never a 5xx."""

import json
import random
import struct
from collections import Counter
from collections.abc import Iterator

import grpc
import httpx
import onnx
import psutil
import pytest
from onnx import helper

from kubeloop.serving.rpc_messages import INFERENCE
from tests.unit.serving.conftest import Running, _columns, start_server

REQUESTS = 1500
"""Seconds per protocol."""
RAW = {"distance": struct.pack("<2f", 1, 2), "hour": struct.pack("<2f", 5, 6), "carrier": b"\2\0\0\0AA\2\0\0\0UA"}
REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("model")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(_columns(), opset_imports=opsets, ir_version=8), folder / "model.onnx")
    running = start_server("--model-dir", folder, "--name=flights", "--grpc-port=0", "--max-body-bytes=100000")
    yield running
    assert running.stop()[0] == 0


def damaged(body: bytes, chance: random.Random) -> bytes:
    """Flip, cut, double or insert a few bytes."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(4):
            case 0:
                body = body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
            case 1:
                body = body[:at] + body[at + chance.randint(1, 9) :]
            case 2:
                body = body[:at] + body[max(0, at - 9) :]
            case _:
                body = body[:at] + chance.randbytes(chance.randint(1, 9)) + body[at:]
    return body


def binary() -> tuple[bytes, int]:
    inputs = [
        {
            "name": name,
            "datatype": "BYTES" if name == "carrier" else "FP32",
            "shape": [2, 1],
            "parameters": {"binary_data_size": len(raw)},
        }
        for name, raw in RAW.items()
    ]
    head = json.dumps({"id": "1", "inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(RAW.values()), len(head)


def test_binary_requests(server: Running) -> None:
    chance = random.Random(7)
    body, size = binary()
    process = psutil.Process(server.process.pid)
    with httpx.Client(base_url=server.url, timeout=20) as client:

        def ask(body: bytes, size: int | str) -> httpx.Response:
            headers = {"inference-header-content-length": str(size), "content-type": "application/octet-stream"}
            return client.post("/v2/models/flights/infer", content=body, headers=headers)

        assert ask(body, size).status_code == 200
        before = process.memory_info().rss
        codes: Counter[int] = Counter()
        for number in range(REQUESTS):
            said = size if number % 3 else size + chance.choice([-size, -1, 1, 10, len(body), 10**11])
            codes[ask(damaged(body, chance), said).status_code] += 1
        assert set(codes) <= {200, 400, 413, 415}, codes
        assert codes[400] > REQUESTS / 2
        assert ask(body, size).status_code == 200
    assert process.memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_messages(server: Running, raw: bool) -> None:
    chance = random.Random(7)
    message = INFERENCE["ModelInferRequest"](model_name="flights", id="1")
    for name, content in RAW.items():
        tensor = message.inputs.add(name=name, datatype="BYTES" if name == "carrier" else "FP32", shape=[2, 1])
        if raw:
            message.raw_input_contents.append(content)
        elif name == "carrier":
            tensor.contents.bytes_contents.extend([b"AA", b"UA"])
        else:
            tensor.contents.fp32_contents.extend([1, 2])
    body = message.SerializeToString()
    codes: Counter[str] = Counter()
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(REQUESTS):
            try:
                infer(damaged(body, chance), timeout=10)
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
        infer(body, timeout=10)
    assert set(codes) <= REFUSED | {"OK"}, codes
    assert codes["INVALID_ARGUMENT"] > REQUESTS / 4

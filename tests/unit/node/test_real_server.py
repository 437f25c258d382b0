"""The node as users start it, with the real model server and a real ONNX model, called by KServe's own client."""

import asyncio
import hashlib
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

from kubeloop.config import settings
from kubeloop.delivery import DeliveryError
from kubeloop.delivery.manifest import ModelRef
from kubeloop.payloads.exchanges import Faults, Pair, predictions
from kubeloop.tasks.binary.task import BINARY

NODE = (str(settings().runtime_python), "-m", "kubeloop.node.server", "--port", "0")


def save(folder: Path, version: str, factor: float) -> ModelRef:
    """Write a model that returns `distance` times a factor."""
    value = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node("Mul", ["distance", "factor"], ["scaled"]),
                onnx.helper.make_node("Squeeze", ["scaled", "axis"], ["probability"]),
            ],
            "scale",
            [value("distance", onnx.TensorProto.FLOAT, [None, 1])],
            [value("probability", onnx.TensorProto.FLOAT, [None])],
            [
                onnx.helper.make_tensor("factor", onnx.TensorProto.FLOAT, [1], [factor]),
                onnx.helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [1]),
            ],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    content = model.SerializeToString()
    path = folder / version
    path.mkdir(parents=True)
    (path / "model.onnx").write_bytes(content)
    return ModelRef(version, path.as_uri(), hashlib.sha256(content).hexdigest(), "run")


async def ask(url: str) -> list[float]:
    distance = InferInput("distance", [2, 1], "FP32", data=[1.0, 3.0])
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=10))
    answer = await client.infer(url, InferRequest("flights", [distance]), model_name="flights")
    return list(answer.outputs[0].data)


def ask_in_binary(url: str) -> list[float]:
    distance = triton.InferInput("distance", [2, 1], "FP32")
    distance.set_data_from_numpy(np.float32([[1], [3]]))
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        answer = client.infer("flights", [distance], outputs=[triton.InferRequestedOutput("probability")])
    return list(answer.as_numpy("probability"))


def test_a_real_model_is_served_switched_and_checked(kit):
    node = kit.node(command=NODE)
    first, second = (save(kit.folder / "onnx", f"{n}", factor) for n, factor in ((1, 0.5), (2, 0.25)))

    def manifest(ref: ModelRef) -> dict:
        built = kit.manifest(ref)
        del built["spec"]["transformer"]  # the real transformer would need a feature store
        return built

    node.apply(manifest(first))
    assert asyncio.run(ask(node.url)) == [0.5, 1.5]
    node.apply(manifest(second))
    assert asyncio.run(ask(node.url)) == [0.25, 0.75]
    assert httpx.get(f"{node.url}/v2/models/flights").json()["versions"] == ["2"]
    forged = ModelRef("3", first.uri, second.sha256, "run")
    with pytest.raises(DeliveryError, match=f"PredictorFailed: .*refusing to serve it.*{second.uri} is still served"):
        node.apply(manifest(forged))
    kit.eventually(lambda: node.get()["queued"] == 0)
    pairs = kit.collector.pairs()
    assert [pair["response"][1]["model_version"] for pair in pairs.values()] == ["1", "2"]
    assert node.get()["predictions"] == 4
    kit.collector.events.clear()
    assert ask_in_binary(node.url) == [0.25, 0.75]
    kit.eventually(lambda: node.get()["queued"] == 0)
    assert node.get()["predictions"] == 6
    bodies = {headers["ce-type"].rpartition(".")[2]: memoryview(body) for headers, body in kit.collector.events}
    read = predictions([Pair(1, "r", 0, "default", 0, bodies["request"], bodies["response"])], Faults(), BINARY)
    assert read.select(["distance", "score", "model_version"]).to_pylist() == [
        {"distance": 1.0, "score": 0.25, "model_version": "2"},
        {"distance": 3.0, "score": 0.75, "model_version": "2"},
    ]

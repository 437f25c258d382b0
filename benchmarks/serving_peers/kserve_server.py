"""The stock KServe Python server with an ONNX model: `kserve_server.py MODEL.onnx NAME PORT`."""

import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn

name, model_path, port = sys.argv[2], sys.argv[1], sys.argv[3]
sys.argv = [sys.argv[0], f"--http_port={port}", "--enable_grpc=false"]

import kserve  # noqa: E402 - reads the command line
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse  # noqa: E402


class OnnxModel(kserve.Model):
    """A model around ONNX Runtime as KServe's documentation describes it."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload: Any, *_headers: Any, **_more: Any) -> Any:
        """Answer a V2 request or a V1 body."""
        if isinstance(payload, InferRequest):
            rows = payload.inputs[0].as_numpy()
            scores = self.session.run(None, {"input": rows})[0]
            output = InferOutput("probabilities", list(scores.shape), "FP32")
            output.set_data_from_numpy(scores, binary_data=False)
            return InferResponse(payload.id, self.name, [output])
        rows = np.array(payload["instances"], np.float32)
        return {"predictions": self.session.run(None, {"input": rows})[0].tolist()}


def loopback(*args: Any, **settings: Any) -> uvicorn.Config:
    """Configure uvicorn as KServe does, except for its fixed host 0.0.0.0, since a benchmark stays on loopback."""
    return _Config(*args, **settings | {"host": "127.0.0.1"})


_Config = uvicorn.Config
uvicorn.Config = loopback  # type: ignore[assignment, misc]
kserve.ModelServer().start([OnnxModel(name, model_path)])

"""tritonclient over gRPC, in a separate process, since its messages have the same names as KServe's.

Usage: triton_grpc.py ADDRESS INPUTS MESSAGE..., where INPUTS is JSON: {name: [datatype, shape, values]}, null for NaN.
"""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.unit.serving.fields import fields


def _inputs(described: dict[str, Any]) -> list[triton.InferInput]:
    made = []
    for name, (datatype, shape, values) in described.items():
        made.append(triton.InferInput(name, shape, datatype))
        made[-1].set_data_from_numpy(np.array(values, object if datatype == "BYTES" else np.float32).reshape(shape))
    return made


def main() -> None:
    inputs = _inputs(json.loads(sys.argv[2]))
    parameters = {"event_time": "2013-04-01T04:00:00Z"}
    said: dict[str, Any] = {"answers": [], "errors": []}
    with triton.InferenceServerClient(sys.argv[1]) as client:
        for outputs in (None, [triton.InferRequestedOutput("probability")]):
            answer = client.infer("flights", inputs, "3", outputs, request_id="r1", parameters=parameters)
            head, scores = answer.get_response(), answer.as_numpy("probability")
            said["answers"].append([head.id, head.model_name, head.model_version, str(scores.dtype), *scores.tolist()])
        said["ready"] = [
            client.is_server_live(),
            client.is_server_ready(),
            client.is_model_ready("flights"),
            client.is_model_ready("flights", "3"),
        ]
        said["server"] = client.get_server_metadata().name
        metadata = client.get_model_metadata("flights", "3")
        said["model"] = [[tensor.name for tensor in metadata.inputs], metadata.platform, list(metadata.versions)]
        for call in (
            lambda: client.is_model_ready("flights", "9"),
            lambda: client.infer("flights", inputs[:1]),
            lambda: client.infer("flights", inputs, outputs=[triton.InferRequestedOutput("label")]),
        ):
            try:
                said["errors"].append(f"none: {call()}")
            except InferenceServerException as error:
                said["errors"].append(str(error))
    said["fields"] = {name: fields(service_pb2, name) for name in sys.argv[3:]}
    print(json.dumps(said))


if __name__ == "__main__":
    main()

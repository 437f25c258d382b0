"""The messages of `inference.GRPCInferenceService` and `grpc.health.v1.Health`, described here instead of generated.

Names and field numbers are those of the Open Inference Protocol (specification/protocol/open_inference_grpc.proto) and
of gRPC's health checking protocol; both number the fields of a message from 1 in their order. They are in a separate
pool, since KServe's and Triton's packages describe the same names.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PARAMETERS = "map<InferParameter> parameters"
_INFERENCE = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "ModelMetadataResponse": "string name, string* versions, string platform, TensorMetadata* inputs, "
    "TensorMetadata* outputs",
    "ModelMetadataResponse.TensorMetadata": "string name, string datatype, int64* shape",
    "InferParameter": "bool bool_param | int64 int64_param | string string_param | double double_param | "
    "uint64 uint64_param",
    "InferTensorContents": "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, "
    "uint64* uint64_contents, float* fp32_contents, double* fp64_contents, bytes* bytes_contents",
    "ModelInferRequest": f"string model_name, string model_version, string id, {_PARAMETERS}, "
    "InferInputTensor* inputs, InferRequestedOutputTensor* outputs, bytes* raw_input_contents",
    "ModelInferRequest.InferInputTensor": f"string name, string datatype, int64* shape, {_PARAMETERS}, "
    "InferTensorContents contents",
    "ModelInferRequest.InferRequestedOutputTensor": f"string name, {_PARAMETERS}",
    "ModelInferResponse": f"string model_name, string model_version, string id, {_PARAMETERS}, "
    "InferOutputTensor* outputs, bytes* raw_output_contents",
    "ModelInferResponse.InferOutputTensor": f"string name, string datatype, int64* shape, {_PARAMETERS}, "
    "InferTensorContents contents",
}
"""The fields of each message; `*` marks a repeated one, `|` joins those of a oneof."""

# An enum is an int32 on the wire.
_HEALTH = {"HealthCheckRequest": "string service", "HealthCheckResponse": "int32 status"}

_Field = descriptor_pb2.FieldDescriptorProto


def _messages(package: str, described: dict[str, str]) -> dict[str, Any]:
    """Return the class of each message by its name."""
    file = descriptor_pb2.FileDescriptorProto(name=f"kubeloop/{package}.proto", package=package, syntax="proto3")
    protos: dict[str, Any] = {}
    for name in sorted(described, key=lambda each: each.count(".")):
        outer, _, inner = name.rpartition(".")
        protos[name] = (protos[outer].nested_type if outer else file.message_type).add(name=inner)
    for name, text in described.items():
        proto = protos[name]
        choice = "|" in text
        if choice:
            proto.oneof_decl.add(name="parameter_choice")
        for number, field in enumerate(filter(None, text.split("|" if choice else ",")), 1):
            kind, label = field.split()
            repeated = kind.endswith("*") or kind.startswith("map<")
            added = proto.field.add(name=label, number=number, label=_Field.LABEL_OPTIONAL + 2 * repeated)
            if choice:
                added.oneof_index = 0
            if kind.startswith("map<"):
                value = f".{package}.{kind[len('map<') : -1]}"
                entry = proto.nested_type.add(name="ParametersEntry", options={"map_entry": True})
                entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
                entry.field.add(
                    name="value", number=2, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_MESSAGE, type_name=value
                )
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".{package}.{name}.ParametersEntry"
            elif (base := kind.rstrip("*")).islower():
                added.type = getattr(_Field, f"TYPE_{base.upper()}")
            else:
                inside = f"{name}.{base}" in described
                added.type = _Field.TYPE_MESSAGE
                added.type_name = f".{package}.{name}.{base}" if inside else f".{package}.{base}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in described
    }


INFERENCE = _messages("inference", _INFERENCE)
HEALTH = _messages("grpc.health.v1", _HEALTH)

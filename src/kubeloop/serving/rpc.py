"""`inference.GRPCInferenceService` and gRPC's health service, next to the HTTP endpoints of an inference process.

Every call uses the service's `answer`, as over HTTP, with the same limits, features, metrics and payload log. This
module is imported only if `--grpc-port` is set, since a pod without gRPC should not spend memory on it.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from kubeloop import __version__
from kubeloop.serving import oip
from kubeloop.serving.calls import InferenceService, answered
from kubeloop.serving.http import EXTENSIONS, App
from kubeloop.serving.metrics import INFER
from kubeloop.serving.oip import InferRequest, InferResponse, Parameters
from kubeloop.serving.rpc_messages import HEALTH, INFERENCE
from kubeloop.serving.tensors import DTYPES, Array, ProtocolError, Specs, datatype_of, raw_of

log = logging.getLogger("kubeloop.serving")

SERVICE = "inference.GRPCInferenceService"
_SERVING, _NOT_SERVING = 1, 2
_MOST_CALLS = 256
_HANDSHAKE_MS = 10_000
_SHORTEST_MS = 1000
_LONGEST_MESSAGE = 2000
"""Most characters of an error: it is sent in a header, and clients accept headers of 8 KiB."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field with the typed values of a datatype; FP16 is sent only as bytes."""
# These parameters are about answers over HTTP; for gRPC, the request decides.
_OF_HTTP = {"binary_data", "binary_data_output", "binary_data_size"}

Handler = Callable[[Any], Awaitable[Any]]


class Server:
    """The gRPC server of an inference process; started and stopped with its HTTP server."""

    def __init__(self, app: App, service: InferenceService, host: str, port: int, drain_s: float) -> None:
        """Set up the server; nothing is bound yet.

        Args:
            app: the HTTP application, which knows when the process drains.
            service: the service that answers.
            host: address to bind.
            port: port to bind; 0 picks one.
            drain_s: how long the process serves after SIGTERM. A connection lives for at most half of it. A client
                leaves an old connection without losing a call, so it has found another pod when this one ends.
        """
        self.address = ""
        """Where it listens, once it is started."""
        self._app = app
        self._service = service
        self._bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._age_ms = max(_SHORTEST_MS, int(drain_s * 500))
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Start listening and print `grpc <host:port>`.

        Raises:
            RuntimeError: the port is taken.
        """
        options = {
            "grpc.max_receive_message_length": self._service.limits.max_body_bytes,
            "grpc.max_send_message_length": -1,
            "grpc.max_concurrent_streams": _MOST_CALLS,
            "grpc.server_handshake_timeout_ms": _HANDSHAKE_MS,
            "grpc.max_connection_age_ms": self._age_ms,
            "grpc.max_connection_age_grace_ms": int(self._service.limits.timeout_s * 1000),
            # Otherwise a second process would silently share the port and its traffic.
            "grpc.so_reuseport": 0,
        }
        server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=_MOST_CALLS)
        inference = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
        }
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {"ModelInfer": grpc.unary_unary_rpc_method_handler(self._guarded(self._infer, infer=True))}
                    | {name: self._typed(name, handler) for name, handler in inference.items()},
                ),
                grpc.method_handlers_generic_handler(
                    "grpc.health.v1.Health",
                    {
                        "Check": grpc.unary_unary_rpc_method_handler(
                            self._guarded(self._check),
                            HEALTH["HealthCheckRequest"].FromString,
                            HEALTH["HealthCheckResponse"].SerializeToString,
                        )
                    },
                ),
            )
        )
        port = server.add_insecure_port(self._bind)
        await server.start()
        self._server = server
        self.address = f"{self._bind.rpartition(':')[0]}:{port}"
        print(f"grpc {self.address}", flush=True)

    async def stop(self) -> None:
        """Finish the calls that have begun; one that arrives at this moment is cancelled."""
        if self._server is not None:
            await self._server.stop(self._service.limits.timeout_s)

    def _typed(self, name: str, handler: Handler) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(handler),
            INFERENCE[f"{name}Request"].FromString,
            INFERENCE[f"{name}Response"].SerializeToString,
        )

    def _guarded(self, handler: Handler, *, infer: bool = False) -> Callable[[Any, Any], Awaitable[Any]]:
        """Count a handler's calls, and answer its errors as gRPC does.

        An inference counts like one over HTTP, with the same status, so that alerts need not distinguish them.
        """
        path = INFER if infer else "grpc"

        async def handle(request: Any, context: Any) -> Any:
            start = time.perf_counter()
            self._app.in_flight += 1
            failed: ProtocolError | None = None
            try:
                answer = await handler(request)
            except ProtocolError as error:
                failed = error
            except Exception:  # the last resort of a server: say so in the log and in the answer
                log.exception("%s failed", handler.__name__)
                failed = ProtocolError("internal error; the server's log says more", 500)
            finally:
                self._app.in_flight -= 1
            status = failed.status if failed else 200
            self._service.metrics.observe(path, status, time.perf_counter() - start)
            if failed:
                code = _CODES.get(status, grpc.StatusCode.INTERNAL)
                await context.abort(code, str(failed)[:_LONGEST_MESSAGE])
            return answer

        return handle

    async def _infer(self, request: bytes) -> bytes:
        call = Call(request)
        self._check_name(call.model)
        return await self._service.answer(call)

    async def _server_live(self, _request: Any) -> Any:
        return INFERENCE["ServerLiveResponse"](live=True)

    async def _server_ready(self, _request: Any) -> Any:
        return INFERENCE["ServerReadyResponse"](ready=await self._app.is_ready())

    async def _model_ready(self, request: Any) -> Any:
        self._check_name(request.name)
        if request.version:
            await self._service.metadata(request.version)
        return INFERENCE["ModelReadyResponse"](ready=await self._app.is_ready())

    async def _server_metadata(self, _request: Any) -> Any:
        return INFERENCE["ServerMetadataResponse"](name="kubeloop", version=__version__, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any) -> Any:
        self._check_name(request.name)
        found = await self._service.metadata(request.version or None)
        known = INFERENCE["ModelMetadataResponse"].DESCRIPTOR.fields_by_name
        return INFERENCE["ModelMetadataResponse"](**{key: found[key] for key in known if key in found})

    async def _check(self, request: Any) -> Any:
        if request.service not in ("", SERVICE):
            raise ProtocolError(f"there is no service {request.service[:80]!r} here, only {SERVICE}", 404)
        ready = await self._app.is_ready()
        return HEALTH["HealthCheckResponse"](status=_SERVING if ready else _NOT_SERVING)

    def _check_name(self, name: str) -> None:
        if name != self._service.name:
            raise ProtocolError(f"model {name[:80]!r} is not served here; this server has {self._service.name!r}", 404)


class Call:
    """A ModelInfer request; see `calls.Call`."""

    def __init__(self, body: bytes) -> None:
        """Read the message.

        Raises:
            ProtocolError: it is not a valid request.
        """
        try:
            self._message = INFERENCE["ModelInferRequest"].FromString(body)
        except DecodeError:
            raise ProtocolError("the request is not an inference.ModelInferRequest") from None
        self.size = len(body)
        self.version: str | None = self._message.model_version or None
        self.model: str = self._message.model_name
        self._outputs: tuple[str, ...] = ()

    def parse(self, specs: Specs, outputs: Collection[str] | None) -> InferRequest:
        """See `calls.Call`."""
        message = self._message
        raw = message.raw_input_contents
        if raw and len(raw) != len(message.inputs):
            raise ProtocolError(f"raw_input_contents has {len(raw)} tensors, inputs has {len(message.inputs)}")
        inputs = []
        for number, tensor in enumerate(message.inputs):
            each: dict[str, Any] = {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": _scalars(tensor.parameters),
            }
            if raw:
                each["parameters"]["binary_data_size"] = len(raw[number])
                if tensor.HasField("contents"):
                    raise ProtocolError(f"{tensor.name!r} has contents and raw_input_contents; send one of them")
            else:
                each["data"] = _values(tensor)
            inputs.append(each)
        request: dict[str, Any] = {"inputs": inputs, "parameters": _scalars(message.parameters)}
        if message.id:
            request["id"] = message.id
        request["outputs"] = [
            {"name": output.name, "parameters": _scalars(output.parameters)} for output in message.outputs
        ]
        parsed = oip.read_v2(request, specs, outputs, memoryview(b"".join(raw)) if raw else None)
        self._outputs = parsed.outputs
        return parsed

    def encode(self, response: InferResponse) -> bytes:
        """Write the answer: as bytes if the request was, or if there are no typed values for it."""
        message = INFERENCE["ModelInferResponse"](
            model_name=response.name, model_version=response.version or "", id=response.id or ""
        )
        for key, value in response.parameters.items():
            _set(message.parameters[key], value)
        raw = bool(self._message.raw_input_contents) or any(
            datatype_of(array) not in _CONTENTS for array in response.outputs.values()
        )
        for name, array in response.outputs.items():
            tensor = message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            if raw:
                message.raw_output_contents.append(raw_of(array))
            else:
                getattr(tensor.contents, _CONTENTS[tensor.datatype]).extend(_typed(array))
        encoded: bytes = message.SerializeToString()
        return encoded

    def relay(self, body: bytes) -> bytes:
        """See `calls.Call`."""
        return self.encode(answered(body, self._outputs))


def _values(tensor: Any) -> list[Any]:
    """Return typed values as JSON would hold them."""
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        if tensor.datatype in DTYPES:
            raise ProtocolError(f"{tensor.name!r}: {tensor.datatype} has no typed contents; use raw_input_contents")
        return []
    values: list[Any] = list(getattr(tensor.contents, field))
    if tensor.datatype == "BYTES":
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError:
            raise ProtocolError(f"{tensor.name!r} takes UTF-8 text") from None
    if tensor.datatype.startswith("FP") and any(map(math.isinf, values)):
        raise ProtocolError(f"{tensor.name!r} has a value out of the range of {tensor.datatype}")
    return values


def _typed(array: Array) -> list[Any]:
    values: list[Any] = array.ravel().tolist()
    return [str(value).encode() for value in values] if array.dtype.hasobject else values


def _scalars(parameters: Any) -> Parameters:
    found: Parameters = {}
    for key, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise ProtocolError(f"parameter {key[:80]!r} has no value")
        if key not in _OF_HTTP:
            found[key] = getattr(value, choice)
    return found


def _set(parameter: Any, value: str | int | float | bool) -> None:
    if type(value) is int and not -(2**63) <= value < 2**63:
        value = float(value)
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    setattr(parameter, kinds[type(value)], value)

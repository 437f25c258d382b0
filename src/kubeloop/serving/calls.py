"""An inference call in the terms of its protocol; model server and transformer answer it in the same way.

Every protocol uses a service's `answer`: V2 with or without binary tensors and V1 here, gRPC in `rpc`.
"""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import replace
from typing import Protocol, TypeVar

from kubeloop.serving import oip, v1
from kubeloop.serving.guard import Guard
from kubeloop.serving.http import App, Request, Response, Service
from kubeloop.serving.oip import InferRequest, InferResponse
from kubeloop.serving.process import Server, run
from kubeloop.serving.tensors import ProtocolError, Specs, listed, show

JSON_SIZE = b"inference-header-content-length"
_DIGITS = 12

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Call(Protocol[T_co]):
    """A request, and how to write its answer. Errors are raised as `ProtocolError`."""

    size: int
    """Bytes of the request."""
    version: str | None
    """The version that it requests, if any."""

    def parse(self, specs: Specs, outputs: Collection[str] | None) -> InferRequest:
        """Read the request; see `oip.parse_v2`. Called once, before the others, and perhaps in a thread."""

    def encode(self, response: InferResponse) -> T_co:
        """Write the answer."""

    def relay(self, body: bytes) -> T_co:
        """Write the answer from a predictor's V2 answer in JSON.

        Raises:
            ProtocolError: it is not a V2 answer (502).
        """


class _Http:
    """What calls over HTTP share."""

    def __init__(self, request: Request) -> None:
        self.size = len(request.body)
        self.version = request.version
        self._body = request.body
        self._json_size = _json_size(request)
        self._request: InferRequest | None = None


class V2(_Http):
    """A V2 request, in JSON or with binary tensors."""

    def parse(self, specs: Specs, outputs: Collection[str] | None) -> InferRequest:
        """See `Call`."""
        self._request = oip.parse_v2(self._body, specs, outputs, self._json_size)
        return self._request

    def encode(self, response: InferResponse) -> Response:
        """See `Call`."""
        body, json_size = oip.encode_v2(response, self._request)
        if json_size is None:
            return Response(body)
        return Response(body, media=b"application/octet-stream", headers=((JSON_SIZE, b"%d" % json_size),))

    def relay(self, body: bytes) -> Response:
        """See `Call`; if the client wants all outputs, as the payload log does, the bytes are passed on unchanged."""
        request = self._request
        if request is None or (request.plain and not request.outputs):
            return Response(body)
        return self.encode(answered(body, request.outputs))


class V1(_Http):
    """A V1 request: only JSON, all outputs."""

    def parse(self, specs: Specs, outputs: Collection[str] | None) -> InferRequest:  # noqa: ARG002 - V1 names none
        """See `Call`."""
        if self._json_size is not None:
            raise ProtocolError("V1 has no binary tensors; send JSON, or use V2", 415)
        return v1.parse(self._body, specs)

    def encode(self, response: InferResponse) -> Response:
        """See `Call`."""
        return Response(v1.encode(response.outputs))

    def relay(self, body: bytes) -> Response:
        """See `Call`."""
        return self.encode(answered(body))


class Inference(ABC):
    """The endpoints of a service that answers calls."""

    @abstractmethod
    async def answer(self, call: Call[T]) -> T:
        """Predict."""

    async def infer(self, request: Request) -> Response:
        """Answer a V2 inference request."""
        return await self.answer(V2(request))

    async def predict(self, request: Request) -> Response:
        """Answer a V1 predict request."""
        return await self.answer(V1(request))


class InferenceService(Service, Protocol):
    """A service that can be called by any protocol."""

    async def answer(self, call: Call[T]) -> T:
        """Predict."""


def application(service: InferenceService, args: argparse.Namespace) -> App:
    """Return the application of a process, with gRPC if its flags ask for it."""
    app = App(service)
    if args.grpc_port is not None:
        # Imported here, since a process without gRPC should not spend memory on it.
        from kubeloop.serving import rpc

        app.beside.append(rpc.Server(app, service, args.host, args.grpc_port, args.drain_s))
    return app


def serve(service: InferenceService, args: argparse.Namespace) -> None:
    """Run a service as the flags of `http.add_arguments` say, until SIGTERM or SIGINT."""
    server = Server(
        Guard(application(service, args), args.host),
        args.host,
        args.port,
        timeout_s=service.limits.timeout_s,
        drain_s=args.drain_s,
        metrics_port=args.metrics_port,
        turned_away=service.metrics.turn_away,
    )
    run(server)


def answered(body: bytes, wanted: Collection[str] = ()) -> InferResponse:
    """Read a predictor's V2 answer in JSON.

    Args:
        body: the answer, with all outputs of the model.
        wanted: the outputs to keep, in this order; empty means all.

    Raises:
        ProtocolError: it is not a V2 answer (502), or lacks an output that the client requested (400).
    """
    try:
        found = oip.parse_v2_response(body)
    except ProtocolError as error:
        raise ProtocolError(f"the predictor's answer is no V2 response: {error}", 502) from error
    if unknown := [name for name in wanted if name not in found.outputs]:
        raise ProtocolError(f"unknown output {show(unknown[0])}; expected {listed(found.outputs)}")
    return replace(found, outputs={name: found.outputs[name] for name in wanted}) if wanted else found


def _json_size(request: Request) -> int | None:
    text = request.headers.get(JSON_SIZE)
    if text is None:
        return None
    if not text.isdigit() or len(text) > _DIGITS or int(text) > len(request.body):
        raise ProtocolError(
            f"Inference-Header-Content-Length must be the bytes of the JSON, at most the body's {len(request.body)}, "
            f"got {text[:80].decode('latin-1')!r}"
        )
    return int(text)

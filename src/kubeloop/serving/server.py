"""The model server: one ONNX model behind the Open Inference Protocol (V2) and KServe's V1 predict."""

import argparse
import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from kubeloop.serving.calls import V1, V2, Call, Inference, serve
from kubeloop.serving.http import Limits, Request, Response, add_arguments, limits_of
from kubeloop.serving.metrics import Metrics
from kubeloop.serving.model import PLATFORM, PROVIDERS, Model, ModelError, load
from kubeloop.serving.oip import InferRequest, InferResponse
from kubeloop.serving.process import log_to_stderr
from kubeloop.serving.tensors import ProtocolError

log = logging.getLogger("kubeloop.serving")

# Work shorter than this stays in the event loop, since passing it to a thread and back would cost more.
_INLINE_S = 0.001
_INLINE_BYTES = 64 * 1024

T = TypeVar("T")


class Predictor(Inference):
    """The service of one model; see `http.Service`."""

    def __init__(self, model: Model, name: str, version: str, limits: Limits, metrics: Metrics) -> None:
        """Serve a loaded model under a name and a version."""
        self.model = model
        self.name = name
        self.version = version
        self.limits = limits
        self.metrics = metrics
        self._inline_rows = int(_INLINE_S / model.call_s)
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="predict")
        metrics.model.labels(name, version, model.sha256).set(1)

    async def start(self) -> None:
        """Do nothing: the model was loaded and warmed up before the port opened."""

    async def stop(self) -> None:
        """End the worker threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def ready(self) -> bool:
        """Return true: the model was loaded and warmed up before the port opened."""
        return True

    async def metadata(self, version: str | None) -> dict[str, Any]:
        """Return the OIP metadata of the model."""
        self._check(version)
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": PLATFORM,
            "inputs": [spec.metadata() for spec in self.model.inputs.values()],
            "outputs": [spec.metadata() for spec in self.model.outputs.values()],
        }

    def infer_at_once(self, request: Request) -> Response | None:
        """See `http.Prompt`."""
        return self._at_once(V2(request))

    def predict_at_once(self, request: Request) -> Response | None:
        """See `http.Prompt`."""
        return self._at_once(V1(request))

    def _at_once(self, call: Call[T]) -> T | None:
        request = call.parse(self.model.inputs, self.model.outputs)
        if request.rows > self._inline_rows:
            return None
        self.limits.check_rows(request.rows)
        self.metrics.predicted(request.rows)
        return self._work(call, request)

    def _work(self, call: Call[T], request: InferRequest) -> T:
        outputs = self.model.predict(request.inputs, request.outputs)
        return call.encode(InferResponse(self.name, self.version, outputs, request.id))

    async def answer(self, call: Call[T]) -> T:
        """Predict."""
        self._check(call.version)

        def parse() -> InferRequest:
            return call.parse(self.model.inputs, self.model.outputs)

        # A long parse blocks all other requests, as a long prediction does.
        request = parse() if call.size <= _INLINE_BYTES else await self._in_thread(parse)
        self.limits.check_rows(request.rows)
        self.metrics.predicted(request.rows)

        if request.rows <= self._inline_rows:
            return self._work(call, request)
        return await self._in_thread(lambda: self._work(call, request))

    def _check(self, version: str | None) -> None:
        if version is not None and version != self.version:
            raise ProtocolError(f"version {version[:80]!r} is not served here; this server has {self.version!r}", 404)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                return await future
        except TimeoutError:
            limit = f"{self.limits.timeout_s:g} s"
            raise ProtocolError(f"no prediction within {limit}; send fewer rows or try again later", 503) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a model folder until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m kubeloop.serving.server", description=__doc__)
    parser.add_argument("--model-dir", required=True, help="folder with model.onnx, or a file:// URI of it")
    parser.add_argument("--version", default="1", help="model version to report")
    parser.add_argument("--sha256", help="refuse a model.onnx that has another SHA-256")
    parser.add_argument("--threads", type=int, default=1, help="threads of one prediction")
    parser.add_argument("--device", choices=PROVIDERS, default="cpu", help="where the model runs (default: cpu)")
    add_arguments(parser)
    args = parser.parse_args(argv)
    log_to_stderr()
    try:
        model = load(args.model_dir, sha256=args.sha256, threads=args.threads, device=args.device)
    except ModelError as error:
        parser.exit(1, f"{error}\n")
    limits = limits_of(args)
    log.info(
        "loaded %s version %s, sha256 %s, %.3f ms a row", args.name, args.version, model.sha256, model.call_s * 1e3
    )
    service = Predictor(model, args.name, args.version, limits, Metrics())
    serve(service, args)


if __name__ == "__main__":
    main()

"""The feature transformer: it turns entity keys and request-time fields into a prediction with the online features."""

import argparse
import asyncio
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlsplit
from uuid import uuid4

import orjson
from prometheus_client import Counter

from kubeloop import moments, names
from kubeloop.serving import oip
from kubeloop.serving.calls import Call, Inference, serve
from kubeloop.serving.http import Limits, add_arguments, limits_of
from kubeloop.serving.metrics import Metrics
from kubeloop.serving.process import log_to_stderr
from kubeloop.serving.tensors import Array, ProtocolError, TensorSpec, specs_of
from kubeloop.serving.upstream import Answer, Client, ConnectError, Headers, UpstreamError

log = logging.getLogger("kubeloop.serving")

T = TypeVar("T")

_TRIES = 3
_PROBE_S = 2.0
_CONNECTIONS = 256
# A kubelet's probe of KServe's agent. The agent answers it by its own health check (503 once it drains) and does not
# log it as a payload, as it does with every other request (kserve, pkg/logger/handler.go; knative.dev/pkg,
# network/handlers/drain.go; knative.dev/serving, pkg/queue/health/handler.go). A server without an agent ignores it.
_PROBE = [(b"user-agent", b"kube-probe/kubeloop"), (b"k-network-probe", b"queue"), (b"connection", b"close")]
_WAITING_BODIES = 16
"""How many bodies of the largest size may wait for features; more are refused instead of filling the memory."""
_SHOWN_BYTES = 500
"""Most bytes that are quoted from a predictor's refusal without `error`."""
_OVERHEAD = 16 * 1024
"""Memory that a request takes besides its body, rounded up."""


class Field(Protocol):
    """A named column and its OIP datatype."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def datatype(self) -> str: ...  # noqa: D102


class FeatureSource(Protocol):
    """Where the online features come from."""

    @property
    def fields(self) -> Sequence[Field]:
        """What a client must send: join keys and request-time fields."""

    @property
    def features(self) -> Sequence[Field]:
        """What the model takes: FP32 or BYTES."""

    def read(self, columns: dict[str, list[Any]], at: datetime) -> Mapping[str, Sequence[Any]]:
        """Return one column per feature, in the order of the requested rows; called from several threads.

        Args:
            columns: one list of n values per field; floats are None where missing.
            at: the moment of prediction; a value that is missing, or older than its TTL then, is None.

        Raises:
            ValueError: a value is not of its field's type.
            ConnectionError: the store does not answer.
        """


class Transformer(Inference):
    """The service in front of a predictor; see `http.Service`.

    It asks the predictor in JSON, whatever its client uses, and always for the score as well. The payload log holds
    what KServe's agent saw of this exchange, without the headers that binary tensors need, and no gRPC.
    """

    def __init__(
        self,
        source: FeatureSource,
        name: str,
        predictor_url: str,
        limits: Limits,
        metrics: Metrics,
        *,
        nan: bool = False,
    ) -> None:
        """Serve a model's features.

        Args:
            source: the online features.
            name: name of the model, here and at the predictor.
            predictor_url: the predictor's address, without `/v2`; http:// is added if there is no scheme.
            limits: the limits of one request; the time is for reading and predicting together.
            metrics: of this process.
            nan: whether the predictor wants NaN for a missing number, instead of null.
        """
        self.name = name
        self._nan = nan
        self.limits = limits
        self.metrics = metrics
        base = predictor_url if "://" in predictor_url else f"http://{predictor_url}"
        self._predictor_url = base
        self._path = f"{urlsplit(base).path.rstrip('/')}/v2/models/{name}"
        self._source = source
        self._fields = specs_of(TensorSpec(field.name, field.datatype, (-1,)) for field in source.fields)
        self._features = [TensorSpec(field.name, field.datatype, (-1,)) for field in source.features]
        threads = min(8, 2 * (os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="features")
        self._free = asyncio.Semaphore(threads)
        self._held = 0
        missing = Counter(
            "kubeloop_features_missing",
            "Feature values that were missing or too old.",
            ["feature"],
            registry=metrics.registry,
        )
        self._missing = {spec.name: missing.labels(spec.name) for spec in self._features}
        self._client = Client(names.IDLE_CONNECTION_S)
        self._connections = asyncio.Semaphore(_CONNECTIONS)

    async def start(self) -> None:
        """Do nothing: connections are made when they are needed."""

    async def stop(self) -> None:
        """Close the connections to the predictor, and end the worker threads."""
        self._client.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def ready(self) -> bool:
        """Return whether the predictor is ready, without leaving a trace in the payload log.

        It uses a new connection, since a kept one may lead to a pod that is ending.
        """
        try:
            async with asyncio.timeout(_PROBE_S):
                return (await self._send("GET", "/ready", _PROBE, b"", fresh=True)).status == 200
        except (UpstreamError, TimeoutError):
            return False

    async def metadata(self, version: str | None) -> dict[str, Any]:
        """Return the predictor's metadata with this service's inputs."""
        answer = await self._ask("GET", _versioned(version))
        if answer.status != 200:
            raise ProtocolError(_reason(answer), answer.status)
        try:
            metadata: dict[str, Any] = orjson.loads(answer.body)
            return metadata | {"inputs": [spec.metadata() for spec in self._fields.values()]}
        except (orjson.JSONDecodeError, TypeError):
            raise ProtocolError("the predictor's metadata are not a JSON object", 502) from None

    async def answer(self, call: Call[T]) -> T:
        """Look the features up and ask the predictor."""
        cost = call.size + _OVERHEAD
        if self._held + cost > _WAITING_BODIES * self.limits.max_body_bytes:
            raise ProtocolError("too many requests wait for features; try again later", 503)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                self._held += cost
                try:
                    payload = await self._in_thread(call)
                finally:
                    self._held -= cost
                answer = await self._ask("POST", f"{_versioned(call.version)}/infer", payload)
        except TimeoutError:
            raise ProtocolError(f"no prediction within {self.limits.timeout_s:g} s; try again later", 504) from None
        if answer.status != 200:
            raise ProtocolError(_reason(answer), answer.status)
        return call.relay(answer.body)

    async def _in_thread(self, call: Call[Any]) -> bytes:
        """Add the features once a thread is free. A request that stops waiting leaves nothing in the pool's queue."""
        loop = asyncio.get_running_loop()
        await self._free.acquire()
        work = self._pool.submit(self._enrich, call)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        return await asyncio.wrap_future(work)

    def _enrich(self, call: Call[Any]) -> bytes:
        """Turn a client's request into the predictor's; runs in a thread."""
        # The predictor knows which outputs exist.
        request = call.parse(self._fields, None)
        rows = request.rows
        self.limits.check_rows(rows)
        _check_event_ids(request.parameters.get("event_ids"), rows)
        at = _moment(request.parameters.get("event_time"))
        columns = {name: _values(array) for name, array in request.inputs.items()}
        try:
            found = self._source.read(columns, at)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        except ConnectionError as error:
            raise ProtocolError(str(error), 503) from error
        self.metrics.predicted(rows)
        tensors = []
        for spec in self._features:
            values = [_feature(spec, value) for value in found[spec.name]]
            self._missing[spec.name].inc(values.count(None))
            tensors.append((spec, values))
        # The payload log needs every output, whatever the client requested.
        return oip.encode_v2_request(tensors, rows, request.id, request.parameters, nan=self._nan)

    async def _ask(self, method: str, path: str, payload: bytes | None = None) -> Answer:
        """Ask the predictor; ask again on a new connection if the first one led to no predictor.

        Inference has no side effects. Both attempts have the same `ce-id`, which KServe's agent gives to the events of
        the payload log, so that a repeated prediction counts once.

        Raises:
            ProtocolError: it cannot be reached (503), took too long (504) or failed (502, 503).
        """
        headers = []
        if payload is not None:
            headers = [(b"content-type", b"application/json"), (b"ce-id", str(uuid4()).encode())]
        try:
            async with self._connections:
                answer = await self._attempt(method, path, headers, payload or b"")
        except ConnectError as error:
            raise ProtocolError(f"the predictor cannot be reached ({error}); try again later", 503) from error
        except TimeoutError:
            raise ProtocolError(f"the predictor took more than {self.limits.timeout_s:g} s", 504) from None
        except UpstreamError as error:
            raise ProtocolError(f"the connection to the predictor broke ({error}); try again", 503) from error
        if answer.status == 413:
            raise ProtocolError(f"too large with its features, send fewer rows: {_reason(answer)}", 413)
        if answer.status >= 500:
            raise ProtocolError(f"the predictor failed: {_reason(answer)}", 503 if answer.status == 503 else 502)
        return answer

    async def _attempt(self, method: str, path: str, headers: Headers, payload: bytes) -> Answer:
        broken = False
        for attempt in range(1, _TRIES + 1):
            last = attempt == _TRIES
            try:
                answer = await self._send(method, path, headers, payload, fresh=attempt > 1)
            except ConnectError:
                if last:
                    raise
            except UpstreamError:
                if last or broken:
                    raise
                broken = True
            else:
                # From a proxy whose server is gone; our own server answers 500 or 503.
                if answer.status != 502 or last:
                    return answer
            await asyncio.sleep(0.05 * attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, method: str, path: str, headers: Headers, body: bytes, *, fresh: bool) -> Answer:
        target = (self._path + path).encode()
        return await self._client.send(
            self._predictor_url, method, target, headers, body, timeout_s=self.limits.timeout_s, fresh=fresh
        )


def _versioned(version: str | None) -> str:
    return "" if version is None else f"/versions/{quote(version, safe='')}"


def _reason(answer: Answer) -> str:
    try:
        return str(orjson.loads(answer.body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = answer.body[:_SHOWN_BYTES].decode(errors="replace").strip()
        return f"status {answer.status}{said and f': {said}'}"


def _values(array: Array) -> list[Any]:
    values: list[Any] = array.tolist()
    return [None if value != value else value for value in values] if array.dtype.kind == "f" else values


def _feature(spec: TensorSpec, value: Any) -> Any:
    """Return a value in the predictor's form: a number, a string, or None."""
    if value is None or value != value:
        return None
    return str(value) if spec.datatype == "BYTES" else float(value)


def _check_event_ids(text: Any, rows: int) -> None:
    if text is None:
        return
    expected = f"parameter event_ids must be a string that holds a JSON list of {rows} strings, one a row"
    if not isinstance(text, str):
        raise ProtocolError(expected)
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError(expected) from None
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise ProtocolError(expected)
    if len(ids) != rows:
        raise ProtocolError(f"{expected}; got {len(ids)}")


def _moment(text: Any) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        return moments.read(text)
    except ValueError:
        expected = "parameter event_time must be an ISO 8601 time such as 2013-04-01T12:00:00Z"
        raise ProtocolError(f"{expected}, got {str(text)[:80]!r}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the features of a model until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m kubeloop.serving.transformer", description=__doc__)
    parser.add_argument(
        "--predictor-url", "--predictor_host", required=True, help="where the predictor is, without /v2"
    )
    parser.add_argument(
        "--feature-dir", type=Path, required=True, help="folder with the Feast registry and online store"
    )
    parser.add_argument("--feature-service", required=True, help="Feast feature service of the model")
    parser.add_argument(
        "--missing",
        choices=("null", "nan"),
        default="null",
        help="how the predictor is told that a number is missing: Triton refuses null and reads NaN",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    log_to_stderr()
    from kubeloop import config
    from kubeloop.features import FeatureError
    from kubeloop.features.online import OnlineFeatures

    try:
        source = OnlineFeatures.open(args.feature_dir, args.feature_service, config.settings())
    except FeatureError as error:
        parser.exit(1, f"{error}\n")
    limits = limits_of(args)
    log.info("features of %s for %s at %s", args.feature_service, args.name, args.predictor_url)
    nan = args.missing == "nan"
    service = Transformer(source, args.name, args.predictor_url, limits, Metrics(), nan=nan)
    serve(service, args)


if __name__ == "__main__":
    main()

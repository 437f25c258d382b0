"""What the model server and the transformer count, for Prometheus.

They are plain numbers, which become Prometheus' metrics at each scrape: Prometheus' own counters take 3 µs of a small
request, these take less than one (measured).
"""

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

INFER = "/v2/models/{name}/infer"
PREDICT = "/v1/models/{name}:predict"
"""The paths of inference requests, as metrics name them; a ModelInfer over gRPC counts under V2's path."""
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LABELS = (*map(str, _BUCKETS), "+Inf")


class Metrics(Collector):
    """Prometheus metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._times: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(_LABELS))
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._turned_away = self._rows = 0
        self._began = time.time()
        self._lock = threading.Lock()
        self.registry.register(self)
        self.in_flight = Gauge("kubeloop_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.model = Gauge(
            "kubeloop_model_info", "The model served; always 1.", ["name", "version", "sha256"], registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def observe(self, path: str, code: int, seconds: float) -> None:
        """Count one answered request under its path template."""
        self._answers[path, code] += 1
        self._times[path][bisect_left(_BUCKETS, seconds)] += 1
        self._seconds[path] += seconds

    def predicted(self, rows: int) -> None:
        """Count the rows of a prediction; it may be called from any thread."""
        with self._lock:
            self._rows += rows

    def turn_away(self) -> None:
        """Count a request that failed for lack of room before it reached the application."""
        self._turned_away += 1

    def collect(self) -> Iterable[Metric]:
        """Yield the counts as Prometheus metrics."""
        requests = CounterMetricFamily("kubeloop_requests", "Answered requests.", labels=["path", "code"])
        # A series that appears with its first failure would have no increase for an alert to see.
        outcomes = {"answered": 0, "refused": 0, "failed": self._turned_away}
        for (path, code), count in self._answers.items():
            requests.add_metric([path, str(code)], count, self._began)
            if path in (INFER, PREDICT):
                outcomes["answered" if code < 400 else "refused" if code < 500 else "failed"] += count
        yield requests
        inferences = CounterMetricFamily(
            "kubeloop_inferences",
            "Answered inference requests, of any protocol: no probe, scrape or look at the metadata. 2xx are answered, "
            "4xx refused and 5xx failed.",
            labels=["outcome"],
        )
        for outcome, count in outcomes.items():
            inferences.add_metric([outcome], count, self._began)
        yield inferences
        seconds = HistogramMetricFamily("kubeloop_request_seconds", "Time to answer.", labels=["path"])
        for path, counts in self._times.items():
            seconds.add_metric([path], list(zip(_LABELS, accumulate(counts), strict=True)), self._seconds[path])
        yield seconds
        yield CounterMetricFamily("kubeloop_rows", "Rows predicted.", self._rows, created=self._began)

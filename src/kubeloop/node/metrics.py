"""The node's counts, for Prometheus and for its status page."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kubeloop.node.payload_events import EventLog

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Requests by component, backend and code, and the state of the payload log."""

    def __init__(self, log: EventLog) -> None:
        self.predictions = 0
        self.errors = {"transformer": 0, "predictor": 0}
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "kubeloop_router_requests",
            "Requests answered, by component, backend and status code.",
            ["component", "backend", "code"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "kubeloop_router_request_seconds",
            "Time from a request's arrival to its answer.",
            ["component", "backend"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_PayloadLog(log, self))
        # labels() costs as much as the increment, so its results are kept.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, component: str, backend: str, code: int, seconds: float) -> None:
        """Count one answered request; `backend` is empty if no backend was asked."""
        key = (component, backend, code)
        children = self._children.get(key)
        if children is None:
            children = self._requests.labels(component, backend, str(code)), self._seconds.labels(component, backend)
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)
        if code >= 500:
            self.errors[component] += 1

    def render(self) -> bytes:
        """Return the metrics in the Prometheus text format."""
        return generate_latest(self._registry)


class _PayloadLog(Collector):
    """Reads the payload log's own counts at each scrape, so that nothing is counted twice."""

    def __init__(self, log: EventLog, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        log = self._log
        yield GaugeMetricFamily("kubeloop_payload_events_queued", "Events waiting for the collector.", log.queued)
        for name, text, value in (
            ("kubeloop_predictions", "Rows predicted.", self._metrics.predictions),
            ("kubeloop_payload_events_sent", "Events that the collector took.", log.sent),
            ("kubeloop_payload_events_dropped", "Events that never reach the collector.", log.dropped_events),
            ("kubeloop_payload_predictions_dropped", "Rows of dropped events.", log.dropped_predictions),
            ("kubeloop_payload_retries", "Events sent again.", log.retries),
        ):
            yield CounterMetricFamily(name, text, value)

"""A transformer with a small feature source, in a thread of the tests or, as a module, in its own process."""

import argparse
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from kubeloop.serving.calls import application
from kubeloop.serving.http import App, Limits, add_arguments, limits_of
from kubeloop.serving.metrics import Metrics
from kubeloop.serving.process import Server, run
from kubeloop.serving.transformer import Transformer

KNOWN_AT = datetime(2013, 4, 1, tzinfo=UTC)
TTL = timedelta(days=1)


@dataclass
class Column:
    name: str
    datatype: str


class Routes:
    """Distances by route, known for a day; `hour` comes from the request, `carrier` is both key and feature."""

    fields = (
        Column("route", "BYTES"),
        Column("carrier", "BYTES"),
        Column("departure", "BYTES"),
        Column("delay", "FP32"),
    )
    features = (Column("distance", "FP32"), Column("hour", "FP32"), Column("carrier", "BYTES"))

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, list[Any]], datetime]] = []
        self.pause_s = 0.0
        self.fails: Exception | None = None

    def read(self, columns: dict[str, list[Any]], at: datetime) -> dict[str, list[Any]]:
        self.seen.append((columns, at))
        time.sleep(self.pause_s)
        if self.fails:
            raise self.fails
        fresh = KNOWN_AT <= at <= KNOWN_AT + TTL
        return {
            "distance": [{"JFK-LAX": 2475}.get(route) if fresh else None for route in columns["route"]],
            "hour": [float("nan") if not text else datetime.fromisoformat(text).hour for text in columns["departure"]],
            "carrier": columns["carrier"],
        }


@dataclass
class Front:
    url: str
    source: Routes
    server: Server


def open_front(predictor_url: str, **limits: Any) -> Iterator[Front]:
    source = Routes()
    app = App(Transformer(source, "flights", predictor_url, Limits(**limits), Metrics()))
    server = Server(app, "127.0.0.1", 0, timeout_s=1, drain_s=0.01)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.url:
        time.sleep(0.01)
    yield Front(server.url, source, server)
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def v2(rows: int = 1, **changes: Any) -> dict[str, Any]:
    """A valid request; keywords named like fields replace their data, others set parameters."""
    data: dict[str, list[Any]] = {
        "route": ["JFK-LAX"] * rows,
        "carrier": ["AA"] * rows,
        "departure": ["2013-04-01T05:00:00Z"] * rows,
        "delay": [1.5] * rows,
    }
    parameters: dict[str, Any] = {"event_time": "2013-04-01T04:00:00Z"}
    for name, value in changes.items():
        (data if name in data else parameters)[name] = value
    datatypes = {field.name: field.datatype for field in Routes.fields}
    inputs = [
        {"name": name, "datatype": datatypes[name], "shape": [len(values)], "data": values}
        for name, values in data.items()
    ]
    return {"id": "7", "parameters": parameters, "inputs": inputs}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--predictor-url", required=True)
    add_arguments(parser)
    args = parser.parse_args()
    service = Transformer(Routes(), args.name, args.predictor_url, limits_of(args), Metrics())
    run(Server(application(service, args), args.host, args.port, timeout_s=args.timeout_s, drain_s=args.drain_s))


if __name__ == "__main__":
    main()

"""The real transformer as a process, with features that need no store."""

import argparse
from dataclasses import dataclass
from typing import Any

from kubeloop.serving.http import App, Limits
from kubeloop.serving.metrics import Metrics
from kubeloop.serving.metrics_port import add_arguments
from kubeloop.serving.process import Server, run
from kubeloop.serving.transformer import Transformer


@dataclass
class Column:
    name: str
    datatype: str


class Constant:
    fields = (Column("hour", "FP32"),)
    features = (Column("distance", "FP32"), Column("hour", "FP32"), Column("carrier", "BYTES"))

    def read(self, columns: dict[str, list[Any]], _at: object) -> dict[str, list[Any]]:
        rows = len(columns["hour"])
        return {"distance": [10.0] * rows, "hour": columns["hour"], "carrier": ["AA"] * rows}


parser = argparse.ArgumentParser()
parser.add_argument("--predictor-url", required=True)
add_arguments(parser)
args = parser.parse_args()
service = Transformer(Constant(), "flights", args.predictor_url, Limits(), Metrics())
run(Server(App(service), "127.0.0.1", 0, timeout_s=5, drain_s=0.05, metrics_port=args.metrics_port))

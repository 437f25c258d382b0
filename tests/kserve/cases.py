"""Every InferenceService that our code builds, by name; the tests check them against KServe's rules.

To ask a real KServe: `python -m tests.kserve.cases kubeloop | kubectl apply --server-side --dry-run=server -f -`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kubeloop import names
from kubeloop.config import Loop
from kubeloop.delivery import pods
from kubeloop.delivery.manifest import ModelRef, inference_service

PROJECT = Path(__file__).parents[2]
STABLE = ModelRef("7", "s3://models/7", "a" * 64, "run-7")
CANARY = ModelRef("8", "s3://models/8", "b" * 64, "run-8")
NAME = "flights"

Object = dict[str, Any]

DELIVERIES: dict[str, Object] = {
    "plain": {},
    "gpu": {"predictor": {"gpu": {"count": 2, "node_selector": {"pool": "gpu"}}, "cpu": "2", "memory": "8Gi"}},
    "mig": {"predictor": {"gpu": {"resource": "nvidia.com/mig-1g.10gb"}}},
    "keda": {"autoscaling": {"scaler": "keda", "min_replicas": 2, "max_replicas": 9, "cpu_percent": 50}},
    "replicas": {"autoscaling": {"min_replicas": 3, "max_replicas": 3, "cpu_percent": 100}},
    "no scaler": {"autoscaling": {"scaler": "none"}, "service_account": None, "config_map": None},
    "secrets": {"secrets": [{"secret": "online-store", "env": {"KUBELOOP_ONLINE_STORE": "url"}}]},
    "triton": {"runtime": names.runtime(names.RUNTIMES, "triton"), "predictor": {"gpu": {}}},
    "another server": {"runtime": "kserve-mlserver"},
    "large transformer": {"transformer": {"cpu": "3", "memory": "8Gi"}},
}
CANARIES: dict[str, Object] = {
    "": {},
    "dark": {"canary": CANARY},
    "10 %": {"canary": CANARY, "canary_percent": 10},
    "100 %": {"canary": CANARY, "canary_percent": 100},
}


def loop(delivery: Object, namespace: str = "ml", **sections: Object) -> Loop:
    """Return a use case."""
    return Loop.model_validate(
        {
            "name": NAME,
            "source": {"tables": {"events": {"available_at": "at"}}},
            "features": {"service": "flights_v1"},
            "delivery": {"namespace": namespace, "applier": "cluster"} | delivery,
            "pipelines": {"images": {"core": "registry.example/core:1.2", "pull_secrets": ["registry"]}},
        }
        | sections
    )


def services(namespace: str = "ml") -> Iterator[tuple[str, Object]]:
    """Yield every variant, and the example of a language model."""
    for delivery, settings in DELIVERIES.items():
        found = loop(settings, namespace)
        for canary, options in CANARIES.items():
            plain = inference_service(found, STABLE, logger_url="http://c/", feature_dir="/project", **options)
            label = f"{delivery}, {canary}" if canary else delivery
            yield label, pods.place(found, plain)
            if delivery == "plain":
                yield f"{label}, as a laptop gets it", plain
    speaking = loop({}, namespace, serving={"grpc": True})
    plain = inference_service(speaking, STABLE, logger_url="http://c/", feature_dir="/project")
    yield "grpc", pods.place(speaking, plain)
    example = yaml.safe_load((PROJECT / "manifests" / "examples" / "language-model.yaml").read_text())
    example["metadata"]["namespace"] = namespace
    yield "language model", example


if __name__ == "__main__":
    yaml.safe_dump_all((service for _, service in services(*sys.argv[1:])), sys.stdout, sort_keys=False)

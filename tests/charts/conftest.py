"""The chart, rendered with several sets of values; each branch is on in one set and off in another."""

import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop import config

PROJECT = Path(__file__).parents[2]
CHART = PROJECT / "charts" / "kubeloop"
RELEASE = "kubeloop"

Object = dict[str, Any]
Render = Callable[..., list[Object]]

LOOP: Object = config.load(PROJECT / "loop.yaml").model_dump(mode="json", exclude_unset=True)
SECOND: Object = {
    "name": "fraud",
    "source": {"tables": {"events": {"available_at": "at"}}},
    "features": {"service": "fraud_v1"},
    "drift": {"engine": "builtin"},
    "delivery": {"namespace": "kubeloop"},
}

VALUES: dict[str, Object] = {
    "defaults": {},
    "one loop": {"loops": {"flight-delay": {"config": LOOP}}},
    "everything": {
        "images": {"registry": "ghcr.io/acme", "pullSecrets": ["registry"]},
        "storage": {
            "secret": "kubeloop-s3",
            "endpoint": "http://minio.minio:9000",
            "identityAnnotations": {"a/b": "c"},
        },
        "kubeflow": {"ui": "https://kubeflow.acme.io"},
        "pods": {
            "nodeSelector": {"pool": "ml"},
            "tolerations": [{"key": "ml", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "annotations": {"team": "ml"},
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        },
        "loops": {
            "flight-delay": {"config": LOOP, "replicas": 3, "resources": {"monitor": {"requests": {"cpu": 1}}}},
            "fraud": {"config": SECOND | {"pipelines": {"train_job": {"nodes": 2}}}},
        },
        "collector": {"storageClass": "fast"},
        "trigger": {"pod": {"nodeSelector": {"zone": "a"}}},
        "mlflow": {"autoscaling": {"enabled": True}},
        "runtimes": {"onnxGpu": {"enabled": True}, "triton": {"enabled": True}, "vllm": {"enabled": True}},
        "metrics": {"enabled": True, "labels": {"release": "prometheus"}},
        "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
        "networkPolicy": {
            "clients": ["web"],
            "labellers": ["web"],
            "eventSources": ["knative-eventing"],
            "mlflowClients": ["notebooks"],
            "database": {"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]},
        },
        "keda": {"enabled": True},
        "gateway": {"enabled": True, "sectionName": "https", "hostname": "in.acme.io", "mlflowHostname": "ml.acme.io"},
    },
    "little": {
        "loops": {"fraud": {"config": SECOND, "replicas": 1}},
        "mlflow": {"enabled": False, "uri": "https://mlflow.acme.io"},
        "features": {"registry": {"name": ""}, "onlineStore": {"name": ""}},
        "runtimes": {"clusterWide": True},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudgets": {"enabled": False},
    },
    "scaled by HPA": {
        "mlflow": {"autoscaling": {"enabled": True}},
        "gateway": {"enabled": True},
        "networkPolicy": {"prometheusNamespace": "", "blocked": []},
    },
}
EXTRA = ("HTTPRoute", "PodMonitor", "PrometheusRule", "ScaledObject", "ServiceMonitor")


def helm(assets: Path, *args: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run helm without a cluster."""
    env = {"PATH": os.defpath, "HOME": "/nonexistent"}
    return subprocess.run(
        [assets / "helm", *args], input=text, capture_output=True, text=True, env=env, timeout=60, check=False
    )


@pytest.fixture(scope="session")
def render(assets: Path) -> Render:
    """Render the chart with values (later ones win) and return its objects."""

    @functools.cache
    def rendered(text: str, namespace: str, args: tuple[str, ...]) -> str:
        # A helm that was built from its Go module does not know its Kubernetes version.
        command = ("template", RELEASE, str(CHART), "-n", namespace, "--kube-version", "1.36", "-f", "-", *args)
        done = helm(assets, *command, text=text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def render(values: Object, *args: str, namespace: str = "kubeloop") -> list[Object]:
        found = rendered(yaml.safe_dump(values), namespace, args)
        return [document for document in yaml.safe_load_all(found) if document]

    return render


def merged(values: Object, over: Object) -> Object:
    """Return values with others merged over them, as Helm merges values."""
    both = {
        name: merged(values[name], over[name]) for name in values.keys() & over.keys() if nested(values, over, name)
    }
    return values | over | both


def nested(values: Object, over: Object, name: str) -> bool:
    return isinstance(values[name], dict) and isinstance(over[name], dict)


def named(objects: list[Object], kind: str, name: str, namespace: str | None = None) -> Object:
    """Return the one object of a kind and name."""
    found = [
        item
        for item in objects
        if (item["kind"], item["metadata"]["name"]) == (kind, name)
        and namespace in (None, item["metadata"].get("namespace"))
    ]
    assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
    return found[0]


def kinds(objects: list[Object], kind: str) -> list[Object]:
    """Return the objects of a kind."""
    return [item for item in objects if item["kind"] == kind]


def pods(objects: list[Object]) -> dict[str, Object]:
    """Return the metadata and spec of every workload's pod, by the workload's name."""
    found = {
        item["metadata"]["name"]: item["spec"]["template"]
        for item in objects
        if item["kind"] in ("Deployment", "Job", "StatefulSet")
    }
    return found | {item["metadata"]["name"]: item for item in kinds(objects, "Pod")}


def containers(spec: Object) -> dict[str, Object]:
    """Return every container of a pod by name, sidecars included."""
    return {item["name"]: item for item in [*spec.get("initContainers", ()), *spec["containers"]]}


def values_of(container: Object) -> dict[str, Any]:
    """Return a container's environment variables: the value, or the source that it comes from."""
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container.get("env", ())}

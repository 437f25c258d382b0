"""kubeloop on a node, installed by the steps of docs/install.md."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.node.ground import GATEWAY
from tests.node.node import NAME, Node
from tests.pods import pod

PROJECT = Path(__file__).parents[2]
CHART = PROJECT / "charts" / "kubeloop"
NAMESPACE = RELEASE = "kubeloop"
LOOP = "flight-delay"

Object = dict[str, Any]

_LITTLE = {"requests": {"cpu": "50m"}}


@dataclass
class Installation:
    """The chart on a node, and its inputs.

    Attributes:
        values: the values file.
        bucket: its s3:// address.
        store: the S3 server.
        pipelines: the pipelines API.
    """

    node: Node
    values: Path
    bucket: str
    store: Any
    pipelines: Any

    @classmethod
    def make(
        cls,
        node: Node,
        folder: Path,
        *,
        database: Callable[[str], str],
        online: str,
        store: Any,
        pipelines: Any,
    ) -> "Installation":
        """Create the namespace, Secrets and a volume, and install the chart without waiting."""
        bucket = f"s3://kubeloop/{secrets.token_hex(4)}"
        found = cls(node, folder / "values.yaml", bucket, store, pipelines)
        found.write({})
        node.kubectl("apply", "-k", str(PROJECT / "manifests" / "base"))
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        for name, content in {
            "kubeloop-ledger": {"url": database("ledger")},
            "kubeloop-monitor": {"url": database("monitor")},
            "kubeloop-mlflow": {"url": database("mlflow")},
            "kubeloop-features": {"registry": database("feast"), "online": online},
            "kubeloop-s3": {key: store.environ[key] for key in keys},
        }.items():
            literals = [f"--from-literal={key}={_reachable(value)}" for key, value in content.items()]
            found.kubectl("create", "secret", "generic", name, *literals)
        (folder / "volume").mkdir()
        node.kubectl("apply", "-f", "-", input=yaml.safe_dump(_volume(folder / "volume")))
        found.helm("install", RELEASE, str(CHART), "-f", str(found.values))
        return found

    def write(self, more: Object) -> None:
        """Write the values file, with additional settings of the loop."""
        loop = yaml.safe_load((PROJECT / "loop.yaml").read_text()) | more
        # A model that learns from twelve days in seconds.
        loop["features"] |= {"history": "9d"}
        loop["training"] |= {"window": "12d", "holdout": "6d", "parameters": {"n_estimators": 40}, "threads": 1}
        loop["gates"] |= {"floors": {"auc": 0.55}, "slice_min_rows": 100, "resamples": 200}
        loop["delivery"] = {"predictor": {"cpu": "50m"}, "transformer": {"cpu": "50m", "memory": "2Gi"}}
        values = {
            "images": {"registry": "localhost"},
            "storage": {
                "secret": "kubeloop-s3",
                "bucket": self.bucket,
                "endpoint": _reachable(self.store.endpoint),
            },
            "kubeflow": {"url": _reachable(self.pipelines.url)},
            "loops": {LOOP: {"config": loop}},
            # Everything fits on two processors, even twice during a replacement.
            "collector": {"resources": _LITTLE},
            "monitor": {"resources": _LITTLE, "detectorResources": _LITTLE},
            "trigger": {"resources": _LITTLE},
            "mlflow": {"resources": _LITTLE},
        }
        self.values.write_text(yaml.safe_dump(values))

    def kubectl(self, *args: str, input: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.node.kubectl("--namespace", NAMESPACE, *args, input=input)

    def helm(self, *args: str) -> str:
        """Run helm in the namespace."""
        return self.node.helm("--namespace", NAMESPACE, *args)

    def get(self, kind: str, selector: str = "") -> list[Object]:
        """Return the objects of a kind: all of them, or those that a label selector chooses."""
        items: list[Object] = json.loads(self.kubectl("get", kind, "-o", "json", "-l", selector))["items"]
        return items

    def rolled_out(self) -> None:
        """Wait until every workload of the chart runs as specified."""
        for kind in ("deployments", "statefulsets"):
            for item in self.get(kind):
                self.kubectl("rollout", "status", f"{kind}/{item['metadata']['name']}", "--timeout=100s")

    def run(self, name: str, image: str, *command: str, account: str = "", more: Object | None = None) -> None:
        """Start a pod of our image `core`, `runtime` or `detector` that runs once; see `pods.pod`."""
        found = f"localhost/kubeloop-{image}:0.1.0"
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump(pod(name, found, command, account, more)))

    def exec(self, pod: str, script: str, *args: str) -> Any:
        """Run Python in a pod and return the JSON of its last output line."""
        printed = self.kubectl("exec", "-i", pod, "--", "python", "-", *args, input=script)
        return json.loads(printed.splitlines()[-1])

    def ended(self, name: str, limit_s: float = 180.0) -> str:
        """Wait until a pod has succeeded and return its log."""

        def done() -> bool:
            phase = json.loads(self.kubectl("get", "pod", name, "-o", "json"))["status"]["phase"]
            assert phase != "Failed", self.kubectl("logs", name)[-6000:]
            return bool(phase == "Succeeded")

        self.node.until(done, f"pod {name} ends", limit_s)
        return self.kubectl("logs", name)


def _reachable(address: str) -> str:
    """Return an address on loopback as pods reach it."""
    return address.replace("127.0.0.1", GATEWAY)


def _volume(folder: Path) -> Object:
    """Return a volume on this machine's disk; the kubelet gives the pod's group access to it."""
    here = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "collector"},
        "spec": {
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOnce"],
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
        },
    }

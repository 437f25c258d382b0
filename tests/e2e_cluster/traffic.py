"""A client inside the cluster: a pod in a namespace that may ask for predictions, and its traffic."""

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.e2e_cluster.cluster import LOOP, NAMESPACE, TRANSFORMER, exists, kubectl, one, until
from tests.pods import pod

CLIENTS = "web"
"""A namespace that docs/install.md lists in `networkPolicy.clients`."""
_POD = "client"
_SCRIPT = Path(__file__).with_name("load.py")
_URL = f"http://{TRANSFORMER}.{NAMESPACE}.svc.cluster.local/v2/models/{LOOP}"


@dataclass
class Traffic:
    """Background requests; `read` returns the counts, also after the `with` block."""

    name: str
    last: dict[str, Any] = field(default_factory=dict)

    def read(self) -> dict[str, Any]:
        """Return the counts so far; load.py defines them."""
        self.last = json.loads(_exec("cat", f"/tmp/{self.name}.json"))  # noqa: S108
        return self.last

    @property
    def answers(self) -> int:
        """Return how many requests were answered."""
        return int(sum(item["answers"] for item in self.read()["versions"].values()))

    def first(self, version: str) -> float | None:
        """Return when a version first answered, in seconds since 1970, or None."""
        found = self.read()["versions"].get(version)
        return None if found is None else float(found["first"])


class Client:
    """The client pod."""

    @classmethod
    def made(cls) -> "Client":
        """Create the namespace and the pod unless they exist, and wait until the pod runs."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CLIENTS}}
        found = one("servingruntime", "kubeloop-onnx")["spec"]["containers"][0]["image"]
        _apply(namespace)
        _apply(pod(_POD, found, ("sleep", "1000000")))
        kubectl("wait", "--for=condition=Ready", f"pod/{_POD}", "--timeout=120s", namespace=CLIENTS)
        kubectl(
            "exec", "-i", _POD, "--", "sh", "-c", "cat > /tmp/load.py", input=_SCRIPT.read_text(), namespace=CLIENTS
        )
        return cls()

    @contextlib.contextmanager
    def traffic(
        self,
        *,
        connections: int = 64,
        rate: float = 40.0,
        rows: int = 1,
        drifted: bool = False,
        gateway: tuple[str, str] | None = None,
    ) -> Iterator[Traffic]:
        """Send requests in the background for as long as the block lasts, even while the API server is unavailable.

        Args:
            connections: number of open connections.
            rate: total requests per second.
            rows: flights per request.
            drifted: whether the flights differ from those seen in training.
            gateway: address and host name of a gateway to use in place of the transformer's Service.
        """
        found = Traffic(f"load-{secrets.token_hex(3)}")
        place = f"/tmp/{found.name}"  # noqa: S108
        url = f"http://{gateway[0]}/v2/models/{LOOP}" if gateway else _URL
        flags = f"--url {url} --connections {connections} --rate {rate} --rows {rows} {'--drifted' * drifted}"
        flags += f" --host {gateway[1]}" if gateway else ""
        # An exec waits until its pipes close, so the background process must not hold them.
        command = f"python /tmp/load.py {flags} --stop {place}.stop --out {place}.json > {place}.log 2>&1 < /dev/null &"
        _exec("sh", "-c", command)
        try:
            until(lambda: found.answers, f"the service answers {flags}", 90)
            yield found
        finally:
            until(lambda: _exec("sh", "-c", f"touch {place}.stop && echo done"), "the client takes the end", 120)
            until(lambda: found.read()["over"], "the client ends", 60)


def _exec(*command: str) -> str:
    return kubectl("exec", _POD, "--", *command, namespace=CLIENTS)


def _apply(manifest: dict[str, Any]) -> None:
    name = manifest["metadata"]["name"]
    namespace = "default" if manifest["kind"] == "Namespace" else CLIENTS
    if manifest["kind"] == "Namespace" or not exists("pod", name, CLIENTS):
        kubectl("apply", "-f", "-", input=yaml.safe_dump(manifest), namespace=namespace)

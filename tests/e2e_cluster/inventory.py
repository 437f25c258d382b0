"""What the cluster runs and uses: versions, restarts, memory."""

import json
import re

from tests.e2e_cluster.cluster import KUBEFLOW, LOOP, NAMESPACE, SERVICE, exists, get, kubectl

_SYSTEMS = {KUBEFLOW: "Kubeflow", "kserve": "KServe", "cert-manager": "cert-manager"}


def versions() -> dict[str, str]:
    """Return the versions of Kubernetes, of the systems around kubeloop, and of kubeloop's images by their tags."""
    server = json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    found = {"Kubernetes": server}
    for node in get("nodes"):
        info = node["status"]["nodeInfo"]
        found["container runtime"] = info["containerRuntimeVersion"]
    for namespace in (*_SYSTEMS, NAMESPACE):
        if not exists("namespace", namespace):
            continue
        for kind in ("deployments", "statefulsets"):
            for item in get(kind, namespace=namespace):
                for container in item["spec"]["template"]["spec"]["containers"]:
                    name, _, tag = container["image"].rpartition("/")[2].partition(":")
                    found[name] = tag.partition("@")[0] or "no tag"
    found["Gateway API"] = _bundle("gateways.gateway.networking.k8s.io")
    return found


def restarts(selector: str, namespace: str = NAMESPACE) -> dict[str, int]:
    """Return the number of restarts of each container that restarted."""
    return {
        f"{pod['metadata']['name']}/{item['name']}": item["restartCount"]
        for pod in get("pods", selector, namespace)
        for kind in ("initContainerStatuses", "containerStatuses")
        for item in pod["status"].get(kind, ())
        if item["restartCount"]
    }


def memory() -> dict[str, float]:
    """Return the working set of each of the loop's containers in MiB, as the kubelets report it; one replica each."""
    ours = {
        pod["metadata"]["name"]: _role(pod["metadata"]["labels"])
        for selector in ("app.kubernetes.io/instance=kubeloop", f"{SERVICE}={LOOP}")
        for pod in get("pods", selector)
        if pod["status"]["phase"] == "Running"
    }
    found: dict[str, float] = {}
    for node in get("nodes"):
        path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary"
        for pod in json.loads(kubectl("get", "--raw", path))["pods"]:
            if pod["podRef"]["namespace"] != NAMESPACE or pod["podRef"]["name"] not in ours:
                continue
            for container in pod.get("containers", ()):
                name = f"{ours[pod['podRef']['name']]}/{container['name']}"
                found[name] = container["memory"]["workingSetBytes"] / 2**20
    return dict(sorted(found.items()))


def _role(labels: dict[str, str]) -> str:
    return labels.get("app.kubernetes.io/component") or labels.get("component") or "?"


def _bundle(crd: str) -> str:
    if not exists("crd", crd):
        return "not installed"
    found = kubectl("get", "crd", crd, "-o", "json")
    match = re.search(r'"gateway.networking.k8s.io/bundle-version": "([^"]+)"', found)
    return match[1] if match else "unknown"

"""The cluster that KUBECONFIG names, as tests use it: kubectl, helm, forwarded ports, and waiting."""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx

NAMESPACE = RELEASE = "kubeloop"
KUBEFLOW = "kubeflow"
LOOP = "flight-delay"
COLLECTOR = f"{RELEASE}-collector"
MONITOR = f"{RELEASE}-monitor-{LOOP}"
TRIGGER = f"{RELEASE}-trigger-{LOOP}"
TRANSFORMER, PREDICTOR = f"{LOOP}-transformer", f"{LOOP}-predictor"
OURS = f"app.kubernetes.io/instance={RELEASE}"
TRIGGERS = f"{OURS},app.kubernetes.io/component=trigger,kubeloop.io/loop={LOOP}"
MONITORS = f"{OURS},app.kubernetes.io/component=monitor,kubeloop.io/loop={LOOP}"
SERVICE = "serving.kserve.io/inferenceservice"

Object = dict[str, Any]
T = TypeVar("T")


class ClusterError(RuntimeError):
    """A tool refused, or something did not happen in time; the message is the tool's own."""


def kubectl(*args: str, input: str | None = None, namespace: str = NAMESPACE, limit_s: float = 180.0) -> str:
    """Run kubectl and return what it printed."""
    return _run("kubectl", "--namespace", namespace, *args, input=input, limit_s=limit_s)


def helm(*args: str, limit_s: float = 1000.0) -> str:
    """Run helm in the namespace of the release."""
    return _run("helm", "--namespace", NAMESPACE, *args, limit_s=limit_s)


def get(kind: str, selector: str = "", namespace: str = NAMESPACE) -> list[Object]:
    """Return the objects of a kind: all of them, or those that a label selector chooses."""
    found = json.loads(kubectl("get", kind, "-o", "json", "-l", selector, namespace=namespace))
    items: list[Object] = found["items"]
    return items


def one(kind: str, name: str, namespace: str = NAMESPACE) -> Object:
    """Return an object."""
    found: Object = json.loads(kubectl("get", kind, name, "-o", "json", namespace=namespace))
    return found


def exists(kind: str, name: str, namespace: str = NAMESPACE) -> bool:
    """Return whether an object exists; of a kind that the cluster does not know, none does."""
    try:
        kubectl("get", kind, name, namespace=namespace)
    except ClusterError as error:
        if "NotFound" in str(error) or "doesn't have a resource type" in str(error):
            return False
        raise
    return True


def until(done: Callable[[], T], what: str, limit_s: float = 180.0, pause_s: float = 1.0) -> T:
    """Wait until a check succeeds on the cluster, and return its value.

    Raises:
        ClusterError: it takes too long.
    """
    deadline = time.monotonic() + limit_s
    trouble = ""
    while True:
        try:
            if found := done():
                return found
            trouble = ""
        except (ClusterError, httpx.HTTPError) as error:
            trouble = f" ({error})"
        if time.monotonic() > deadline:
            raise ClusterError(f"not within {limit_s:g} s: {what}{trouble}")
        time.sleep(pause_s)


def rolled_out(limit_s: float = 600.0) -> None:
    """Wait until every workload of the release runs as specified."""
    for kind in ("deployments", "statefulsets"):
        for item in get(kind, OURS):
            name = item["metadata"]["name"]
            kubectl("rollout", "status", f"{kind}/{name}", f"--timeout={limit_s:g}s", limit_s=limit_s + 10)


def pods(selector: str, namespace: str = NAMESPACE) -> list[str]:
    """Return the names of the running pods, the newest last."""
    running = [
        pod["metadata"]
        for pod in get("pods", selector, namespace)
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]
    return [item["name"] for item in sorted(running, key=lambda item: str(item["creationTimestamp"]))]


def ready(selector: str, namespace: str = NAMESPACE) -> list[str]:
    """Return the names of the pods that are ready and not being deleted."""
    return [
        pod["metadata"]["name"]
        for pod in get("pods", selector, namespace)
        if "deletionTimestamp" not in pod["metadata"]
        and any(item["type"] == "Ready" and item["status"] == "True" for item in pod["status"].get("conditions", ()))
    ]


def component(name: str) -> str:
    """Return the selector of the loop's `predictor` or `transformer` pods."""
    return f"{SERVICE}={LOOP},component={name}"


@contextlib.contextmanager
def forwarded(service: str, port: int = 80, namespace: str = NAMESPACE) -> Iterator[httpx.Client]:
    """Yield a client of a Service through a local port that no NetworkPolicy blocks."""
    command = ["kubectl", "--namespace", namespace, "port-forward", f"service/{service}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not (match := re.search(r"127\.0\.0\.1:(\d+)", line)):
                process.kill()
                said = process.stderr.read() if process.stderr else ""
                raise ClusterError(f"port-forward of {service}: {line}{said}")
            with httpx.Client(base_url=f"http://localhost:{match[1]}", timeout=30) as client:
                yield client
        finally:
            process.kill()


def ask(service: str, path: str = "/status") -> Any:
    """Return the JSON that a Service answers with."""
    with forwarded(service) as client:
        return client.get(path).raise_for_status().json()


def run_of(name: str) -> Object | None:
    """Return the Workflow of a pipeline run by the run's name, or None while it does not exist."""
    for item in get("workflows.argoproj.io", namespace=KUBEFLOW):
        title = (item["metadata"].get("annotations") or {}).get("pipelines.kubeflow.org/run_name", "")
        if title == name or title.startswith(f"{name} (attempt "):
            return item
    return None


def _run(*command: str, input: str | None = None, limit_s: float) -> str:
    try:
        done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(command)}: not within {limit_s:g} s") from error
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()[-3000:]}")
    return done.stdout

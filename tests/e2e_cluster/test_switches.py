"""No request fails while versions change, pods are deleted or evicted, and the number of replicas changes."""

import json
import os
import time

import pytest

from kubeloop.config import Loop
from kubeloop.delivery.manifest import ModelRef
from tests.e2e_cluster import models
from tests.e2e_cluster.cluster import NAMESPACE, component, kubectl, pods, ready, until
from tests.e2e_cluster.figures import Figures
from tests.e2e_cluster.page import PREFIX
from tests.e2e_cluster.traffic import Client, Traffic
from tests.e2e_cluster.workspace import Workspace

pytestmark = pytest.mark.timeout(3000)

SWITCHES = 10
CONNECTIONS = int(os.environ.get(f"{PREFIX}CONNECTIONS", "64"))
RATE = float(os.environ.get(f"{PREFIX}RATE", "40"))
_AFTER_S = 25
"""Time in which old pods drain and clients with a kept connection notice it."""


@pytest.fixture(scope="module")
def loop(workspace: Workspace) -> Loop:
    return models.installed(workspace)


@pytest.fixture(scope="module")
def versions(workspace: Workspace) -> tuple[ModelRef, ModelRef]:
    """The two newest versions, the older first."""
    older, newer = models.known(workspace)[-2:]
    return older, newer


def lost(figures: Figures, name: str, traffic: Traffic) -> int:
    """Record the result of a part and return how many requests failed."""
    last = traffic.last
    figures.note("failed requests", name, f"{last['failed']} of {last['sent']}")
    figures.note("slowest answer, ms", name, round(last["max_ms"]))
    print(json.dumps({key: last[key] for key in ("sent", "kinds", "p50_ms", "p99_ms", "max_ms", "versions")}))
    return int(last["failed"])


def test_ten_switches(
    client: Client, loop: Loop, versions: tuple[ModelRef, ModelRef], figures: Figures, workspace: Workspace
) -> None:
    with client.traffic(connections=CONNECTIONS, rate=RATE) as traffic:
        for number in range(SWITCHES):
            target = versions[number % 2]
            models.serve(loop, target)
            until(lambda: traffic.first(target.version), f"version {target.version} answers", 120)  # noqa: B023
            time.sleep(5)
        time.sleep(_AFTER_S)
    assert lost(figures, f"{SWITCHES} switches, {CONNECTIONS} connections", traffic) == 0, traffic.last["kinds"]
    assert set(traffic.last["versions"]) == {version.version for version in versions}


@pytest.fixture(scope="module")
def two(loop: Loop, versions: tuple[ModelRef, ModelRef]) -> None:
    """Two pods of each component, so that one of them can be deleted."""
    models.serve(loop, versions[1], replicas=(2, 2))
    for name in ("predictor", "transformer"):
        until(lambda: len(ready(component(name))) == 2, f"two {name}s", 300)  # noqa: B023


@pytest.mark.parametrize("part", ["predictor", "transformer"])
@pytest.mark.parametrize("way", ["deleted", "evicted"])
def test_a_pod_is_replaced(part: str, way: str, client: Client, two: None, figures: Figures) -> None:
    with client.traffic(connections=CONNECTIONS, rate=RATE) as traffic:
        gone = pods(component(part))[0]
        if way == "deleted":
            kubectl("delete", "pod", gone, "--wait=false")
        else:
            eviction = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": gone, "namespace": NAMESPACE},
            }
            path = f"/api/v1/namespaces/{NAMESPACE}/pods/{gone}/eviction"
            kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))
        until(lambda: gone not in (now := ready(component(part))) and len(now) == 2, "another takes its place", 300)
        time.sleep(_AFTER_S)
    assert lost(figures, f"{part} {way}, one of two", traffic) == 0, traffic.last["kinds"]


def test_a_scale_down(
    client: Client, two: None, loop: Loop, versions: tuple[ModelRef, ModelRef], figures: Figures
) -> None:
    with client.traffic(connections=CONNECTIONS, rate=RATE) as traffic:
        models.serve(loop, versions[1], replicas=(1, 1))
        for name in ("predictor", "transformer"):
            until(lambda: len(pods(component(name))) == 1, f"one {name}", 300)  # noqa: B023
        time.sleep(_AFTER_S)
    assert lost(figures, "scale-down from two to one", traffic) == 0, traffic.last["kinds"]
    models.serve(loop, versions[1])

"""helm uninstall leaves the data, and served models stay in service."""

import pytest

from tests.e2e_cluster.cluster import OURS, RELEASE, get, helm, until
from tests.e2e_cluster.traffic import Client
from tests.e2e_cluster.workspace import Workspace

pytestmark = pytest.mark.timeout(900)


def test_a_removed_release_leaves_data_and_models(client: Client, workspace: Workspace) -> None:
    helm("uninstall", RELEASE)
    # The test's pod is a hook, and Helm leaves hooks behind.
    until(lambda: {pod["metadata"]["name"] for pod in get("pods", OURS)} <= {f"{RELEASE}-test"}, "the pods end", 240)
    assert [claim["status"]["phase"] for claim in get("pvc")] == ["Bound"]
    with client.traffic(connections=4, rate=8) as traffic:
        until(lambda: traffic.answers >= 20, "answers")
    assert traffic.last["failed"] == 0, traffic.last["kinds"]
    workspace.forget()

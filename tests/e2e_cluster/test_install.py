"""docs/install.md, line for line: every indented command of its numbered steps, in one shell."""

import os

import pytest

from tests.e2e_cluster import cluster, inventory
from tests.e2e_cluster.figures import Figures
from tests.e2e_cluster.page import INSTALL, PREFIX, Block, blocks
from tests.e2e_cluster.workspace import Workspace

pytestmark = pytest.mark.timeout(3600)

BLOCKS = blocks(INSTALL.read_text())


@pytest.fixture(scope="module")
def there(workspace: Workspace) -> dict[str, str]:
    """Steps that need not be done, by number, with the reason; determined once, before anything is installed."""
    if "there" not in workspace.record:
        found = {}
        if cluster.exists("deployment", "ml-pipeline", cluster.KUBEFLOW):
            found["2"] = "Kubeflow Pipelines is in the cluster"
        if cluster.exists("crd", "inferenceservices.serving.kserve.io"):
            found["3"] = "KServe is in the cluster"
        if os.environ.get(f"{PREFIX}IMAGES_ARE_THERE") == "1":
            found["4"] = "the cluster has the images"
        workspace.keep(there=found)
    known: dict[str, str] = workspace.record["there"]
    return known


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"step-{block.step}-line-{block.line}")
def test_the_page(block: Block, there: dict[str, str], workspace: Workspace) -> None:
    if workspace.done(block):
        pytest.skip("done in an earlier session, whose state is in build/e2e")
    if str(block.step) in there:
        pytest.skip(there[str(block.step)])
    print(workspace.run(block, limit_s=3000))
    if "> values.yaml" in block.text:
        workspace.values_written()


def test_what_the_cluster_is_made_of(figures: Figures) -> None:
    for name, version in inventory.versions().items():
        figures.note("versions", name, version)


def test_every_part_is_ready_and_was_never_restarted() -> None:
    cluster.rolled_out()
    running = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in cluster.get("pods", cluster.OURS)}
    assert {"collector", "monitor", "trigger", "mlflow"} <= running
    assert inventory.restarts(cluster.OURS) == {}

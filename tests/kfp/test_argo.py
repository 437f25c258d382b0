"""What Kubeflow and Argo make of our pipelines, by their rules."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop import names
from kubeloop.config import Loop
from kubeloop.config.cluster import Pipelines
from pipelines import catalog
from tests.kfp import argo
from tests.kfp.compiler import Compiler, Drivers

REFERENCE = "sha256:" + "a" * 64
GROUPINGS = ("step", "stage", "run") if "grouping" in Pipelines.model_fields else ("step",)


@pytest.fixture(scope="module")
def large(demo: Loop) -> Loop:
    """A use case with 60 features, ten slices and three environments, and with all settings written out."""
    features = [f"customer_transactions_rolling_feature_{number:02}" for number in range(60)]
    tables = {
        f"source_table_{number:02}": {"available_at": "ingested_at", "path": f"raw/source_table_{number:02}.parquet"}
        for number in range(12)
    }
    environments = ("development", "staging", "production")
    secrets = [
        {"secret": f"kubeloop-{name}", "env": {f"{name.upper()}_{key}": key.lower() for key in ("TOKEN", "USER")}}
        for name in environments
    ]
    steps = ("extract-data", "validate-data", "build-features", "validate-features", "train-model", "evaluate-model")
    said = {"cpu": "2", "cpu_limit": "4", "memory": "8Gi", "node_selector": {"pool": "batch"}, "retries": 3}
    recurring = [
        {"name": f"{name}-{pipeline}", "pipeline": pipeline, "cron": "0 5 * * * *"}
        for name in environments
        for pipeline in names.PIPELINES
    ]
    return Loop.parse(
        demo.dump(),
        {
            "description": "Whether a customer of one of three regions leaves within thirty days. " * 2,
            "source": {"entry": None, "tables": tables},
            "features": {"service": "customer_churn_with_sixty_features_v12"},
            "training": {"parameters": dict.fromkeys(features, 0.5)},
            "gates": {"slices": features[:10]},
            "pipelines": {
                "secrets": secrets,
                "steps": {step: said | {"tolerations": [{"key": "batch"}]} for step in steps},
                "recurring": recurring,
            },
            "delivery": {
                "applier": "gitops",
                "secrets": secrets,
                "git": {"repository": "https://git.example.org/team/loops", "secrets": secrets[:1]},
            },
        },
    )


def compiled(case: Loop, name: str, folder: Path, **parameters: Any) -> Compiler:
    spec, platform = yaml.safe_load_all(catalog.write(case, name, folder).read_text())
    return Compiler(spec, platform, parameters)


def finished(compiler: Compiler) -> tuple[argo.Object, argo.Nodes]:
    returned = {"loop": REFERENCE, "as_of": "2026-11-28T08:00:00+00:00", "Output": True}
    workflow = argo.defaulted(compiler.workflow())
    return workflow, argo.run(workflow, Drivers(compiler.parameters, returned))


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", names.PIPELINES)
def test_the_workflow_of_a_large_use_case_fits_argos_limit(
    large: Loop, grouping: str, name: str, tmp_path: Path
) -> None:
    """With the trigger's parameters, and every step run. Above the limit, a run's progress is no longer visible.

    With one pod per step, each driver output is copied six times. The default grouping must stay below half the limit.
    """
    case = Loop.parse(
        large.dump(), {"pipelines": {"grouping": grouping} if "grouping" in Pipelines.model_fields else {}}
    )
    workflow, nodes = finished(compiled(case, name, tmp_path, loop=case.dump()))
    share = 1.0 if grouping == "step" else 0.5
    assert argo.size(workflow, nodes) < share * argo.MAX_WORKFLOW_SIZE, list(argo.shares(nodes))[:5]


def test_only_the_first_pod_gets_the_whole_use_case(large: Loop, tmp_path: Path) -> None:
    """Later pods get only its digest, on which the cache of Kubeflow Pipelines then depends."""
    _, nodes = finished(compiled(large, "training", tmp_path))
    patches = {
        node["displayName"]: item["value"]
        for node in nodes.found.values()
        for item in node.get("outputs", {}).get("parameters", ())
        if node["type"] == "Pod" and item["name"] == "pod-spec-patch"
    }
    said = [name for name, patch in patches.items() if large.features.service in patch]
    assert len(said) == 1
    assert all(REFERENCE in patch for name, patch in patches.items() if name not in said)


@pytest.mark.parametrize("name", names.PIPELINES)
@pytest.mark.parametrize("succeeded", [True, False])
def test_a_finished_run_is_kept_as_long_as_loop_yaml_says(
    demo: Loop, name: str, succeeded: bool, tmp_path: Path
) -> None:
    workflow = argo.defaulted(compiled(demo, name, tmp_path).workflow())
    assert argo.kept_for(workflow, succeeded) == int(demo.pipelines.ttl.total_seconds()) == 7 * 24 * 3600

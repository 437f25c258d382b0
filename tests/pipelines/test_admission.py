"""The pods that Kubeflow Pipelines makes for our steps, in a namespace that enforces Pod Security "restricted"."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop.config import Loop
from pipelines import catalog
from tests.control_plane.plane import CommandError, ControlPlane

Object = dict[str, Any]

SECCOMP = {"seccompProfile": {"type": "RuntimeDefault"}}
USERS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}} | SECCOMP
SYSTEM = USERS | {"runAsNonRoot": True}
ARGO = SYSTEM | {"runAsUser": 65532}
"""The security contexts of a pod: Kubeflow Pipelines 2.17.0 sets two, and its configuration of Argo the third.

Sources: kubeflow/pipelines 2.17.0, backend/src/v2/compiler/argocompiler/security_context.go and
manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml.
"""


def pod(executor: Object) -> Object:
    """Return the pod of a step.

    The driver merges the platform spec's identity over the container and always drops all capabilities. The template's
    security context replaces the workflow's, so that the pod itself may run as root.

    Sources: kubeflow/pipelines 2.17.0, backend/src/v2/driver/k8s.go; argo-workflows v4.0.5, workflowpod.go.
    """
    given = executor.get("securityContext", {})
    own = {key: int(value) if key == "runAsUser" else value for key, value in given.items()}
    scratch = {"name": "kfp-launcher", "mountPath": "/kfp-launcher"}
    argo: Object = {"image": "quay.io/argoproj/argoexec:v4.0.5", "securityContext": ARGO}
    launcher = {"image": "ghcr.io/kubeflow/kfp-launcher:2.17.0", "securityContext": SYSTEM, "volumeMounts": [scratch]}
    return {
        "securityContext": SECCOMP,
        "initContainers": [{"name": "init"} | argo, {"name": "kfp-launcher"} | launcher],
        "containers": [
            {"name": "wait"} | argo,
            {"name": "main", "image": "kubeloop-core:0.1.0", "securityContext": USERS | own, "volumeMounts": [scratch]},
        ],
        "volumes": [{"name": "kfp-launcher", "emptyDir": {}}],
    }


@pytest.fixture
def executors(demo: Loop, tmp_path: Path) -> dict[str, Object]:
    """Every pod's part of the platform spec, by grouping, pipeline and step."""
    found = {}
    for how in ("step", "stage", "run"):
        grouped = demo.model_copy(update={"pipelines": demo.pipelines.model_copy(update={"grouping": how})})
        for name in catalog.PIPELINES:
            _, platform = yaml.safe_load_all(catalog.write(grouped, name, tmp_path / how).read_text())
            steps = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
            found |= {f"{how}/{name}/{step}": executor for step, executor in steps.items()}
    return found


def test_every_step_is_admitted(
    control_plane: ControlPlane, restricted_namespace: str, executors: dict[str, Object]
) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    control_plane.http.post(f"/api/v1/namespaces/{restricted_namespace}/serviceaccounts", json=account)

    def admit(executor: Object) -> None:
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "step"}, "spec": pod(executor)}
        path = f"/api/v1/namespaces/{restricted_namespace}/pods?dryRun=All&fieldValidation=Strict"
        control_plane.request("POST", path, body)

    for name, executor in executors.items():
        admit(executor)
        unsaid = copy.deepcopy(executor)
        del unsaid["securityContext"]["runAsNonRoot"]
        with pytest.raises(CommandError, match=r"violates PodSecurity .*runAsNonRoot != true .*main"):
            admit(unsaid)
        assert int(executor["securityContext"]["runAsUser"]) > 0, name

"""Pipelines and their versions as Kubernetes objects, for installations that are described in Git."""

from collections.abc import Iterable
from typing import Any

from kubeloop import names
from kubeloop.config import Loop
from kubeloop.kubeflow.submission import Package, edition

_API = "pipelines.kubeflow.org/v2beta1"


def build(loop: Loop, packages: Iterable[Package], namespace: str) -> list[dict[str, Any]]:
    """Return a Pipeline and a PipelineVersion for each package, in that order.

    Kubeflow Pipelines reads them if its API server stores pipelines in Kubernetes (`--pipelinesStoreKubernetes`).
    A version is named after the bytes of its package and never changes: other bytes make another object.
    """
    labels = names.labels(loop.name, "pipeline")
    objects: list[dict[str, Any]] = []
    for package in packages:
        name = f"{loop.name}-{package.pipeline}"
        spec, platform = package.documents
        description = spec["pipelineInfo"].get("description", "")
        shown = spec["pipelineInfo"].get("displayName", name)
        objects.append(
            {
                "apiVersion": _API,
                "kind": "Pipeline",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"displayName": shown, "description": description},
            }
        )
        version: dict[str, Any] = {
            "pipelineName": name,
            "versionName": package.version,
            "displayName": package.version,
            "description": edition(loop),
            "pipelineSpec": spec,
        }
        objects.append(
            {
                "apiVersion": _API,
                "kind": "PipelineVersion",
                "metadata": {"name": f"{name}-{package.version}", "namespace": namespace, "labels": labels},
                "spec": {**version, **({"platformSpec": platform} if platform else {})},
            }
        )
    return objects

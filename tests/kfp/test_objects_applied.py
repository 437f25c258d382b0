"""Pipeline and PipelineVersion objects on a real API server, with strict field validation."""

import json
from typing import Any

from kubeloop.config import Loop
from kubeloop.kubeflow import resources
from kubeloop.kubeflow.submission import Package


def test_they_are_accepted(control_plane: Any, namespace: str, case: Loop, packages: dict[str, Package]) -> None:
    objects = resources.build(case, packages.values(), namespace)
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    for _ in range(2):  # the second time there is nothing to do
        control_plane.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", input=content)
    kept = json.loads(control_plane.kubectl("get", "pipelineversions", "-n", namespace, "-o", "json"))["items"]
    assert [item["spec"]["pipelineSpec"] for item in kept] == [
        item["spec"]["pipelineSpec"] for item in sorted(objects[1::2], key=lambda item: item["metadata"]["name"])
    ]

"""What KServe's mutating webhook makes of an InferenceService that we apply.

Source: kserve/kserve at commit aaac4e29: pkg/apis/serving/v1beta1/inference_service_defaults.go
(DefaultInferenceService), transformer_custom.go (Default), with the settings of its chart charts/kserve-resources.
"""

import copy
from typing import Any

from tests.kserve.rules import MODE, STANDARD

MODEL_FORMAT = "modelFormat"
RESOURCES = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}
"""`kserve.inferenceservice.resources` of the chart; the ConfigMap of the kustomize manifest says the same."""

_LEGACY = {"RawDeployment": STANDARD, "Serverless": "Knative"}
_V2 = ("triton", "vllm")


def defaulted(service: dict[str, Any], *, mode: str = STANDARD, token: bool = True) -> dict[str, Any]:
    """Return an InferenceService as KServe stores it.

    Args:
        service: the InferenceService as sent; it is not changed.
        mode: `deploy.defaultDeploymentMode`.
        token: `security.autoMountServiceAccountToken`; the chart's default.
    """
    found = copy.deepcopy(service)
    annotations, spec = found["metadata"].get("annotations") or {}, found["spec"]
    if MODE in annotations:
        annotations[MODE] = _LEGACY.get(annotations[MODE], annotations[MODE])
    elif mode == STANDARD:
        annotations[MODE] = mode
    model = spec["predictor"].get("model")
    if model:
        kind = model["modelFormat"]["name"]
        if kind in _V2:
            model.setdefault("protocolVersion", "v2")
        annotations.setdefault(MODEL_FORMAT, kind)
    if annotations:
        found["metadata"]["annotations"] = annotations
    # A model gets no defaults here, since its runtime sets its resources. A canary is not looked at either.
    if containers := (spec.get("transformer") or {}).get("containers"):
        containers[0]["name"] = "kserve-container"
        resources = containers[0].setdefault("resources", {})
        for kind, values in RESOURCES.items():
            resources[kind] = values | resources.get(kind, {})
    for part in () if token else ("predictor", "transformer"):
        if part in spec:
            spec[part].setdefault("automountServiceAccountToken", False)
    return found

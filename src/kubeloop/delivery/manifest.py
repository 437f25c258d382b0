"""Build the InferenceService of a model version as a plain dict for every applier."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubeloop import names
from kubeloop.config import Loop

API_VERSION = "serving.kserve.io/v1beta1"
KIND = "InferenceService"
DEPLOYMENT_MODE = "serving.kserve.io/deploymentMode"

CANARY = "canary"
"""`predictor.name` of the canary: KServe requires one and names its Deployment `<service>-canary-predictor`."""

TRANSFORMER_COMMAND = ("python", "-m", "kubeloop.serving.transformer")

IDENTITY = ("--name=", "--version=", "--sha256=")
"""The fields of a model in the arguments of a predictor, for any server."""

_CONTAINER = "kserve-container"
"""The name that KServe gives the main container."""

_ONE = 1
"""If a canary has no `minReplicas`, KServe gives it its share of the predictor's, which is 0 pods at 0 %."""

GROWTH = 4
"""How much larger a predictor's requests may be than a client's: a few keys per row become all the model's features."""


@dataclass(frozen=True)
class ModelRef:
    """One registered model version.

    Attributes:
        version: version in the registry, such as `7`.
        uri: address of the model folder; immutable, never an alias.
        sha256: hex digest of its model.onnx; the server refuses any other file.
        run: ID of the run that made it.
    """

    version: str
    uri: str
    sha256: str
    run: str


def inference_service(
    loop: Loop,
    version: ModelRef,
    *,
    logger_url: str,
    feature_dir: Path | str,
    canary: ModelRef | None = None,
    canary_percent: int = 0,
) -> dict[str, Any]:
    """Build the InferenceService that serves `version` and, if given, `canary`.

    The split is written as `spec.canary[].trafficPercent`, since Standard mode ignores `canaryTrafficPercent`. Only
    the predictors name the version: KServe copies the service's own annotations to every component's pods, so a
    promotion would also replace the transformer's pods.

    Args:
        loop: the use case; its name is the service's and the model's.
        version: the model that gets the traffic that the canary does not.
        logger_url: address for the payload events of the predictors.
        feature_dir: folder with the Feast registry and online store that the transformer reads.
        canary: a second model.
        canary_percent: share of the traffic for the canary, 0 to 100; 0 starts it without traffic.

    Raises:
        ValueError: the percentage is out of range, or is given without a canary.
    """
    if not 0 <= canary_percent <= 100:
        raise ValueError(f"canary_percent must be between 0 and 100, not {canary_percent}")
    if canary is None and canary_percent:
        raise ValueError(f"canary_percent is {canary_percent}, but no canary version was given")
    spec: dict[str, Any] = {
        "predictor": _predictor(loop, version, logger_url),
        "transformer": _transformer(loop, feature_dir),
    }
    if canary is not None:
        spec["canary"] = [{"predictor": _canary(loop, canary, logger_url), "trafficPercent": canary_percent}]
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": loop.name,
            "namespace": loop.delivery.namespace,
            "labels": names.labels(loop.name, "inference"),
            "annotations": {DEPLOYMENT_MODE: "Standard"},
        },
        "spec": spec,
    }


def _predictor(loop: Loop, model: ModelRef, logger_url: str, endpoint: str = "default") -> dict[str, Any]:
    return {
        "labels": names.labels(loop.name, "predictor") | {names.ENDPOINT: endpoint},
        "annotations": _lineage(model),
        **_times(loop),
        "logger": {"mode": "all", "url": logger_url},
        "model": {
            "modelFormat": names.model_format(),
            "runtime": names.RUNTIME,
            "protocolVersion": "v2",
            "storageUri": model.uri,
            "args": [
                f"--name={loop.name}",
                f"--version={model.version}",
                f"--sha256={model.sha256}",
                *_limits(loop, growth=GROWTH),
            ],
        },
    }


def _canary(loop: Loop, model: ModelRef, logger_url: str) -> dict[str, Any]:
    predictor = _predictor(loop, model, logger_url, endpoint=CANARY)
    # KServe's schema asks for the container's name here, where its webhook refuses it in the predictor itself.
    named = {"name": _CONTAINER} | predictor["model"]
    return {"name": CANARY, "minReplicas": _ONE} | predictor | {"model": named}


def _transformer(loop: Loop, feature_dir: Path | str) -> dict[str, Any]:
    return {
        "labels": names.labels(loop.name, "transformer"),
        **_times(loop),
        "containers": [
            {
                "name": _CONTAINER,
                "command": list(TRANSFORMER_COMMAND),
                "args": [
                    f"--name={loop.name}",
                    f"--feature-dir={feature_dir}",
                    f"--feature-service={loop.features.service}",
                    *_limits(loop),
                ],
            }
        ],
    }


def _lineage(model: ModelRef) -> dict[str, str]:
    return {names.VERSION: model.version, names.DIGEST: model.sha256, names.RUN: model.run}


def _times(loop: Loop) -> dict[str, int]:
    return {
        "timeout": max(1, math.ceil(loop.serving.timeout_s)),
        "terminationGracePeriodSeconds": math.ceil(loop.delivery.drain_s),
    }


def _limits(loop: Loop, growth: int = 1) -> list[str]:
    serving = loop.serving
    return [
        f"--max-body-bytes={growth * serving.max_body_bytes}",
        f"--max-rows={serving.max_rows}",
        f"--timeout-s={serving.timeout_s:g}",
    ]

"""What KServe's validating webhooks refuse, for every field that we write or let others write, in KServe's own words.

Source: kserve/kserve at commit aaac4e29 (August 2026, after 0.20). Each rule names its file, under
pkg/apis/serving/v1beta1 unless it gives another path. Rules for what we cannot write are left out: frameworks other
than `model`, workers on several nodes, confidential models, explainers, Knative's own autoscaler.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

Object = Mapping[str, Any]

STANDARD = "Standard"
MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"

_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"
_PREDICTORS = ("sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "huggingface", "pmml", "lightgbm",
               "paddle", "model")  # fmt: skip
_BLOCKED = ("PYTHONPATH",)


class RefusedError(ValueError):
    """A webhook denies the request; the message is KServe's."""


def validate(service: Object, old: Object | None = None) -> None:
    """Refuse an InferenceService as KServe does; `old` is the version that it would replace.

    The order is KServe's, since KServe reports only the first objection (inference_service_validation.go,
    validateInferenceService and ValidateUpdate).

    Raises:
        RefusedError: KServe refuses it.
    """
    if old is not None:
        _changes(service, old)
    spec = service["spec"]
    predictor, transformer = spec["predictor"], spec.get("transformer")
    _name(service)
    _autoscaler(service)
    _environment(service)
    _standard_predictor(predictor)
    for component in filter(None, (transformer, predictor)):
        _storage_uris(component)
    _implementation(predictor, "PredictorSpec")
    _extensions(predictor)
    _scaling(service, predictor)
    if transformer is not None:
        _implementation(transformer, "TransformerSpec")
        _extensions(transformer)
        _scaling(service, transformer)
    _canaries(service)


def _changes(service: Object, old: Object) -> None:
    """Refuse a change of what must not change (validateDeploymentMode, validatePredictorNameChange)."""
    was, now = old.get("status", {}).get("deploymentMode"), _annotations(service).get(MODE)
    if was and now and was != now:
        raise RefusedError(f"update rejected: deploymentMode cannot be changed from '{was}' to '{now}'")
    before, after = old["spec"]["predictor"], service["spec"]["predictor"]
    if before.get("name") != after.get("name") and _uri(before) == _uri(after):
        raise RefusedError("predictor.name change requires a model change (e.g. storageUri)")


def _name(service: Object) -> None:
    """Refuse a name (validateInferenceServiceName; the sentence is in component.go)."""
    name = service["metadata"]["name"]
    if not re.fullmatch(_NAME, name):
        raise RefusedError(
            f'the InferenceService "{name}" is invalid: a InferenceService name must consist of lower case '
            "alphanumeric characters or '-', and must start with alphabetical character. (e.g. \"my-name\" or "
            f"\"abc-123\", regex used for validation is '{_NAME}')"
        )


def _autoscaler(service: Object) -> None:
    """Refuse a class of autoscaler (validateInferenceServiceAutoscaler; the list is in pkg/constants/constants.go)."""
    value = _annotations(service).get(AUTOSCALER)
    if value not in (None, "hpa", "external", "keda", "none"):
        raise RefusedError(f"[{value}] is not a supported autoscaler class type")


def _environment(service: Object) -> None:
    """Refuse environment variables (validateBlockedEnvVars; pkg/validation/env_policy.go).

    A canary's are not checked.
    """
    spec = service["spec"]
    predictor, transformer = spec["predictor"], spec.get("transformer") or {}
    model = predictor.get("model")
    try:
        for part in (predictor, transformer):
            blocked(chain(part.get("containers", ()), part.get("initContainers", ())))
        blocked([model] if model else [])
    except RefusedError as error:
        raise RefusedError(f'the InferenceService "{service["metadata"]["name"]}" is invalid: {error}') from None


def blocked(containers: Iterable[Object]) -> None:
    """Refuse variables that change which code a server runs (pkg/validation/env_policy.go)."""
    for container in containers:
        for item in container.get("env", ()):
            if item["name"] in _BLOCKED:
                raise RefusedError(
                    f'setting {item["name"]} in container "{container.get("name", "")}" is not allowed for security '
                    "reasons"
                )


def _standard_predictor(predictor: Object) -> None:
    """Refuse a container's name (validatePredictor).

    A canary's schema requires the name, and no rule forbids it there.
    """
    if any((predictor.get(kind) or {}).get("name") for kind in _PREDICTORS):
        raise RefusedError("the 'name' field is not allowed in standard predictor")


def _storage_uris(component: Object) -> None:
    """Refuse two ways to name models (validateMultipleStorageURIs, validateMultipleStorageURIsSpec)."""
    several = component.get("storageUris") or ()
    if several and _uri(component) is not None:
        raise RefusedError("Setting both StorageURI and StorageURIs is not supported.")
    for item in several:
        if not item.get("uri"):
            raise RefusedError("storage URI cannot be empty")
        mount = item.get("mountPath", "")
        if mount == "/":
            raise RefusedError("storage path cannot be empty")
        if not mount.startswith("/"):
            raise RefusedError(f"storage path must be absolute: {mount}")
        if ".." in mount:
            raise RefusedError(f"storage path cannot contain '..' for security reasons: {mount}")


def _implementation(component: Object, kind: str) -> None:
    """Refuse any number of servers but one (component.go, validateExactlyOneImplementation; predictor.go)."""
    found = [name for name in _PREDICTORS if component.get(name)] if kind == "PredictorSpec" else []
    # Containers next to a framework are sidecars.
    if not found and component.get("containers"):
        found = ["containers"]
    if len(found) != 1:
        raise RefusedError(f"exactly one of [...] must be specified in {kind}")


def _extensions(component: Object) -> None:
    """Refuse what all components share (component.go, ComponentExtensionSpec.Validate)."""
    if component.get("containerConcurrency", 0) < 0:
        raise RefusedError("parallelism cannot be less than 0")
    least, most = component.get("minReplicas", 1), component.get("maxReplicas", 0)
    if least < 0:
        raise RefusedError("'MinReplicas' cannot be less than 0")
    if most < 0:
        raise RefusedError("'MaxReplicas' cannot be less than 0")
    if least > most != 0:
        raise RefusedError("'MinReplicas' cannot be greater than MaxReplicas")
    logger = component.get("logger")
    if logger is not None:
        if logger.get("mode") not in ("all", "request", "response"):
            raise RefusedError("invalid logger type")
        store = logger.get("storage")
        if store is not None and not {"path", "parameters", "key"} <= store.keys():
            raise RefusedError("invalid logger storage configuration")


def _scaling(service: Object, component: Object) -> None:
    """Refuse scaling settings (validateAutoScalingCompExtension and the functions that it calls)."""
    annotations = _annotations(service)
    if annotations.get(MODE) != STANDARD:
        _knative(component)
    elif annotations.get(AUTOSCALER) == "hpa":
        _hpa(component)
    elif annotations.get(AUTOSCALER) == "keda":
        _keda(component)


def _knative(component: Object) -> None:
    """Refuse settings that Knative's autoscaler does not have (validateScalingKPACompExtension)."""
    if component.get("deploymentStrategy"):
        raise RefusedError("customizing deploymentStrategy is only supported for raw deployment mode")
    metric, target = component.get("scaleMetric", "concurrency"), component.get("scaleTarget")
    if metric not in ("concurrency", "rps"):
        raise RefusedError(f"[{metric}] is not a supported metric")
    if metric == "rps" and target is not None and target < 1:
        raise RefusedError("the target for rps should be greater than 1")


def _hpa(component: Object) -> None:
    """Refuse settings that make no valid HorizontalPodAutoscaler (validateScalingHPACompExtension)."""
    metric, target = component.get("scaleMetric", "cpu"), component.get("scaleTarget")
    if metric not in ("cpu", "memory"):
        raise RefusedError(f"[{metric}] is not a supported metric")
    if target is not None:
        # Above 100 it is refused for memory as well, since `&&` binds more tightly than `||` there.
        if (metric == "cpu" and target < 1) or target > 100:
            raise RefusedError("the target utilization percentage should be a [1-100] integer")
        if metric == "memory" and target < 1:
            raise RefusedError("the target memory should be greater than 1 MiB")
    for item in _metrics(component):
        if item["type"] != "Resource":
            raise RefusedError(
                f"invalid HPA metric source type with value [{item['type']}],valid metric source types are Resource"
            )
        if not item.get("resource"):
            raise RefusedError("metricSpec.Resource is not set for resource metric source type")


def _keda(component: Object) -> None:
    """Refuse settings that make no valid ScaledObject (validateScalingKedaCompExtension)."""
    if component.get("scaleMetric") is not None:
        raise RefusedError("ScaleMetric is not supported for KEDA")
    for item in _metrics(component):
        match item["type"]:
            case "Resource":
                _resource(item.get("resource"))
            case "External" | "PodMetric" as kind:
                source = item.get(kind.lower())
                if not source:
                    raise RefusedError(f"metricSpec.{kind} is not set for {_SOURCE[kind]} metric source type")
                if not source["metric"].get("query"):
                    raise RefusedError("the query should not be empty")
                if source["target"].get("value") is None:
                    raise RefusedError("the target threshold value should not be empty")
            case other:
                raise RefusedError(
                    f"unknown KEDA metric type with value [{other}].Valid types are Resource,External,PodMetric"
                )


_SOURCE = {"External": "external", "PodMetric": "pod"}


def _resource(resource: Object | None) -> None:
    if not resource:
        raise RefusedError("metricSpec.Resource is not set for resource metric source type")
    name, target = resource["name"], resource["target"]
    kind = target.get("type")
    if name == "cpu" and kind != "Utilization":
        raise RefusedError("the cpu target value type should be Utilization")
    if name == "memory" and kind not in ("AverageValue", "Utilization"):
        raise RefusedError("the memory target value type should be AverageValue or Utilization")
    if name not in ("cpu", "memory"):
        raise RefusedError(f"resource type {name} is not supported")
    if kind == "Utilization":
        percent = target.get("averageUtilization")
        if percent is None:
            raise RefusedError("the AverageUtilization type should be set")
        if not 1 <= percent <= 100:
            raise RefusedError("the target utilization percentage should be a [1-100] integer")
    elif target.get("averageValue") is None:
        raise RefusedError("the AverageValue type should be set")


def _canaries(service: Object) -> None:
    """Refuse a canary (validateCanarySpecs)."""
    spec = service["spec"]
    canaries, stable = spec.get("canary") or (), spec["predictor"]
    if not canaries:
        return
    if _annotations(service).get(MODE) != STANDARD:
        raise RefusedError("canary is only supported in Standard deployment mode")
    if not stable.get("model") and _uri(stable) is None:
        raise RefusedError(
            "canary requires a stable predictor with a model (multi-model serving is not supported with canary)"
        )
    seen: set[str] = set()
    for number, canary in enumerate(canaries):
        predictor, percent = canary["predictor"], canary["trafficPercent"]
        name = predictor.get("name", "")
        if not name:
            raise RefusedError(f"canary[{number}] predictor.name is required")
        if name in seen:
            raise RefusedError(f'canary predictor.name "{name}" is duplicated')
        seen.add(name)
        if name == stable.get("name"):
            raise RefusedError(f'canary predictor.name "{name}" conflicts with stable predictor name')
        if not 0 <= percent <= 100:
            raise RefusedError(f'canary "{name}" trafficPercent must be between 0 and 100, got {percent}')
        try:
            _implementation(predictor, "PredictorSpec")
            _extensions(predictor)
        except RefusedError as error:
            raise RefusedError(f'canary "{name}" predictor: {error}') from None
        _fixed(name, predictor, stable)
    total = sum(canary["trafficPercent"] for canary in canaries)
    if total > 100:
        raise RefusedError(f"sum of canary trafficPercent values ({total}) must be <= 100")


def _fixed(name: str, predictor: Object, stable: Object) -> None:
    if predictor.get("workerSpec"):
        raise RefusedError(f'canary "{name}" must not set workerSpec (multi-node is not yet supported for canary)')
    for field in ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"):
        if predictor.get(field) not in ((None, 0) if field == "maxReplicas" else (None,)):
            raise RefusedError(f'canary "{name}" must not set {field} (canary uses fixed replicas)')
    least, most = predictor.get("minReplicas"), stable.get("minReplicas", 1)
    if least is not None and least > most:
        raise RefusedError(
            f'canary "{name}" minReplicas ({least}) must not exceed stable predictor minReplicas ({most})'
        )


def _annotations(service: Object) -> Mapping[str, str]:
    return service["metadata"].get("annotations") or {}


def _metrics(component: Object) -> Sequence[Object]:
    found: Sequence[Object] = (component.get("autoScaling") or {}).get("metrics") or ()
    return found


def _uri(component: Object) -> str | None:
    found: str | None = (component.get("model") or {}).get("storageUri")
    return found

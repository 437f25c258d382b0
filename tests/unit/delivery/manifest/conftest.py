"""KServe's own schema of an InferenceService, and a check of manifests against it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml


@pytest.fixture(scope="session")
def schema(crds: Path) -> dict[str, Any]:
    """KServe's schema of an InferenceService, from the upstream CRD."""
    path = crds / "kserve" / "serving.kserve.io_inferenceservices.yaml"
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return next(v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1beta1")


def unknown(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Return the fields that the schema does not have; an API server with strict validation refuses them."""
    if schema.get("x-kubernetes-preserve-unknown-fields") or path == ".metadata":
        return []
    if isinstance(value, list):
        return [e for n, item in enumerate(value) for e in unknown(item, schema.get("items", {}), f"{path}[{n}]")]
    if not isinstance(value, dict):
        return []
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    errors = []
    for key, item in value.items():
        if key in known or others:
            errors += unknown(item, known.get(key) or (others if isinstance(others, dict) else {}), f"{path}.{key}")
        else:
            errors.append(f"{path}.{key}")
    return errors


def errors(manifest: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{e.json_path}: {e.message}" for e in validator.iter_errors(manifest)] + unknown(manifest, schema)


@pytest.fixture(scope="session")
def check(schema: dict[str, Any]) -> Callable[[dict[str, Any]], list[str]]:
    """Return what KServe's schema refuses in a manifest."""
    return lambda manifest: errors(manifest, schema)

"""Pipeline and PipelineVersion objects against Kubeflow's own schemas."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kubeloop import config
from kubeloop.config import Loop
from kubeloop.kubeflow import resources, submission
from kubeloop.kubeflow.submission import Package


@pytest.fixture(scope="module")
def schemas(crds: Path) -> dict[str, Any]:
    """The schema of each kind, from the upstream CRDs."""
    found = {}
    for kind in ("Pipeline", "PipelineVersion"):
        path = crds / "kubeflow-pipelines" / f"pipelines.kubeflow.org_{kind.lower()}s.yaml"
        found[kind] = yaml.safe_load(path.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


@pytest.fixture(scope="module")
def packages(demo: Loop, project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    folder = tmp_path_factory.mktemp("packages")
    return submission.compile_all(demo, config.settings(project, folder / "state"), folder)


@pytest.fixture(scope="module")
def objects(demo: Loop, packages: dict[str, Package]) -> list[dict[str, Any]]:
    return resources.build(demo, packages.values(), "team-a")


def strict(schema: Any, open_ended: bool = False) -> Any:
    """Return a schema that refuses unknown fields, as an API server with strict validation does."""
    if not isinstance(schema, dict):
        return schema
    free = open_ended or schema.get("x-kubernetes-preserve-unknown-fields")
    result = {key: strict(value) if key != "properties" else value for key, value in schema.items()}
    if "properties" in schema:
        result["properties"] = {
            name: strict(value, open_ended=name == "metadata") for name, value in schema["properties"].items()
        }
        if not free:
            result.setdefault("additionalProperties", False)
    return result


def test_each_object_fits_its_schema(objects: list[dict[str, Any]], schemas: dict[str, Any]) -> None:
    for item in objects:
        jsonschema.Draft202012Validator(strict(schemas[item["kind"]])).validate(item)
    wrong = {**objects[0], "spec": {**objects[0]["spec"], "colour": "red"}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(strict(schemas["Pipeline"])).validate(wrong)


def test_a_version_holds_the_bytes_that_it_is_named_after(
    objects: list[dict[str, Any]], packages: dict[str, Package]
) -> None:
    assert [item["kind"] for item in objects] == ["Pipeline", "PipelineVersion"] * len(packages)
    for package, pipeline, version in zip(packages.values(), objects[::2], objects[1::2], strict=True):
        assert pipeline["metadata"]["name"] == f"flight-delay-{package.pipeline}"
        assert version["metadata"]["name"] == f"flight-delay-{package.pipeline}-{package.version}"
        assert {pipeline["metadata"]["namespace"], version["metadata"]["namespace"]} == {"team-a"}
        assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
        assert version["spec"]["versionName"] == package.version
        spec, platform = yaml.load_all(package.path.read_text(), Loader=yaml.CSafeLoader)
        assert version["spec"]["pipelineSpec"] == spec
        assert version["spec"]["platformSpec"] == platform


def test_names_are_kubernetes_names(objects: list[dict[str, Any]]) -> None:
    for item in objects:
        assert len(item["metadata"]["name"]) <= 253
        assert item["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "kubeloop"

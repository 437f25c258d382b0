"""The names and descriptions of a compiled pipeline that the Kubeflow UI shows are meaningful."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop.config import Loop
from pipelines import catalog

PAGES = {"validate-data-report", "validate-features-report", "evaluate-model-report", "gate-model-report"}


def compiled(demo: Loop, name: str, grouping: str, folder: Path) -> dict[str, Any]:
    loop = Loop.parse(demo.dump(), {"pipelines": {"grouping": grouping}})
    spec: dict[str, Any] = next(iter(yaml.safe_load_all(catalog.write(loop, name, folder).read_text())))
    return spec


def outputs(spec: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {
        f"{component.removeprefix('comp-')}/{name}": item
        for component, content in spec["components"].items()
        for name, item in content.get("outputDefinitions", {}).get(kind, {}).items()
    }


@pytest.mark.parametrize("name", catalog.PIPELINES)
def test_a_pipeline_says_what_it_does(demo: Loop, name: str, tmp_path: Path) -> None:
    info = compiled(demo, name, "stage", tmp_path)["pipelineInfo"]
    assert info["displayName"].startswith("flight-delay: ")
    assert info["description"] != demo.description
    assert len(info["description"].split()) > 5


@pytest.mark.parametrize("grouping", ["step", "stage", "run"])
@pytest.mark.parametrize("name", catalog.PIPELINES)
def test_outputs_have_names(demo: Loop, name: str, grouping: str, tmp_path: Path) -> None:
    """Only the gate's output is called Output, since kfp's local runner cannot evaluate a condition on a named one."""
    spec = compiled(demo, name, grouping, tmp_path)
    unnamed = {output for output in outputs(spec, "parameters") if output.endswith("Output")}
    assert all("gate-model" in output for output in unnamed)
    shown = spec["root"].get("outputDefinitions", {}).get("parameters", {})
    assert "Output" not in shown


@pytest.mark.parametrize("grouping", ["step", "stage"])
def test_each_judgement_has_a_page(demo: Loop, grouping: str, tmp_path: Path) -> None:
    found = outputs(compiled(demo, "training", grouping, tmp_path), "artifacts")
    pages = {name for name, item in found.items() if item["artifactType"]["schemaTitle"] == "system.HTML"}
    assert {name.replace("/", "-") if grouping == "step" else name.split("/")[1] for name in pages} == PAGES

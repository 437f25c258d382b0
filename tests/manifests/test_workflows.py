"""The GitHub workflows: actionlint accepts them, and the targets and files that they name exist."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


def test_actionlint_accepts_the_workflows(assets):
    done = subprocess.run(
        [assets / "actionlint", "-shellcheck=", "-pyflakes=", *WORKFLOWS],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def steps() -> list[dict]:
    found = [yaml.safe_load(path.read_text()) for path in WORKFLOWS]
    return [step for workflow in found for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_is_one_for_each_purpose():
    assert {path.stem for path in WORKFLOWS} == {"ci", "e2e", "images", "pages", "promote"}
    jobs = yaml.safe_load((PROJECT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert set(jobs) == {"lint", "test", "python", "chart"}


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    calls = [call for step in steps() for call in re.findall(r"\bmake ([a-z0-9 -]+)", step.get("run", ""))]
    used = {target for call in calls for target in call.split()}
    assert used == {"lint", "docs", "test", "control-plane", "crds", "backends", "kind-up", "e2e"}
    assert used <= targets


def test_files_that_steps_name_exist():
    named = {
        path
        for step in steps()
        for path in re.findall(r"(?<![\w$/.])((?:charts|manifests|images|tests)/[\w./-]+\.\w+)", step.get("run", ""))
    }
    assert named
    for path in named:
        assert (PROJECT / path).is_file(), path


def test_the_images_are_the_dockerfiles_targets():
    images = yaml.safe_load((PROJECT / ".github/workflows/images.yml").read_text())
    targets = images["jobs"]["image"]["strategy"]["matrix"]["target"]
    dockerfile = (PROJECT / "images" / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM .* AS (\S+)$", dockerfile, re.MULTILINE))
    assert set(targets) <= stages
    for base in ("IMAGE_BASE", "CUDA_BASE"):
        assert re.search(rf"^ARG {base}=\S+:\S+$", dockerfile, re.MULTILINE)


def test_pre_commit_runs_what_lint_runs():
    """One definition of each check: the parts of `make lint`."""
    config = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    calls = [re.fullmatch(r"make --silent ([a-z]+)", hook["entry"]) for hook in repository["hooks"]]
    lint = re.search(r"^lint: ([a-z ]+) ##", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(call[1] for call in calls) == sorted(lint[1].split())


FORMS = sorted((PROJECT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", [path for path in FORMS if path.stem != "config"], ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_takes(path):
    """Source: GitHub's documentation, Syntax for GitHub's form schema."""
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels", "title"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) > 0
    for field in form["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert set(field) <= {"type", "id", "attributes", "validations"}
        known = {"label", "description", "options", "render", "value", "placeholder"}
        assert set(field["attributes"]) <= known
        assert ("value" if field["type"] == "markdown" else "label") in field["attributes"]
        assert set(field.get("validations", {})) <= {"required"}


def test_the_files_that_templates_name_exist():
    texts = [*FORMS, PROJECT / ".github" / "PULL_REQUEST_TEMPLATE.md"]
    named = {
        name for path in texts for name in re.findall(r"\b(?:docs|tests)/[\w./-]+\w|\b[A-Z]+\.md\b", path.read_text())
    }
    assert len(named) > 5
    for name in named:
        assert (PROJECT / name.rstrip(".")).exists(), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_only_the_permissions_that_it_states(path):
    workflow = yaml.safe_load(path.read_text())
    assert "permissions" in workflow
    assert workflow["permissions"] != "write-all"
    for step in (step for job in workflow["jobs"].values() for step in job["steps"]):
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@v\d+(\.\d+)*", step["uses"]), step["uses"]
        # An expression in a script is replaced by text that the author of an issue or pull request may control.
        assert "${{" not in step.get("run", "")

"""The compatibility table in docs/install.md agrees with the lock, the chart and the tests' tools."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
INSTALL = (PROJECT / "docs" / "install.md").read_text()
ROWS = {
    cells[0]: cells[1:]
    for line in INSTALL.splitlines()
    if line.startswith("| ") and len(cells := [cell.strip() for cell in line.strip("| ").split("|")]) == 4
}
PACKAGES = {name: match[1] for name, row in ROWS.items() if (match := re.search(r"pyproject\.toml \((\S+)\)", row[2]))}


def test_the_table_is_read():
    assert len(ROWS) == 11
    others = {"feast", "mlflow", "great-expectations", "alibi-detect", "kubeflow-trainer-api"}
    assert set(PACKAGES.values()) == {"kfp", "kserve"} | others


@pytest.mark.parametrize("name", PACKAGES)
def test_packages(name):
    lowest, tested, _ = ROWS[name]
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    groups = [*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()]
    wanted = [item.partition(";")[0] for items in groups for item in items]
    bounds = {re.split(r"[\[>=]", item)[0]: re.split(r"[>=]=", item)[-1].split(",")[0] for item in wanted}
    assert lowest == bounds[PACKAGES[name]]
    locked = {item["name"]: item["version"] for item in tomllib.loads((PROJECT / "uv.lock").read_text())["package"]}
    assert tested == locked[PACKAGES[name]]


def pinned(module: str, folder: str) -> str:
    text = (PROJECT / "tests" / "control_plane" / folder / "go.mod").read_text()
    match = re.search(rf"^\s*(?:require )?{re.escape(module)} v(\S+)", text, re.MULTILINE)
    assert match
    return match[1]


def test_kubernetes_and_helm():
    chart = yaml.safe_load((PROJECT / "charts" / "kubeloop" / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={ROWS['Kubernetes'][0]}.0-0"
    assert ROWS["Kubernetes"][1] == pinned("k8s.io/kubernetes", "kubernetes")
    assert ROWS["Helm"][1] == pinned("helm.sh/helm/v3", "tools")
    workflows = "".join(path.read_text() for path in (PROJECT / ".github" / "workflows").glob("*.yml"))
    assert set(re.findall(r"azure/setup-helm@v4\n\s+with: \{version: v([\d.]+)\}", workflows)) == {ROWS["Helm"][1]}


def test_the_chart():
    chart = yaml.safe_load((PROJECT / "charts" / "kubeloop" / "Chart.yaml").read_text())
    assert ROWS["kubeloop, chart and images"][:2] == [chart["version"], chart["appVersion"]]


def test_commands_install_what_the_table_says():
    assert f"export KUBEFLOW={ROWS['Kubeflow Pipelines'][1]}\n" in INSTALL
    assert f"export KSERVE=v{ROWS['KServe'][1]}\n" in INSTALL
    assert set(re.findall(r"charts/kserve-\S+ --version (\S+)", INSTALL)) == {"$KSERVE"}
    assert "kserve.controller.deploymentMode=Standard" in INSTALL
    assert f"charts/kubeflow-trainer --version {ROWS['Kubeflow Trainer (optional)'][1]}" in INSTALL


def test_values_that_the_page_sets_exist():
    values = yaml.safe_load((PROJECT / "charts" / "kubeloop" / "values.yaml").read_text())
    for path in re.findall(r"`((?:storage|networkPolicy|images|kubeflow|collector|alerts)\.[\w.]+)(?:=\w+)?`", INSTALL):
        found = values
        for part in path.split("."):
            assert part in found, path
            found = found[part]

"""Every rendered object under two linters, kube-score and checkov; each exception has its reason here."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.conftest import VALUES

IGNORED = {
    "container-image-pull-policy": "tags are full versions or digests, which never move",
    "container-resources": "a CPU limit only throttles; memory is limited",
    "container-ephemeral-storage-request-and-limit": "every emptyDir has a size limit, and roots are read-only",
    "networkpolicy-targets-pod": "predictors, transformers and steps are not the chart's own pods",
    "statefulset-has-servicename": "its one pod is reached through the Service, by nobody through its own name",
    "deployment-replicas": "a monitor has one pod; a second would do nothing",
    "deployment-strategy": "a monitor's pods take turns",
    "pod-probes-identical": "MLflow has one health address",
    "deployment-has-host-podantiaffinity": "a spread over topologyKey asks for the same, and yields when it must",
}
CHECKOV = {
    "CKV_K8S_8": "the pod of `helm test` ends by itself",
    "CKV_K8S_9": "the pod of `helm test` ends by itself",
    "CKV_K8S_11": "a CPU limit only throttles; memory is limited",
    "CKV_K8S_15": "tags are full versions or digests, which never move",
    "CKV_K8S_35": "libraries read keys and URLs from variables",
    "CKV_K8S_38": "the monitor asks the API server for its InferenceService",
    "CKV_K8S_43": "releases name digests; the chart in the repository names no release",
}


@pytest.fixture(scope="module")
def score(assets: Path) -> Any:
    """Return the complaints about some objects, as (check, object, comment)."""

    def run(text: str) -> list[tuple[str, str, str]]:
        command = [assets / "kube-score", "score", "--kubernetes-version", "v1.36", "--output-format", "json", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.startswith("["), done.stderr
        return [
            (check["check"]["id"], found["object_name"], f"{check['check']['comment']}: {check['comments']}")
            for found in json.loads(done.stdout)
            for check in found["checks"] or []
            if check["grade"] < 10 and not check["skipped"]
        ]

    return run


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_the_chart_follows_good_practice(score: Any, render: Any, values: dict[str, Any]) -> None:
    found = score(yaml.safe_dump_all(render(values)))
    asked = {"pod-networkpolicy"} if values.get("networkPolicy", {}).get("enabled") is False else set()
    assert [complaint for complaint in found if complaint[0] not in IGNORED.keys() | asked] == []


def test_every_ignored_check_has_a_complaint(score: Any, render: Any) -> None:
    found = {check for values in VALUES.values() for check, _, _ in score(yaml.safe_dump_all(render(values)))}
    assert IGNORED.keys() - found == set()


def test_the_linter_finds_a_pod_that_runs_as_root_without_limits(score: Any) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bad"},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    }
    found = {check for check, _, _ in score(yaml.safe_dump(pod))}
    assert found >= {"container-security-context-user-group-id", "container-image-tag", "container-resources"}


def test_every_finding_of_checkov_has_an_answer(assets: Path, render: Any, tmp_path: Path) -> None:
    """With everything on; an exception that no object needs any more must go."""
    objects = tmp_path / "objects.yaml"
    objects.write_text(yaml.safe_dump_all(render(VALUES["everything"])))
    flags = ("--framework", "kubernetes", "--skip-download", "--compact", "--quiet", "-o", "json")
    done = subprocess.run(
        [assets / "checkov", "-f", objects, *flags], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    failed = report["results"]["failed_checks"]
    found = {check["check_id"] for check in failed}
    assert found == CHECKOV.keys(), [check for check in failed if check["check_id"] not in CHECKOV]

"""When a manifest's stamp changes, and what a rollout still lacks; test_apply plays KServe."""

import copy
from typing import Any

import pytest

from kubeloop import names
from kubeloop.delivery.manifest import ModelRef
from kubeloop.delivery.rollout import Observed, failure, stamp, stamped, troubles, waiting_for
from tests.cluster.conftest import build

CANARY = ModelRef("8", "s3://models/8", "8" * 64, "run-8")
PARTS = ("predictor", "transformer", "canary")


def manifest() -> dict[str, Any]:
    return build("ml", canary=CANARY, canary_percent=10)


def stamps(manifest: dict[str, Any]) -> dict[str, str]:
    service = stamped(manifest)
    spec = service["spec"]
    parts = {
        "predictor": spec["predictor"],
        "transformer": spec["transformer"],
        "canary": spec["canary"][0]["predictor"],
    }
    return {"service": stamp(service) or ""} | {
        name: part["annotations"][names.MANIFEST] for name, part in parts.items()
    }


def changed(change) -> set[str]:
    """Return the parts whose stamp changes with a change of the manifest."""
    before, other = stamps(manifest()), manifest()
    change(other)
    return {name for name, digest in stamps(other).items() if digest != before[name]}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda m: m.update(kind="InferenceService"), ()),
        (lambda m: m["spec"]["transformer"].update(timeout=9), ("service", "transformer")),
        (lambda m: m["spec"]["canary"][0]["predictor"]["model"].update(storageUri="s3://x"), ("service", "canary")),
        # KServe merges a canary over the predictor.
        (lambda m: m["spec"]["predictor"]["model"].update(storageUri="s3://x"), ("service", "predictor", "canary")),
        # KServe hands the service's labels and annotations to every pod.
        (lambda m: m["metadata"]["annotations"].update(x="y"), ("service", *PARTS)),
        # A change of scale or traffic replaces no pod.
        (lambda m: m["spec"]["predictor"].update(minReplicas=3), ("service",)),
        (lambda m: m["spec"]["canary"][0].update(trafficPercent=50), ("service",)),
    ],
    ids=["none", "transformer", "canary", "predictor", "metadata", "scale", "traffic"],
)
def test_a_stamp_changes_with_what_gets_into_its_pods(change, parts):
    assert changed(change) == set(parts)


def test_stamping_leaves_the_manifest_alone_and_is_repeatable():
    given = manifest()
    before = copy.deepcopy(given)
    once = stamped(given)
    assert given == before
    assert stamped(given) == once
    assert len(set(stamps(given).values())) == 4


def deployed(service: dict[str, Any], *parts: str, **status: int) -> list[dict[str, Any]]:
    spec = service["spec"] | {"canary": service["spec"]["canary"][0]["predictor"]}
    numbers = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2} | status
    return [
        {
            "metadata": {"generation": 2},
            "spec": {"replicas": 2, "template": {"metadata": {"annotations": spec[part]["annotations"]}}},
            "status": numbers,
        }
        for part in parts
    ]


@pytest.fixture
def service() -> dict[str, Any]:
    return stamped(manifest()) | {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}


@pytest.mark.parametrize(
    ("parts", "status", "lacks"),
    [
        (PARTS, {}, ""),
        (PARTS[:2], {}, "KServe has not made a Deployment of the canary canary"),
        (PARTS, {"observedGeneration": 1}, "Kubernetes has not processed the Deployment of the predictor yet"),
        (PARTS, {"updatedReplicas": 1}, "1 of 2 new pods of the predictor are available"),
        (PARTS, {"availableReplicas": 0}, "0 of 2 new pods of the predictor are available"),
        (PARTS, {"replicas": 3}, "1 old pods of the predictor still serve"),
    ],
)
def test_a_rollout_is_over_when_every_component_is_replaced(service, parts, status, lacks):
    assert waiting_for(Observed(service, deployed(service, *parts, **status), [])) == lacks


def test_a_rollout_is_not_over_before_kserve_says_so(service):
    service["status"]["conditions"][0]["status"] = "False"
    assert waiting_for(Observed(service, deployed(service, *PARTS), [])) == "KServe does not report it ready"


def test_old_complaints_in_the_status_are_not_about_this_manifest(service):
    service["status"]["modelStatus"] = {"transitionStatus": "InvalidSpec", "lastFailureInfo": {"message": "no runtime"}}
    assert "no runtime" in failure(Observed(service, [], []), settled=True)
    assert failure(Observed(service, [], []), settled=False) == ""
    assert failure(Observed(service, deployed(service, "predictor"), []), settled=True) == ""


def test_pods_that_find_no_place_are_named(service):
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes have a GPU.",
    }
    annotations = service["spec"]["predictor"]["annotations"]
    pod = {"metadata": {"name": "p", "annotations": annotations}, "status": {"conditions": [condition]}}
    assert troubles(Observed(service, [], [pod])) == ["pod p: Unschedulable: 0/3 nodes have a GPU"]
    pod["metadata"]["annotations"] = {}
    assert troubles(Observed(service, [], [pod])) == []

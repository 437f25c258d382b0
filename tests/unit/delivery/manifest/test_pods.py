"""The InferenceService for a cluster."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop import config, names
from kubeloop.config import Loop
from kubeloop.delivery import patch, pods
from kubeloop.delivery.manifest import ModelRef, inference_service

V1 = ModelRef("7", "s3://models/7", "a" * 64, "run-7")
V2 = ModelRef("8", "s3://models/8", "b" * 64, "run-8")
GPU = {"predictor": {"gpu": {"count": 2, "node_selector": {"pool": "gpu"}}, "cpu": "2", "memory": "8Gi"}}
SECRETS = [{"secret": "online-store", "env": {"KUBELOOP_ONLINE_STORE": "url"}}]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpu": GPU,
    "keda": {"autoscaling": {"scaler": "keda", "max_replicas": 9, "cpu_percent": 50}},
    "none": {"autoscaling": {"scaler": "none"}, "service_account": None, "config_map": None},
    "secrets": {"secrets": SECRETS},
    "triton": {"runtime": names.runtime(names.RUNTIMES, "triton")},
}


def loop(delivery: dict[str, Any], **sections: Any) -> Loop:
    base = {
        "name": "flights",
        "source": {"tables": {"events": {"available_at": "at"}}},
        "features": {"service": "flights_v1"},
        "delivery": {"namespace": "ml", "drain_s": 6, "applier": "cluster"} | delivery,
        "pipelines": {"images": {"core": "registry.example/core:1.2", "pull_secrets": ["registry"]}},
        "serving": {"timeout_s": 1.5},
    }
    return Loop.model_validate(base | sections)


def plain(found: Loop, canary: ModelRef | None = V2) -> dict[str, Any]:
    return inference_service(found, V1, logger_url="http://c/", feature_dir="/project/feature_repo", canary=canary)


def build(delivery: dict[str, Any], canary: ModelRef | None = V2) -> dict[str, Any]:
    found = loop(delivery)
    return pods.place(found, plain(found, canary))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("canary", [None, V2])
def test_kserve_accepts_it(check: Callable[[Any], list[str]], case: str, canary: ModelRef | None) -> None:
    assert check(build(CASES[case], canary)) == []


def test_the_plain_manifest_is_left_as_it_is() -> None:
    found = loop(GPU)
    manifest = plain(found)
    before = copy.deepcopy(manifest)
    assert pods.place(found, manifest) != manifest
    assert manifest == before


def test_the_laptop_understands_what_a_cluster_gets() -> None:
    """One manifest, three appliers: the local node ignores what only a cluster can honour."""
    from kubeloop.node.desired import Commands, read

    found = loop({"secrets": SECRETS})
    here = pods.place(found, plain(found))
    for predictor in (here["spec"]["predictor"], here["spec"]["canary"][0]["predictor"]):
        predictor["model"]["storageUri"] = "file:///models"
    desired = read(here, Commands(("server",), ("transformer",), Path("/project/feature_repo")), "http://127.0.0.1:1")
    assert [share.percent for share in desired.predictors] == [100, 0]


@pytest.mark.parametrize("name", ["predictor", "transformer"])
def test_every_pod_is_unprivileged_spread_and_named(name: str) -> None:
    part = build({})["spec"][name]
    context = part["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] != 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert part["serviceAccountName"] == "kubeloop-serving"
    assert part["imagePullSecrets"] == [{"name": "registry"}]
    for constraint in part["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"].items() <= part["labels"].items()
    # A request that arrived just before the end of the longest drain is still answered.
    assert part["terminationGracePeriodSeconds"] == 3 * 6 + 2 + 1


def test_the_transformer_is_least_privileged_and_finds_the_shared_store() -> None:
    part = build({"secrets": SECRETS})["spec"]["transformer"]
    (container,) = part["containers"]
    assert container["image"] == "registry.example/core:1.2"
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in part["volumes"]}
    env = {item["name"]: item.get("valueFrom") for item in container["env"]}
    assert env["KUBELOOP_ONLINE_STORE"] == {"secretKeyRef": {"name": "online-store", "key": "url"}}
    assert all(env[name]["configMapKeyRef"]["name"] == "kubeloop-env" for name in config.PUBLIC)
    assert {"--host=0.0.0.0", "--port=8080", "--feature-dir=/project/feature_repo"} <= set(container["args"])
    assert "redis" not in yaml.safe_dump(part)


def test_the_transformer_speaks_grpc_where_it_is_told_to() -> None:
    for wanted in (True, False):
        found = loop({}, serving={"grpc": wanted})
        spec = pods.place(found, plain(found))["spec"]
        (container,) = spec["transformer"]["containers"]
        assert [port["containerPort"] for port in container["ports"]] == [8080, 9000][: 1 + wanted]
        assert ("--grpc-port=9000" in container["args"]) == wanted
        assert not any("grpc" in arg for arg in spec["predictor"]["model"]["args"])


def test_a_gpu_is_asked_for_where_it_is_wanted() -> None:
    spec = build(GPU)["spec"]
    for predictor in (spec["predictor"], spec["canary"][0]["predictor"]):
        assert predictor["model"]["runtime"] == "kubeloop-onnx-gpu"
        assert predictor["model"]["resources"] == {
            "requests": {"cpu": "2", "memory": "8Gi"},
            "limits": {"memory": "8Gi", "nvidia.com/gpu": "2"},
        }
        assert predictor["nodeSelector"] == {"pool": "gpu"}
        assert predictor["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "nodeSelector" not in spec["transformer"]
    assert build({})["spec"]["predictor"]["model"]["runtime"] == "kubeloop-onnx"


IDENTITY = ["--name=flights", "--version=7", f"--sha256={V1.sha256}"]
OURS = [*IDENTITY, "--max-body-bytes=16777216", "--max-rows=10000", "--timeout-s=1.5", "--drain-s=6"]


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (None, OURS),
        (names.RUNTIME, OURS),
        (names.runtime(names.RUNTIMES, "onnx-gpu"), OURS),
        (names.runtime(names.RUNTIMES, "triton"), IDENTITY),
        ("kserve-mlserver", None),
    ],
)
def test_a_server_gets_the_flags_that_it_knows(runtime: str | None, expected: list[str] | None) -> None:
    spec = build({"runtime": runtime})["spec"]
    model = spec["predictor"]["model"]
    assert model["runtime"] == (runtime or names.RUNTIME)
    assert model.get("args") == expected
    (transformer,) = spec["transformer"]["containers"]
    assert ("--missing=nan" in transformer["args"]) == (runtime == names.runtime(names.RUNTIMES, "triton"))


def test_a_promotion_by_git_carries_what_triton_is_told_of_the_version() -> None:
    found = loop({"runtime": names.runtime(names.RUNTIMES, "triton")})
    old, new = (
        pods.place(found, inference_service(found, version, logger_url="http://c/", feature_dir="/project"))
        for version in (V1, V2)
    )
    carried = patch.carry(new, old)["spec"]["predictor"]["model"]
    assert carried["args"] == ["--name=flights", "--version=8", f"--sha256={V2.sha256}"]


PERCENT = {"scaleMetric": "cpu", "scaleTarget": 70}
TARGET = {"type": "Utilization", "averageUtilization": 40}
# KServe's webhook refuses `scaleMetric` for KEDA, and its ScaledObject has only the triggers of `autoScaling`.
TRIGGER = {"autoScaling": {"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": TARGET}}]}}


@pytest.mark.parametrize(
    ("autoscaling", "expected"),
    [
        ({}, ("hpa", {"minReplicas": 1, "maxReplicas": 4} | PERCENT)),
        (
            {"scaler": "keda", "min_replicas": 2, "max_replicas": 2, "cpu_percent": 40},
            ("keda", {"minReplicas": 2, "maxReplicas": 2} | TRIGGER),
        ),
        ({"scaler": "none", "min_replicas": 3}, ("none", {"minReplicas": 3, "maxReplicas": 4} | PERCENT)),
    ],
)
def test_kserve_is_told_how_to_scale(autoscaling: dict[str, Any], expected: tuple[str, Any]) -> None:
    manifest = build({"autoscaling": autoscaling})
    assert manifest["metadata"]["annotations"][pods.AUTOSCALER] == expected[0]
    for part in ("predictor", "transformer"):
        found = manifest["spec"][part]
        assert {key: found[key] for key in found if "eplicas" in key or "cal" in key} == expected[1]


@pytest.mark.parametrize(("percent", "least"), [(0, 1), (10, 1), (50, 2), (100, 3)])
def test_a_canary_has_pods_by_its_share_and_no_autoscaler(percent: int, least: int) -> None:
    found = loop({"autoscaling": {"scaler": "keda", "min_replicas": 3}})
    options = {"logger_url": "http://c/", "feature_dir": "/project", "canary": V2, "canary_percent": percent}
    (canary,) = pods.place(found, inference_service(found, V1, **options))["spec"]["canary"]
    predictor = canary["predictor"]
    assert (predictor["minReplicas"], predictor["annotations"][pods.AUTOSCALER]) == (least, "none")
    assert not {"maxReplicas", "scaleMetric", "scaleTarget", "autoScaling"} & predictor.keys()


@pytest.mark.parametrize(
    ("transformer", "limit"),
    [({}, "1"), ({"cpu": "900m"}, "1"), ({"cpu": "2"}, "2"), ({"cpu": "1500m"}, "1500m"), ({"cpu_limit": "4"}, "4")],
)
def test_a_transformer_may_use_what_it_asks_for(transformer: dict[str, Any], limit: str) -> None:
    """KServe gives a transformer without a limit its own limit of one core; no pod is made for a request above that."""
    (container,) = build({"transformer": transformer})["spec"]["transformer"]["containers"]
    assert container["resources"]["limits"]["cpu"] == limit

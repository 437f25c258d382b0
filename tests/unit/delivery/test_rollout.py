"""From one model version to the next: without a failed request, and never to a broken one."""

import signal
import time

import httpx
import pytest

from kubeloop.delivery import DeliveryError


def test_first_manifest_serves_and_says_so(kit):
    node = kit.node()
    applied = node.apply(kit.manifest(kit.model("v1")))
    answer = node.infer("flights", rows=3)
    assert answer.json()["model_version"] == "v1"
    assert answer.json()["outputs"][0]["shape"] == [3]
    assert answer.headers["x-transformer"] == "features"
    found = node.service("flights")
    assert (applied.generation, applied.storage_uri, applied.url) == (1, kit.model("v1").uri, node.url)
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"] == 1
    conditions = {condition["type"]: condition for condition in found["status"]["conditions"]}
    assert {kind: condition["status"] for kind, condition in conditions.items()} == {
        "PredictorReady": "True",
        "TransformerReady": "True",
        "Ready": "True",
    }
    assert all(condition["lastTransitionTime"] for condition in conditions.values())
    assert [p["component"] for p in found["status"]["processes"]] == ["predictor", "transformer"]
    assert all(p["pid"] and p["port"] for p in found["status"]["processes"])


def test_switch_under_load_loses_no_request(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1", sleep=0.01)))
    with kit.load(node, clients=8) as load:
        load.wait(100)
        node.apply(kit.manifest(kit.model("v2", sleep=0.01)))
        load.wait(100)
        node.apply(kit.manifest(kit.model("v1", sleep=0.01)))
        load.wait(100)
    assert load.failures == []
    assert set(load.codes()) == {200}
    assert set(load.versions()) == {"v1", "v2"}
    assert load.versions()["v2"] >= 90
    assert node.get()["errors"] == {"transformer": 0, "predictor": 0}


def test_slow_request_to_the_old_version_is_finished(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1", sleep=1.0)))
    old = node.processes("flights")[0]["pid"]
    with kit.load(node, clients=1) as load:
        kit.eventually(lambda: node.get("/status")["routes"])
        time.sleep(0.2)
        node.apply(kit.manifest(kit.model("v2")))
        load.wait(3)
    assert load.failures == []
    assert [version for _, version, _ in load.answers[:2]] == ["v1", "v2"]
    assert node.processes("flights")[0]["pid"] != old


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"exit": "model.onnx has digest 5c1, not 0f3: the file is not the one that was registered"}, "digest 5c1"),
        ({"exit": 3}, "exit code 3"),
        ({"hang": True}, "not ready after 2 s"),
    ],
    ids=["says why", "silent", "never ready"],
)
def test_broken_model_leaves_the_old_one(kit, alive, behaviour, reason):
    node = kit.node("--ready-s", "2")
    node.apply(kit.manifest(kit.model("v1")))
    pid = node.processes("flights")[0]["pid"]
    with kit.load(node, clients=2) as load:
        with pytest.raises(DeliveryError, match=f"PredictorFailed: .*{reason}.*models/v1 is still served"):
            node.apply(kit.manifest(kit.model("bad", **behaviour)))
        load.wait(20)
    assert (set(load.codes()), set(load.versions()), load.failures) == ({200}, {"v1"}, [])
    status = node.service("flights")["status"]
    assert status["storageUri"] == kit.model("v1").uri
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "PredictorReady": "False",
        "TransformerReady": "True",
        "Ready": "False",
    }
    assert [p["pid"] for p in node.processes("flights")] == [pid]
    node.apply(kit.manifest(kit.model("v2")))
    assert node.infer("flights").json()["model_version"] == "v2"


def test_a_broken_first_model_serves_once_it_is_repaired(kit):
    node = kit.node()
    with pytest.raises(DeliveryError, match="out of disk"):
        node.apply(kit.manifest(kit.model("v1", exit="out of disk")))
    assert node.infer("flights").status_code in (404, 503)
    kit.model("v1")
    kit.eventually(lambda: node.infer("flights").status_code == 200)
    assert node.service("flights")["status"]["conditions"][0]["status"] == "True"


def test_newer_manifest_replaces_one_that_is_still_starting(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    path = "/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices/flights"
    httpx.put(node.url + path, json=kit.manifest(kit.model("v2", hang=True))).raise_for_status()
    kit.eventually(lambda: "v2" in (node.state / "manifests" / "flights.yaml").read_text())
    applied = node.apply(kit.manifest(kit.model("v3")))
    assert applied.generation == 3
    assert node.infer("flights").json()["model_version"] == "v3"
    assert [p["version"] for p in node.processes("flights")] == ["v3"]


def test_transformer_is_replaced_only_when_it_changes(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1"), feature_dir="a"))
    first = node.processes("flights", "transformer")[0]["pid"]
    node.apply(kit.manifest(kit.model("v2"), feature_dir="a"))
    assert node.processes("flights", "transformer")[0]["pid"] == first
    with kit.load(node, clients=4) as load:
        load.wait(20)
        node.apply(kit.manifest(kit.model("v2"), feature_dir="b"))
        load.wait(20)
    assert (set(load.codes()), load.failures) == ({200}, [])
    assert node.processes("flights", "transformer")[0]["pid"] != first
    assert node.infer("flights").headers["x-transformer"] == "b"


def test_same_manifest_again_changes_nothing(kit):
    node = kit.node()
    first = node.apply(kit.manifest(kit.model("v1")))
    before = node.service("flights")
    assert node.apply(kit.manifest(kit.model("v1"))).generation == first.generation
    assert node.service("flights") == before


def test_canary_gets_its_share_and_is_promoted_without_restart(kit, collector):
    node = kit.node()
    stable, canary = kit.model("v1"), kit.model("v2")
    node.apply(kit.manifest(stable, canary=canary, canary_percent=20, logger_url=collector.url))
    with kit.load(node, clients=4) as load:
        load.wait(1000)
    total, share = len(load.answers), load.versions()["v2"]
    assert (set(load.codes()), load.failures) == ({200}, [])
    # Five standard deviations of a binomial: fails by chance once in two million runs.
    assert abs(share - 0.2 * total) < 5 * (total * 0.2 * 0.8) ** 0.5
    kit.eventually(lambda: node.get()["queued"] == 0)
    endpoints = {"default": "v1", "canary": "v2"}
    seen = [
        (headers["ce-endpoint"], body["model_version"])
        for headers, body in (pair["response"] for pair in collector.pairs().values())
    ]
    assert all(endpoints[endpoint] == version for endpoint, version in seen)
    assert seen.count(("canary", "v2")) == share
    pid = next(p["pid"] for p in node.processes("flights") if p["version"] == "v2")
    node.apply(kit.manifest(canary, logger_url=collector.url))
    assert [(p["version"], p["pid"]) for p in node.processes("flights")] == [("v2", pid)]


@pytest.mark.parametrize(("percent", "version"), [(0, "v1"), (100, "v2")])
def test_canary_at_the_ends_of_the_scale(kit, percent, version):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1"), canary=kit.model("v2"), canary_percent=percent))
    assert {node.infer("flights").json()["model_version"] for _ in range(30)} == {version}


def test_delete_ends_the_service(kit, alive):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    pids = [p["pid"] for p in node.service("flights")["status"]["processes"]]
    path = f"{node.url}/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices"
    assert [item["metadata"]["name"] for item in httpx.get(path).json()["items"]] == ["flights"]
    assert httpx.delete(f"{path}/flights").status_code == 200
    assert httpx.delete(f"{path}/flights").status_code == 404
    assert httpx.get(f"{path}/flights").status_code == 404
    assert httpx.get(path).json()["items"] == []
    assert node.infer("flights").status_code == 404
    kit.eventually(lambda: not any(map(alive, pids)))
    assert node.signal(signal.SIGTERM) == 0
    assert not list((node.state / "manifests").rglob("*.yaml"))

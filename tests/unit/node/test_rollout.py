"""From one model version to the next: no failed request, and never to a broken version."""

import time

import httpx
import pytest

from kubeloop.delivery import DeliveryError

SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices"


def test_first_manifest_serves_and_says_so(service, node):
    applied = service.apply("v1")
    answer = service.infer(rows=3)
    assert answer.json()["model_version"] == "v1"
    assert answer.json()["outputs"][0]["shape"] == [3]
    assert answer.headers["x-transformer"] == "v1"
    found = service.status()
    assert (applied.generation, applied.storage_uri, applied.url) == (1, service.model("v1").uri, node.url)
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"] == 1
    assert {kind: condition["status"] for kind, condition in service.conditions().items()} == {
        "PredictorReady": "True",
        "TransformerReady": "True",
        "Ready": "True",
    }
    assert all(condition["lastTransitionTime"] for condition in service.conditions().values())
    assert [p["component"] for p in found["status"]["processes"]] == ["predictor", "transformer"]
    assert all(p["pid"] and p["port"] for p in found["status"]["processes"])


def test_switch_under_load_loses_no_request(service, node):
    service.model("v1", sleep=0.01)
    service.model("v2", sleep=0.01)
    service.apply("v1")
    before = node.get()["errors"]
    with service.load(clients=8) as load:
        load.wait(100)
        service.apply("v2")
        load.wait(100)
        service.apply("v1")
        load.wait(100)
    assert load.failures == []
    assert set(load.codes()) == {200}
    assert set(load.versions()) == {"v1", "v2"}
    assert load.versions()["v2"] >= 90
    assert node.get()["errors"] == before
    assert len(service.pairs()) == len(load.answers)


def test_slow_request_to_the_old_version_is_finished(service):
    service.model("v1", sleep=1.0)
    service.apply("v1")
    old = service.processes()[0]["pid"]
    with service.load(clients=1) as load:
        time.sleep(0.2)
        service.apply("v2")
        load.wait(3)
    assert load.failures == []
    assert [version for _, version, _ in load.answers[:2]] == ["v1", "v2"]
    assert service.processes()[0]["pid"] != old


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"exit": "model.onnx has digest 5c1, not 0f3: the file is not the one that was registered"}, "digest 5c1"),
        ({"exit": 3}, "exit code 3"),
        ({"hang": True}, "not ready after 2 s"),
    ],
    ids=["says why", "silent", "never ready"],
)
def test_broken_model_leaves_the_old_one(service, behaviour, reason):
    service.apply("v1")
    pid = service.processes()[0]["pid"]
    service.model("bad", **behaviour)
    with service.load(clients=2) as load:
        with pytest.raises(DeliveryError, match=f"PredictorFailed: .*{reason}.*/v1 is still served"):
            service.apply("bad")
        load.wait(20)
    assert (set(load.codes()), set(load.versions()), load.failures) == ({200}, {"v1"}, [])
    assert service.status()["status"]["storageUri"] == service.model("v1").uri
    assert {kind: condition["status"] for kind, condition in service.conditions().items()} == {
        "PredictorReady": "False",
        "TransformerReady": "True",
        "Ready": "False",
    }
    assert [p["pid"] for p in service.processes()] == [pid]
    service.apply("v2")
    assert service.infer().json()["model_version"] == "v2"


def test_a_broken_first_model_serves_once_it_is_repaired(service, shared):
    service.model("v1", exit="out of disk")
    with pytest.raises(DeliveryError, match="out of disk"):
        service.apply("v1")
    assert service.infer().status_code in (404, 503)
    service.model("v1")
    shared.eventually(lambda: service.infer().status_code == 200)
    assert service.conditions()["Ready"]["status"] == "True"


def test_newer_manifest_replaces_one_that_is_still_starting(service, node):
    service.apply("v1")
    service.model("slow", start_s=600)
    httpx.put(
        f"{node.url}{SERVICES}/{service.name}", json=service.manifest("slow"), headers=node.login()
    ).raise_for_status()
    applied = service.apply("v2")
    assert applied.generation == 3
    assert service.infer().json()["model_version"] == "v2"
    assert [p["version"] for p in service.processes()] == ["v2"]


def test_an_applied_manifest_that_is_overtaken_says_so(service, node, shared):
    service.apply("v1")
    service.model("slow", start_s=1)
    with shared.background(lambda: service.apply("slow")) as first:
        shared.eventually(lambda: service.status()["metadata"]["generation"] == 2)
        service.apply("v2")
    assert isinstance(first.error, DeliveryError)
    assert "another manifest was applied" in str(first.error)


def test_transformer_is_replaced_only_when_it_changes(service):
    service.apply("v1", features="a")
    first = service.processes("transformer")[0]["pid"]
    service.apply("v2", features="a")
    assert service.processes("transformer")[0]["pid"] == first
    with service.load(clients=4) as load:
        load.wait(20)
        service.apply("v2", features="b")
        load.wait(20)
    assert (set(load.codes()), load.failures) == ({200}, [])
    assert service.processes("transformer")[0]["pid"] != first
    assert service.infer().headers["x-transformer"] == "b"


def test_same_manifest_again_changes_nothing(service):
    first = service.apply("v1")
    before = service.status()
    assert service.apply("v1").generation == first.generation
    assert service.status() == before


def test_canary_gets_its_share_and_is_promoted_without_restart(service):
    service.apply("v1", canary="v2", canary_percent=20)
    with service.load(clients=4) as load:
        load.wait(1000)
    total, share = len(load.answers), load.versions()["v2"]
    assert (set(load.codes()), load.failures) == ({200}, [])
    # Five standard deviations of a binomial: it fails by chance once in two million runs.
    assert abs(share - 0.2 * total) < 5 * (total * 0.2 * 0.8) ** 0.5
    answers = [pair["response"] for pair in service.pairs().values()]
    seen = [(headers["ce-endpoint"], body["model_version"]) for headers, body in answers]
    assert set(seen) == {("default", "v1"), ("canary", "v2")}
    assert seen.count(("canary", "v2")) == share
    pid = next(p["pid"] for p in service.processes() if p["version"] == "v2")
    service.apply("v2")
    assert [(p["version"], p["pid"]) for p in service.processes()] == [("v2", pid)]


def test_canary_at_the_ends_of_the_scale(service):
    for percent, version in ((0, "v1"), (100, "v2")):
        service.apply("v1", canary="v2", canary_percent=percent)
        assert {service.infer().json()["model_version"] for _ in range(30)} == {version}
    assert [share["percent"] for share in service.status()["status"]["traffic"]] == [0, 100]


def test_delete_ends_the_service(service, node, shared, alive):
    service.apply("v1")
    pids = [p["pid"] for p in service.status()["status"]["processes"]]

    def names() -> list[str]:
        return [item["metadata"]["name"] for item in node.get(SERVICES)["items"]]

    assert service.name in names()
    path = f"{node.url}{SERVICES}/{service.name}"
    assert [httpx.delete(path, headers=node.login()).status_code for _ in range(2)] == [200, 404]
    assert httpx.get(path).status_code == 404
    assert service.name not in names()
    assert service.infer().status_code == 404
    shared.eventually(lambda: not any(map(alive, pids)))
    assert not list((node.state / "manifests").rglob(f"{service.name}.yaml"))

"""A program that dies is restarted, a stopped node finishes its requests, and no process is left behind."""

import json
import signal
import sys
import time

import httpx
import pytest

from kubeloop.delivery import DeliveryError


def test_killed_predictor_comes_back(service, shared, kill):
    service.apply("v1")
    with service.load(clients=4) as load:
        load.wait(50)
        kill(service.processes()[0]["pid"])
        shared.eventually(lambda: service.processes()[0]["restarts"] == 1)
        shared.eventually(lambda: service.processes()[0]["ready"])
        load.wait(50)
    assert load.failures == []
    assert set(load.codes()) <= {200, 503}
    assert {code for code, _, _ in load.answers[-20:]} == {200}
    assert max(seconds for _, _, seconds in load.answers) < 5
    assert service.conditions()["Ready"]["status"] == "True"
    assert "restart in 0.1 s: ended with exit code -9" in service.node.log()


def test_killed_transformer_comes_back(service, shared, kill):
    service.apply("v1")
    kill(service.processes("transformer")[0]["pid"])
    shared.eventually(lambda: service.processes("transformer")[0]["restarts"] == 1)
    shared.eventually(lambda: service.infer().status_code == 200)


def test_while_it_restarts_the_status_says_so_and_requests_are_refused_at_once(service, shared, kill):
    service.apply("v1")
    service.model("v1", exit="the disk is gone")
    kill(service.processes()[0]["pid"])
    shared.eventually(lambda: "the disk is gone" in service.processes()[0]["lastError"])
    ready = service.conditions()["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "Restarting")
    assert "the disk is gone" in ready["message"]
    began = time.monotonic()
    answer = httpx.post(f"{service.node.url}/_predictor/v2/models/{service.name}/infer", json={})
    assert answer.status_code == service.infer().status_code == 503
    assert f"no predictor of {service.name} is running" in answer.json()["error"]
    assert answer.headers["retry-after"] == "1"
    assert time.monotonic() - began < 1
    service.model("v1")
    shared.eventually(lambda: service.infer().status_code == 200)


def test_the_canary_takes_over_for_a_dead_default(service, shared, kill):
    service.apply("v1", canary="v2", canary_percent=1)
    stable = next(p["pid"] for p in service.processes() if p["version"] == "v1")
    service.model("v1", exit="gone")
    with service.load(clients=4) as load:
        load.wait(50)
        kill(stable)
        load.wait(50)
    assert (set(load.codes()), load.failures) == ({200}, [])
    assert load.answers[-1][1] == "v2"


def test_predictor_that_dies_on_a_request_ends_in_503_after_one_retry(service):
    service.model("v1", die=True)
    service.apply("v1")
    began = time.monotonic()
    assert service.infer().status_code == 503
    assert time.monotonic() - began < 5


def test_restarted_node_serves_again(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    node.apply(kit.manifest(kit.model("v2")))
    assert node.signal(signal.SIGTERM) == 0
    node.start()
    kit.eventually(lambda: node.infer().status_code == 200)
    assert node.infer().json()["model_version"] == "v2"
    assert node.apply(kit.manifest(kit.model("v3"))).generation == 3


def test_restarted_node_serves_the_last_good_model_and_reports_the_bad_one(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    with pytest.raises(DeliveryError, match="wrong digest"):
        node.apply(kit.manifest(kit.model("v2", exit="wrong digest")))
    assert node.signal(signal.SIGTERM) == 0
    node.start()
    kit.eventually(lambda: node.infer().status_code == 200)
    assert node.infer().json()["model_version"] == "v1"
    status = node.service()["status"]
    ready = node.conditions()["Ready"]
    assert (ready["status"], status["observedGeneration"]) == ("False", 2)
    assert "wrong digest" in ready["message"]


@pytest.mark.parametrize("damaged", ["manifests/m.yaml", "manifests/ready/m.yaml", "gone"])
def test_a_manifest_that_is_cut_off_is_named_and_the_whole_one_is_served(kit, damaged):
    node = kit.node()
    applied = kit.manifest(kit.model("v1"))
    node.apply(applied)
    assert node.signal(signal.SIGTERM) == 0
    name = applied["metadata"]["name"]
    newest = node.state / "manifests" / f"{name}.yaml"
    path = node.state / damaged.replace("m.yaml", newest.name)
    if damaged == "gone":
        newest.unlink()
    else:
        path.write_text(path.read_text()[: path.stat().st_size // 2])
    node.start()
    kit.eventually(lambda: node.infer().status_code == 200)
    assert node.infer().json()["model_version"] == "v1"
    assert damaged == "gone" or f"{path} is not applied: " in node.log()


def test_a_file_that_is_not_a_manifest_does_not_stop_the_node(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    assert node.signal(signal.SIGTERM) == 0
    (node.state / "manifests" / "other.yaml").write_text("kind: Elephant\n")
    (node.state / "manifests" / "broken.yaml").write_text("{")
    node.start()
    kit.eventually(lambda: node.infer().status_code == 200)
    assert "other.yaml is not applied" in node.log()
    assert "broken.yaml is not applied" in node.log()


def test_killed_node_leaves_no_child(kit, alive):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    pids = [p["pid"] for p in node.service()["status"]["processes"]]
    assert all(map(alive, pids))
    assert node.signal(signal.SIGKILL) == -signal.SIGKILL
    kit.eventually(lambda: not any(map(alive, pids)))


def test_stopped_node_finishes_requests_sends_events_and_ends_its_children(kit, alive):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1"), features="slow"))
    pids = [p["pid"] for p in node.service()["status"]["processes"]]
    kit.collector.sleep = 1.0
    with kit.load(node, clients=1) as load:
        time.sleep(0.3)
        assert node.signal(signal.SIGTERM) == 0
    assert load.answers[0][:2] == (200, "v1")
    pair = next(iter(kit.collector.pairs().values()))
    assert set(pair) == {"request", "response"}
    assert not any(map(alive, pids))


def test_undelivered_events_do_not_keep_the_node(kit):
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1")))
    kit.collector.down()
    node.infer()
    began = time.monotonic()
    assert node.signal(signal.SIGINT) == 0
    assert time.monotonic() - began < 9
    assert "2 events are lost" in node.log()


def test_a_program_that_is_not_there_is_named(kit, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBELOOP_RUNTIME_PYTHON", str(tmp_path / "no" / "python"))
    node = kit.node(command=(sys.executable, "-m", "kubeloop.node.server", "--port", "0"))
    with pytest.raises(DeliveryError, match=r"cannot run .*/no/python: .*No such file"):
        node.apply(kit.manifest(kit.model("v1"), feature_dir=node.state / "features"))


def test_a_lost_log_does_not_end_the_supervision(service, node, shared, kill):
    service.apply("v1")
    (node.state / "logs" / f"{service.name}-predictor-v1.log").unlink()
    kill(service.processes()[0]["pid"])
    shared.eventually(lambda: service.processes()[0]["restarts"] == 1)
    shared.eventually(lambda: service.infer().status_code == 200)


def test_stdout_of_a_child_is_kept_in_its_log(service, node, shared):
    service.apply("v1")
    log = node.state / "logs" / f"{service.name}-predictor-v1.log"
    shared.eventually(lambda: "some more output" in log.read_text())


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"kind": "Pod"}, 400, "kind: Input should be 'InferenceService'"),
        ({"metadata": {"name": "flights", "namespace": "other"}}, 400, "the manifest is other/flights"),
        ({"spec": {}}, 400, "spec.predictor: Field required"),
        (None, 400, "manifest: "),
        ("{", 400, "the body is not JSON"),
        (" " * 1_100_000, 413, "more than"),
    ],
)
def test_malformed_manifest_is_refused(node, shared, change, code, message):
    manifest = shared.manifest(shared.model("v1"))
    body = change if isinstance(change, str) else json.dumps(change and manifest | change)
    path = "/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices/flights"
    answer = httpx.put(node.url + path, content=body, headers={"content-type": "application/json"} | node.login())
    assert answer.status_code == answer.json()["code"] == code
    assert message in answer.json()["message"]
    assert "flights" not in node.get()["routes"]


def test_a_name_belongs_to_one_namespace(service, node):
    service.apply("v1")
    manifest = service.manifest("v1")
    manifest["metadata"]["namespace"] = "other"
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/other/inferenceservices/{service.name}"
    answer = httpx.put(node.url + path, json=manifest, headers=node.login())
    assert (answer.status_code, answer.json()["reason"]) == (409, "Conflict")


def test_a_web_page_under_another_name_is_refused(node):
    assert httpx.get(f"{node.url}/status", headers={"host": "evil.example"}).status_code == 403

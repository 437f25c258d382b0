"""The chart under a real kubelet: pods start, work and die, and their data survive.

The bridge between the pods enforces no NetworkPolicy, and stand-ins play KServe's controller and Kubeflow's API;
everything else is real. The tests build on each other, in the order of the file.
"""

import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kubeloop import config, names
from kubeloop.stores.bucket import Bucket
from tests.node import scripts
from tests.node.installation import CHART, LOOP, NAMESPACE, RELEASE, Installation
from tests.node.kserve import Kserve

pytestmark = pytest.mark.timeout(600)

AS_OF = "2013-05-20T00:00:00Z"
COLLECTOR = f"{RELEASE}-collector"
MONITOR = f"{RELEASE}-monitor-{LOOP}"
TRIGGER = f"{RELEASE}-trigger-{LOOP}"
OURS = f"app.kubernetes.io/instance={RELEASE}"
TRIGGERS = f"{OURS},app.kubernetes.io/component=trigger"
PROBE = "probe"
PREDICTIONS = f"http://{LOOP}-transformer.{NAMESPACE}.svc.cluster.local"
"""The host name in the InferenceService's status; KServe makes no Service of that name."""


def status(installed: Installation, service: str) -> dict[str, Any]:
    """Return the /status of a Service as a pod sees it."""
    found: dict[str, Any] = installed.exec(PROBE, scripts.GET, f"http://{service}.{NAMESPACE}.svc/status")
    return found


def names_of(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def restarts(installed: Installation) -> dict[str, int]:
    """Return how often each restarted container of the chart's pods was restarted."""
    return {
        f"{pod['metadata']['name']}/{item['name']}": item["restartCount"]
        for pod in installed.get("pods", OURS)
        for kind in ("initContainerStatuses", "containerStatuses")
        for item in pod["status"].get(kind, ())
        if item["restartCount"]
    }


def test_every_pod_becomes_ready_at_the_first_start(installed: Installation) -> None:
    begun = time.monotonic()
    installed.rolled_out()
    print(f"ready after {time.monotonic() - begun:.0f} s")
    running = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in installed.get("pods", OURS)}
    assert running == {"collector", "monitor", "trigger", "mlflow"}
    assert restarts(installed) == {}


def test_helm_test_asks_every_part(installed: Installation) -> None:
    installed.helm("test", RELEASE)
    said = installed.kubectl("logs", f"{RELEASE}-test")
    assert len([line for line in said.splitlines() if line.endswith(": ready")]) == 4, said


def test_the_volume_belongs_to_the_pod(installed: Installation) -> None:
    volume = installed.kubectl("exec", f"{COLLECTOR}-0", "-c", "collector", "--", "stat", "-c", "%u %g %a", "/data")
    assert volume.split() == ["0", "65532", "2775"]


@pytest.fixture(scope="module")
def probe(installed: Installation) -> Iterator[Installation]:
    """A pod that sends requests; the variables of this process name the store."""
    installed.run(PROBE, "runtime", "sleep", "36000")
    installed.kubectl("wait", "--for=condition=Ready", f"pod/{PROBE}", "--timeout=60s")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**installed.store.environ, "KUBELOOP_BUCKET": installed.bucket}.items():
            patch.setenv(name, value)
        yield installed


def pipeline(installed: Installation, name: str, *command: str) -> None:
    """Run a program of the core image like a pipeline step: with its account, variables and loop.yaml."""
    secrets = {"KUBELOOP_FEATURE_REGISTRY": "registry", "KUBELOOP_ONLINE_STORE": "online"}
    given = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": "kubeloop-features", "key": key}}}
        for variable, key in secrets.items()
    ]
    token = {"path": "token", "audience": "pipelines.kubeflow.org", "expirationSeconds": 3600}
    more = {
        "env": [
            *given,
            {"name": "KUBELOOP_KFP_URL", "value": installed.pipelines.url.replace("127.0.0.1", "10.244.0.1")},
            {"name": "KUBELOOP_KFP_TOKEN_FILE", "value": "/var/run/secrets/kubeflow/pipelines/token"},
        ],
        "envFrom": [{"configMapRef": {"name": "kubeloop-env"}}, {"secretRef": {"name": "kubeloop-s3"}}],
        "volumes": [
            {"name": "loop", "configMap": {"name": f"{RELEASE}-loop-{LOOP}"}},
            {"name": "kfp", "projected": {"sources": [{"serviceAccountToken": token}]}},
        ],
        "volumeMounts": [
            {"name": "loop", "mountPath": "/project/loop.yaml", "subPath": "loop.yaml"},
            {"name": "kfp", "mountPath": "/var/run/secrets/kubeflow/pipelines"},
        ],
    }
    installed.run(name, "core", *command, account="kubeloop-pipeline", more=more)


def test_a_run_in_a_pod_brings_a_model_into_service(probe: Installation) -> None:
    run = ("python", "-m", "pipelines", "run")
    pipeline(probe, "materialize", *run, "materialize", "--run-name", "m1", "--as-of", AS_OF)
    probe.ended("materialize")
    pipeline(probe, "training", *run, "training", "--run-name", "first", "--as-of", AS_OF)
    kserve = Kserve(probe.node, NAMESPACE, LOOP)
    probe.node.until(lambda: kserve.service() is not None, "the run applies its InferenceService", 180)
    kserve.deploy()
    probe.rolled_out()
    kserve.report()
    verdict = json.loads(probe.ended("training").splitlines()[-1])
    assert verdict["promote"] is True, verdict
    assert verdict["version"] == "1"


def test_a_prediction_goes_through_transformer_redis_and_predictor(probe: Installation) -> None:
    found = probe.exec(PROBE, scripts.PREDICT, f"{PREDICTIONS}/v2/models/{LOOP}")
    assert found["model_version"] == "1", found
    assert 0 < found["outputs"][0]["data"][0] < 1
    metrics = probe.kubectl("exec", PROBE, "--", "python", "-c", scripts.GET, f"http://{LOOP}-transformer/metrics")
    missing = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if "features_missing_total{" in line)
    assert missing['kubeloop_features_missing_total{feature="carrier_late_1d"}'] == "0.0", "it came from Redis"


@pytest.mark.parametrize("disruption", ["delete the pod", "kill the collector", "kill the mirror"])
def test_what_the_collector_acknowledged_is_in_the_store(probe: Installation, disruption: str) -> None:
    prefix, count = disruption.replace(" ", "-"), 1500
    before = status(probe, COLLECTOR)["acknowledged_seq"]
    told: list[Any] = []
    sender = threading.Thread(
        target=lambda: told.append(
            probe.exec(PROBE, scripts.EVENTS, f"http://{COLLECTOR}.{NAMESPACE}.svc/", prefix, str(count))
        )
    )
    sender.start()
    probe.node.until(lambda: status(probe, COLLECTOR)["acknowledged_seq"] > before + 200, "events arrive")
    if disruption == "delete the pod":
        probe.kubectl("delete", "pod", f"{COLLECTOR}-0")
    else:
        probe.node.kill(NAMESPACE, f"{COLLECTOR}-0", disruption.rpartition(" ")[2])
    sender.join()
    print(disruption, told)
    assert told, "every event of the sender got through"
    probe.node.until(lambda: len(stored(probe, prefix)) >= count, "all of it reaches the store", 90)
    assert stored(probe, prefix) == {f"{prefix}-{number}" for number in range(count)}
    probe.rolled_out()


def stored(installed: Installation, prefix: str) -> set[str]:
    """Return the ids of events in the S3 store that begin with a prefix."""
    import pyarrow.parquet as pq

    bucket = Bucket.open(config.settings())
    found: set[str] = set()
    for name in bucket.names(names.PAYLOADS):
        content = bucket.get(f"{names.PAYLOADS}/{name}")
        if content:
            found |= set(pq.read_table(io.BytesIO(content), columns=["id"])["id"].to_pylist())
    return {item for item in found if item.startswith(prefix)}


def test_the_monitor_reads_all_of_it(probe: Installation) -> None:
    last = status(probe, COLLECTOR)["acknowledged_seq"]
    probe.node.until(lambda: status(probe, MONITOR)["last_seq"] == last, "the monitor has read the log", 120)
    found = status(probe, MONITOR)
    assert found["failure"] is None
    assert found["engine"] == "alibi"


def test_no_container_comes_near_its_memory_limit(probe: Installation) -> None:
    near = {}
    for pod in probe.get("pods", OURS):
        name = pod["metadata"]["name"]
        running = [*pod["status"].get("initContainerStatuses", ()), *pod["status"]["containerStatuses"]]
        for container in (item["name"] for item in running if "running" in item["state"]):
            used, limit = json.loads(probe.kubectl("exec", name, "-c", container, "--", "python", "-c", scripts.MEMORY))
            print(f"{name}/{container}: {used >> 20} of {limit >> 20} MiB")
            if used > 0.75 * limit:
                near[f"{name}/{container}"] = (used, limit)
    assert near == {}


def test_one_drift_event_starts_one_run(probe: Installation) -> None:
    pipeline(probe, "schedule", "kubeloop", "schedule")
    probe.ended("schedule")
    moment = "2013-07-01T00:00:00Z"
    data = {
        "service": LOOP,
        "episode": f"{LOOP}-{moment}",
        "opened_at": moment,
        "as_of": moment,
        "kind": "manual",
        "features": [],
        "reason": "a test asks",
    }
    url = f"http://{TRIGGER}.{NAMESPACE}.svc/events"
    assert probe.exec(PROBE, scripts.DRIFT, url, json.dumps(data), names.DRIFT_EVENT) == [202] * 6
    runs = probe.pipelines.store.runs
    probe.node.until(lambda: runs, "a trigger starts a run", 60)
    first = status(probe, TRIGGER)["runs"][0]["holder"]
    (holder,) = (name for name in names_of(probe.get("pods", TRIGGERS)) if name in first)
    probe.kubectl("delete", "pod", holder)
    probe.node.until(
        lambda: status(probe, TRIGGER)["runs"][0]["holder"] not in (first, None), "another takes over", 120
    )
    (run,) = runs
    probe.pipelines.store.finish(run, "FAILED")
    probe.node.until(lambda: status(probe, TRIGGER)["runs"][0]["failures"] == 1, "the other sees that it failed", 90)
    probe.rolled_out()
    accounts = {f"system:serviceaccount:{NAMESPACE}:{RELEASE}-trigger"}
    assert accounts <= probe.pipelines.tokens.users


def test_upgrade_and_rollback_replace_the_pods_that_changed(probe: Installation) -> None:
    def pods() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for pod in probe.get("pods", OURS):
            part = pod["metadata"]["labels"]["app.kubernetes.io/component"]
            found.setdefault(part, set()).add(pod["metadata"]["name"])
        return found

    before = pods()
    probe.write({"description": "another"})
    probe.helm("upgrade", RELEASE, str(CHART), "-f", str(probe.values))
    probe.rolled_out()
    after = pods()
    assert {part for part in ("collector", "mlflow") if before[part] != after[part]} == set()
    assert not before["monitor"] & after["monitor"]
    assert not before["trigger"] & after["trigger"]
    probe.helm("rollback", RELEASE, "1")
    probe.rolled_out()
    probe.helm("test", RELEASE)
    assert status(probe, COLLECTOR)["acknowledged_seq"] > 0


def test_a_pod_that_cannot_start_says_why(probe: Installation) -> None:
    probe.kubectl("create", "secret", "generic", "nowhere", "--from-literal=url=postgresql+psycopg://a:b@127.0.0.1:1/c")
    # The migration before the upgrade would fail first, and leave everything unchanged.
    wrong = ("--no-hooks", "--set", "trigger.ledger.name=nowhere")
    probe.helm("upgrade", RELEASE, str(CHART), "-f", str(probe.values), *wrong)

    def words() -> str:
        for pod in probe.get("pods", TRIGGERS):
            for item in pod["status"].get("containerStatuses", ()):
                if "terminated" in item["lastState"]:
                    return str(item["lastState"]["terminated"].get("message", ""))
        return ""

    probe.node.until(words, "a trigger ends", 60)
    assert "KUBELOOP_LEDGER_DB" in words()
    # The old replicas continue to serve until the new ones are ready.
    assert status(probe, TRIGGER)["service"] == LOOP
    probe.helm("rollback", RELEASE)
    probe.rolled_out()


def test_uninstall_leaves_the_data(probe: Installation) -> None:
    probe.helm("uninstall", RELEASE)
    # The test's pod is a hook, and Helm leaves hooks behind.
    probe.node.until(lambda: names_of(probe.get("pods", OURS)) <= {f"{RELEASE}-test"}, "the pods end", 150)
    assert [item["status"]["phase"] for item in probe.get("pvc")] == ["Bound"]
    assert not probe.get("services", OURS)
    # The models' own objects do not belong to the chart: served models stay in service.
    assert probe.exec(PROBE, scripts.PREDICT, f"{PREDICTIONS}/v2/models/{LOOP}")["model_version"] == "1"

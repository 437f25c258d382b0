"""Training as a TrainJob: its fields by Kubeflow's models, its life on a real API server, its nodes as processes."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from kubeloop import config, errors, failures, names
from kubeloop.config import ConfigError, Loop, Node
from kubeloop.delivery import DeliveryError, train_job
from kubeloop.delivery.cluster import Cluster
from kubeloop.failures import Failure
from kubeloop.stores.bucket import Bucket
from kubeloop.tasks import port
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.tabular import candidate, holdout, model_folder, train_node, training
from tests.cluster.conftest import MERGE
from tests.control_plane.plane import CommandError
from tests.unit.tasks.test_kinds import CLASSES, LOOP, table

CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "trainjobs.trainer.kubeflow.org"},
    "spec": {
        "group": "trainer.kubeflow.org",
        "names": {"kind": "TrainJob", "plural": "trainjobs", "singular": "trainjob", "listKind": "TrainJobList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
"""A CRD that accepts any fields: the real one is not in the CRD folder, and Kubeflow's models check the fields."""


_STEP = """
import sys
from pathlib import Path
from kubeloop import config; from kubeloop.steps import stages
loop, *files = map(Path, sys.argv[1:])
print(stages.train(config.load(loop), *files, config.settings())["sha256"])
"""


def asking(loop: Loop, **job: Any) -> Loop:
    secrets = [{"secret": "store", "env": {"AWS_ACCESS_KEY_ID": "access"}}]
    pipelines = {"train_job": {"nodes": 3, "resources": {"cpu": "2", "memory": "8Gi", "gpu": {}}} | job}
    return Loop.parse(loop.dump(), {"pipelines": pipelines | {"secrets": secrets}})


def test_kubeflow_knows_every_field(loop: Loop) -> None:
    manifest = train_job.build(asking(loop), "job-1", "team")
    known = TrainerV1alpha1TrainJob.from_dict(manifest)
    assert known is not None
    read = known.to_dict()
    assert lost(manifest, read) == []
    trainer = manifest["spec"]["trainer"]
    assert trainer["numNodes"] == 3
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "1"
    assert trainer["command"] == ["python", "-m", "kubeloop.tasks.tabular.train_node", "--job=job-1"]
    assert {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "store", "key": "access"}}} in trainer[
        "env"
    ]
    manifest["spec"]["trainer"]["nodes"] = 3
    assert lost(manifest, known.to_dict()) == ["spec.trainer.nodes"], "the comparison would notice"


def lost(given: Any, read: Any, path: str = "") -> list[str]:
    """Return the fields that the models dropped."""
    if isinstance(given, dict):
        parts = [(f"{path}.{key}".lstrip("."), value, (read or {}).get(key)) for key, value in given.items()]
        return [
            item for name, value, other in parts for item in ([name] if other is None else lost(value, other, name))
        ]
    if isinstance(given, list):
        return [item for one, other in zip(given, read, strict=True) for item in lost(one, other, path)]
    return []


def node(manifest: Any, name: str = "node") -> Any:
    """Return a node's pod as Kubeflow Trainer makes it: the runtime's pod, merged with the trainer and the patch.

    Source: manifests/base/runtimes/torch_distributed.yaml and pkg/runtime/core of kubeflow/trainer v2.3.0.
    """
    trainer, (patch,) = manifest["spec"]["trainer"], manifest["spec"]["runtimePatches"]
    assert patch["manager"] == "kubeloop.io/train-job"
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert (job["name"], container["name"]) == (name, name)
    given = {key: trainer[key] for key in ("image", "command", "env")} | {"resources": trainer["resourcesPerNode"]}
    return spec | {"containers": [container | given]}


def test_a_node_is_placed_and_identified_like_a_step(loop: Loop) -> None:
    pipelines = {
        "images": {"pull_secrets": ["registry"]},
        "service_account": "trainers",
        "run_as_user": 1234,
        "defaults": {"node_selector": {"pool": "ml"}, "tolerations": [{"key": "ml"}]},
        "train_job": {"resources": {"gpu": {"node_selector": {"gpu": "h200"}}}},
    }
    pod = node(train_job.build(Loop.parse(loop.dump(), {"pipelines": pipelines}), "job-1", "team"))
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["serviceAccountName"] == "trainers"
    assert pod["securityContext"]["runAsUser"] == 1234
    assert pod["nodeSelector"] == {"pool": "ml", "gpu": "h200"}
    assert pod["tolerations"] == [
        {"key": "ml", "operator": "Exists"},
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    ]
    plain = node(train_job.build(Loop.parse(loop.dump(), {"pipelines": {"train_job": {}}}), "job-1", "team"))
    assert not {"imagePullSecrets", "nodeSelector", "tolerations"} & plain.keys()


def test_a_node_is_admitted_where_restricted_is_enforced(
    control_plane: Any, restricted_namespace: str, loop: Loop
) -> None:
    spec = node(train_job.build(asking(loop), "job-1", restricted_namespace))
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": spec["serviceAccountName"]}}
    control_plane.request("POST", f"/api/v1/namespaces/{restricted_namespace}/serviceaccounts", account)
    pods = f"/api/v1/namespaces/{restricted_namespace}/pods?dryRun=All&fieldValidation=Strict"
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node-0"}, "spec": spec}
    control_plane.request("POST", pods, body)
    del spec["containers"][0]["securityContext"]
    with pytest.raises(CommandError, match="violates PodSecurity"):
        control_plane.request("POST", pods, body)


@pytest.mark.parametrize("algorithm", ["random_forest", "logistic_regression"])
def test_only_lightgbm_trains_on_many_nodes(loop: Loop, algorithm: str) -> None:
    with pytest.raises(ConfigError, match=r"trains on one node; write pipelines.train_job.nodes: 1"):
        Loop.parse(
            loop.dump(), {"training": {"algorithm": algorithm, "parameters": {}}, "pipelines": {"train_job": {}}}
        )


@pytest.fixture(scope="module")
def cluster(control_plane: Any) -> Iterator[Cluster]:
    control_plane.kubectl("apply", "-f", "-", input=yaml.safe_dump(CRD))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/trainjobs.trainer.kubeflow.org", "--timeout=30s")
    # A CRD is established before its storage answers.
    control_plane.wait(lambda: control_plane.http.get("/apis/trainer.kubeflow.org/v1alpha1/trainjobs").is_success)
    yield Cluster(control_plane.client())
    control_plane.kubectl("delete", "crd", "trainjobs.trainer.kubeflow.org")


@pytest.fixture
def play(control_plane: Any, namespace: str) -> Iterator[Callable[..., None]]:
    """Write a condition into the TrainJob's status once the job exists, as Kubeflow Trainer does."""
    jobs = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs"
    threads = []

    def write(kind: str, reason: str = "Why", message: str = "because", name: str = "job-1") -> None:
        path = f"{jobs}/{name}"
        deadline = time.monotonic() + 20
        while not control_plane.http.get(path).is_success and time.monotonic() < deadline:
            time.sleep(0.05)
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        control_plane.request("PATCH", f"{path}/status", {"status": {"conditions": [condition]}}, headers=MERGE)

    def begin(*condition: str) -> None:
        threads.append(threading.Thread(target=write, args=condition))
        threads[-1].start()

    yield begin
    for thread in threads:
        thread.join()


def test_a_complete_job_is_awaited_and_not_run_again(
    cluster: Cluster, play: Any, loop: Loop, namespace: str, control_plane: Any
) -> None:
    manifest = train_job.build(asking(loop), "job-1", namespace)
    play("Complete")
    train_job.run(manifest, 30, cluster)
    # The step is repeated after an upgrade: a job that has begun cannot be changed.
    newer = train_job.build(Loop.parse(asking(loop).dump(), {"pipelines": {"run_as_user": 1234}}), "job-1", namespace)
    assert newer != manifest
    train_job.run(newer, 30, cluster)
    found = cluster.get(cluster.path(manifest), "job")
    assert found is not None
    assert found["metadata"]["generation"] == 1


def test_a_failed_job_says_why_and_the_next_attempt_is_a_new_one(
    cluster: Cluster, play: Any, loop: Loop, namespace: str
) -> None:
    manifest = train_job.build(asking(loop), "job-1", namespace)
    play("Failed", "NodeLost", "node 2 went away")
    with pytest.raises(
        DeliveryError, match=r"TrainJob job-1 failed \(NodeLost: node 2 went away\); kubectl -n .* logs"
    ):
        train_job.run(manifest, 30, cluster)
    with pytest.raises(
        DeliveryError, match=r"job-1-2 took longer than 1 s .*train_job.timeout.*; its job has not started"
    ):
        train_job.run(manifest, 1, cluster)
    play("Complete", "Fine", "done", "job-1-2")
    train_job.run(manifest, 30, cluster)


def test_nodes_are_named_after_the_first() -> None:
    assert train_node.hosts(Node(1, 3, "job-1-node-0-0.job-1")) == [f"job-1-node-0-{rank}.job-1" for rank in range(3)]
    with pytest.raises(train_node.NodeError, match="which does not end in -0"):
        train_node.hosts(Node(0, 2, "localhost"))


def two_nodes(bucket: Bucket, job: str, loop: Loop, rows: Path) -> None:
    """Train in two processes on this machine that connect over TCP."""
    bucket.put(f"{names.job(job)}/loop.json", loop.dump().encode())
    bucket.put(f"{names.job(job)}/training.parquet", rows.read_bytes())
    machines = ",".join(f"127.0.0.1:{port}" for port in _ports(2))
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "kubeloop.tasks.tabular.train_node", "--job", job, "--machines", machines],
            env={**os.environ, "PET_NODE_RANK": str(rank), "PET_NNODES": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for node in nodes:
        _, log = node.communicate(timeout=120)
        assert node.returncode == 0, log
        assert "trains its share" in log


def test_two_nodes_train_one_model(
    s3: Any, loop: Loop, learned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LightGBM's own learner over TCP: each node sees half of the rows, and the first one writes the model."""
    monkeypatch.setenv("KUBELOOP_BUCKET", s3.bucket)
    bucket = Bucket.open(config.settings(tmp_path))
    two_nodes(bucket, "j", loop, learned[0])
    bucket.pull(f"{names.job('j')}/model", tmp_path / "model")
    card = model_folder.read(tmp_path / "model")
    frame = pq.read_table(learned[0]).to_pandas()
    _, newest = training.split(BINARY, frame, loop.training.holdout)
    truth = newest["label"].to_numpy()
    together = BINARY.score(truth, model_folder.predict(BINARY, tmp_path / "model", newest))["auc"]
    alone = BINARY.score(truth, model_folder.predict(BINARY, learned[1], newest))["auc"]
    assert together == pytest.approx(alone, abs=0.02)
    assert card.sha256 != model_folder.read(learned[1]).sha256, "the model differs"


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_two_nodes_train_a_model_of_another_kind(
    s3: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both nodes have rows of a class that has only two, and the intervals' models are trained one after the other."""
    frame = table(kind)
    quantiles = {"interval": {"method": "quantile"}}
    own: dict[str, Any] = {"classes": CLASSES} if kind == "multiclass" else quantiles
    if kind == "multiclass":
        frame.loc[[4, 8], "label"] = "never"
    settings = {"parameters": {"n_estimators": 20}, "threads": 1, "holdout": "20d", "window": "200d", **own}
    loop = Loop.model_validate({**LOOP, "task": kind, "training": settings})
    frame.to_parquet(tmp_path / "rows.parquet")
    alone, cut = tmp_path / "alone", tmp_path / "cut.parquet"
    candidate.build(loop, tmp_path / "rows.parquet", alone, cut)

    monkeypatch.setenv("KUBELOOP_BUCKET", s3.bucket)
    bucket = Bucket.open(config.settings(tmp_path))
    two_nodes(bucket, kind, loop, tmp_path / "rows.parquet")
    bucket.pull(f"{names.job(kind)}/model", tmp_path / "model")
    (tmp_path / "held").write_bytes(bucket.get(f"{names.job(kind)}/holdout.parquet") or b"")
    task = port.of(loop)
    ours, other = (holdout.read(path, task) for path in (tmp_path / "held", cut))
    assert ours.rows["event_id"].tolist() == other.rows["event_id"].tolist()
    name = task.headline.name
    found, expected = (task.score(each.truths, each.answers)[name] for each in (ours, other))
    assert found == pytest.approx(expected, rel=0.1)
    assert model_folder.read(tmp_path / "model").sha256 != model_folder.read(alone).sha256


def test_a_class_that_is_too_small_for_the_nodes_is_refused() -> None:
    network = training.Network(("a:1", "b:1", "c:1"), 1)
    with pytest.raises(training.TrainingError, match=r"2 training rows.* 3 nodes.*train_job\.nodes"):
        training._share(np.array([0, 0, 0, 1, 1, 0, 0]), network)
    assert training._share(np.array([0, 1, 1, 0, 1, 0, 0]), network).tolist() == [1, 3]
    assert training._share(np.arange(7.0), network).tolist() == [1, 4]


def test_the_training_step_hands_its_work_to_a_job_and_takes_the_model(
    cluster: Cluster,
    control_plane: Any,
    namespace: str,
    s3: Any,
    loop: Loop,
    learned: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test plays Kubeflow Trainer: it runs the job's own command and writes the end of the job."""
    for name, value in {
        "KUBELOOP_BUCKET": s3.bucket,
        "KUBELOOP_NAMESPACE": namespace,
        "KUBECONFIG": str(control_plane.kubeconfig()),
    }.items():
        monkeypatch.setenv(name, value)
    ours = Loop.parse(asking(loop, nodes=1).dump(), {"delivery": {"applier": "cluster"}})
    jobs = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs"
    codes = []

    def trainer() -> None:
        deadline = time.monotonic() + 30
        while not (found := control_plane.request("GET", jobs)["items"]) and time.monotonic() < deadline:
            time.sleep(0.1)
        name, command = found[0]["metadata"]["name"], found[0]["spec"]["trainer"]["command"]
        codes.append(subprocess.run([sys.executable, *command[1:]], check=False).returncode)
        condition = {"type": "Complete", "status": "True", "reason": "Done", "message": ""}
        condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        control_plane.request("PATCH", f"{jobs}/{name}/status", {"status": {"conditions": [condition]}}, headers=MERGE)

    thread = threading.Thread(target=trainer)
    thread.start()
    (tmp_path / "loop.json").write_text(ours.dump())
    # A separate process, as in a pod: the Kubernetes client reads KUBECONFIG when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", _STEP, tmp_path / "loop.json", learned[0], tmp_path / "model", tmp_path / "holdout"],
        capture_output=True,
        text=True,
        check=False,
    )
    thread.join()
    assert done.returncode == 0, done.stderr[-3000:]
    assert codes == [0]
    card = model_folder.read(tmp_path / "model")
    assert card.sha256 in done.stdout
    assert card.sha256 == model_folder.read(learned[1]).sha256, "one node trains the same model as the step itself"
    assert (tmp_path / "holdout").read_bytes() == learned[0].with_name("holdout.parquet").read_bytes()


def test_the_job_fails_as_its_node_did() -> None:
    error = train_job.TrainJobError("TrainJob job-1 failed")
    assert error.because(None) is error
    assert not error.lasting
    told = error.because(Failure("the training rows hold one class", lasting=True))
    assert (str(told), told.lasting) == ("the training rows hold one class (TrainJob job-1 failed)", True)


def test_a_node_without_its_data_says_so(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBELOOP_BUCKET", s3.bucket)
    done = subprocess.run(
        [sys.executable, "-m", "kubeloop.tasks.tabular.train_node", "--job", "none"],
        env={**os.environ, "KUBELOOP_BUCKET": s3.bucket},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == errors.LASTING
    assert "holds no job" in done.stderr
    assert "Traceback" not in done.stderr
    assert failures.look(Bucket.open(config.settings(tmp_path)), "jobs/none/failure.json") == Failure(
        done.stderr.strip(), lasting=True
    )


def _ports(count: int, estimators: int = 8) -> list[int]:
    """Return ports whose following ports are free too, one for each estimator.

    They are below the range from which the system picks ports for clients: one of those may be taken before it is used.
    """
    found: list[int] = []
    for first in random.sample(range(20_000, 32_000, estimators), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + estimators):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            found.append(first)
        if len(found) == count:
            return found
    raise AssertionError("no ports are free")

"""Build a TrainJob of Kubeflow Trainer as a plain dict, apply it, and wait for it."""

import itertools
import time
from pathlib import Path
from typing import Any

from kubeloop import failures, names
from kubeloop.config import Loop, Settings
from kubeloop.config.cluster import Pipelines, TrainJob
from kubeloop.delivery import DeliveryError, containers
from kubeloop.delivery.cluster import Cluster, connect
from kubeloop.failures import Failure
from kubeloop.stores.bucket import Bucket

API_VERSION = "trainer.kubeflow.org/v1alpha1"
KIND = "TrainJob"
COMMAND = ("python", "-m", "kubeloop.tasks.tabular.train_node")
NODE = "node"
"""The name, in a training runtime, of the replicated job of its nodes and of their container."""
_POLL_S = 2.0

Object = dict[str, Any]


class TrainJobError(DeliveryError):
    """The TrainJob failed; its nodes report whether it would fail again."""

    def because(self, said: Failure | None) -> "TrainJobError":
        """Return the error with the message of a node, if there is one."""
        if said is None:
            return self
        found = TrainJobError(f"{said.error} ({self})")
        found.lasting = said.lasting
        return found


def build(loop: Loop, name: str, namespace: str) -> Object:
    """Build the TrainJob that trains on the data under `jobs/<name>` in the bucket.

    Its nodes run under the steps' account, unprivileged, where `pipelines.defaults` and their GPU place them.
    A TrainJob has no field for `images.pull_policy`: the training runtime's container says it.

    Source: the TrainJob API of Kubeflow Trainer 2 (trainer.kubeflow.org/v1alpha1); `runtimePatches` came with 2.2.

    Args:
        loop: its `pipelines.train_job` sets the number of nodes and their resources.
        name: the job's name; the same data and use case give the same name.
        namespace: where the pipeline's steps run.

    Raises:
        ValueError: the loop asks for no TrainJob.
    """
    pipelines, job = loop.pipelines, loop.pipelines.train_job
    if job is None:
        raise ValueError("pipelines.train_job is not set")
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace, "labels": names.labels(loop.name, "train-job")},
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": job.runtime_kind, "name": job.runtime},
            "trainer": {
                "image": pipelines.images.core,
                "command": [*COMMAND, f"--job={name}"],
                "env": containers.environment(pipelines.config_map, pipelines.secrets),
                "numNodes": job.nodes,
                "resourcesPerNode": containers.resources(job.resources),
            },
            "runtimePatches": [
                {"manager": f"{names.LABEL_DOMAIN}/train-job", "trainingRuntimeSpec": _patch(pipelines, job)}
            ],
        },
    }


def _patch(pipelines: Pipelines, job: TrainJob) -> Object:
    """Return the patch of the training runtime: the fields of its pods besides image, command and resources."""
    pod = {
        "serviceAccountName": pipelines.service_account,
        "securityContext": containers.unprivileged(pipelines.run_as_user),
        "containers": [{"name": NODE, **containers.confined()}],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        **containers.pull_secrets(pipelines.images.pull_secrets),
        **containers.placement(pipelines.defaults.node_selector, pipelines.defaults.tolerations, job.resources.gpu),
    }
    # The template of a pod in that of a Job in that of a JobSet.
    nodes = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    return {"template": {"spec": {"replicatedJobs": [nodes]}}}


def train(loop: Loop, settings: Settings, name: str, training_set: Path, out: Path, holdout: Path | None) -> None:
    """Upload the training set for the nodes, run the job, and fetch the model folder and the hold-out.

    Raises:
        TrainJobError: the TrainJob fails.
        DeliveryError: it is refused, or takes too long.
        BucketError: the store does not answer.
        ValueError: the loop asks for no TrainJob.
    """
    manifest = build(loop, name, settings.namespace)
    bucket, place = Bucket.open(settings), names.job(name)
    bucket.put(f"{place}/loop.json", loop.dump().encode())
    bucket.put(f"{place}/training.parquet", training_set.read_bytes())
    # What a node said about an earlier attempt.
    bucket.delete(f"{place}/failure.json")
    assert loop.pipelines.train_job  # noqa: S101 - `build` has made sure
    try:
        run(manifest, loop.pipelines.train_job.timeout.total_seconds())
    except TrainJobError as error:
        raise error.because(failures.look(bucket, f"{place}/failure.json")) from None
    bucket.pull(f"{place}/model", out)
    if holdout is not None:
        found = bucket.get(f"{place}/holdout.parquet")
        if found is None:
            raise TrainJobError(f"the TrainJob {name} left no hold-out in {bucket.root}/{place}; start the run again")
        holdout.write_bytes(found)


def run(manifest: Object, timeout_s: float, cluster: Cluster | None = None) -> None:
    """Apply a TrainJob and wait until it is complete; one that runs or is complete is not applied again.

    Args:
        manifest: as `build` makes it.
        timeout_s: how long it may take.
        cluster: by default that of this pod, or else of the kubeconfig file.

    Raises:
        TrainJobError: it fails.
        DeliveryError: it is refused or takes too long; the message says why and what to do.
    """
    cluster = cluster or Cluster(connect())
    manifest, path, known = _attempt(cluster, manifest)
    name = manifest["metadata"]["name"]
    what = f"{KIND} {name}"
    # A running job cannot be changed, so other images or nodes would be refused.
    for dry in () if known else (True, False):
        cluster.apply(path, manifest, dry=dry)
    began = time.monotonic()
    while True:
        found = cluster.get(path, what)
        if found is None:
            raise DeliveryError(f"{what} was deleted while it ran; start the run again")
        if _condition(found, "Complete"):
            return
        look = f"kubectl -n {manifest['metadata']['namespace']} logs -l jobset.sigs.k8s.io/jobset-name={name} shows why"
        if failed := _condition(found, "Failed"):
            raise TrainJobError(f"{what} failed ({failed.get('reason')}: {failed.get('message')}); {look}")
        if time.monotonic() - began > timeout_s:
            jobs = found.get("status", {}).get("jobsStatus")
            state = f"its jobs: {jobs}" if jobs else "its job has not started, so check that the runtime exists"
            raise DeliveryError(
                f"{what} took longer than {timeout_s:g} s (pipelines.train_job.timeout); {state}; {look}"
            )
        time.sleep(_POLL_S)


def _attempt(cluster: Cluster, manifest: Object) -> tuple[Object, str, bool]:
    """Return the first attempt that has not failed, its path, and whether it exists.

    A TrainJob that failed cannot run again, so another attempt needs a new one.
    """
    base = manifest["metadata"]["name"]
    for number in itertools.count(1):
        name = base if number == 1 else f"{base}-{number}"
        found = manifest | {"metadata": manifest["metadata"] | {"name": name}}
        path = cluster.path(found)
        known = cluster.get(path, f"{KIND} {name}")
        if not known or not _condition(known, "Failed"):
            return found, path, known is not None
    raise AssertionError


def _condition(found: Object, kind: str) -> Object | None:
    conditions = found.get("status", {}).get("conditions", ())
    return next((item for item in conditions if item["type"] == kind and item["status"] == "True"), None)

"""A promotion by GitOps, end to end: commit, kustomize build, real API server, and serving.

`kustomize build` of a checkout and a server-side apply stand in for Argo CD and Flux, which do the same.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeloop import names
from kubeloop.config.cluster import Git as Place
from kubeloop.delivery import Applied, DeliveryError, gitops
from kubeloop.delivery.cluster import Cluster
from tests.cluster.conftest import NAME, build, meanwhile
from tests.cluster.test_apply import grant
from tests.kserve.defaults import defaulted
from tests.unit.delivery.git_server import MODELS, PATCH, Daemon, Git, overlay, run, served, settings

FOLLOWER = ("get:inferenceservices.serving.kserve.io", "list:deployments.apps")
"""The rights that the chart gives the pipeline's account where every loop of a namespace promotes by GitOps."""


class Environment:
    """A repository, the cluster that follows it, and an account that may only read the cluster."""

    def __init__(self, git: Git, server: Daemon, plane: Any, namespace: str) -> None:
        self.git, self.server, self.plane, self.namespace = git, server, plane, namespace
        self.user = grant(plane, namespace, *FOLLOWER)
        self.clone = git.clone("argocd")

    def promote(self, version: str = "7", timeout_s: float = 20) -> Applied:
        """Run the deploy step."""
        place = Place(repository=self.server.address)
        cluster = Cluster(self.plane.client(self.user))
        return gitops.apply(
            build(self.namespace, version), place, timeout_s, settings(self.git.folder), cluster=cluster
        )

    def pull(self, text: str) -> None:
        """Pull the branch once its patch contains a text."""
        deadline = time.monotonic() + 20
        while text not in self.git.show():
            assert time.monotonic() < deadline, f"nobody committed {text}"
            time.sleep(0.02)
        run(self.clone, "pull", "-q")

    def sync(self, version: str = "7") -> None:
        """Apply the branch to the cluster once it names a version."""
        self.pull(f"model-version: '{version}'")
        built = self.plane.kustomize("build", str(self.clone / MODELS))
        apply = ("apply", "--server-side", "--field-manager=argocd-controller", "--validate=strict", "-f", "-")
        self.plane.kubectl(*apply, input=built)


@pytest.fixture
def environment(control_plane: Any, namespace: str, tmp_path: Path) -> Iterator[Environment]:
    git = Git(tmp_path)
    git.commit(git.clone("alice"), overlay(namespace), "Begin")
    with served(Daemon(tmp_path)) as server:
        found = Environment(git, server, control_plane, namespace)
        found.sync("6")
        yield found


def test_a_commit_is_brought_into_the_cluster_and_followed_until_it_serves(environment, kserve):
    kserve.serve()

    def play() -> None:
        environment.sync()
        kserve.service("s3://models/7")
        time.sleep(0.3)
        kserve.serve()

    with meanwhile(play):
        applied = environment.promote()
    assert (applied.name, applied.namespace, applied.storage_uri) == (NAME, environment.namespace, "s3://models/7")
    assert applied.url == f"http://{NAME}-transformer.{environment.namespace}.svc.cluster.local"
    assert applied.generation == 2
    assert applied.proposal == ""
    served_now = kserve.service()
    assert served_now["metadata"]["annotations"][names.MANIFEST] in environment.git.show()
    assert served_now["spec"]["predictor"]["minReplicas"] == 2
    assert served_now["spec"]["transformer"]["containers"]


def test_the_first_promotion_makes_the_service(environment, kserve):
    kserve.plane.request("DELETE", kserve.path)

    def play() -> None:
        environment.sync()
        kserve.serve()

    with meanwhile(play):
        assert environment.promote().generation == 1


def test_a_step_that_is_repeated_follows_the_commit_that_is_there(environment, kserve):
    with pytest.raises(DeliveryError, match="did not arrive"):
        environment.promote(timeout_s=0.3)
    environment.sync()
    kserve.serve()
    assert environment.promote().storage_uri == "s3://models/7"
    assert environment.git.log() == ["Serve version 7 of flights", "Begin"]


def test_a_patch_written_by_hand_gets_a_stamp_for_the_rollout(environment, kserve):
    written = overlay(environment.namespace, "7")[PATCH]
    environment.git.commit(environment.clone, {PATCH: written}, "By hand")

    def play() -> None:
        environment.pull(names.MANIFEST)
        environment.sync()
        kserve.serve()

    with meanwhile(play):
        environment.promote()
    assert environment.git.log() == ["Stamp version 7 of flights", "By hand", "Begin"]


def test_a_stamp_that_was_left_over_is_not_taken_for_the_version(environment, kserve):
    """A person changed the version in a patch that the applier had stamped."""
    environment.plane.kubectl("delete", "isvc", NAME, "-n", environment.namespace)
    with pytest.raises(DeliveryError, match="did not arrive"):
        environment.promote(timeout_s=0)
    environment.sync()
    newer = environment.git.show().replace("'7'", "'8'").replace("7" * 64, "8" * 64).replace("run-7", "run-8")
    environment.git.commit(environment.clone, {PATCH: newer}, "By hand")
    with pytest.raises(DeliveryError, match=r"version 8 of flights .* 0\.3 s, .* version 7"):
        environment.promote("8", timeout_s=0.3)


def test_a_commit_that_nobody_applies(environment):
    with pytest.raises(DeliveryError, match=rf"version 7 .* {environment.namespace} has version 6; .*ready_timeout"):
        environment.promote(timeout_s=0.3)


def test_the_older_pods_are_waited_for(environment, kserve):
    kserve.serve()
    moments = []

    def play() -> None:
        environment.sync()
        for updated, total in ((0, 1), (1, 2)):
            kserve.deployment("predictor", updated=updated, total=total)
            time.sleep(0.2)
        moments.append(time.monotonic())
        kserve.serve()

    with meanwhile(play):
        environment.promote()
        assert time.monotonic() > moments[0]


def test_a_version_that_does_not_start_says_why(environment, kserve):
    ended = {"exitCode": 3, "reason": "Error", "message": "digest mismatch: model.onnx is bbbb."}

    def play() -> None:
        environment.sync()
        kserve.deployment("predictor", available=0)
        kserve.pod("predictor", {"restartCount": 1, "state": {"terminated": ended}})

    grant_pods(environment)
    with meanwhile(play), pytest.raises(DeliveryError, match="each time it starts: digest mismatch"):
        environment.promote()


def grant_pods(environment: Environment) -> None:
    plane, namespace = environment.plane, environment.namespace
    plane.kubectl("create", "role", "pods", "-n", namespace, "--verb=list", "--resource=pods")
    plane.kubectl("create", "rolebinding", "pods", "-n", namespace, "--role=pods", f"--serviceaccount={namespace}:step")
    assert plane.may(environment.user, "list", "pods", namespace)


def test_a_newer_version_overtakes(environment):
    def play() -> None:
        environment.pull("model-version: '7'")
        environment.git.commit(environment.clone, {PATCH: overlay(environment.namespace, "8")[PATCH]}, "Newer")
        environment.sync("8")

    with meanwhile(play), pytest.raises(DeliveryError, match="version 8 replaced version 7 "):
        environment.promote()


def test_a_revert_ends_the_wait_and_stands(environment, kserve):
    """The person on call reverts while the step still waits; when the step is repeated, it must not undo the revert."""

    def play() -> None:
        environment.sync()
        kserve.deployment("predictor", available=0)
        time.sleep(1)
        run(environment.clone, "revert", "--no-edit", "HEAD")
        run(environment.clone, "push", "-q")
        environment.sync("6")

    with meanwhile(play), pytest.raises(DeliveryError, match="flights: another manifest was applied"):
        environment.promote()
    with pytest.raises(DeliveryError, match=r"version 7 of flights .* branch main"):
        environment.promote()
    assert kserve.service()["spec"]["predictor"]["model"]["storageUri"] == "s3://models/6"


@pytest.mark.parametrize("missing", FOLLOWER)
def test_without_the_right_to_look_nothing_is_committed(environment, missing):
    environment.plane.kubectl("delete", "role", f"step-{FOLLOWER.index(missing)}", "-n", environment.namespace)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # a deleted role still counts for a moment
        time.sleep(0.05)
        verb, _, resource = missing.partition(":")
        if not environment.plane.may(environment.user, verb, resource, environment.namespace, within_s=0):
            break
    with pytest.raises(DeliveryError, match=f"it lacks {missing.split(':')[0]} on {missing.split(':')[1]}"):
        environment.promote()
    assert environment.git.log() == ["Begin"]


def test_kustomize_makes_what_the_builder_writes(environment, kserve):
    """Base and patch together equal what the cluster applier would apply, apart from the environment's additions."""
    with pytest.raises(DeliveryError, match="did not arrive"):
        environment.promote(timeout_s=0)
    environment.sync()
    found, expected = kserve.service()["spec"], defaulted(build(environment.namespace, "7"))["spec"]
    found["predictor"].pop("minReplicas")
    for part in ("predictor", "transformer"):
        found[part]["annotations"].pop(names.MANIFEST)
    assert found["predictor"]["model"] == expected["predictor"]["model"]
    assert found["predictor"]["annotations"] == expected["predictor"]["annotations"]
    assert found["transformer"]["containers"] == expected["transformer"]["containers"]

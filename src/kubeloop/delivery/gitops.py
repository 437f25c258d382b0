"""Promote with a commit: write a version into the patch that Argo CD or Flux applies, and wait until it serves."""

import logging
import random
import textwrap
import time
from dataclasses import dataclass, replace
from typing import Any

from kubeloop import names
from kubeloop.config import Settings
from kubeloop.config.cluster import Git
from kubeloop.delivery import Applied, DeliveryError, RejectedError, SupersededError, patch, rollout
from kubeloop.delivery.cluster import Cluster, connect, follow
from kubeloop.delivery.repository import CommitId, MovedError, RefusedError, Remote, Snapshot

RACES = 20
"""How often a commit is repeated because another push came first."""

REFUSALS = 3
"""How often a push may be refused while the branch does not move: another push may hold its lock for a moment."""

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 2.0
_COMPONENTS = ("predictor", "transformer", "explainer")

Object = dict[str, Any]
LOG = logging.getLogger(__name__)


def apply(
    manifest: Object, git: Git, timeout_s: float, settings: Settings, *, why: str = "", cluster: Cluster | None = None
) -> Applied:
    """Commit the version of an InferenceService to the patch of its environment, and wait until the cluster serves it.

    Only the fields that name the version are written; the other fields of a manifest come to the environment through
    `manifests/write.py`. If the patch already names the version, nothing is written, so a repeated step makes one
    commit. The branch is never forced: if others push at the same time, their commits stay, and ours is made again on
    top of them.

    Args:
        manifest: an InferenceService, as `serving.manifest` builds it.
        git: the place of the patch, and whether to wait.
        timeout_s: how long the cluster may take to serve the version, from the commit.
        settings: the credentials for the repository.
        why: why this version is promoted; for the commit's message.
        cluster: by default that of this pod, or else of the kubeconfig file; none is needed without waiting.

    Raises:
        DeliveryError: the commit cannot be made, would replace a newer version or bring back a reverted one, or the
            cluster does not serve it in time; the message says why and what to do.
    """
    began = time.monotonic()
    metadata = manifest["metadata"]
    if _waits(git):
        # If the rollout could not be followed, because a right or a cluster is missing, nothing is committed.
        cluster = cluster or Cluster(connect())
        cluster.observe(cluster.path(manifest), metadata)
    landed = _Promotion(manifest, git, settings, why).land()
    if cluster and _waits(git):
        expected = landed.patch | {"metadata": landed.patch["metadata"] | {"namespace": metadata["namespace"]}}
        return replace(follow(cluster, expected, timeout_s), seconds=time.monotonic() - began)
    uri = manifest["spec"]["predictor"]["model"]["storageUri"]
    return Applied(
        metadata["name"], metadata["namespace"], 0, uri, "", time.monotonic() - began, proposal=landed.proposal
    )


def named(git: Git, settings: Settings, service: str) -> dict[str, str]:
    """Return the lineage (version, digest, run) of the model on the branch; empty if there is none.

    Raises:
        DeliveryError: the server cannot be read; the message says why and what to do.
    """
    branch, path = (text.replace("{loop}", service) for text in (git.branch, git.path))
    with Remote(git.repository, settings).fetch(branch) as found:
        tip = found.tips.get(branch)
        content = found.read(tip, path) if tip else None
    try:
        return patch.lineage(patch.read(content or b"", service))
    except patch.PatchError:
        return {}


def _waits(git: Git) -> bool:
    return git.wait and git.review_branch is None


@dataclass(frozen=True)
class _Landed:
    """The content of a branch: the patch that names the version, and the proposal that waits for a review, if any."""

    patch: Object
    proposal: str = ""


class _Promotion:
    """Writes one version into one file."""

    def __init__(self, manifest: Object, git: Git, settings: Settings, why: str) -> None:
        self._manifest = manifest
        self._git = git
        self._why = why
        self._name = str(manifest["metadata"]["name"])
        self._version = patch.version(manifest)
        self._path = git.path.replace("{loop}", self._name)
        self._branch = git.branch.replace("{loop}", self._name)
        self._review = git.review_branch and git.review_branch.replace("{loop}", self._name)
        self._remote = Remote(git.repository, settings)
        self._refused: list[tuple[CommitId | None, str]] = []

    def land(self) -> _Landed:
        """Bring the version into the branch, or find it there."""
        pause = _FIRST_PAUSE_S
        for _ in range(RACES):
            try:
                return self._try()
            except MovedError:
                LOG.info("%s: another push came first; trying again", self._name)
            except RefusedError as error:
                LOG.info("%s: the push was refused (%s)", self._name, error)
            time.sleep(random.uniform(0, pause))  # noqa: S311 - to keep two that race apart
            pause = min(2 * pause, _LAST_PAUSE_S)
        raise DeliveryError(
            f"others pushed to {self._target} {RACES} times while version {self._version} of {self._name} was being "
            "committed; start the step again later"
        )

    @property
    def _target(self) -> str:
        return f"branch {self._review or self._branch} of {self._git.repository}"

    def _try(self) -> _Landed:
        branches = (self._branch, self._review) if self._review else (self._branch,)
        with self._remote.fetch(*branches) as found:
            tip = found.tips.get(self._branch)
            if tip is None:
                raise RejectedError(
                    f"{self._git.repository} has no branch {self._branch}; push it, or name in delivery.git.branch the "
                    "one that Argo CD or Flux follows"
                )
            current = self._read(found, tip)
            if self._named(current, self._branch):
                LOG.info("%s: branch %s already names version %s", self._name, self._branch, self._version)
                return _Landed(current)
            self._never_taken_back(found, tip, current)
            old = found.tips.get(self._review) if self._review else tip
            if self._review and old and (proposed := self._proposed(found, old, self._review)):
                return proposed
            after = self._carried(current)
            content, message = patch.dump(after).encode(), self._message(current)
            change = found.change(tip, self._path, content, message, self._git.author)
            self._not_refused(old)
            try:
                self._remote.push(self._review or self._branch, old, change)
            except RefusedError as error:
                self._refused.append((old, str(error)))
                raise
            commit = change.commit.id.decode()
            LOG.info("%s: version %s is commit %s of %s", self._name, self._version, commit, self._target)
            return _Landed(after, (self._review and _proposal(commit, self._review)) or "")

    def _read(self, found: Snapshot, commit: CommitId) -> Object:
        content = found.read(commit, self._path)
        if content is None:
            raise RejectedError(
                f"branch {self._branch} of {self._git.repository} has no file {self._path}; begin with "
                f"`python manifests/write.py {self._name}` and commit what it writes, or correct delivery.git.path"
            )
        try:
            return patch.read(content, self._name)
        except patch.PatchError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: patch.PatchError) -> RejectedError:
        return RejectedError(f"{self._path} {error}; write it again with `python manifests/write.py {self._name}`")

    def _patch(self, content: bytes | None) -> Object | None:
        """Return the patch of another commit or branch; None if the file is missing or not a patch."""
        try:
            return patch.read(content or b"", self._name)
        except patch.PatchError:
            return None

    def _named(self, current: Object, branch: str) -> bool:
        """Return whether a patch names our version; a newer version is an error."""
        if patch.version(current) > self._version:
            raise SupersededError(
                f"branch {branch} names version {patch.version(current)} of {self._name}, which is newer than version "
                f"{self._version} and stays; to go back, revert the commit that promoted it"
            )
        # A patch that was written by hand has no stamp, so its rollout could not be followed.
        followed = rollout.stamp(current) is not None or not _waits(self._git)
        return followed and patch.lineage(current) == patch.lineage(self._manifest)

    def _never_taken_back(self, found: Snapshot, tip: CommitId, current: Object) -> None:
        """Keep a person's revert: a step that is repeated after it must not bring the version back."""
        ours = patch.lineage(self._manifest)
        if patch.lineage(current) == ours:
            return
        for content in found.earlier(tip, self._path):
            was = self._patch(content)
            if was and patch.lineage(was) == ours:
                raise SupersededError(
                    f"version {self._version} of {self._name} was reverted on branch {self._branch}, which now names "
                    f"version {patch.version(current)}; undo that revert, or start a new run"
                )

    def _proposed(self, found: Snapshot, tip: CommitId, review: str) -> _Landed | None:
        """Return our proposal if it exists; None if an older one of ours may be replaced."""
        current = self._patch(found.read(tip, self._path))
        if current and self._named(current, review):
            LOG.info("%s: version %s is already proposed on branch %s", self._name, self._version, review)
            return _Landed(current, _proposal(tip.decode(), review))
        if (who := found.committer(tip)) != self._git.author:
            raise RejectedError(
                f"the newest commit of branch {review} is by {who}, and is not overwritten; merge it or delete the "
                "branch, and start the step again"
            )
        return None

    def _carried(self, current: Object) -> Object:
        parts = [part for part in _COMPONENTS if part in self._manifest["spec"]]
        try:
            return patch.stamped(patch.carry(self._manifest, current), parts)
        except patch.PatchError as error:
            raise self._unusable(error) from error

    def _not_refused(self, old: CommitId | None) -> None:
        """Raise an error if the branch does not move and the server still refuses the push."""
        told = [words for tip, words in self._refused if tip == old]
        if len(told) >= REFUSALS:
            raise RejectedError(
                f"the server refuses a push to {self._target} ({told[-1]}); let the account of KUBELOOP_GIT_TOKEN push "
                "to it, or propose on another branch with delivery.git.review_branch"
            )

    def _message(self, before: Object) -> str:
        lineage, was = patch.lineage(self._manifest), patch.lineage(before)
        facts = {
            "Model": self._manifest["spec"]["predictor"]["model"]["storageUri"],
            "SHA-256": lineage[names.DIGEST],
            "Run": lineage[names.RUN],
        }
        if names.VERSION in was and was != lineage:
            facts["Before"] = f"version {was[names.VERSION]} of run {was.get(names.RUN, 'unknown')}"
        paragraphs = [
            f"{'Stamp' if was == lineage else 'Serve'} version {self._version} of {self._name}",
            textwrap.fill(" ".join(self._why.split()), 72),
            "\n".join(f"{name}: {value}" for name, value in facts.items()),
        ]
        return "\n\n".join(filter(None, paragraphs)) + "\n"


def _proposal(commit: str, branch: str) -> str:
    return f"commit {commit} on branch {branch}"

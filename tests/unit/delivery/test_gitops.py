"""Promotions pushed to a real Git server: alone, repeated, in a race, and on top of people's changes."""

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from kubeloop.config import Loop
from kubeloop.config.cluster import Git as Place
from kubeloop.delivery import Applied, DeliveryError, gitops, patch, repository, rollout
from kubeloop.models import registry
from kubeloop.steps import promotion
from tests.cluster.conftest import NAME, build
from tests.unit.delivery.git_server import OTHERS, PATCH, SOMEBODY, Daemon, Git, overlay, run, served, settings

REVIEW = "kubeloop/{loop}"
PROPOSED = f"kubeloop/{NAME}"


@pytest.fixture
def git(tmp_path: Path) -> Git:
    return Git(tmp_path)


@pytest.fixture
def server(git: Git) -> Iterator[Daemon]:
    with served(Daemon(git.folder)) as found:
        yield found


@pytest.fixture
def alice(git: Git) -> Path:
    return git.begin()


def promote(server: Daemon, version: str = "7", why: str = "", **place: Any) -> Applied:
    found = Place(**{"repository": server.address, "wait": False, **place})
    return gitops.apply(build("ml", version), found, 10, settings(server.folder), why=why)


def test_a_promotion_is_one_commit_of_one_file(git, server, alice):
    before = git.named()
    applied = promote(server, why="Asked for: dep_delay drifted; the AUC rose by 0.02")
    assert (applied.name, applied.namespace, applied.storage_uri) == (NAME, "ml", "s3://models/7")
    assert (applied.generation, applied.url, applied.proposal) == (0, "", "")
    assert git.log() == ["Serve version 7 of flights", "Begin"]
    assert run(git.bare, "diff", "--name-only", "main~", "main") == PATCH
    assert git.whole()
    after = git.named()
    assert patch.lineage(after) == patch.lineage(build("ml", "7"))
    assert after["spec"]["predictor"]["model"]["storageUri"] == "s3://models/7"
    assert after["spec"]["predictor"]["model"]["args"] == build("ml", "7")["spec"]["predictor"]["model"]["args"]
    assert after["spec"]["predictor"]["minReplicas"] == before["spec"]["predictor"]["minReplicas"] == 2
    stamps = [rollout.stamp({"metadata": part}) for part in (after["metadata"], *after["spec"].values())]
    assert len(set(stamps)) == len(stamps) == 3
    assert all(stamps)


def test_who_is_on_call_reads_the_commit(git, server, alice):
    promote(server, why="Asked for: dep_delay (effect 0.31) drifted in two of three windows;\n the AUC rose by 0.02")
    assert git.log(form="%an <%ae>|%cn <%ce>")[0] == "|".join(["kubeloop <kubeloop@noreply.invalid>"] * 2)
    assert run(git.bare, "log", "-1", "--format=%B", "main").splitlines() == [
        "Serve version 7 of flights",
        "",
        "Asked for: dep_delay (effect 0.31) drifted in two of three windows; the",
        "AUC rose by 0.02",
        "",
        "Model: s3://models/7",
        f"SHA-256: {'7' * 64}",
        "Run: run-7",
        "Before: version 6 of run run-6",
    ]


def test_a_repeated_step_makes_one_commit(git, server, alice):
    promote(server)
    run(alice, "pull", "-q")
    git.commit(alice, {"README.md": "# Other loops\n"})
    before = git.log(form="%H")
    promote(server)
    assert git.log(form="%H") == before


def test_the_same_version_has_the_same_stamp(git, server, alice):
    promote(server)
    first = git.show()
    run(alice, "pull", "-q")
    git.commit(alice, {PATCH: overlay("ml")[PATCH]}, "Begin again")
    run(alice, "push", "-qf", "origin", "HEAD~2:main")
    promote(server)
    assert git.show() == first


def test_somebody_pushes_between_our_reading_and_writing(git, server, alice):
    bob = git.clone("bob")

    def meanwhile() -> None:
        server.before_push = lambda: None
        git.commit(bob, {"apps/web/values.yaml": "replicas: 3\n"}, "Scale the web")

    server.before_push = meanwhile
    promote(server)
    assert git.log() == ["Serve version 7 of flights", "Scale the web", "Begin"]
    assert git.show("apps/web/values.yaml") == "replicas: 3"


def test_somebody_changes_our_file_meanwhile(git, server, alice):
    bob = git.clone("bob")
    scaled = yaml.safe_load(git.show())
    scaled["spec"]["predictor"]["minReplicas"] = 5

    def meanwhile() -> None:
        server.before_push = lambda: None
        git.commit(bob, {PATCH: yaml.safe_dump(scaled)}, "Scale up")

    server.before_push = meanwhile
    promote(server)
    assert git.log() == ["Serve version 7 of flights", "Scale up", "Begin"]
    assert git.named()["spec"]["predictor"]["minReplicas"] == 5


def test_the_server_itself_compares_before_it_swaps(git, server, alice):
    """The branch moves after the server has told us its position, so only the server's own comparison can notice."""
    other = run(git.bare, "commit-tree", "main^{tree}", "-p", "main", "-m", "In between", **SOMEBODY)
    git.hook(f"[ -e moved ] || {{ touch moved; env -u GIT_QUARANTINE_PATH git update-ref refs/heads/main {other}; }}")
    promote(server)
    assert git.log() == ["Serve version 7 of flights", "In between", "Begin"]


@pytest.mark.parametrize("seed", range(3))
def test_every_commit_of_everybody_survives(git, server, alice, seed):
    """Two people push at random moments while three versions are promoted, each by two concurrent steps."""

    def push(who: str) -> None:
        chance, clone = random.Random(f"{seed} {who}"), git.folder / who
        for number in range(6):
            (clone / f"{who}-{number}").write_text("x")
            run(clone, "add", "-A")
            run(clone, "commit", "-q", "-m", f"{who} {number}")
            while "rejected" in run(clone, "push", "--porcelain", "origin", "HEAD:main", check=False):
                run(clone, "pull", "-q", "--rebase", check=False)
            time.sleep(chance.uniform(0, 0.15))

    for who in ("bob", "carol"):
        git.clone(who)
    people = [threading.Thread(target=push, args=(who,)) for who in ("bob", "carol")]
    for thread in people:
        thread.start()
    for version in ("7", "8", "9"):
        steps = [threading.Thread(target=promote, args=(server, version)) for _ in range(2)]
        for thread in steps:
            thread.start()
        for thread in steps:
            thread.join()
    for thread in people:
        thread.join()
    ours = [f"Serve version {version} of flights" for version in (9, 8, 7)]
    theirs = [f"{who} {number}" for who in ("bob", "carol") for number in range(6)]
    assert [line for line in git.log() if line in ours] == ours
    assert sorted(git.log()) == sorted([*ours, *theirs, "Begin"])
    assert patch.version(git.named()) == 9
    assert all(git.show(path) == content.strip() for path, content in OTHERS.items())
    assert git.whole()


def test_a_race_without_end_is_given_up(git, server, alice, monkeypatch):
    monkeypatch.setattr(gitops, "RACES", 3)
    server.before_push = lambda: git.commit(alice, {"x": str(time.monotonic())})
    with pytest.raises(DeliveryError, match=r" 3 times while version 7 of flights "):
        promote(server)
    assert len(git.log()) == 4


def test_an_older_version_never_takes_the_place_of_a_newer_one(git, server, alice):
    promote(server, "10")
    with pytest.raises(DeliveryError, match="names version 10 of flights, which is newer than version 9 and stays"):
        promote(server, "9")
    assert patch.version(git.named()) == 10


def test_a_registry_that_was_reset_is_recognized_by_its_run(git, server):
    """Its numbers begin at 1 again, as does the version in the patches that the project comes with."""
    git.commit(git.clone("alice"), overlay("ml") | {PATCH: overlay("ml")[PATCH].replace("run-6", "an-older-run")})
    promote(server, "6")
    assert git.log()[0] == "Serve version 6 of flights"
    assert patch.lineage(git.named())["kubeloop.io/run"] == "run-6"


def test_a_revert_stands(git, server, alice):
    promote(server)
    run(alice, "pull", "-q")
    run(alice, "revert", "--no-edit", "HEAD")
    run(alice, "push", "-q")
    with pytest.raises(DeliveryError, match=r"version 7 of flights was reverted .* main, .* version 6"):
        promote(server)
    assert patch.version(git.named()) == 6
    promote(server, "8")
    assert patch.version(git.named()) == 8


def test_a_patch_written_by_hand_is_left_alone_where_nobody_follows_it(git, server, alice):
    git.commit(alice, {PATCH: overlay("ml", "7")[PATCH]}, "By hand")
    promote(server)
    assert git.log() == ["By hand", "Begin"]


@pytest.mark.parametrize("scheme", ["git", "file"])
def test_a_long_history_is_not_fetched(git, server, alice, scheme, monkeypatch):
    """A revert is seen as far back as the history goes; older commits are neither needed nor lost."""
    monkeypatch.setattr(repository, "HISTORY", 5)
    promote(server)
    run(alice, "pull", "-q")
    git.commit(alice, {PATCH: overlay("ml")[PATCH]}, "Back to version 6")
    tip = run(git.bare, "rev-parse", "main")
    for number in range(10):
        tip = run(git.bare, "commit-tree", "main^{tree}", "-p", tip, "-m", f"Other {number}", **SOMEBODY)
        if number == 2:
            run(git.bare, "update-ref", "refs/heads/main", tip)
            with pytest.raises(DeliveryError, match="was reverted"):
                promote(server)
    run(git.bare, "update-ref", "refs/heads/main", tip)
    promote(server, repository=server.address if scheme == "git" else f"file://{git.bare}")
    assert len(git.log()) == 14
    assert git.log()[:2] == ["Serve version 7 of flights", "Other 9"]
    assert git.whole()


def test_nothing_is_committed_that_could_not_be_followed(git, server, alice, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(DeliveryError, match="no cluster is known"):
        promote(server, wait=True)
    assert git.log() == ["Begin"]


def test_a_proposal_leaves_the_branch_as_it_is(git, server, alice):
    applied = promote(server, review_branch=REVIEW, wait=True)
    tip = run(git.bare, "rev-parse", PROPOSED)
    assert applied.proposal == applied.outcome == f"commit {tip} on branch {PROPOSED}"
    assert (applied.generation, applied.url) == (0, "")
    assert git.log() == ["Begin"]
    assert git.log(PROPOSED) == ["Serve version 7 of flights", "Begin"]
    assert promote(server, review_branch=REVIEW).proposal == applied.proposal
    assert run(git.bare, "rev-parse", PROPOSED) == tip


def test_a_newer_proposal_replaces_an_older_one(git, server, alice):
    promote(server, review_branch=REVIEW)
    git.commit(alice, {"README.md": "x\n"}, "Meanwhile")
    promote(server, "8", review_branch=REVIEW)
    assert git.log(PROPOSED) == ["Serve version 8 of flights", "Meanwhile", "Begin"]
    with pytest.raises(DeliveryError, match=f"branch {PROPOSED} names version 8 of flights, which is newer"):
        promote(server, "7", review_branch=REVIEW)


def test_a_reviewers_commit_is_not_overwritten(git, server, alice):
    promote(server, review_branch=REVIEW)
    run(alice, "fetch", "-q")
    run(alice, "switch", "-q", PROPOSED)
    tip = git.commit(alice, {"README.md": "x\n"}, "A remark")
    with pytest.raises(
        DeliveryError, match=r"by alice <alice@example.org>, and is not overwritten; merge it or delete"
    ):
        promote(server, "8", review_branch=REVIEW)
    assert run(git.bare, "rev-parse", PROPOSED) == tip


def test_what_was_merged_is_not_proposed_again(git, server, alice):
    promote(server, review_branch=REVIEW)
    run(alice, "fetch", "-q")
    run(alice, "merge", "-q", "--no-ff", "-m", "Merge", f"origin/{PROPOSED}")
    run(alice, "push", "-q")
    assert promote(server, review_branch=REVIEW).proposal == ""
    assert promote(server, "8", review_branch=REVIEW).proposal
    assert git.log(PROPOSED)[:2] == ["Serve version 8 of flights", "Merge"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_repository_may_be_a_folder(git, alice, scheme):
    place = Place(repository=f"{scheme}{git.bare}", wait=False)
    gitops.apply(build("ml", "7"), place, 10, settings(git.folder))
    assert git.log() == ["Serve version 7 of flights", "Begin"]


@pytest.mark.parametrize("review", [None, REVIEW])
def test_the_champion_is_what_git_was_told_to_serve(git, server, alice, blank_mlflow, loop, tmp_path, review):
    """The pipeline's step on a real registry: a proposal is recorded, but no champion yet."""
    place = {"repository": server.address, "wait": False, "review_branch": review}
    ours = Loop.parse(loop.dump(), {"name": NAME, "delivery": {"applier": "gitops", "git": place}})
    found = settings(tmp_path).model_copy(
        update={"mlflow_uri": f"sqlite:///{blank_mlflow}", "collector_url": "http://collector"}
    )
    client = mlflow.MlflowClient(found.mlflow_uri)
    client.create_registered_model(NAME)
    try:
        tags = {"kubeloop.run": "r", "kubeloop.sha256": "a" * 64, "kubeloop.reason": "asked for by hand"}
        gate = json.dumps({"promote": True, "reason": "the AUC rose"})
        for _ in range(7):
            client.create_model_version(NAME, "s3://models/7", tags=tags | {"kubeloop.gate": gate})
        applied = promotion.deploy(ours, found, "7")
        version, champion = registry.get(found, NAME, "7"), registry.champion(found, NAME)
    finally:
        client.delete_registered_model(NAME)
    branch = PROPOSED if review else "main"
    assert "asked for by hand; the AUC rose" in run(git.bare, "log", "-1", "--format=%B", branch)
    if review:
        assert champion is None
        assert version.tags["kubeloop.proposal"] == applied.outcome
    else:
        assert champion is not None
        assert champion.version == "7"


def test_the_branch_names_the_champion(git, server, alice, blank_mlflow, loop, tmp_path):
    """A revert and a merge are decisions, and nobody has to move the alias after them."""
    place = {"repository": server.address, "wait": False}
    ours = Loop.parse(loop.dump(), {"name": NAME, "delivery": {"applier": "gitops", "git": place}})
    found = settings(tmp_path).model_copy(update={"mlflow_uri": f"sqlite:///{blank_mlflow}"})
    client = mlflow.MlflowClient(found.mlflow_uri)
    client.create_registered_model(NAME)
    try:
        assert promotion.current_champion(ours, found) is None, "the registry does not have the branch's version 6"
        for version in range(1, 8):
            tags = {"kubeloop.run": f"run-{version}", "kubeloop.sha256": str(version) * 64}
            client.create_model_version(NAME, f"s3://models/{version}", tags=tags)
        client.set_registered_model_alias(NAME, "champion", "5")
        assert promotion.current_champion(ours, found).version == "6"
        assert [promotion.promoted(version) for version in registry.versions(found, NAME)][4:] == [False, True, False]
        promote(server)
        assert promotion.current_champion(ours, found).version == "7"
        run(alice, "pull", "-q")
        run(alice, "revert", "--no-edit", "HEAD")
        run(alice, "push", "-q", "origin", "HEAD")
        assert promotion.current_champion(ours, found).version == "6"
        assert registry.champion(found, NAME).version == "6", "the alias follows"
        git.commit(alice, {PATCH: "kind: List"})
        assert promotion.current_champion(ours, found).version == "6", "a file that names no version changes nothing"
    finally:
        client.delete_registered_model(NAME)

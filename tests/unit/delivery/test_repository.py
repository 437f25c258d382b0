"""The answers of a Git server: each becomes one sentence without the token."""

import functools
import http.server
import logging
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeloop.config.cluster import Git as Place
from kubeloop.delivery import DeliveryError, gitops, repository
from tests.cluster.conftest import NAME, build
from tests.unit.delivery.git_server import OTHERS, PATCH, Git, Web, overlay, run, served, settings

TOKEN = "tok-of-nobody-else"  # noqa: S105 - the token of the server below


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def git(tmp_path: Path) -> Git:
    found = Git(tmp_path)
    found.begin()
    return found


@pytest.fixture
def web(git: Git) -> Iterator[Web]:
    with served(Web(git.folder, "x-access-token", TOKEN)) as found:
        yield found


def promote(folder: Path, address: str, token: str = TOKEN, **place: Any) -> None:
    found = Place(repository=address, wait=False, **place)
    gitops.apply(build("ml", "7"), found, 10, settings(folder, token))


def refusal(folder: Path, address: str, token: str = TOKEN, **place: Any) -> str:
    """Return why a promotion fails; no part of the exception contains the token."""
    with pytest.raises(DeliveryError) as error:
        promote(folder, address, token, **place)
    assert TOKEN not in "".join(traceback.format_exception(error.value))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_token_opens_the_repository_and_is_not_told(git, web, caplog):
    caplog.set_level(logging.DEBUG)
    promote(git.folder, web.address)
    assert git.log() == ["Serve version 7 of flights", "Begin"]
    assert set(web.asked) == {web.expected}
    assert TOKEN not in caplog.text
    assert web.expected.split()[1] not in caplog.text
    assert "version 7 is commit" in caplog.text


def test_another_user_may_be_named(git):
    with served(Web(git.folder, "oauth2", TOKEN)) as web:
        found = settings(git.folder, TOKEN).model_copy(update={"git_user": "oauth2"})
        gitops.apply(build("ml", "7"), Place(repository=web.address, wait=False), 10, found)
    assert git.log()[0] == "Serve version 7 of flights"


@pytest.mark.parametrize("token", ["", "worn-out"])
def test_a_wrong_token_or_none(git, web, token):
    told = refusal(git.folder, web.address, token)
    assert told.startswith(f"the Git server does not accept the credentials for {web.address}; put a token that may")
    assert "KUBELOOP_GIT_TOKEN" in told
    assert git.log() == ["Begin"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, "KUBELOOP_GIT_TOKEN has no right to write to http"),
        (404, "there is no repository at http"),
        (407, "does not accept the credentials"),
        (500, "the Git server answers 500 for http"),
    ],
)
def test_an_http_server_refuses(git, web, status, reason):
    web.status = status
    assert reason in refusal(git.folder, web.address)


def test_a_web_page_is_not_a_repository(tmp_path):
    (tmp_path / "site" / "info").mkdir(parents=True)
    (tmp_path / "site" / "info" / "refs").write_text("<html>Welcome</html>")
    pages = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with served(http.server.ThreadingHTTPServer(("127.0.0.1", 0), pages)) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/site"
        assert refusal(tmp_path, address) == f"{address} is not a Git repository; correct delivery.git.repository"


def test_a_protected_branch_says_why(git, web):
    git.hook("echo 'main is frozen until Monday' >&2; echo x >> pushes; exit 1")
    told = refusal(git.folder, web.address)
    assert f"the server refuses a push to branch main of {web.address} (pre-receive hook declined: " in told
    assert "main is frozen until Monday" in told
    assert "delivery.git.review_branch" in told
    assert git.log() == ["Begin"]
    assert len((git.bare / "pushes").read_text().split()) == gitops.REFUSALS


def test_a_hook_may_let_a_proposal_through(git, web):
    git.hook("while read old new ref; do [ $ref != refs/heads/main ] || exit 1; done")
    promote(git.folder, web.address, review_branch="kubeloop/{loop}")
    assert git.log("kubeloop/flights")[0] == "Serve version 7 of flights"


def test_a_branch_that_is_not_there(git, web):
    assert "has no branch live; push it, or name in delivery.git.branch" in refusal(
        git.folder, web.address, branch="live"
    )
    run(git.bare, "update-ref", "-d", "refs/heads/main")
    assert "has no branch main" in refusal(git.folder, web.address)


@pytest.mark.parametrize("path", ["nowhere/{loop}.yaml", "apps/web", "README.md/{loop}.yaml"])
def test_a_file_that_is_not_there(git, web, path):
    told = refusal(git.folder, web.address, path=path)
    assert f"has no file {path.replace('{loop}', NAME)}; begin with `python manifests/write.py {NAME}`" in told


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (OTHERS["README.md"], "is not a patch of an InferenceService"),
        ("a: [", "is not valid YAML"),
        (overlay("ml")[PATCH].replace("name: flights", "name: fraud", 1), "is the patch of fraud, not of flights"),
        (overlay("ml")[PATCH].replace("version: '6'", "version: six"), "model-version: 'six', which is not a number"),
        (overlay("ml")[PATCH].partition("spec:")[0] + "spec: {}", "has no spec"),
        (overlay("ml")[PATCH].replace("      args:\n", "      other:\n"), "has no spec.predictor.model.args"),
    ],
)
def test_a_file_that_is_something_else(git, web, content, reason):
    git.commit(git.folder / "alice", {PATCH: content}, "Other")
    told = refusal(git.folder, web.address)
    assert told.startswith(f"{PATCH} ")
    assert reason in told
    assert f"python manifests/write.py {NAME}" in told
    assert git.log() == ["Other", "Begin"]


def test_no_server_answers_at_the_address(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for scheme in ("http", "git"):
            address = f"{scheme}://127.0.0.1:{port}/loops.git"
            told = refusal(tmp_path, address)
            assert told.startswith(f"the Git server of {address} does not answer (")
            assert "Connection refused" in told
            assert "HTTPConnection" not in told
            assert "check that delivery.git.repository is right" in told


def test_a_name_that_nobody_knows(tmp_path):
    told = refusal(tmp_path, "https://git.invalid/loops.git")
    assert told.startswith("the Git server of https://git.invalid/loops.git does not answer (")


def test_a_server_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/loops.git"
        assert f"the Git server of {address} does not answer (" in refusal(tmp_path, address)


def test_without_ssh_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    told = refusal(tmp_path, "ssh://git@127.0.0.1/loops.git")
    assert "needs the program ssh, which is not installed here; write an https:// address" in told


def test_ssh_that_is_refused_says_why(tmp_path, monkeypatch):
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'git@host: Permission denied (publickey).' >&2; exit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    told = refusal(tmp_path, "ssh://git@127.0.0.1/loops.git")
    assert "Permission denied (publickey)" in told

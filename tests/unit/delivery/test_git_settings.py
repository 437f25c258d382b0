"""Where a promotion is committed, according to loop.yaml and the environment; neither gives a secret away."""

import re
import traceback

import pytest
import yaml
from pydantic import ValidationError

from kubeloop import config
from kubeloop.config import ConfigError, Loop
from kubeloop.config.cluster import Git

LOOP = {
    "name": "flights",
    "source": {"tables": {"events": {"available_at": "at"}}},
    "features": {"service": "v1"},
}


def parse(**git: object) -> Git:
    found = Loop.parse(yaml.safe_dump(LOOP | {"delivery": {"applier": "gitops", "git": git}})).delivery.git
    assert found
    return found


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/acme/loops",
        "https://git.acme.io:8443/loops.git",
        "ssh://git@github.com/acme/loops.git",
        "http://127.0.0.1:3000/loops",
        "git://localhost/loops",
        "/srv/git/loops.git",
        "file:///srv/git/loops.git",
    ],
)
def test_addresses(address):
    assert parse(repository=address).repository == address


@pytest.mark.parametrize(
    "address",
    [
        "https://someone:s3cret@github.com/acme/loops",
        "https://s3cret@github.com/acme/loops",
        "https://:s3cret@github.com/acme/loops",
        "ssh://git:s3cret@github.com/acme/loops",
        "https://git.acme.io/loops?private_token=s3cret",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(address):
    with pytest.raises(ConfigError) as error:
        parse(repository=address)
    assert "s3cret" not in "".join(traceback.format_exception(error.value))
    if "@" in address:
        assert "KUBELOOP_GIT_TOKEN" in str(error.value)


@pytest.mark.parametrize(
    "address", ["git@github.com:acme/loops.git", "http://git.acme.io/x", "https://", "https://git.acme.io", "loops", ""]
)
def test_other_addresses_are_refused_with_one_that_is_right(address):
    with pytest.raises(ConfigError, match=r"repository: .*https://git\.example\.org/team/loops or ssh://"):
        parse(repository=address)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("path", "/etc/passwd"),
        ("path", "../x.yaml"),
        ("path", ""),
        ("branch", ""),
        ("branch", "a..b"),
        ("branch", "-f"),
        ("branch", "a b"),
        ("branch", "a/"),
        ("review_branch", "main"),
        ("author", "nobody"),
        ("author", "a <b@c>\nX: y"),
        ("wait", "maybe"),
    ],
)
def test_other_settings_are_refused(setting, value):
    with pytest.raises(ConfigError, match=r"delivery\.git"):
        parse(repository="/srv/loops.git", **{setting: value})


@pytest.mark.parametrize("branch", ["main", "release/2.x", "env/prod", "kubeloop/{loop}", "a-b_c+1"])
def test_branches(branch):
    assert parse(repository="/srv/loops.git", review_branch=f"r/{branch}", branch=branch).branch == branch


def test_gitops_needs_a_repository():
    with pytest.raises(ConfigError, match=r"`applier: gitops` .*`git: \{repository: https://"):
        Loop.parse(yaml.safe_dump(LOOP | {"delivery": {"applier": "gitops"}}))


def test_the_token_reaches_a_child_and_no_log(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBELOOP_GIT_TOKEN", "s3cret")
    monkeypatch.setenv("KUBELOOP_GIT_USER", "oauth2")
    found = config.settings(tmp_path, tmp_path)
    assert found.git_token.get_secret_value() == "s3cret"
    assert "s3cret" not in f"{found!r} {found} {found.model_dump_json()}"
    assert found.environ()["KUBELOOP_GIT_TOKEN"] == found.git_token.get_secret_value()
    assert config.settings(tmp_path, tmp_path) == found
    with pytest.raises(ValidationError) as error:
        config.Settings.model_validate(found.model_dump() | {"git_token": b"\xff s3cret"})
    assert "s3cret" not in str(error.value)


def test_the_example_in_the_docs_is_valid(project):
    page = (project / "docs" / "operations.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    found = Loop.parse(yaml.safe_dump(LOOP | yaml.safe_load(example)))
    place = found.delivery.git
    assert place.model_copy(update={"secrets": ()}) == Git(repository="https://git.example.org/team/loops")
    assert {name for secret in place.secrets for name in secret.env} == {"KUBELOOP_GIT_TOKEN"}

"""Fetching the CustomResourceDefinitions from archives laid out like GitHub's, and where tests look for them."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.control_plane import crds as upstream

SCRIPT = upstream.PROJECT / "tests" / "control_plane" / "crds.sh"
SOURCES = re.findall(r"^fetch (\S+) (\S+) ([0-9a-f]{8,40}) (\S+)$", SCRIPT.read_text(), re.MULTILINE)


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A folder that file:

    serves in place of codeload.github.com.
    """
    for _, repository, commit, path in SOURCES:
        top = tmp_path / "tree" / f"{repository.partition('/')[2]}-{commit}"
        for name in (f"{path}/{repository.partition('/')[2]}.yaml", f"{path}/kustomization.yaml", "docs/other.yaml"):
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(f"# {name}\n")
        archive = tmp_path / "codeload" / repository / "tar.gz" / commit
        archive.parent.mkdir(parents=True)
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(top, arcname=top.name)
    return tmp_path / "codeload"


def make(archives: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = ["make", "--silent", "crds", f"CRDS={folder}"]
    environment = {**os.environ, "CODELOAD": archives.as_uri()}
    return subprocess.run(
        command, cwd=upstream.PROJECT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_make_fetches_each_once(archives: Path, tmp_path: Path) -> None:
    folder = tmp_path / "crds"
    done = make(archives, folder)
    assert done.returncode == 0, done.stderr
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {f"{name}/{repository.partition('/')[2]}.yaml" for name, repository, _, _ in SOURCES}
    shutil.rmtree(archives)
    assert make(archives, folder).returncode == 0, "what is there is not fetched again"


def test_half_of_them_is_nothing(archives: Path, tmp_path: Path) -> None:
    shutil.rmtree(archives / SOURCES[-1][1])
    assert make(archives, tmp_path / "crds").returncode != 0
    assert not (tmp_path / "crds").exists()


def test_all_that_are_fetched_are_here(crds: Path) -> None:
    """A folder that the user names may contain more."""
    here = {path.name for path in crds.iterdir() if path.is_dir()}
    assert {name for name, *_ in SOURCES} - here == set()


def test_they_are_looked_for_where_make_puts_them_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBELOOP_CRDS", raising=False)
    project = tmp_path / "main"
    fetched, beside = project / ".control-plane" / "crds", tmp_path / "shared" / "crds"
    assert upstream.folder(project) == fetched
    beside.mkdir(parents=True)
    assert upstream.folder(project) == beside
    fetched.mkdir(parents=True)
    assert upstream.folder(project) == fetched
    monkeypatch.setenv("KUBELOOP_CRDS", "/elsewhere")
    assert upstream.folder(project) == Path("/elsewhere")

"""What can be checked without building an image: versions, hashes, and what the build script refuses."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


def run(project: Path, *arguments: str, stdin: str = "", path: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        input=stdin,
        env={"PATH": path} if path else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_bases_have_full_version_tags(project: Path) -> None:
    text = (project / "images/Dockerfile").read_text()
    bases = dict(re.findall(r"^ARG (\w+_BASE)=(\S+)$", text, re.MULTILINE))
    assert set(bases) == {"IMAGE_BASE", "CUDA_BASE"}
    assert all(re.search(r":\d+\.\d+\.\d+-", base) for base in bases.values()), bases
    stages = {"scratch"}
    for source, name in re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE):
        assert source in stages | {"${IMAGE_BASE}", "${CUDA_BASE}"}, f"{name} is made from {source}"
        stages.add(name)
    assert text.count("\nFROM ") == len(stages) - 1


@pytest.mark.parametrize("name", ["build-requirements.txt", "gpu-requirements.txt"])
def test_requirements_are_pinned_by_hash(project: Path, name: str) -> None:
    text = re.sub(r"^#.*\n", "", (project / "images" / name).read_text(), flags=re.MULTILINE)
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert all(re.match(r"[\w-]+==[\d.]+ \\\n.*--hash=sha256:", entry) for entry in requirements), requirements


def test_gpu_runtime_is_near_the_locked_one(project: Path) -> None:
    """PyPI gets the GPU build one release later; further apart, the two images would serve a model differently."""
    locked = {entry["name"]: entry["version"] for entry in tomllib.loads((project / "uv.lock").read_text())["package"]}
    found = re.search(r"onnxruntime-gpu==(\S+)", (project / "images/gpu-requirements.txt").read_text())
    assert found
    (major, minor), (gpu_major, gpu_minor) = (
        map(int, version.split(".")[:2]) for version in (locked["onnxruntime"], found[1])
    )
    assert gpu_major == major
    assert 0 <= minor - gpu_minor <= 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("core", "--tag", "latest"), "`latest` names no version"),
        (("cor",), "there is no image cor; the images are core, runtime, detector, runtime-gpu"),
        (("core", "--build-arg", "IMAGE_BASE"), "'IMAGE_BASE' is not NAME=VALUE"),
    ],
)
def test_build_refuses(project: Path, arguments: tuple[str, ...], says: str) -> None:
    done = run(project, "images/build.py", *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_build_says_which_engines_it_looked_for(project: Path, tmp_path: Path) -> None:
    done = run(project, "images/build.py", "core", "--out", str(tmp_path), path=str(tmp_path))
    assert done.returncode == 1
    assert "none of docker, podman, buildah answers; install one of them" in done.stderr
    assert not list(tmp_path.iterdir())


def test_bill_of_materials_refuses_another_version_than_the_locks(project: Path, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Package: libc6\nVersion: 2.36-9+deb12u14\nArchitecture: amd64\n")
    command = ["images/sbom.py", "--image", "core", "--dpkg", str(tmp_path / "status"), "--libraries", str(tmp_path)]
    export = {"metadata": {"component": {"version": "0.1.0"}}, "components": []}
    done = run(project, *command, stdin=json.dumps(export))
    assert done.returncode == 0, done.stderr
    bill = json.loads(done.stdout)
    assert {"pkg:pypi/pytest@" + pytest.__version__, "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"} <= {
        part["purl"] for part in bill["components"]
    }
    other = {**export, "components": [{"name": "pytest", "version": "0.1", "purl": "pkg:pypi/pytest@0.1"}]}
    done = run(project, *command, stdin=json.dumps(other))
    assert done.returncode == 1
    assert f"pytest {pytest.__version__} is installed, but the lock says 0.1" in done.stderr

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from kubeloop import config
from kubeloop.cli import doctor
from kubeloop.config import Loop, Settings
from kubeloop.stores.bucket import Bucket


@pytest.fixture
def settings(project: Path, tmp_path: Path) -> Settings:
    """A healthy installation of the demo."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(project / "loop.yaml", home)
    shutil.copytree(project / "feature_repo", home / "feature_repo")
    return config.settings(home, home / ".kubeloop")


def wrong(settings: Settings) -> dict[str, str]:
    """Return what is wrong and how to fix it."""
    return {item.what: item.fix for item in doctor.examine(settings) if not item.ok}


def test_nothing_is_wrong_with_the_demo(settings: Settings) -> None:
    assert wrong(settings) == {}
    seen = "\n".join(item.what for item in doctor.examine(settings))
    for expected in (
        "loop.yaml is valid: flight-delay",
        "alibi-detect 0.11.4",
        "onnxruntime",
        "Python 3.11",
        "GiB free",
    ):
        assert expected in seen
    assert all(json.dumps(item.to_dict()) for item in doctor.examine(settings))


@pytest.fixture
def python(tmp_path: Path) -> Callable[[str], Path]:
    """Make an interpreter that is a shell script."""

    def write(text: str) -> Path:
        (tmp_path / "python").write_text(text)
        (tmp_path / "python").chmod(0o755)
        return tmp_path / "python"

    return write


def package(folder: Path, name: str, version: str) -> None:
    """Write a package's metadata where an interpreter finds it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("name", ["core", "runtime", "detector"])
def test_a_missing_environment_is_found_at_once(settings: Settings, name: str, tmp_path: Path) -> None:
    broken = settings.model_copy(update={f"{name}_python": tmp_path / "away" / "python"})
    (found,) = (item for item in doctor.quick(broken) if not item.ok)
    assert found.what == f"{name} environment: {tmp_path}/away/python is missing"
    assert found.fix == "make -B setup"
    assert wrong(broken) == {found.what: found.fix}
    assert all(item.ok for item in doctor.quick(settings))


def test_a_file_that_may_not_be_executed_is_found_at_once(settings: Settings, python: Callable[[str], Path]) -> None:
    path = python("#!/bin/sh\n")
    path.chmod(0o644)
    broken = settings.model_copy(update={"runtime_python": path})
    assert wrong(broken) == {f"runtime environment: {path} is not executable": "make -B setup"}
    assert not all(item.ok for item in doctor.quick(broken))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#!/nowhere/python\n", "does not start: No such file or directory"),
        ("\x7fELF broken", "does not start: Exec format error"),
        ("#!/bin/sh\necho 'no module' >&2\nexit 3\n", "ended with 3: no module"),
        ("#!/bin/sh\nexit 4\n", "ended with 4: no message"),
        ("#!/bin/sh\necho hello\n", "did not answer with its packages; it is not a Python interpreter"),
        ("#!/bin/sh\necho '{}'\n", "did not answer with its packages; it is not a Python interpreter"),
    ],
)
def test_an_interpreter_that_does_not_answer_is_found(
    settings: Settings, python: Callable[[str], Path], text: str, says: str
) -> None:
    path = python(text)
    broken = settings.model_copy(update={"detector_python": path})
    assert wrong(broken) == {f"detector environment: {path} {says}": "make -B setup"}


def test_a_slow_interpreter_is_found(
    settings: Settings, python: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = python("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(doctor, "ANSWER_S", 5)
    broken = settings.model_copy(update={"detector_python": path})
    assert wrong(broken) == {f"detector environment: {path} did not answer within 5 s": "make -B setup"}


def test_a_folder_is_not_an_interpreter(settings: Settings, tmp_path: Path) -> None:
    broken = settings.model_copy(update={"runtime_python": tmp_path})
    assert wrong(broken) == {f"runtime environment: {tmp_path} does not start: Permission denied": "make -B setup"}


def test_an_environment_without_its_packages_is_found(settings: Settings) -> None:
    swapped = settings.model_copy(update={"detector_python": settings.runtime_python})
    ((found, fix),) = wrong(swapped).items()
    assert found.startswith("detector environment: alibi-detect is missing; numba is missing; numpy 2.")
    assert "is not <2,>=1.24" in found
    assert fix == "make -B setup"


@pytest.mark.parametrize(
    ("environment", "name", "version", "says"),
    [
        ("detector", "alibi-detect", "0.13.0", "alibi-detect 0.13.0 is not ==0.11.4"),
        ("detector", "numpy", "2.1.0", "numpy 2.1.0 is not <2,>=1.24"),
        ("runtime", "onnxruntime", "1.21.9", "onnxruntime 1.21.9 is not >=1.22"),
        ("core", "great-expectations", "0.18.22", "great-expectations 0.18.22 is not >=1.24"),
    ],
)
def test_a_package_out_of_bounds_is_found_where_it_is_installed(
    settings: Settings, python: Callable[[str], Path], tmp_path: Path,
    environment: str, name: str, version: str, says: str,
) -> None:  # fmt: skip
    """The real interpreter of that environment, with another version of one package earlier on its path."""
    package(tmp_path / "before", name, version)
    real = getattr(settings, f"{environment}_python")
    path = python(f'#!/bin/sh\nPYTHONPATH={tmp_path / "before"} exec {real} "$@"\n')
    assert wrong(settings.model_copy(update={f"{environment}_python": path})) == {
        f"{environment} environment: {says}": "make -B setup"
    }


def test_another_python_is_found(settings: Settings, python: Callable[[str], Path]) -> None:
    versions = dict.fromkeys(doctor.bounds("runtime"), "99.0")
    answer = json.dumps({"python": "3.14.1", "packages": versions})
    other = settings.model_copy(update={"runtime_python": python(f"#!/bin/sh\necho '{answer}'\n")})
    assert wrong(other) == {"runtime environment: Python 3.14.1 is not <3.14,>=3.11": "make -B setup"}


@pytest.mark.parametrize(
    ("path", "what", "fix"),
    [
        ("loop.yaml", "loop.yaml does not exist", "kubeloop init TABLE"),
        ("feature_repo/feature_store.yaml", "feature_store.yaml is missing", "kubeloop init TABLE"),
        ("feature_repo/sql/events.sql", "sql/events.sql is missing", "kubeloop init TABLE"),
        ("feature_repo/expectations/training.yaml", "expectations/training.yaml is missing", "kubeloop init TABLE"),
        ("feature_repo/expectations/weather.yaml", "table weather has no expectations", "expectations/weather.yaml"),
    ],
)
def test_a_missing_file_is_found(settings: Settings, path: str, what: str, fix: str) -> None:
    (settings.home / path).unlink()
    ((found, how),) = wrong(settings).items()
    assert what in found
    assert fix in how


def test_a_wrong_setting_is_found(settings: Settings) -> None:
    settings.loop_file.write_text(settings.loop_file.read_text() + "\nretraining: {}\n")
    ((found, how),) = wrong(settings).items()
    assert "retraining: Extra inputs are not permitted" in found
    assert "`kubeloop config`" in how


def test_a_missing_table_is_found(settings: Settings, demo: Loop) -> None:
    weather = demo.source.tables["weather"].model_copy(update={"path": "w.csv"})
    source = demo.source.model_copy(update={"tables": {**demo.source.tables, "weather": weather}})
    settings.loop_file.write_text(demo.model_copy(update={"source": source}).dump())
    assert wrong(settings) == {
        f"{settings.home}/w.csv is missing": f"set source.tables.weather.path in {settings.loop_file}"
    }


def test_a_full_disk_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FREE_BYTES", 2**80)
    ((found, how),) = wrong(settings).items()
    assert found.endswith(f"GiB free in {settings.home}")
    assert how == "free at least 2 GiB"


def test_services_that_died_are_found(settings: Settings) -> None:
    settings.state.mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = {"node": {"url": "http://127.0.0.1:1", "pid": dead.pid}, "trigger": {"url": "", "pid": 1}}
    settings.services_file.write_text(json.dumps(mine))
    assert wrong(settings) == {"node ended unexpectedly; the state is kept": f"rm {settings.services_file}"}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("core", {"kfp": ">=2.17", "feast": ">=0.67", "great-expectations": ">=1.24", "numpy": ">=2.0"}),
        ("runtime", {"numpy": ">=2.0", "onnxruntime": ">=1.22"}),
        ("detector", {"alibi-detect": "==0.11.4", "numpy": ">=1.24,<2", "scipy": ">=1.10,<1.12"}),
        ("nothing", {}),
    ],
)
def test_the_bounds_are_those_of_the_project(extra: str, expected: dict[str, str]) -> None:
    found = doctor.bounds(extra)
    assert found.items() >= {name: SpecifierSet(bound) for name, bound in expected.items()}.items()
    assert "kubeloop" not in found


def test_a_bucket_of_another_installation_is_found(settings: Settings, s3: Any) -> None:
    def here(owner: str, **more: str) -> Settings:
        return settings.model_copy(update={"bucket": s3.bucket, "s3_endpoint": s3.endpoint, "owner": owner} | more)

    assert wrong(here("ml/a")) == {}
    Bucket.open(here("ml/a")).put("x", b"")
    assert wrong(here("ml/a")) == wrong(here("")) == {}
    assert f"{s3.bucket} belongs to ml/a" in [item.what for item in doctor.examine(here(""))]
    ((what, fix),) = wrong(here("ml/b")).items()
    assert "belongs to the installation ml/a, but this one is ml/b" in what
    assert "storage.bucket" in fix
    ((what, _),) = wrong(here("", s3_endpoint="http://127.0.0.1:9")).items()
    assert "cannot read" in what


def test_a_system_that_was_never_tried_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor._system()) == []
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    (seen,) = doctor._system()
    assert (seen.ok, "docs/platforms.md" in seen.what) == (True, True)

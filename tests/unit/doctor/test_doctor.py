import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kubeloop import config, doctor
from kubeloop.config import Loop, Settings


@pytest.fixture
def settings(project: Path, tmp_path: Path) -> Settings:
    """An installation of the demo that nothing is wrong with."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(project / "loop.yaml", home)
    shutil.copytree(project / "feature_repo", home / "feature_repo")
    return config.settings(home, home / ".kubeloop")


def wrong(settings: Settings) -> dict[str, str]:
    """Return what is wrong and how to mend it."""
    return {item.what: item.mend for item in doctor.examine(settings) if not item.ok}


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


@pytest.mark.parametrize("name", ["core", "runtime", "detector"])
def test_a_missing_environment_is_found_at_once(settings: Settings, name: str, tmp_path: Path) -> None:
    broken = settings.model_copy(update={f"{name}_python": tmp_path / "away" / "python"})
    (found,) = (item for item in doctor.quick(broken) if not item.ok)
    assert found.what == f"{name} environment: {tmp_path}/away/python is missing"
    assert found.mend == "make setup"
    assert found in doctor.examine(broken)
    assert all(item.ok for item in doctor.quick(settings))


def test_an_environment_without_its_package_is_found(settings: Settings) -> None:
    swapped = settings.model_copy(update={"detector_python": settings.runtime_python})
    assert wrong(swapped) == {"detector environment has no alibi-detect": "make setup"}


def test_another_python_is_found(settings: Settings, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho '[\"1.22.0\", 3, 12]'\n")
    script.chmod(0o755)
    other = settings.model_copy(update={"runtime_python": script})
    assert wrong(other) == {"runtime environment: Python 3.12, onnxruntime 1.22.0": "make setup"}


@pytest.mark.parametrize(
    ("path", "what", "mend"),
    [
        ("loop.yaml", "loop.yaml does not exist", "kubeloop init TABLE"),
        ("feature_repo/feature_store.yaml", "feature_store.yaml is missing", "kubeloop init TABLE"),
        ("feature_repo/sql/events.sql", "sql/events.sql is missing", "kubeloop init TABLE"),
        ("feature_repo/expectations/training.yaml", "expectations/training.yaml is missing", "kubeloop init TABLE"),
        ("feature_repo/expectations/weather.yaml", "table weather has no expectations", "expectations/weather.yaml"),
    ],
)
def test_a_missing_file_is_found(settings: Settings, path: str, what: str, mend: str) -> None:
    (settings.home / path).unlink()
    ((found, how),) = wrong(settings).items()
    assert what in found
    assert mend in how


def test_a_wrong_setting_is_found(settings: Settings) -> None:
    settings.loop_file.write_text(settings.loop_file.read_text() + "\nretraining: {}\n")
    ((found, how),) = wrong(settings).items()
    assert "retraining: Extra inputs are not permitted" in found
    assert "`kubeloop config` explains it" in how


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
    assert wrong(settings) == {"node ended without a word; the state is kept": f"rm {settings.services_file}"}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("core", {"kfp": "2.17", "feast": "0.67", "great-expectations": "1.24"}),
        ("runtime", {"numpy": "2.0", "onnxruntime": "1.22"}),
        ("detector", {"alibi-detect": "0.11.4", "numpy": "1.24", "scipy": "1.10"}),
        ("nothing", {}),
    ],
)
def test_the_floors_are_those_of_the_project(extra: str, expected: dict[str, str]) -> None:
    found = doctor.floors(extra)
    assert found.items() >= expected.items()
    assert "kubeloop" not in found


def test_an_old_package_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: dict[str, Any] = {"core": {"numpy": "99.1", "nosuchpackage": "1"}, "runtime": {"numpy": "2.0"}}
    monkeypatch.setattr(doctor, "floors", lambda extra: bounds[extra])
    ((found, how),) = wrong(settings).items()
    assert "nosuchpackage is missing; numpy" in found
    assert "is older than 99.1" in found
    assert how == "make setup"

"""The environments that a wheel makes: their place, their key, and what a failure leaves."""

import fcntl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kubeloop import config
from kubeloop.config import Loop, Settings, environments
from kubeloop.session import environments as making

Uv = Callable[..., Callable[[], list[str]]]

REAL = Path(sys.executable)

UV = """#!{python}
import os, sys, pathlib
folder = sys.argv[-2]
print(*sys.argv[1:], file=open({log!r}, "a"))
{first}
if sys.argv[1] == "venv":
    site = pathlib.Path(folder) / "lib" / "python{version}" / "site-packages"
    site.mkdir(parents=True)
    (bin := pathlib.Path(folder) / "bin").mkdir()
    (bin / "python").symlink_to(sys.executable)
{then}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make kubeloop look installed from a wheel, in its own environment; return the folder of environments."""
    locked = tmp_path / "locked"
    locked.mkdir()
    for name in ("runtime", "detector"):
        (locked / f"{name}.txt").write_text(
            "numpy==2.0 ; sys_platform == 'linux' \\\n    --hash=sha256:00\nscipy==1.1\n"
        )
    monkeypatch.setattr(environments, "LOCKED", locked)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "tool"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("CORE", "RUNTIME", "DETECTOR"):
        monkeypatch.delenv(f"KUBELOOP_{name}_PYTHON", raising=False)
    return tmp_path / "cache" / "kubeloop" / "environments"


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uv:
    """Replace uv by another program; the returned function tells how it was called."""

    def install(first: str = "", then: str = "") -> Callable[[], list[str]]:
        folder, log = tmp_path / "bin", tmp_path / "calls"
        folder.mkdir(exist_ok=True)
        version = "{}.{}".format(*sys.version_info)
        (folder / "uv").write_text(UV.format(python=REAL, log=str(log), first=first, then=then, version=version))
        (folder / "uv").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        # The folder of the interpreter is searched first.
        monkeypatch.setattr(sys, "executable", str(folder / "python"))
        return lambda: log.read_text().splitlines() if log.exists() else []

    return install


def place(tmp_path: Path) -> Settings:
    return config.settings(tmp_path / "home")


def test_a_clones_environments_are_next_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    for name in ("CORE", "RUNTIME", "DETECTOR"):
        monkeypatch.delenv(f"KUBELOOP_{name}_PYTHON", raising=False)
    settings = place(tmp_path)
    assert settings.core_python == tmp_path / ".venv/bin/python"
    assert settings.runtime_python == tmp_path / ".venv-runtime/bin/python"
    assert settings.detector_python == tmp_path / ".venv-detector/bin/python"
    assert config.own(settings, "runtime") is None


def test_a_wheel_has_them_in_the_users_cache(folder: Path, tmp_path: Path) -> None:
    settings = place(tmp_path)
    assert settings.core_python == Path(sys.executable)
    for name, python in (("runtime", settings.runtime_python), ("detector", settings.detector_python)):
        assert python.parents[2] == folder
        assert python.parents[1].name.startswith(f"{name}-")
    assert config.own(settings, "core") is None


def test_adjacent_and_named_environments_come_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / ".venv-runtime/bin/python"
    beside.parent.mkdir(parents=True)
    beside.touch()
    monkeypatch.setenv("KUBELOOP_DETECTOR_PYTHON", "/opt/python")
    settings = place(tmp_path)
    assert settings.runtime_python == beside
    assert settings.detector_python == Path("/opt/python")
    assert config.own(settings, "runtime") is None
    assert config.own(settings, "detector") is None
    monkeypatch.setenv("KUBELOOP_RUNTIME_PYTHON", "/opt/runtime")
    assert place(tmp_path).runtime_python == Path("/opt/runtime")


@pytest.mark.parametrize("name", ["runtime", "detector"])
def test_other_requirements_are_another_environment(folder: Path, tmp_path: Path, name: environments.Name) -> None:
    before = getattr(place(tmp_path), f"{name}_python")
    assert getattr(place(tmp_path), f"{name}_python") == before
    (environments.LOCKED / f"{name}.txt").write_text("numpy==2.1\n")
    assert getattr(place(tmp_path), f"{name}_python") != before


def test_changed_code_changes_only_the_runtime_environment(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = place(tmp_path)
    monkeypatch.setattr(environments, "_code", lambda: b"kubeloop/run.py,sha256=1,1")
    assert place(tmp_path).runtime_python != before.runtime_python
    assert place(tmp_path).detector_python == before.detector_python


def test_they_are_made_once(folder: Path, tmp_path: Path, demo: Loop, uv: Uv) -> None:
    calls, said = uv(), list[str]()
    settings = place(tmp_path)
    making.ensure(demo, settings, said.append)
    assert [call.split()[0] for call in calls()] == ["venv", "pip", "venv", "pip"]
    assert all("--require-hashes" in call for call in calls()[1::2])
    assert settings.runtime_python.exists()
    assert settings.detector_python.exists()
    assert "once: 2 packages" in said[0]
    assert str(folder) in said[0]
    assert not list(folder.glob("*.unfinished"))
    found = settings.runtime_python.parents[1].rglob("kubeloop/__init__.py")
    assert [path.parents[1].name for path in found] == ["site-packages"]
    assert not list(settings.detector_python.parents[1].rglob("kubeloop"))
    making.ensure(demo, settings, said.append)
    assert len(calls()) == 4
    assert len(said) == 4


def test_the_builtin_detector_needs_no_environment(folder: Path, tmp_path: Path, demo: Loop, uv: Uv) -> None:
    calls, settings = uv(), place(tmp_path)
    making.ensure(
        demo.model_copy(update={"drift": demo.drift.model_copy(update={"engine": "builtin"})}), settings, print
    )
    assert len(calls()) == 2
    assert not settings.detector_python.exists()


def test_what_a_kill_left_is_made_again(folder: Path, tmp_path: Path, demo: Loop, uv: Uv) -> None:
    settings = place(tmp_path)
    left = folder / f"{settings.runtime_python.parents[1].name}.unfinished" / "lib" / "half.py"
    left.parent.mkdir(parents=True)
    left.touch()
    # The Python of an earlier environment was removed.
    settings.runtime_python.parent.mkdir(parents=True)
    settings.runtime_python.symlink_to(tmp_path / "removed")
    uv()
    making.ensure(demo, settings, lambda _: None)
    assert settings.runtime_python.exists()
    assert not list(folder.rglob("half.py"))


def test_a_failure_quotes_uv_and_leaves_nothing_in_use(folder: Path, tmp_path: Path, demo: Loop, uv: Uv) -> None:
    settings = place(tmp_path)
    uv(then="if sys.argv[1] == 'pip': sys.exit('no route to host')")
    with pytest.raises(
        making.UnmadeError, match=r"(?s)runtime environment.*no route to host.*UV_DEFAULT_INDEX"
    ) as failed:
        making.ensure(demo, settings, lambda _: None)
    assert not failed.value.lasting
    assert "builtin" not in str(failed.value)
    assert not settings.runtime_python.exists()
    uv()
    making.ensure(demo, settings, lambda _: None)
    assert settings.runtime_python.exists()


def test_without_the_detectors_python_the_builtin_one_is_offered(
    folder: Path, tmp_path: Path, demo: Loop, uv: Uv
) -> None:
    settings = place(tmp_path)
    uv(first="'detector-' in folder and sys.exit('No interpreter found for Python 3.11')")
    with pytest.raises(making.UnmadeError, match=r"(?s)No interpreter found.*set drift.engine to builtin"):
        making.ensure(demo, settings, lambda _: None)
    assert settings.runtime_python.exists()


def test_without_uv_it_says_what_to_install(
    folder: Path, tmp_path: Path, demo: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(making.UnmadeError, match=r"without uv; install it.*KUBELOOP_RUNTIME_PYTHON") as failed:
        making.ensure(demo, place(tmp_path), lambda _: None)
    assert failed.value.lasting


def test_a_folder_that_cannot_be_written_is_named(folder: Path, tmp_path: Path, demo: Loop, uv: Uv) -> None:
    (tmp_path / "cache").write_text("a file")
    uv()
    with pytest.raises(making.UnmadeError, match="set XDG_CACHE_HOME"):
        making.ensure(demo, place(tmp_path), lambda _: None)


def test_who_comes_second_waits(folder: Path, tmp_path: Path, demo: Loop, uv: Uv) -> None:
    settings, said, calls = place(tmp_path), list[str](), uv()
    folder.mkdir(parents=True)
    heard = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        heard.set()

    with (folder / f"{settings.runtime_python.parents[1].name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=making.ensure, args=(demo, settings, say))
        second.start()
        assert heard.wait(30)
        assert said == ["Another kubeloop is making the runtime environment; waiting for it."]
        assert not calls()
        # The first process finishes its work before it releases the lock.
        settings.runtime_python.parent.mkdir(parents=True)
        settings.runtime_python.symlink_to(REAL)
    second.join(60)
    assert not second.is_alive()
    assert [call for call in calls() if "runtime-" in call] == []


def test_the_runtime_environment_holds_only_kubeloop_and_imports_it(
    folder: Path, tmp_path: Path, demo: Loop, uv: Uv
) -> None:
    uv()
    settings = place(tmp_path)
    making.ensure(demo, settings, lambda _: None)
    site = next(settings.runtime_python.parents[1].rglob("site-packages"))
    assert [path.name for path in site.iterdir()] == ["kubeloop"]
    code = "import kubeloop.errors as found; print(found.__file__)"
    done = subprocess.run(
        [Path(sys.base_prefix) / "bin" / "python3", "-S", "-c", code],
        env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(site / "kubeloop" / "errors.py")

"""Each image does its work from a read-only root, as nobody, with only /tmp writable."""

from pathlib import Path

import pytest

from tests.images.conftest import BUILT, Image

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("name", BUILT)
def test_smoke(built: dict[str, Image], project: Path, tmp_path: Path, name: str) -> None:
    done = built[name].run("python", "-", script=project / f"images/smoke/{name}.py", mount=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["ok"]), done.stdout + done.stderr


@pytest.mark.parametrize("name", BUILT)
def test_holds_nothing_it_should_not(built: dict[str, Image], project: Path, tmp_path: Path, name: str) -> None:
    done = built[name].run("python", "-", script=project / "images/smoke/contents.py", mount=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", ["/", "/opt/venv", "/var/tmp", "/run", "/home"])  # noqa: S108
def test_root_is_read_only(built: dict[str, Image], tmp_path: Path, folder: str) -> None:
    """A check of the test itself: its read-only root is read-only."""
    done = built["runtime"].run("sh", "-c", f"touch {folder}/file", mount=tmp_path)
    assert "Read-only file system" in done.stderr
    assert built["runtime"].run("sh", "-c", "touch /tmp/file", mount=tmp_path).returncode == 0

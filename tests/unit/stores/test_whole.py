import ast
import errno
import multiprocessing
from pathlib import Path

import pytest

from kubeloop.stores import whole

ROOT = Path(__file__).parents[3]
CODE = [path for folder in ("src", "components", "pipelines", "manifests") for path in (ROOT / folder).rglob("*.py")]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def renames(tree: ast.AST) -> list[int]:
    """Return the lines that rename a file with os, shutil or a method of Path.

    `replace` of a text has two arguments, and `replace` of a moment or a dataclass has named ones.
    """
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.keywords:
            continue
        owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
        by_module = (owner, call.func.attr) in {("os", "replace"), ("os", "rename"), ("shutil", "move")}
        if by_module or (call.func.attr in ("replace", "rename") and len(call.args) == 1):
            found.append(call.lineno)
    return found


def test_only_one_module_renames_files() -> None:
    home = ROOT / "src/kubeloop/stores/whole.py"
    found = {path: renames(ast.parse(path.read_text())) for path in CODE}
    assert found.pop(home)
    assert {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize("code", ["os.replace(a, b)", "shutil.move(a, b)", "a.rename(b)", "Path(a).replace(b / 'c')"])
def test_a_rename_by_hand_is_found(code: str) -> None:
    assert renames(ast.parse(code)) == [1]


def test_a_new_file_can_be_read_by_all_and_an_old_one_keeps_its_bits(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    whole.write(path, "one")
    assert (path.read_text(), mode(path)) == ("one", 0o644)
    path.chmod(0o660)
    whole.write(path, b"two", sync=True)
    assert (path.read_text(), mode(path)) == ("two", 0o660)
    whole.write(path, "three", mode=0o600)
    assert (path.read_text(), mode(path)) == ("three", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "flights.parquet"
    path.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise KeyError

    with pytest.raises(KeyError), whole.file(path) as part:
        fail(part)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "flights.parquet"
    (tmp_path / ".flights.parquet.part").write_text("half, of a process that was killed")
    with whole.file(path, sync=True) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def _write_often(path: Path, text: str) -> None:
    for _ in range(200):
        whole.write(path, text * 2000)


def test_writers_at_once_leave_the_file_of_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "mark.seq"
    others = [multiprocessing.get_context("fork").Process(target=_write_often, args=(path, each)) for each in "ab"]
    for other in others:
        other.start()
    while any(other.is_alive() for other in others):
        if path.exists():
            assert path.read_text() in ("a" * 2000, "b" * 2000)
    assert [other.exitcode for other in others] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_and_not_the_part(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "mark.seq"
    with pytest.raises(OSError, match=r"mark\.seq") as failed:
        whole.write(path, "1")
    assert (failed.value.errno, failed.value.filename) == (errno.ENOENT, str(path))


def test_a_folder_is_not_moved_onto_one_with_files(tmp_path: Path) -> None:
    for name in ("part", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        whole.move(tmp_path / "part", tmp_path / "1")
    whole.move(tmp_path / "part", tmp_path / "2", sync=True)
    assert [(tmp_path / name / "model.onnx").read_text() for name in "12"] == ["1", "part"]

"""One family of errors: every class belongs to it, says whether it lasts, and ends a program the same way."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kubeloop
import pipelines
from kubeloop import errors
from kubeloop.cli.main import app
from kubeloop.config import ConfigError
from kubeloop.errors import KubeloopError
from kubeloop.serving.tensors import ProtocolError

ELSEWHERE = {"kubeloop.monitoring.detector.worker"}
"""The detector's worker runs by path, in an environment without kubeloop."""


def classes() -> Iterator[type[Exception]]:
    for package in (kubeloop, pipelines):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__") or module.name in ELSEWHERE or ".migrations." in module.name:
                continue
            for found in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(found) and issubclass(found, Exception) and found.__module__ == module.name:
                    yield found


def test_every_error_is_of_the_family_and_says_whether_it_lasts() -> None:
    found = set(classes()) - {KubeloopError}
    assert len(found) > 55
    assert [error.__qualname__ for error in found if not issubclass(error, KubeloopError)] == []
    own = {ProtocolError}  # lasting or not depends on its status
    undecided = [error for error in found - own if not isinstance(getattr(error, "lasting", None), bool)]
    assert [error.__qualname__ for error in undecided if "__init__" not in vars(error)] == []
    assert ProtocolError("no such input").lasting
    assert not ProtocolError("busy", 503).lasting
    assert not ProtocolError("too slow", 408).lasting


def test_no_code_knows_errors_by_name(project: Path) -> None:
    for path in [*(project / "src/kubeloop").rglob("*.py"), *(project / "pipelines").rglob("*.py")]:
        assert '"Traceback' not in path.read_text(), f"{path} reads a printed traceback"


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        ("config.ConfigError('name: is missing')", errors.LASTING, "name: is missing\n"),
        ("bucket.BucketError('the store is away')", errors.PASSING, "the store is away\n"),
    ],
)
def test_a_program_ends_with_the_sentence_and_the_code(raised: str, code: int, says: str) -> None:
    imports = "from kubeloop import config, errors; from kubeloop.stores import bucket"
    program = f"{imports}\nwith errors.program():\n    raise {raised}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, says)


def test_what_is_not_ours_keeps_its_traceback() -> None:
    program = "from kubeloop import errors\nwith errors.program():\n    {}['theirs']"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1 == errors.exit_code(KeyError())
    assert "Traceback" in done.stderr


def test_the_command_line_tells_an_error_of_ours_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text("nam: x\n")
    done = CliRunner().invoke(app, ["status", "--dir", str(tmp_path)])
    assert done.exit_code == errors.exit_code(ConfigError()) == errors.LASTING
    assert done.output.startswith("error: ")
    assert "Traceback" not in done.output

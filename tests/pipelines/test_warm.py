"""Preloaded processes behave as a new interpreter does."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import warm

LIBRARIES = ("fractions", "decimal")


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    with warm.interpreter(LIBRARIES) as stand_in:
        yield stand_in


def run(python: str, folder: Path, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(code)
    return subprocess.run(
        [python, "-m", "program", *arguments],
        cwd=folder,
        env=variables,
        input="asked",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("code", "status", "out", "err"),
    [
        ("print('fine')", 0, "fine\n", ""),
        ("import sys; sys.exit(7)", 7, "", ""),
        ("import sys; sys.exit('wrong')", 1, "", "wrong\n"),
        ("import sys; sys.exit()", 0, "", ""),
        ("print(input())", 0, "asked\n", ""),
    ],
)
def test_streams_and_status_come_back(python: str, tmp_path: Path, code: str, status: int, out: str, err: str) -> None:
    done = run(python, tmp_path, code)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_an_error_shows_its_trace(python: str, tmp_path: Path) -> None:
    done = run(python, tmp_path, "raise ValueError('broken')")
    assert done.returncode == 1
    assert "ValueError: broken" in done.stderr


def test_arguments_variables_and_folder_are_the_callers(python: str, tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['COLOUR'], os.getcwd(), 'HOME' in os.environ)"
    done = run(python, tmp_path, code, "a b", "ü", COLOUR="blue")
    assert done.stdout == f"['a b', 'ü'] blue {tmp_path} False\n"


def test_the_libraries_are_there_already(python: str, tmp_path: Path) -> None:
    done = run(python, tmp_path, "import sys; print('fractions' in sys.modules, 'decimal' in sys.modules)")
    assert done.stdout == "True True\n"


def test_a_step_that_is_killed_is_not_a_success(python: str, tmp_path: Path) -> None:
    done = run(python, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 70


def test_children_of_a_step_report_their_status(python: str, tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.run([sys.argv[1], '-c', 'raise SystemExit(3)']).returncode)"
    assert run(python, tmp_path, code, sys.executable).stdout == "3\n"


def test_steps_are_in_the_callers_process_group(python: str, tmp_path: Path) -> None:
    assert run(python, tmp_path, "import os; print(os.getpgid(0))").stdout == f"{os.getpgid(0)}\n"


def test_the_server_ends_with_a_program_that_is_killed(tmp_path: Path) -> None:
    code = """
import time
from pipelines import warm
with warm.interpreter(("fractions",)) as python:
    print(python, flush=True)
    time.sleep(60)
"""
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    stand_in = (program.stdout.readline() if program.stdout else "").strip()
    assert Path(stand_in).exists()
    servers = _servers(program.pid)
    assert len(servers) == 1
    program.send_signal(signal.SIGKILL)
    program.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{servers[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{servers[0]}").exists()


def _servers(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found

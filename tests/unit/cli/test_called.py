from pathlib import Path

import pytest

from kubeloop.cli import called


def test_a_program_off_the_path_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "kubeloop"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(program), "run"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert str(program) in called.hint()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert called.hint() == "", "the shell finds it"
    monkeypatch.setattr("sys.argv", ["/usr/lib/kubeloop/cli/__main__.py"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert called.hint() == "", "started as a module"

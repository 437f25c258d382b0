"""A reader that closes the pipe, such as `head`, ends a command quietly."""

import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT


@pytest.mark.parametrize("words", [["config", "--json"], ["config"], ["--help"], ["judge", "--help"]])
def test_a_closed_pipe_is_not_an_unexpected_error(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "kubeloop.cli", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=PROJECT, check=False)
    os.close(writer)
    assert done.stderr == ""

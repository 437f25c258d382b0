"""Say where the program is if the shell does not find `kubeloop`: in a clone it is in .venv/bin."""

import shutil
import sys
from pathlib import Path


def hint() -> str:
    """Return a sentence about the program's path; empty if the shell finds it."""
    program = Path(sys.argv[0]).absolute()
    if program.name != "kubeloop" or shutil.which("kubeloop"):
        return ""
    return f"`kubeloop` is not on your PATH; it is {program}"

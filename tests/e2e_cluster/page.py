"""docs/install.md as a script: the indented commands of its numbered steps, in their order.

`python -m tests.e2e_cluster.page 2 3` prints those of steps 2 and 3; tests/kind uses it to install Kubeflow and KServe.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
INSTALL = PROJECT / "docs" / "install.md"
PREFIX = "KUBELOOP_E2E_"

_STEP = re.compile(r"## (\d+)\. (.+)")
_ASSIGNED = re.compile(r"(?<=\s)([A-Z][A-Z0-9_]*)=(\"[^\"]*\"|[^\s#]*)")
_PLACEHOLDER = re.compile(r"\.\.\.|\bmy-bucket\b|/you\b")


class UnfilledError(ValueError):
    """The user must fill in a line, and did not."""


@dataclass(frozen=True)
class Block:
    """One indented block of commands.

    Attributes:
        step: number of its step.
        title: the step's title.
        line: line of the page where it begins.
        text: the commands, without the indentation.
    """

    step: int
    title: str
    line: int
    text: str

    @property
    def keeps(self) -> str:
        """Return the lines that later blocks in the same shell depend on: variables and forwarded ports."""
        lines = self.text.splitlines()
        return "\n".join(line for line in lines if re.search(r"^(export )?\w+=|port-forward .*&$", line))


def blocks(text: str) -> list[Block]:
    """Return the command blocks of a page: indented, inside a numbered step, and not fenced."""
    return list(_blocks(text.splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    step, title, fenced, begun = 0, "", False, 0
    held: list[str] = []
    for number, line in enumerate([*lines, "## end"], 1):
        if line.startswith("```"):
            fenced = not fenced
        indented = line.startswith("    ") and not fenced
        if indented and step and (held or not lines[number - 2].strip()):
            begun = begun if held else number
            held.append(line[4:])
        elif held and not line.strip():
            held.append("")
        elif held:
            yield Block(step, title, begun, "\n".join(held).rstrip())
            held = []
        if line.startswith("## ") and not fenced:
            match = _STEP.fullmatch(line)
            step, title = (int(match[1]), match[2]) if match else (0, "")


def fill(text: str, environ: Mapping[str, str]) -> str:
    """Return the commands, with each `export NAME=...` set to the value of the variable KUBELOOP_E2E_NAME.

    Raises:
        UnfilledError: a placeholder has no such variable.
    """
    return "\n".join(_fill(line, environ) if line.startswith("export ") else line for line in text.splitlines())


def _fill(line: str, environ: Mapping[str, str]) -> str:
    lacking: list[str] = []

    def value(match: re.Match[str]) -> str:
        name, written = match.groups()
        given = environ.get(PREFIX + name)
        if given is None and _PLACEHOLDER.search(written):
            lacking.append(PREFIX + name)
        return f"{name}={written if given is None else shlex.quote(given)}"

    code, space, comment = re.fullmatch(r"(.*?)(\s+#|$)(.*)", line).groups()
    filled = _ASSIGNED.sub(value, code) + space + comment
    if lacking:
        raise UnfilledError(f"set {', '.join(lacking)}: docs/install.md leaves it to the user")
    return filled


def main(steps: list[str]) -> None:
    """Print the commands of some steps."""
    for block in blocks(INSTALL.read_text()):
        if str(block.step) in steps:
            print(f"# docs/install.md, line {block.line}\n{fill(block.text, os.environ)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])

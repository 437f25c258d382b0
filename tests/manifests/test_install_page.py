"""docs/install.md as a script: its commands, the values that users fill in, and the shell that runs them."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e_cluster.page import INSTALL, PREFIX, UnfilledError, blocks, fill
from tests.e2e_cluster.shell import Shell, ShellError

BLOCKS = blocks(INSTALL.read_text())
SCRIPT = "\n".join(block.text for block in BLOCKS)

PAGE = """# Title

    not in a step

## 1. First

Words:

    export NAME=https://... OTHER="two words"    # a comment with NAME=x
    echo one

    echo two

```sh
echo a choice
```

- a list
    that has a second line

## More

    echo elsewhere

## 2. Second

    echo three
"""


def test_indented_commands_of_numbered_steps_are_run() -> None:
    first, second = blocks(PAGE)
    assert (first.step, first.title, first.line) == (1, "First", 9)
    assert first.text.splitlines()[1:] == ["echo one", "", "echo two"]
    assert (second.step, second.text) == (2, "echo three")


def test_exports_are_filled_and_nothing_else() -> None:
    text = blocks(PAGE)[0].text
    filled = fill(text, {f"{PREFIX}NAME": "a b", f"{PREFIX}OTHER": "x"})
    assert filled == text.replace("NAME=https://...", "NAME='a b'").replace('"two words"', "x")
    with pytest.raises(UnfilledError, match=f"{PREFIX}NAME"):
        fill(text, {})


def test_later_sessions_get_variables_and_ports_back() -> None:
    kept = "\n".join(block.keeps for block in BLOCKS)
    assert "export BUCKET=" in kept
    assert "port-forward service/ml-pipeline 8888 &" in kept
    assert "create secret" not in kept


def test_the_page_has_every_step_and_bash_takes_it() -> None:
    assert [block.step for block in BLOCKS] == sorted(block.step for block in BLOCKS)
    assert {block.step for block in BLOCKS} == {1, 2, 3, 4, 5, 6}
    subprocess.run(["bash", "-n"], input=SCRIPT, text=True, check=True)


def unfilled() -> set[str]:
    """Return the names of the page's exports that the user must fill in."""
    found: set[str] = set()
    for line in SCRIPT.splitlines():
        try:
            fill(line, {})
        except UnfilledError as error:
            found |= set(re.findall(rf"{PREFIX}(\w+)", str(error)))
    return found


def test_what_the_page_leaves_to_the_user_is_exported_once_and_used() -> None:
    left = unfilled()
    exported = re.findall(r"\b([A-Z][A-Z0-9_]*)=", "\n".join(re.findall(r"^export .*", SCRIPT, re.MULTILINE)))
    assert len(exported) == len(set(exported))
    assert left <= set(exported)
    for name in left:
        assert re.search(rf"\${{?{name}\b", SCRIPT), name
    # The page has no other placeholder.
    rest = "\n".join(line for line in SCRIPT.splitlines() if not line.startswith("export "))
    assert not re.search(r"\.\.\.|my-bucket|/you\b", rest)


def test_a_shell_keeps_what_a_terminal_keeps(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path / "commands")
    try:
        assert shell.run("export A=1; cd /\nsleep 100 &\necho done") == "done\n"
        assert (
            shell.run("read -r line || echo nothing to read; echo $A $PWD; jobs -r | wc -l")
            == "nothing to read\n1 /\n1\n"
        )
    finally:
        shell.close()
    assert shell.ended


def test_a_shell_says_which_command_failed(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path / "commands")
    with pytest.raises(ShellError, match=r"said before(.|\n)*failed with 2: ls /nowhere/"):
        shell.run("echo said before\nls /nowhere/ 2> /dev/null || exit_is=$?\nls /nowhere/\necho not reached")
    assert shell.ended
    with pytest.raises(ShellError, match="has ended"):
        shell.run("echo again")


def test_a_failure_is_seen_while_a_job_goes_on_in_the_background(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path / "commands")
    shell.run("sleep 60 &")
    with pytest.raises(ShellError, match="refused"):
        shell.run("echo refused >&2; false", 20)
    assert shell.ended


def test_a_shell_does_not_wait_for_ever(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path / "commands")
    begun = time.monotonic()
    with pytest.raises(ShellError, match=r"not within 0\.5 s:\nbegun"):
        shell.run("echo begun; sleep 60", limit_s=0.5)
    assert time.monotonic() - begun < 20


def test_every_variable_is_explained() -> None:
    folder = Path(__file__).parents[1] / "e2e_cluster"
    readme = (folder / "README.md").read_text()
    rows = re.findall(r"^\| (`KUBELOOP_E2E_.*?) \|", readme, re.MULTILINE)
    explained = {name.removeprefix(PREFIX).lstrip("_") for row in rows for name in re.findall(r"`(\w+)`", row)}
    code = "\n".join(path.read_text() for path in folder.glob("*.py"))
    used = set(re.findall(r"\{PREFIX\}(\w+)", code)) | set(re.findall(r'hook\(f?"(\w+)"', code))
    used |= {f"{way}_{what}" for way in ("STOP", "START") for what in re.findall(r'away\("(\w+)"\)', code)}
    used |= unfilled()
    assert used <= explained
    assert explained - used <= {"S3_ENDPOINT", "KUBEFLOW", "KSERVE"}

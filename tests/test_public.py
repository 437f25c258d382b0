"""The public surface that docs/api.md declares is pinned in public.txt, so a change of the surface changes that file.

Types are not pinned as text: mypy checks a consumer's module against them. `python -m tests.test_public` writes the
file; CHANGELOG.md gets a line.
"""

import dataclasses
import enum
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import typer

from kubeloop.cli.main import app

PROJECT = Path(__file__).parents[1]
DECLARED = {
    module: re.findall(r"`(\w+)`", names)
    for module, names in re.findall(
        r"^\| `(kubeloop[\w.]*)` \| (`.*?`) \|", (PROJECT / "docs" / "api.md").read_text(), re.MULTILINE
    )
}

PINNED = Path(__file__).with_name("public.txt")


def called(value: Any) -> str:
    """Return the parameters of a function with their kinds and defaults."""
    signature = inspect.signature(value)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def lines(name: str, value: Any) -> Iterator[str]:
    """Yield one line for a name, and one for each public member of a class."""
    if not inspect.isclass(value):
        yield f"{name}{called(value) if inspect.isfunction(value) else ''}"
        return
    if issubclass(value, pydantic.BaseModel):
        # The fields of a pydantic model are settings, which docs/loop.schema.json pins.
        yield f"{name} (settings)"
    elif dataclasses.is_dataclass(value) or issubclass(value, tuple):
        yield f"{name}{called(value)}"
    else:
        yield name
    inherited = dir(pydantic.BaseModel)
    for member in sorted(name for name in dir(value) if not name.startswith("_") and name not in inherited):
        found = inspect.getattr_static(value, member)
        if member not in vars(value) or isinstance(found, enum.Enum):
            continue
        found = getattr(found, "__func__", found)
        if inspect.isfunction(found):
            required = " (abstract)" if getattr(found, "__isabstractmethod__", False) else ""
            yield f"{name}.{member}{called(found)}{required}"
        elif isinstance(found, property):
            yield f"{name}.{member}"


def surface() -> str:
    found: list[str] = []
    for module, names in DECLARED.items():
        loaded = importlib.import_module(module)
        found += [line for name in names for line in lines(f"{module}.{name}", getattr(loaded, name))]
    return "".join(f"{line}\n" for line in found)


def commands() -> str:
    def told(name: str, command: Any) -> Iterator[str]:
        options = (option for one in command.params if one.name != "help" for option in one.opts)
        yield f"{name} {' '.join(options)}".rstrip()
        for each, inner in sorted(getattr(command, "commands", {}).items()):
            yield from told(f"{name} {each}", inner)

    return "".join(f"{line}\n" for line in told("kubeloop", typer.main.get_command(app)))


@pytest.mark.parametrize("module", DECLARED)
def test_the_page_and_the_modules_declare_the_same(module: str) -> None:
    assert sorted(DECLARED[module]) == sorted(importlib.import_module(module).__all__)


def test_nothing_public_changed_unseen() -> None:
    assert surface() + commands() == PINNED.read_text()


CONSUMER = '''
"""What others write: a program that reads loop.yaml, and the task of a kind."""

from pathlib import Path
from typing import Any, reveal_type

import numpy as np

from kubeloop.config.loop import Loop, load
from kubeloop.errors import KubeloopError
from kubeloop.tasks import forms, intervals
from kubeloop.tasks.port import Floats, Level, Metric, Task, Tensor


def window(path: Path) -> float:
    try:
        loop: Loop = load(path)
    except KubeloopError as error:
        raise SystemExit(str(error)) from error
    return loop.training.window.total_seconds()


def losses(y: Floats, p: Floats) -> Floats:
    found: Floats = np.abs(y - p)
    return found


distance = Metric(
    "distance",
    "Distance",
    -1,
    "loss",
    weighted=lambda y, p, groups: forms.mean(losses(y, p), groups),
    estimate=lambda y, p: intervals.mean(losses(y, p)),
)


class Half(Task):
    kind = "half"
    tensors = (Tensor("value"),)
    columns = ("score",)
    titles = ("value",)
    level = Level("Half", "mean", ",.3g")
    headline = distance
    metrics = {"distance": distance}

    def label(self, value: Any) -> float:
        return float(value)


reveal_type(distance.interval)
Half()
load(7)
'''


def test_types_reach_a_consumer(tmp_path: Path) -> None:
    (tmp_path / "consumer.py").write_text(CONSUMER)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-incremental",
            "--python-executable",
            sys.executable,
            "consumer.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = done.stdout.splitlines()
    # mypy finds the types, and both mistakes: a task without its abstract methods, and a path of the wrong type.
    assert re.search(r"Revealed type is .*-> .*kubeloop\.tasks\.intervals\.Estimate", found[0]), done.stdout
    assert "[abstract]" in found[1], done.stdout
    assert "[arg-type]" in found[2], done.stdout
    assert found[3] == "Found 2 errors in 1 file (checked 1 source file)", done.stdout


if __name__ == "__main__":
    PINNED.write_text(surface() + commands())

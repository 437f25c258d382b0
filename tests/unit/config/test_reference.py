"""What `kubeloop config` prints, compared with the values of a loop that sets nothing."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rich.text import Text

from kubeloop.config import Loop, explain

LEAST: dict[str, Any] = {"name": "x", "source": {"tables": {}}, "features": {"service": "v1"}}
GIT = {"repository": "https://git.example.org/team/loops"}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return Text.from_markup(explain.text()).plain.splitlines()


@pytest.fixture(scope="module")
def printed(lines: list[str]) -> dict[str, str]:
    """Map the path of a setting of a binary task to the value printed for it."""
    return read(lines[: lines.index("Where task is multiclass")])


def read(lines: list[str]) -> dict[str, str]:
    return {path: rest for line in lines if line for path, rest in [line.strip().split(" ", 1)]}


def leaves(value: dict[str, Any], prefix: str, sections: set[str]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict) and f"{prefix}{name}" in sections:
            yield from leaves(inner, f"{prefix}{name}.", sections)
        else:
            yield f"{prefix}{name}", inner


def loop(**over: Any) -> dict[str, Any]:
    tables = {"t": {"available_at": "at"}}
    return Loop.model_validate({**LEAST, "source": {"tables": tables}, **over}).model_dump(mode="json")


@pytest.mark.parametrize(
    "whole",
    [
        loop(),
        loop(
            delivery={"git": GIT, "predictor": {"gpu": {}}},
            pipelines={"train_job": {}, "recurring": [{"name": "n", "pipeline": "training", "cron": "0 0 0 * * *"}]},
        ),
    ],
)
def test_every_default_is_the_one_that_a_loop_has(whole: dict[str, Any], printed: dict[str, str]) -> None:
    set_here = {
        "name",
        "source.tables.t",
        "source.tables.t.available_at",
        "features.service",
        "delivery.git.repository",
        "pipelines.recurring",
    }
    sections = {".".join(path.split(".")[:-1]) for path in printed}
    found = [(path, value) for path, value in leaves(whole, "", sections) if path not in set_here]
    assert len(found) > 80
    for path, value in found:
        place = path.replace("source.tables.t.", "source.tables.<name>.")
        shown = next(printed[name] for name in (place, f"{place}[]", f"{place}.<name>") if name in printed)
        assert json.dumps(value) in shown, path


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("delivery.predictor.cpu", '"250m"'),
        ("delivery.transformer.memory", '"1Gi"'),
        ("pipelines.train_job.resources.cpu", '"4"'),
        ("pipelines.train_job.resources.memory", '"16Gi"'),
        ("pipelines.recurring[].name", "string, required"),
        ("pipelines.recurring[].cron", "Six fields, seconds first"),
        ("pipelines.recurring[].max_concurrency", "integer, 1"),
        ("pipelines.secrets[].env", "required"),
        ("pipelines.defaults.tolerations[].operator", '"Exists"'),
        ("pipelines.steps.<name>.tolerations[].key", "null"),
        ("pipelines.train_job", "null when left out"),
        ("training.parameters", "{}"),
        ("source.tables.<name>.available_at", "required"),
    ],
)
def test_what_is_nested_has_its_own_line(printed: dict[str, str], path: str, shown: str) -> None:
    assert shown in printed[path]


def test_every_setting_of_the_schema_is_named(lines: list[str]) -> None:
    definitions = Loop.model_json_schema(mode="serialization")["$defs"]
    last = {re.sub(r"(\[\]|\.<name>)$", "", path).rpartition(".")[2] for path in read(lines)}
    for definition in definitions.values():
        assert set(definition.get("properties", ())) <= last

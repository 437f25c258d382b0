"""Explain every setting of loop.yaml from the configuration model, for a terminal and for the documentation."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kubeloop.config import Loop

_EMPTY: dict[str, Any] = {"object": {}, "array": []}
"""Defaults that a factory makes, since the schema does not hold them."""


class Setting(NamedTuple):
    """A plain value: its path in loop.yaml, its type, its default as JSON or `required`, and what it means."""

    path: str
    kind: str
    default: str
    meaning: str


class Section(NamedTuple):
    """Settings that belong together; the rows that follow are in it.

    Attributes:
        path: `x`, `x.<name>` for a mapping by name, or `x[]` for a list.
        default: its default as JSON; None if its settings have their own defaults.
        meaning: what it is for.
    """

    path: str
    default: str | None
    meaning: str


Row = Setting | Section


class _Definition(NamedTuple):
    """Settings of one model, the suffix of their path, and whether there may be many of them."""

    content: dict[str, Any]
    suffix: str

    @property
    def many(self) -> bool:
        return bool(self.suffix)


def rows() -> dict[str, list[Row]]:
    """Return all settings and sections in the order of loop.yaml, by kind of task, binary first."""
    schema = Loop.model_json_schema(mode="serialization")
    definitions = schema["$defs"]
    choices = [definitions[choice["$ref"].rsplit("/", 1)[-1]] for choice in schema["oneOf"]]
    return {choice["properties"]["task"]["const"]: list(_rows(choice, definitions, "", {})) for choice in choices}


def text() -> str:
    """Return one line for each setting: name, type, default and meaning; first those of a binary task."""
    (_, first), *others = rows().items()
    told = [_line(row) for row in first]
    for kind, more in others:
        told.append(f"\n[bold]Where task is {kind}[/]")
        told += [line for row in more if (line := _line(row)) not in told and row.path != "task"]
    return "\n".join(told)


def _line(row: Row) -> str:
    if isinstance(row, Setting):
        return f"  [cyan]{row.path}[/] [dim]{row.kind}, {row.default}[/]  {row.meaning}".rstrip()
    left_out = "" if row.default is None else f"[dim]{row.default} when left out[/]  "
    return f"\n[bold]{row.path}[/]  {left_out}{row.meaning}"


def _rows(node: dict[str, Any], definitions: dict[str, Any], prefix: str, given: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a section's settings; `given` holds the defaults from the enclosing section."""
    required = set(node.get("required", ()))
    for name, field in node["properties"].items():
        path = f"{prefix}{name}"
        default = given.get(name, field.get("default", _EMPTY.get(field.get("type", ""))))
        needed = name in required and name not in given and "default" not in field
        meaning = field.get("description", "")
        if (found := _definition(field, definitions)) is None:
            yield Setting(path, _kind(field), "required" if needed else json.dumps(default), meaning)
            continue
        told = not needed and (found.many or default is None)
        whole = meaning or found.content.get("description", "")
        yield Section(f"{path}{found.suffix}", json.dumps(default) if told else None, whole)
        inner = {} if found.many else default or {}
        yield from _rows(found.content, definitions, f"{path}{found.suffix}.", inner)


def _definition(field: dict[str, Any], definitions: dict[str, Any]) -> _Definition | None:
    """Return the settings that a field holds once, by name or in a list; None for a plain value."""
    for choice in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        named = [choice.get("additionalProperties"), *choice.get("patternProperties", {}).values()]
        for place, suffix in ((choice, ""), (choice.get("items"), "[]"), *((item, ".<name>") for item in named)):
            if isinstance(place, dict) and "$ref" in place:
                found = definitions[place["$ref"].rsplit("/", 1)[-1]]
                return _Definition(found, suffix) if "properties" in found else None
    return None


def _kind(field: dict[str, Any]) -> str:
    if "enum" in field:
        return "|".join(map(str, field["enum"]))
    if "anyOf" in field:
        return "|".join(_kind(choice) for choice in field["anyOf"])
    return str(field.get("format") or field.get("type", "value"))

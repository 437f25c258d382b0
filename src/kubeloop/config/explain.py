"""Explain every setting of loop.yaml from the configuration model itself."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kubeloop.config import Loop

_EMPTY: dict[str, Any] = {"object": {}, "array": []}
"""Defaults that a factory makes, since the schema does not hold them."""


class _Section(NamedTuple):
    """The settings below a field: the rest of their path, and their model."""

    definition: dict[str, Any]
    suffix: str

    @property
    def many(self) -> bool:
        return bool(self.suffix)


def text() -> str:
    """Return one line per setting: name, type, default and meaning; those of a binary task come first."""
    schema = Loop.model_json_schema(mode="serialization")
    definitions = schema["$defs"]
    first, *others = (definitions[choice["$ref"].rsplit("/", 1)[-1]] for choice in schema["oneOf"])
    told = list(_lines(first, definitions, "", {}))
    for other in others:
        told.append(f"\n[bold]Where task is {other['properties']['task']['const']}[/]")
        told += [
            line for line in _lines(other, definitions, "", {}) if line not in told and "[cyan]task[/]" not in line
        ]
    return "\n".join(told)


def _lines(node: dict[str, Any], definitions: dict[str, Any], prefix: str, given: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a section's settings; `given` holds the defaults from the enclosing section."""
    required = set(node.get("required", ()))
    for name, field in node["properties"].items():
        path = f"{prefix}{name}"
        default = given.get(name, field.get("default", _EMPTY.get(field.get("type", ""))))
        needed = name in required and name not in given and "default" not in field
        meaning = field.get("description", "")
        if (section := _section(field, definitions)) is None:
            said = "required" if needed else json.dumps(default)
            yield f"  [cyan]{path}[/] [dim]{_kind(field)}, {said}[/]  {meaning}".rstrip()
            continue
        whole = meaning or section.definition.get("description", "")
        if not needed and (section.many or default is None):
            whole = f"[dim]{json.dumps(default)} when left out[/]  {whole}"
        yield f"\n[bold]{path}{section.suffix}[/]  {whole}"
        inner = {} if section.many else default or {}
        yield from _lines(section.definition, definitions, f"{path}{section.suffix}.", inner)


def _section(field: dict[str, Any], definitions: dict[str, Any]) -> _Section | None:
    """Return the settings that a field holds, once, by name or in a list; None for a plain value."""
    for choice in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        named = [choice.get("additionalProperties"), *choice.get("patternProperties", {}).values()]
        for place, suffix in ((choice, ""), (choice.get("items"), "[]"), *((item, ".<name>") for item in named)):
            if isinstance(place, dict) and "$ref" in place:
                found = definitions[place["$ref"].rsplit("/", 1)[-1]]
                return _Section(found, suffix) if "properties" in found else None
    return None


def _kind(field: dict[str, Any]) -> str:
    if "enum" in field:
        return "|".join(map(str, field["enum"]))
    if "anyOf" in field:
        return "|".join(_kind(choice) for choice in field["anyOf"])
    return str(field.get("format") or field.get("type", "value"))

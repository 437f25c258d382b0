"""Explain every setting of loop.yaml from the configuration model itself."""

import json
from collections.abc import Iterator
from typing import Any

from kubeloop.config import Loop


def text() -> str:
    """Return one line a setting: name, type, default and meaning."""
    schema = Loop.model_json_schema(mode="serialization")
    return "\n".join(_lines(schema, schema["$defs"], ""))


def _lines(node: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[str]:
    required = set(node.get("required", ()))
    for name, field in node["properties"].items():
        inner = _definition(field, definitions)
        path = f"{prefix}{name}"
        if inner and "properties" in inner:
            yield f"\n[bold]{path}[/]  {inner.get('description', '')}"
            yield from _lines(inner, definitions, f"{path}.")
            continue
        table = _definition(field.get("additionalProperties", {}), definitions)
        if table and "properties" in table:
            yield f"\n[bold]{path}.<name>[/]  {table.get('description', '')}"
            yield from _lines(table, definitions, f"{path}.<name>.")
            continue
        default = "required" if name in required and "default" not in field else json.dumps(field.get("default"))
        yield f"  [cyan]{path}[/] [dim]{_kind(field)}, {default}[/]  {field.get('description', '')}".rstrip()


def _definition(field: Any, definitions: dict[str, Any]) -> dict[str, Any] | None:
    if not isinstance(field, dict):
        return None
    choices = [field, *field.get("anyOf", ()), *field.get("allOf", ())]
    reference = next((choice["$ref"] for choice in choices if "$ref" in choice), None)
    found: dict[str, Any] | None = definitions[reference.rsplit("/", 1)[-1]] if reference else None
    return found


def _kind(field: dict[str, Any]) -> str:
    if "enum" in field:
        return "|".join(map(str, field["enum"]))
    if "anyOf" in field:
        return "|".join(_kind(choice) for choice in field["anyOf"])
    return str(field.get("format") or field.get("type", "value"))

"""Write the Helm chart's values.yaml and values.schema.json from the typed model of the values."""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter

from kubeloop import __version__, config, errors
from kubeloop.chart.values import Values
from kubeloop.config.types import Quantity

_QUANTITY = TypeAdapter(Quantity).json_schema()["pattern"]


def schema() -> str:
    """Return values.schema.json."""
    found = Values.model_json_schema(mode="serialization")
    draft = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"Values of the kubeloop chart, {__version__}",
    }
    return json.dumps(draft | _plain(found), indent=2) + "\n"


def _plain(node: Any) -> Any:
    """Leave out titles, which repeat the names, and formats, which do not fit: `7d` is not an ISO 8601 duration."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {
        key: _plain(value) for key, value in node.items() if not (key in ("title", "format") and isinstance(value, str))
    }
    if "patternProperties" in plain:
        plain["additionalProperties"] = False
    # `cpu: 1` is a quantity too.
    return plain | {"type": ["string", "number"]} if plain.get("pattern") == _QUANTITY else plain


def values() -> str:
    """Return values.yaml: every value with its meaning and default."""
    head = "# Written by `python -m kubeloop.chart values`; change src/kubeloop/chart/values.py and run make schema.\n"
    return head + "\n".join(_lines(Values(), "")) + "\n"


def _lines(section: BaseModel, indent: str) -> Iterator[str]:
    plain = section.model_dump(mode="json", by_alias=True, exclude_none=True)
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), field.alias or name
        if value is None:
            continue
        nested = isinstance(value, BaseModel) and plain[key] != {}
        if nested and not indent:
            yield ""
        if text := field.description or (type(value).__doc__ if nested and not indent else None):
            yield textwrap.fill(
                " ".join(text.split()), 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        if nested:
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield textwrap.indent(yaml.safe_dump({key: plain[key]}, sort_keys=False, width=120).rstrip(), indent)


def loop_values(paths: Sequence[Path]) -> str:
    """Return chart values with the loops of some loop.yaml files, for an installation from Git.

    Raises:
        ConfigError: a file is missing or not valid.
    """
    files = " ".join(str(path) for path in paths)
    head = f"# Written by `python -m kubeloop.chart loop {files}`; change that file and run the command again.\n"
    loops = {
        loop.name: {"config": loop.model_dump(mode="json", exclude_unset=True)} for loop in map(config.load, paths)
    }
    return head + yaml.safe_dump({"loops": loops}, sort_keys=False, width=120)


def main() -> None:
    """Print the schema, the values, or the values of loops."""
    parser = argparse.ArgumentParser(prog="python -m kubeloop.chart", description=__doc__)
    parser.add_argument("what", choices=["schema", "values", "loop"], nargs="?", default="schema")
    parser.add_argument(
        "files", type=Path, nargs="*", help="for `loop`: the loop.yaml files; if left out, the one in this folder"
    )
    args = parser.parse_args()
    with errors.program():
        sys.stdout.write(
            {"schema": schema, "values": values}.get(
                args.what, lambda: loop_values(args.files or [Path("loop.yaml")])
            )()
        )

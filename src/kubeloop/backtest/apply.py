"""Write a policy into loop.yaml: change only its settings and keep every other character, including comments."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from kubeloop.config import ConfigError, Loop

_MARK = "# kubeloop backtest: "


@dataclass(frozen=True)
class Edit:
    """The new text of loop.yaml, and what changed in it, one line per setting."""

    text: str
    changes: list[str]


def apply(text: str, settings: Mapping[str, Mapping[str, Any]], evidence: str) -> Edit:
    """Return loop.yaml with new settings in its sections.

    Args:
        text: the file.
        settings: by section and name; a setting that is None is removed.
        evidence: one sentence, written as a comment above the first section that the policy sets; it replaces an
            earlier one.

    Raises:
        ConfigError: the file's form does not allow this change; the message says what to write by hand.
    """
    before = Loop.parse(text)
    lines = [line for line in text.splitlines(keepends=True) if not line.lstrip().startswith(_MARK)]
    new, changes = "".join(lines), []
    for section, values in settings.items():
        for name, value in values.items():
            old = getattr(getattr(before, section), name)
            new = _set(new, section, name, value)
            now = getattr(getattr(Loop.parse(new), section), name)
            if now != old:
                changes.append(
                    f"{section}.{name}: {_shown(before, section, name)} → {_shown(Loop.parse(new), section, name)}"
                )
    for section in settings:
        new = _comment(new, section, evidence)
        break
    # The new text must hold exactly the requested changes.
    wanted = _merged(before, settings)
    if Loop.parse(new) != wanted:
        raise ConfigError(
            f"loop.yaml cannot be changed without touching other settings; write {_by_hand(settings)} yourself"
        )
    return Edit(new, changes)


def _merged(loop: Loop, settings: Mapping[str, Mapping[str, Any]]) -> Loop:
    content = json.loads(loop.dump())
    for section, values in settings.items():
        inside = content.setdefault(section, {})
        for name, value in values.items():
            inside.pop(name, None) if value is None else inside.update({name: value})
    return Loop.parse(json.dumps(content))


def _set(text: str, section: str, name: str, value: Any) -> str:
    """Return the text with one setting of one section set or removed."""
    node = _section(text, section)
    if node is None:
        if value is None:
            return text
        end = "" if text.endswith("\n") or not text else "\n"
        return f"{text}{end}\n{section}:\n  {name}: {_dumped(value)}\n"
    found = next((pair for pair in node.value if pair[0].value == name), None)
    if node.flow_style:
        return _set_in_flow(text, node, found, name, value)
    if found is not None and value is not None:
        head = text[: found[1].start_mark.index]
        if isinstance(found[1], yaml.CollectionNode) and not found[1].flow_style:
            # A list on separate lines becomes a list on the line of its name.
            head = f"{text[: found[0].end_mark.index]}: "
        return f"{head}{_dumped(value)}{text[_end(found[1]) :]}"
    if found is not None:
        start = text.rfind("\n", 0, found[0].start_mark.index) + 1
        return text[:start] + text[_next_line(text, _end(found[1])) :]
    if value is None:
        return text
    place = _next_line(text, _end(node))
    indent = " " * node.value[-1][0].start_mark.column
    broken = "" if text[:place].endswith("\n") else "\n"
    return f"{text[:place]}{broken}{indent}{name}: {_dumped(value)}\n{text[place:]}"


def _end(node: yaml.Node) -> int:
    """Return where a node's text ends; in PyYAML a block ends where the next one begins, after the comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _next_line(text: str, place: int) -> int:
    return text.find("\n", place) + 1 or len(text)


def _set_in_flow(text: str, node: yaml.MappingNode, found: Any, name: str, value: Any) -> str:
    if found is not None and value is not None:
        return f"{text[: found[1].start_mark.index]}{_dumped(value)}{text[found[1].end_mark.index :]}"
    if value is None:
        if found is None:
            return text
        pairs = [text[k.start_mark.index : v.end_mark.index] for k, v in node.value if k.value != name]
    else:
        pairs = [text[k.start_mark.index : v.end_mark.index] for k, v in node.value] + [f"{name}: {_dumped(value)}"]
    return f"{text[: node.start_mark.index]}{{{', '.join(pairs)}}}{text[node.end_mark.index :]}"


def _comment(text: str, section: str, evidence: str) -> str:
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 - Loop.parse has read it
    place = next((key.start_mark.index for key, _ in root.value if key.value == section), None)
    return text if place is None else f"{text[:place]}{_MARK}{evidence}\n{text[place:]}"


def _section(text: str, section: str) -> yaml.MappingNode | None:
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise ConfigError("loop.yaml is not in YAML's block style, so its settings cannot be changed in place")
    node = next((value for key, value in root.value if key.value == section), None)
    if node is not None and (not isinstance(node, yaml.MappingNode) or not node.value):
        raise ConfigError(f"section {section} of loop.yaml is empty; remove it first")
    return node


def _dumped(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def _shown(loop: Loop, section: str, name: str) -> str:
    return _dumped(loop.model_dump(mode="json")[section][name])


def _by_hand(settings: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{section}.{name}: {_dumped(value)}" for section, values in settings.items() for name, value in values.items()
    )

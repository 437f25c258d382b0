"""The plan of a group's pod: its steps in order, and the sources of their inputs.

`grouping` writes the plan and `pod` reads it. It is part of the pod's command as JSON, so it is short: a step is
represented by the name of its component.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Source(NamedTuple):
    """The source of a value: an input of the group, or an output of one of its steps."""

    name: str
    step: str = ""

    def dump(self) -> Any:
        """Return its form in JSON: a name, or a step and a name."""
        return [self.step, self.name] if self.step else self.name

    @classmethod
    def parse(cls, content: Any) -> "Source":
        """Read what `dump` returns."""
        return cls(content) if isinstance(content, str) else cls(content[1], content[0])


class Condition(NamedTuple):
    """A condition of a step: it runs only if a value is the expected one."""

    source: Source
    value: Any


@dataclass(frozen=True)
class Member:
    """A step of a group.

    Attributes:
        step: name of the step in loop.yaml.
        function: the component's function.
        inputs: the source of each input; an input that is left out has the component's default.
        retries: how often the step is tried again.
        backoff_s: wait before the first retry, in seconds; it doubles.
        when: what must hold for the step to run.
    """

    step: str
    function: str
    inputs: Mapping[str, Source]
    retries: int = 0
    backoff_s: float = 0.0
    when: Condition | None = None


@dataclass(frozen=True)
class Plan:
    """The steps of a group, in an order in which each one's inputs exist."""

    members: Sequence[Member]

    def output(self, step: str, name: str) -> str:
        """Return the group's name for a step's output; a single step keeps its own names."""
        return f"{step}-{name}" if len(self.members) > 1 else name

    def dump(self) -> str:
        """Return the plan as JSON."""
        found = []
        for member in self.members:
            item: dict[str, Any] = {"step": member.step, "function": member.function}
            item["inputs"] = {name: source.dump() for name, source in member.inputs.items()}
            if member.retries:
                item |= {"retries": member.retries, "backoff_s": member.backoff_s}
            if member.when:
                item["when"] = [member.when.source.dump(), member.when.value]
            found.append(item)
        return json.dumps(found, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> "Plan":
        """Read what `dump` returns."""
        members = []
        for item in json.loads(text):
            item["inputs"] = {name: Source.parse(source) for name, source in item["inputs"].items()}
            if "when" in item:
                source, value = item["when"]
                item["when"] = Condition(Source.parse(source), value)
            members.append(Member(**item))
        return cls(tuple(members))

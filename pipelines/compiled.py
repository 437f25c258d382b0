"""Read the steps of a compiled pipeline and the sources of their inputs, across its conditional parts."""

import heapq
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kubeloop.config import ConfigError

Object = dict[str, Any]

_CONDITION = re.compile(r"inputs\.parameter_values\['([^']+)'\] == (true|false|-?\d+|'[^']*')")


class Step(NamedTuple):
    """A step of the pipeline, with its inputs as the whole pipeline sees them."""

    name: str
    task: Object
    component: Object
    executor: Object
    platform: Object
    inputs: dict[str, dict[str, Object]]
    branch: str
    """The conditional part of the pipeline that it is in; empty when it is in none."""
    when: tuple[Object, Any] | None
    after: frozenset[str]
    """What the conditional part as a whole waits for."""

    @property
    def needs(self) -> set[str]:
        """The steps that come before this one."""
        sources = [source for kind in self.inputs.values() for source in kind.values()]
        if self.when:
            sources.append(self.when[0])
        found = {made[0] for source in sources if (made := output(source))}
        return found | set(self.task.get("dependentTasks", ())) | self.after


def steps(spec: Object, platform: Object) -> Iterator[Step]:
    """Yield the steps of a pipeline spec and of its conditional parts, each with its executor of the platform spec.

    Raises:
        ConfigError: a task is of another kind.
    """
    components, executors = spec["components"], spec["deploymentSpec"]["executors"]

    def step(name: str, task: Object, outer: Object | None = None, branch: str = "") -> Step:
        component = components[task["componentRef"]["name"]]
        label = component.get("executorLabel", "")
        if not function(executors.get(label, {})):
            raise ConfigError(f"{name} is not a Python component and cannot be grouped; write grouping: step")
        given = task.get("inputs", {})
        inputs = {
            kind: {key: _seen(source, outer) for key, source in given.get(kind, {}).items()}
            for kind in ("parameters", "artifacts")
        }
        when = _condition(branch, outer) if outer else None
        after = frozenset(outer.get("dependentTasks", ())) if outer else frozenset()
        return Step(name, task, component, executors[label], platform.get(label, {}), inputs, branch, when, after)

    for name, task in spec["root"]["dag"]["tasks"].items():
        dag = components[task["componentRef"]["name"]].get("dag")
        if dag is None:
            yield step(name, task)
            continue
        for inner, inner_task in dag["tasks"].items():
            yield step(inner, inner_task, task, name)


def _seen(source: Object, outer: Object | None) -> Object:
    """Return where an input comes from as the root sees it: a conditional part passes on what it is given."""
    for key, kind in (("componentInputParameter", "parameters"), ("componentInputArtifact", "artifacts")):
        if outer and key in source:
            return dict(outer["inputs"][kind][source[key]])
    return source


def _condition(branch: str, outer: Object) -> tuple[Object, Any]:
    text = outer.get("triggerPolicy", {}).get("condition", "")
    match = _CONDITION.fullmatch(text)
    if not match:
        raise ConfigError(f"{branch} is not a plain condition ({text}) and cannot be grouped; write grouping: step")
    source: Object = outer["inputs"]["parameters"][match[1]]
    return source, match[2][1:-1] if match[2][0] == "'" else json.loads(match[2])


def output(source: Object) -> tuple[str, str] | None:
    """Return the step and the output that a source names; None when it names none."""
    if found := source.get("taskOutputParameter"):
        return found["producerTask"], found["outputParameterKey"]
    if found := source.get("taskOutputArtifact"):
        return found["producerTask"], found["outputArtifactKey"]
    return None


def ordered(given: Sequence[Step]) -> list[Step]:
    """Return the steps so that each comes after those it needs; where that leaves a choice, by name.

    Raises:
        ConfigError: a step needs something that is not a step.
    """
    waiting = {step.name: step.needs for step in given}
    by_name = {step.name: step for step in given}
    ready = sorted(name for name, needs in waiting.items() if not needs)
    found: list[Step] = []
    while ready:
        name = heapq.heappop(ready)
        found.append(by_name[name])
        del waiting[name]
        for other, needs in waiting.items():
            if name in needs:
                needs.discard(name)
                if not needs:
                    heapq.heappush(ready, other)
    if waiting:
        names = ", ".join(sorted(waiting))
        raise ConfigError(
            f"{names}: cannot be grouped, since they need a task that is not a step; write grouping: step"
        )
    return found


def function(executor: Object) -> str:
    """Return the function that an executor runs; empty when it runs none."""
    arguments = executor.get("container", {}).get("args", ())
    found = [value for flag, value in itertools.pairwise(arguments) if flag == "--function_to_execute"]
    return str(found[0]) if found else ""

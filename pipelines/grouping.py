"""Run several steps in one pod: turn the tasks of a compiled pipeline into groups, as `pipelines.grouping` says.

Each pod of Kubeflow Pipelines adds about twenty seconds. A group is one task. Its inputs are those that its steps take
from outside, and its outputs are all outputs of its steps, called `<step>-<output>`; its program is `pipelines.pod`.
The pipelines do not know about groups, and on one machine they run step by step.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeloop.config import ConfigError
from pipelines import compiled, merging
from pipelines.compiled import Step
from pipelines.plan import Condition, Member, Plan, Source

Object = dict[str, Any]

STAGES: Mapping[str, str] = {
    **dict.fromkeys(("extract-data", "validate-data", "build-features", "validate-features"), "data"),
    "materialize-features": "data",
    **dict.fromkeys(("train-model", "evaluate-model"), "model"),
    **dict.fromkeys(("gate-model", "register-model", "deploy-model"), "decision"),
    "score-batch": "scores",
    "judge-windows": "windows",
}
"""The stage of each step. A step that is not named here belongs to the stage of a step that follows it."""

FIXED = frozenset({"begin-run"})
"""Steps that are only cached as part of a group, since the run's name is among their inputs."""

_TYPES = {bool: "BOOLEAN", int: "NUMBER_INTEGER", str: "STRING"}


@dataclass
class _Group:
    """Steps that share a pod, and the task that they become."""

    name: str
    steps: list[Step]
    sources: dict[str, str] = field(default_factory=dict)
    """The group's inputs by source."""
    inputs: dict[str, dict[str, Object]] = field(default_factory=lambda: {"parameters": {}, "artifacts": {}})
    definitions: dict[str, dict[str, Object]] = field(default_factory=lambda: {"parameters": {}, "artifacts": {}})


def group(spec: Object, platform: Object, grouping: str, whole: str) -> tuple[Object, Object]:
    """Return a pipeline spec and its platform spec with the steps grouped.

    Args:
        spec: the pipeline spec, as kfp compiles it.
        platform: the platform spec.
        grouping: `step`, `stage` or `run`.
        whole: name of the group that holds a whole run.

    Raises:
        ConfigError: the steps of a group cannot share a pod.
    """
    spec, platform = copy.deepcopy(spec), copy.deepcopy(platform)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    dags = [spec["root"]["dag"], *(item["dag"] for item in spec["components"].values() if "dag" in item)]
    if grouping != "step":
        steps = compiled.ordered(list(compiled.steps(spec, executors)))
        groups = [_Group(name, found) for name, found in _divide(steps, grouping, whole).items()]
        of = {step.name: item for item in groups for step in item.steps}
        _check(groups, of, grouping)
        for item in groups:
            if len(item.steps) > 1:
                _join(spec, executors, item, of, grouping)
        _rewire(spec["root"]["dag"], of)
        _sweep(spec, executors)
    for dag in dags:
        for name, task in dag["tasks"].items():
            _run_alone(spec, name, task)
    return spec, platform


def _divide(steps: Sequence[Step], grouping: str, whole: str) -> dict[str, list[Step]]:
    """Return the steps of each group, in order; a group of one has the name of its step."""
    found: dict[str, list[Step]] = {}
    for number, step in enumerate(steps):
        following = (STAGES[other.name] for other in steps[number:] if other.name in STAGES)
        name = whole if grouping == "run" else STAGES.get(step.name) or next(following, step.name)
        found.setdefault(name, []).append(step)
    return {name if len(members) > 1 else members[0].name: members for name, members in found.items()}


def _check(groups: Sequence[_Group], of: Mapping[str, _Group], grouping: str) -> None:
    """Refuse groups that wait for each other, and groups that a condition covers only in part.

    Raises:
        ConfigError: there is such a group.
    """
    advice = f"pipelines.grouping: {grouping} does not fit this pipeline; write grouping: step"
    needs = {item.name: {of[name].name for step in item.steps for name in step.needs} - {item.name} for item in groups}
    while needs:
        free = {name for name, others in needs.items() if not others & needs.keys()}
        if not free:
            raise ConfigError(f"{', '.join(sorted(needs))} wait for each other; {advice}")
        needs = {name: others for name, others in needs.items() if name not in free}
    for branch in {step.branch for item in groups for step in item.steps if step.branch}:
        members = [step for item in groups for step in item.steps if step.branch == branch]
        if len({of[step.name].name for step in members}) > 1 and any(len(of[step.name].steps) > 1 for step in members):
            raise ConfigError(f"the steps of {branch} are in several groups; {advice}")


def _join(spec: Object, executors: Object, item: _Group, of: Mapping[str, _Group], grouping: str) -> None:
    """Replace the tasks of a group by one."""
    tasks = spec["root"]["dag"]["tasks"]
    plan = Plan(tuple(_member(step, item) for step in item.steps))
    outputs: Object = {}
    for step in item.steps:
        for kind, named in step.component.get("outputDefinitions", {}).items():
            for name, definition in named.items():
                outputs.setdefault(kind, {})[plan.output(step.name, name)] = definition
    retries = [step.task["retryPolicy"] for step in item.steps if "retryPolicy" in step.task]
    task: Object = {
        "taskInfo": {"name": item.name},
        "componentRef": {"name": f"comp-{item.name}"},
        "inputs": {kind: found for kind, found in item.inputs.items() if found},
        "cachingOptions": {"enableCache": True} if _is_cached(item) else {},
    }
    if needs := sorted({name for step in item.steps for name in step.needs if of[name] is not item}):
        task["dependentTasks"] = needs
    if retries:
        task["retryPolicy"] = max(retries, key=lambda policy: int(policy["maxRetryCount"]))
    parts = [merging.Part(step.name, step.executor["container"], step.platform) for step in item.steps]
    container, platform = merging.merge(parts, grouping)
    for step in item.steps:
        tasks.pop(step.branch or step.name, None)
    tasks[item.name] = task
    spec["components"][f"comp-{item.name}"] = {
        "executorLabel": f"exec-{item.name}",
        "inputDefinitions": {kind: found for kind, found in item.definitions.items() if found},
        "outputDefinitions": outputs,
    }
    spec["deploymentSpec"]["executors"][f"exec-{item.name}"] = {"container": container | _command(plan)}
    executors[f"exec-{item.name}"] = platform


def _is_cached(item: _Group) -> bool:
    wanted = [step.task.get("cachingOptions", {}).get("enableCache", False) for step in item.steps]
    return all(cached or step.name in FIXED for step, cached in zip(item.steps, wanted, strict=True))


def _member(step: Step, item: _Group) -> Member:
    """Return a step in the plan's form, and add its inputs from outside to the group."""
    inputs = {
        name: _source(item, step.name, kind, name, found, step.component["inputDefinitions"][kind][name])
        for kind, named in step.inputs.items()
        for name, found in named.items()
    }
    when = None
    if step.when:
        source, value = step.when
        definition = {"parameterType": _TYPES[type(value)]}
        when = Condition(_source(item, step.name, "parameters", "when", source, definition), value)
    return Member(step.name, compiled.function(step.executor), inputs, **_persistence(step.task), when=when)


def _persistence(task: Object) -> dict[str, Any]:
    policy = task.get("retryPolicy", {})
    backoff = float(policy.get("backoffDuration", "0s").removesuffix("s"))
    return {"retries": int(policy.get("maxRetryCount", 0)), "backoff_s": backoff}


def _source(item: _Group, step: str, kind: str, name: str, found: Object, definition: Object) -> Source:
    """Return the source of a step's input: another step, or an input of the group, which is added."""
    made = compiled.output(found)
    if made and any(other.name == made[0] for other in item.steps):
        return Source(made[1], made[0])
    key = json.dumps(found, sort_keys=True)
    if key not in item.sources:
        taken = item.inputs["parameters"].keys() | item.inputs["artifacts"].keys()
        item.sources[key] = name if name not in taken else f"{step}-{name}"
        item.inputs[kind][item.sources[key]] = found
        item.definitions[kind][item.sources[key]] = definition
    return Source(item.sources[key])


def _run_alone(spec: Object, name: str, task: Object) -> None:
    """Have our program run a task that is a single step, with unchanged inputs and outputs."""
    component = spec["components"].get(task["componentRef"]["name"], {})
    executor = spec["deploymentSpec"]["executors"].get(component.get("executorLabel"), {})
    if function := compiled.function(executor):
        inputs = {name: Source(name) for kind in component.get("inputDefinitions", {}).values() for name in kind}
        executor["container"] |= _command(Plan((Member(name, function, inputs, **_persistence(task)),)))


def _command(plan: Plan) -> Object:
    return {
        "command": ["python3", "-m", "pipelines.pod"],
        "args": ["--plan", plan.dump(), "--executor_input", "{{$}}"],
    }


def _rewire(dag: Object, of: Mapping[str, _Group]) -> None:
    """Make tasks and the pipeline's outputs refer to groups instead of their steps."""
    for task in dag["tasks"].values():
        for source in task.get("inputs", {}).get("parameters", {}).values():
            if found := source.get("taskOutputParameter"):
                _rename(found, "producerTask", "outputParameterKey", of)
        for source in task.get("inputs", {}).get("artifacts", {}).values():
            if found := source.get("taskOutputArtifact"):
                _rename(found, "producerTask", "outputArtifactKey", of)
        if "dependentTasks" in task:
            task["dependentTasks"] = sorted({of[name].name if name in of else name for name in task["dependentTasks"]})
    for output in dag.get("outputs", {}).get("parameters", {}).values():
        _rename(output["valueFromParameter"], "producerSubtask", "outputParameterKey", of)
    for output in dag.get("outputs", {}).get("artifacts", {}).values():
        for selector in output["artifactSelectors"]:
            _rename(selector, "producerSubtask", "outputArtifactKey", of)


def _rename(found: Object, task: str, key: str, of: Mapping[str, _Group]) -> None:
    item = of.get(found[task])
    if item and len(item.steps) > 1:
        found[key] = f"{found[task]}-{found[key]}"
        found[task] = item.name


def _sweep(spec: Object, platform: Object) -> None:
    """Remove components and executors that no task uses any more."""
    wanted, found = [spec["root"]], {}
    while wanted:
        for task in wanted.pop().get("dag", {}).get("tasks", {}).values():
            name = task["componentRef"]["name"]
            if name not in found:
                found[name] = spec["components"][name]
                wanted.append(found[name])
    spec["components"] = found
    labels = {component["executorLabel"] for component in found.values() if "executorLabel" in component}
    for executors in (spec["deploymentSpec"]["executors"], platform):
        for label in executors.keys() - labels:
            del executors[label]

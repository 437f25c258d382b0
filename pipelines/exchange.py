"""Pass inputs and outputs between the launcher of Kubeflow Pipelines and the steps of a group.

The launcher names every output of the group before it starts. Afterwards it reads each parameter from the file of
outputs or from a separate file; an artifact without a file is accepted. Source: kubeflow/pipelines 2.17.0,
backend/src/v2/component/launcher_v2.go (collectOutputParameters, uploadOutputArtifacts).
"""

import contextlib
import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kfp.dsl.executor import create_artifact_instance

from pipelines.plan import Member, Plan, Source

_EMPTY: dict[str, Any] = {"String": "", "Boolean": False, "Integer": 0, "Float": 0.0, "List": [], "Dict": {}}
"""The values of a skipped step's outputs, by type, since the launcher requires a value."""


class Exchange:
    """The inputs and outputs of a group, as its steps get and make them.

    Args:
        plan: the steps.
        given: the launcher's ExecutorInput, as JSON.
    """

    def __init__(self, plan: Plan, given: dict[str, Any]) -> None:
        self._plan = plan
        inputs, self._outputs = given.get("inputs", {}), given.get("outputs", {})
        self._target = Path(self._outputs["outputFile"])
        self._parameters = {Source(name): value for name, value in inputs.get("parameterValues", {}).items()}
        self._artifacts = {Source(name): value for name, value in inputs.get("artifacts", {}).items()}
        self._made: dict[str, Any] = {"parameterValues": {}, "artifacts": {}}

    def value(self, source: Source) -> Any:
        """Return a parameter."""
        return self._parameters[source]

    def executor_input(self, member: Member, output: Path) -> dict[str, Any]:
        """Return the input of kfp's executor for a step; the step's results are then in the file `output`."""
        found: dict[str, Any] = {"parameterValues": {}, "artifacts": {}}
        for name, source in member.inputs.items():
            if source in self._artifacts:
                found["artifacts"][name] = self._artifacts[source]
            elif source in self._parameters:
                found["parameterValues"][name] = self._parameters[source]
        outputs = {
            "parameters": self._places(member, "parameters"),
            "artifacts": self._places(member, "artifacts"),
            "outputFile": str(output),
        }
        return {"inputs": found, "outputs": outputs}

    def take(self, member: Member, made: dict[str, Any]) -> None:
        """Read the outputs of a step, for the next steps and for the launcher.

        Raises:
            FileNotFoundError: the step has neither returned a parameter nor written its file.
        """
        returned = made.get("parameterValues", {})
        for name, place in self._places(member, "parameters").items():
            value = returned[name] if name in returned else _read(Path(place["outputFile"]), _type(member, name))
            self._keep(member, name, value)
        for name, place in self._places(member, "artifacts").items():
            (artifact,) = place["artifacts"]
            found = made.get("artifacts", {}).get(name, {"artifacts": [{}]})
            self._made["artifacts"][self._plan.output(member.step, name)] = found
            self._artifacts[Source(name, member.step)] = {"artifacts": [artifact | found["artifacts"][0]]}

    def skip(self, member: Member) -> None:
        """Make the outputs of a skipped step empty."""
        for name in self._places(member, "parameters"):
            self._keep(member, name, _EMPTY[_type(member, name)])

    def finish(self) -> None:
        """Write the file that the launcher reads."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._target.write_text(json.dumps(self._made))

    @contextlib.contextmanager
    def traces(self, member: Member) -> Iterator[Callable[[], None]]:
        """Yield a function that removes everything that a step has since left in the folders of its outputs."""
        paths = [Path(place["outputFile"]) for place in self._places(member, "parameters").values()]
        for place in self._places(member, "artifacts").values():
            paths += [Path(create_artifact_instance(artifact).path) for artifact in place["artifacts"]]
        folders = {path.parent for path in paths}
        before = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}

        def clear() -> None:
            for path in [path for folder in folders if folder.is_dir() for path in folder.iterdir()]:
                if path not in before:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

        yield clear

    def _keep(self, member: Member, name: str, value: Any) -> None:
        self._parameters[Source(name, member.step)] = value
        self._made["parameterValues"][self._plan.output(member.step, name)] = value

    def _places(self, member: Member, kind: str) -> dict[str, Any]:
        """Return where the launcher expects a step's outputs of a kind, by the step's own names."""
        given = self._outputs.get(kind, {})
        named = {name: self._plan.output(member.step, name) for name in _component(member).component_spec.outputs or {}}
        return {name: given[outer] for name, outer in named.items() if outer in given}


def _component(member: Member) -> Any:
    return getattr(importlib.import_module(f"components.{member.function}"), member.function)


def _type(member: Member, name: str) -> str:
    return str(_component(member).component_spec.outputs[name].type)


def _read(path: Path, kind: str) -> Any:
    """Read a parameter that a step wrote to a file, as the launcher does (metadata.TextToPbValue)."""
    text = path.read_text()
    if kind == "String":
        return text
    return json.loads(text.strip().lower() if kind == "Boolean" else text)

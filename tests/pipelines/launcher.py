"""Runs a compiled pipeline as Kubeflow Pipelines' driver and launcher would, each pod with its own file system.

Like a driver, it refuses an input that the component does not declare or that has another type, and a missing
parameter. Like the launcher, it refuses an output file that is not an ExecutorOutput, and a parameter that a pod has
neither returned nor written. Sources: kubeflow/pipelines 2.17.0, backend/src/v2/driver/resolve.go and container.go,
backend/src/v2/component/launcher_v2.go, backend/src/v2/cacheutils/cache.go.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

Object = dict[str, Any]

JOB = "{{$.pipeline_job_name}}"
_KINDS = {
    "STRING": str, "BOOLEAN": bool, "NUMBER_INTEGER": (int, float), "NUMBER_DOUBLE": (int, float), "LIST": list,
    "STRUCT": dict,
}  # fmt: skip


class PodError(Exception):
    """A pod has failed; the message ends with its log."""


@dataclass
class Done:
    """A finished run.

    Attributes:
        states: COMPLETE, CACHED or SKIPPED by task, in the order in which the tasks ended.
        parameters: output parameters of each task.
        artifacts: output artifacts of each task; their files are in the store.
        logs: what each pod printed.
        result: outputs of the pipeline.
    """

    states: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, Object] = field(default_factory=dict)
    artifacts: dict[str, Object] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    result: Object = field(default_factory=dict)


class Cluster:
    """A cluster that runs pods.

    Args:
        folder: contains the file system of the running pod (`pod`) and the object store (`store`).
        home: working folder of the image.
        variables: environment of the pods.
    """

    def __init__(self, folder: Path, home: Path, variables: Mapping[str, str]) -> None:
        self.pod, self.store = folder / "pod", folder / "store"
        self._home = home
        self._variables = variables
        self._cache: dict[str, tuple[Object, Object]] = {}
        self._names = 0

    def run(self, spec: Object, given: Object, job: str) -> Done:
        """Run a pipeline to its end.

        Raises:
            PodError: a pod has failed.
        """
        wanted = spec["root"]["inputDefinitions"]["parameters"]
        assert given.keys() <= wanted.keys()
        inputs = {name: given.get(name, item.get("defaultValue")) for name, item in wanted.items()}
        done = Done()
        self._dag(spec, spec["root"]["dag"], {"parameters": inputs, "artifacts": {}}, job, done)
        for name, item in spec["root"]["dag"].get("outputs", {}).get("parameters", {}).items():
            source = item["valueFromParameter"]
            done.result[name] = done.parameters[source["producerSubtask"]][source["outputParameterKey"]]
        return done

    def path(self, artifact: Object) -> Path:
        """Return the path of an artifact's files in the store."""
        return self.store / Path(artifact["uri"]).relative_to(self.pod)

    def _dag(self, spec: Object, dag: Object, inputs: Object, job: str, done: Done) -> None:
        waiting = dict(dag["tasks"])
        over: set[str] = set()
        while waiting:
            name = next(name for name, task in waiting.items() if set(task.get("dependentTasks", ())) <= over)
            task = waiting.pop(name)
            over.add(name)
            component = spec["components"][task["componentRef"]["name"]]
            found = _resolve(task, component, inputs, done, over, job)
            if condition := task.get("triggerPolicy", {}).get("condition"):
                match = re.fullmatch(r"inputs\.parameter_values\['(.+)'\] == true", condition)
                assert match, condition
                if found["parameters"][match[1]] is not True:
                    done.states[name] = "SKIPPED"
                    continue
            if "dag" in component:
                self._dag(spec, component["dag"], found, job, done)
            else:
                executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]
                self._launch(name, task, component, executor["container"], found, done)

    def _launch(self, name: str, task: Object, component: Object, container: Object, found: Object, done: Done) -> None:
        outputs = component.get("outputDefinitions", {})
        key = json.dumps(
            [
                found["parameters"],
                {name: item["artifacts"][0]["name"] for name, item in found["artifacts"].items()},
                *(outputs, container["command"], container["args"], container["image"]),
            ],
            sort_keys=True,
        )
        cached = task.get("cachingOptions", {}).get("enableCache", False)
        if cached and key in self._cache:
            done.parameters[name], done.artifacts[name] = self._cache[key]
            done.states[name] = "CACHED"
            return
        self._names += 1
        root = self.pod / f"{name}-{self._names}"
        executor_input = {
            "inputs": {"parameterValues": found["parameters"], "artifacts": found["artifacts"]},
            "outputs": {
                "parameters": {
                    output: {"outputFile": str(self.pod / "tmp/kfp/outputs" / output)}
                    for output in outputs.get("parameters", {})
                },
                "artifacts": {
                    output: {
                        "artifacts": [
                            {
                                "name": f"{output}-{self._names}",
                                "type": item["artifactType"],
                                "uri": str(root / output),
                                "metadata": item.get("metadata", {}),
                            }
                        ]
                    }
                    for output, item in outputs.get("artifacts", {}).items()
                },
                "outputFile": str(self.pod / "tmp/kfp_outputs/output_metadata.json"),
            },
        }
        # The API's own parser: unknown fields are errors.
        parsed = json_format.ParseDict(executor_input, pipeline_spec_pb2.ExecutorInput())
        shutil.rmtree(self.pod, ignore_errors=True)
        self._prepare(executor_input)
        text = json.dumps(_as_go(json_format.MessageToDict(parsed)))
        command = [*container["command"], *(item.replace("{{$}}", text) for item in container["args"])]
        assert command[0] == "python3"
        pod = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=self._home,
            env=dict(self._variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        done.logs[name] = pod.stdout
        if pod.returncode:
            raise PodError(f"{name} ended with {pod.returncode}\n{pod.stdout}")
        done.parameters[name], done.artifacts[name] = self._collect(executor_input, outputs)
        done.states[name] = "COMPLETE"
        if cached:
            self._cache[key] = done.parameters[name], done.artifacts[name]

    def _prepare(self, given: Object) -> None:
        """Make the folders of the outputs, and download the inputs."""
        for item in given["outputs"]["parameters"].values():
            Path(item["outputFile"]).parent.mkdir(parents=True, exist_ok=True)
        for item in given["outputs"]["artifacts"].values():
            Path(item["artifacts"][0]["uri"]).parent.mkdir(parents=True, exist_ok=True)
        for item in given["inputs"]["artifacts"].values():
            (artifact,) = item["artifacts"]
            there, here = self.path(artifact), Path(artifact["uri"])
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(there, here) if there.is_dir() else shutil.copy(there, here)

    def _collect(self, given: Object, outputs: Object) -> tuple[Object, Object]:
        file = Path(given["outputs"]["outputFile"])
        content = json_format.Parse(file.read_text() if file.is_file() else "{}", pipeline_spec_pb2.ExecutorOutput())
        made = _as_go(json_format.MessageToDict(content))
        parameters = made.get("parameterValues", {})
        for name, item in given["outputs"]["parameters"].items():
            kind = outputs["parameters"][name]["parameterType"]
            if name not in parameters:
                text = Path(item["outputFile"]).read_text()
                parameters[name] = text if kind == "STRING" else json.loads(text)
            _check(name, parameters[name], kind)
        artifacts = {}
        for name, item in given["outputs"]["artifacts"].items():
            (artifact,) = item["artifacts"]
            (own,) = made.get("artifacts", {}).get(name, {}).get("artifacts", [{}])
            artifacts[name] = artifact | {"metadata": artifact["metadata"] | own.get("metadata", {})}
            if (here := Path(artifact["uri"])).exists():
                there = self.path(artifact)
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(here, there)
        return parameters, artifacts


def _resolve(task: Object, component: Object, inputs: Object, done: Done, over: set[str], job: str) -> Object:
    definitions = component.get("inputDefinitions", {})
    found: Object = {"parameters": {}, "artifacts": {}}
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "componentInputParameter" in source:
            value = inputs["parameters"][source["componentInputParameter"]]
        elif "runtimeValue" in source:
            value = source["runtimeValue"]["constant"]
            value = job if value == JOB else value
        else:
            made = source["taskOutputParameter"]
            assert made["producerTask"] in over, "it must be among the dependentTasks"
            value = done.parameters[made["producerTask"]][made["outputParameterKey"]]
        _check(name, value, definitions["parameters"][name]["parameterType"])
        found["parameters"][name] = value
    for name, source in task.get("inputs", {}).get("artifacts", {}).items():
        made = source["taskOutputArtifact"]
        assert made["producerTask"] in over, "it must be among the dependentTasks"
        artifact = done.artifacts[made["producerTask"]][made["outputArtifactKey"]]
        assert artifact["type"] == definitions["artifacts"][name]["artifactType"]
        found["artifacts"][name] = {"artifacts": [artifact]}
    for kind, named in definitions.items():
        for name, item in named.items():
            assert name in found[kind] or item.get("isOptional"), f"no value for {name}"
    return found


def _check(name: str, value: Any, kind: str) -> None:
    wanted = _KINDS[kind]
    assert isinstance(value, wanted), f"{name}: {value!r} is not a {kind}"
    assert wanted is bool or not isinstance(value, bool), f"{name}: {value!r} is not a {kind}"


def _as_go(value: Any) -> Any:
    """Return JSON as Go's protojson writes it: a whole number has no fraction."""
    if isinstance(value, dict):
        return {key: _as_go(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_go(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

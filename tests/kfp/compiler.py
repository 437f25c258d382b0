"""Kubeflow Pipelines' compiler and driver, for tests: the workflow of a compiled pipeline, and the drivers' outputs.

The rules are those of kubeflow/pipelines 2.17.0, backend/src/v2; each names its source file.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tests.kfp.argo import Object, go_json

_DRIVER = ("component", "task", "container", "task-name", "parent-dag-id")
_RETRY = ("retry-max-count", "retry-backoff-duration", "retry-backoff-factor", "retry-backoff-max-duration")
_RUN_ID = "00000000-0000-4000-8000-000000000000"
_ROOT = "s3://mlpipeline/v2/artifacts/pipeline"
_OUTPUTS, _FILES = "/tmp/outputs", "/tmp/kfp/outputs"  # noqa: S108 - in the pod


class Compiler:
    """Makes the workflow of one run (compiler/argocompiler: argo.go, dag.go, container.go)."""

    def __init__(self, spec: Object, platform: Object, parameters: Mapping[str, Any]) -> None:
        self._spec = spec
        self._config = platform.get("platforms", {}).get("kubernetes", {})
        self._kubernetes = self._config.get("deploymentSpec", {}).get("executors", {})
        self._executors = spec["deploymentSpec"]["executors"]
        self._templates: dict[str, Object] = {}
        self._arguments: dict[str, str] = {}
        defaults = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        known = {name: item["defaultValue"] for name, item in defaults.items() if "defaultValue" in item}
        self.parameters = {**known, **parameters}
        self._dag("root", spec["root"])
        runtime = {"parameterValues": self.parameters, "gcsOutputDirectory": _ROOT}
        given = {"component": self._argument("components-root"), "runtime-config": go_json(runtime)}
        entry = [
            self._task("root-driver", self._dag_driver(), given | {"driver-type": "ROOT_DAG"}),
            self._sub_dag("root", "root"),
        ]
        self._templates["entrypoint"] = {"name": "entrypoint", "dag": {"tasks": entry}}

    def workflow(self) -> Object:
        """Return the workflow that Argo gets."""
        name = f"{self._spec['pipelineInfo']['name']}-x7k2p"
        arguments = [{"name": key, "value": value} for key, value in self._arguments.items()]
        spec: Object = {
            "entrypoint": "entrypoint",
            "serviceAccountName": "kubeloop-pipeline",
            "arguments": {"parameters": arguments},
            "templates": list(self._templates.values()),
        }
        config = self._config.get("pipelineConfig", {})
        fields = {"Completion": "Completion", "Success": "Success", "Failure": "Failure"}
        ttl = {f"secondsAfter{key}": config.get(f"resourceTtlOn{value}", 0) for key, value in fields.items()}
        # A value that is not positive counts as unset (argo.go, buildTTLStrategy).
        if ttl := {key: value for key, value in ttl.items() if value > 0}:
            spec["ttlStrategy"] = ttl
        if deadline := config.get("activeDeadlineSeconds"):
            spec["activeDeadlineSeconds"] = deadline
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"name": name, "namespace": "kubeflow"},
            "spec": spec,
        }

    def _argument(self, name: str) -> str:
        assert name in self._arguments, name
        return f"{{{{workflow.parameters.{name}}}}}"

    def _save(self, name: str, message: Object) -> str:
        self._arguments.setdefault(name, go_json(message))
        return self._argument(name)

    def _dag(self, name: str, component: Object) -> None:
        tasks = []
        for key, task in sorted(component["dag"]["tasks"].items()):
            tasks += self._pair(key, task)
        self._save(f"components-{name}", component)
        inputs = {"parameters": [{"name": "parent-dag-id"}]}
        self._templates[name] = {"name": name, "inputs": inputs, "dag": {"tasks": tasks}}

    def _pair(self, name: str, task: Object) -> list[Object]:
        """Return the two Argo tasks of a pipeline task, its driver and itself (dag.go, task)."""
        reference = task["componentRef"]["name"]
        component = self._spec["components"][reference]
        # Implicit dependencies were added earlier (addImplicitDependencies).
        depends = " && ".join(f"{item}.Succeeded" for item in task.get("dependentTasks", ()))
        common = {"task": go_json(task), "task-name": name, "parent-dag-id": "{{inputs.parameters.parent-dag-id}}"}
        if "dag" in component:
            self._dag(reference, component)
            given = common | {"component": self._argument(f"components-{reference}")}
            driver = self._task(f"{name}-driver", self._dag_driver(), given, depends)
            return [driver, self._sub_dag(name, reference)]
        label = component["executorLabel"]
        container = self._executors[label]["container"]
        digest = hashlib.sha256(go_json(container).encode()).hexdigest()
        given = common | {
            "component": self._save(f"components-{digest}", component),
            "container": self._save(f"implementations-{digest}", container),
        }
        kubernetes = self._kubernetes.get(label, {})
        if kubernetes:
            given["kubernetes-config"] = self._save(f"kubernetes-{reference}", kubernetes)
        driver = self._task(f"{name}-driver", self._container_driver(), given, depends)
        return [driver, self._executor(name, task, kubernetes)]

    def _sub_dag(self, name: str, template: str) -> Object:
        given = {"parent-dag-id": f"{{{{tasks.{name}-driver.outputs.parameters.execution-id}}}}"}
        return self._task(name, template, given, f"{name}-driver.Succeeded")

    def _executor(self, name: str, task: Object, kubernetes: Object) -> Object:
        """Source: container.go, containerExecutorTask and addContainerExecutorTemplate."""
        metadata = kubernetes.get("podMetadata", {})
        extra: dict[str, str] = {}
        for kind in ("annotation", "label"):
            pairs = sorted(metadata.get(f"{kind}s", {}).items())
            for number, (key, value) in enumerate(pairs, 1):
                suffix = f"-{number}" if len(pairs) > 1 else ""
                extra |= {f"pod-metadata-{kind}-key{suffix}": key, f"pod-metadata-{kind}-val{suffix}": value}
        retry = task.get("retryPolicy")
        if retry:
            values = (retry["maxRetryCount"], retry["backoffDuration"], retry["backoffFactor"], "3600")
            extra |= dict(zip(_RETRY, map(str, values), strict=True))
        prefix = "retry-" if retry else ""
        if metadata:
            counts = (len(metadata.get(kind, {})) for kind in ("annotations", "labels"))
            prefix = "-".join(["metadata", *map(str, counts), prefix])
            prefix = prefix if prefix.endswith("-") else f"{prefix}-"
        outer, inner = f"{prefix}system-container-executor", f"{prefix}system-container-impl"
        if outer not in self._templates:
            names = ["pod-spec-patch", *extra]
            passed = {item: f"{{{{inputs.parameters.{item}}}}}" for item in names}
            inputs = {
                "parameters": [*({"name": item} for item in names), {"name": "cached-decision", "default": "false"}]
            }
            tasks = [self._task("executor", inner, passed)]
            self._templates[outer] = {"name": outer, "inputs": inputs, "dag": {"tasks": tasks}}
            impl: Object = {"name": inner, "inputs": {"parameters": [{"name": item} for item in names]}}
            impl |= {"container": {"image": "gcr.io/ml-pipeline/should-be-overridden-during-runtime"}}
            if retry:
                # The policy is left out, so the default in Kubeflow's configuration counts.
                limit, duration, factor, longest = (f"{{{{inputs.parameters.{item}}}}}" for item in _RETRY)
                backoff = {"duration": duration, "factor": factor, "maxDuration": longest}
                impl["retryStrategy"] = {"limit": limit, "backoff": backoff}
            self._templates[inner] = impl
        outputs = f"tasks.{name}-driver.outputs.parameters"
        given = {
            "pod-spec-patch": f"{{{{{outputs}.pod-spec-patch}}}}",
            "cached-decision": f"{{{{{outputs}.cached-decision}}}}",
        }
        return self._task(name, outer, given | extra, f"{name}-driver.Succeeded")

    def _container_driver(self) -> str:
        """Source: container.go, addContainerDriverTemplate."""
        name = "system-container-driver"
        outputs = (("pod-spec-patch", ""), ("cached-decision", "false"), ("condition", "true"))
        inputs = [{"name": item} for item in _DRIVER] + [_with("iteration-index", "-1"), _with("kubernetes-config", "")]
        return self._driver(name, inputs, outputs)

    def _dag_driver(self) -> str:
        """Source: dag.go, addDAGDriverTemplate."""
        defaults = (("runtime-config", ""), ("task", ""), ("task-name", ""), ("parent-dag-id", "0"))
        more = (("iteration-index", "-1"), ("driver-type", "DAG"))
        inputs = [{"name": "component"}, *(_with(*item) for item in (*defaults, *more))]
        outputs = (("execution-id", ""), ("iteration-count", "0"), ("condition", "true"))
        return self._driver("system-dag-driver", inputs, outputs)

    def _driver(self, name: str, inputs: list[Object], outputs: tuple[tuple[str, str], ...]) -> str:
        declared = [
            {"name": key, "valueFrom": {"path": f"{_OUTPUTS}/{key}", "default": value}} for key, value in outputs
        ]
        container = {"image": "ghcr.io/kubeflow/kfp-driver:2.17.0", "command": ["driver"]}
        template = {"inputs": {"parameters": inputs}, "outputs": {"parameters": declared}, "container": container}
        self._templates.setdefault(name, {"name": name, **template})
        return name

    @staticmethod
    def _task(name: str, template: str, given: Mapping[str, str], depends: str = "") -> Object:
        parameters = [{"name": key, "value": value} for key, value in given.items()]
        task: Object = {"name": name, "template": template, "arguments": {"parameters": parameters}}
        return task | ({"depends": depends} if depends else {})


def _with(name: str, default: str) -> Object:
    return {"name": name, "default": default}


class Drivers:
    """The outputs of a run's driver pods (driver/container.go, driver.go, resolve.go, k8s.go).

    Args:
        parameters: the run's parameters.
        returned: return values of steps, by output; any other output is a text of usual length.
    """

    def __init__(self, parameters: Mapping[str, Any], returned: Mapping[str, Any]) -> None:
        self._scopes: dict[str, Mapping[str, Any]] = {}
        self._parameters = parameters
        self._returned = returned
        self._count = 0

    def __call__(self, template: Object, given: Mapping[str, str]) -> dict[str, str]:
        """Return the outputs of a pod by its template and inputs."""
        if template["name"] == "system-dag-driver":
            self._count += 1
            identity = str(self._count)
            root = given["driver-type"] == "ROOT_DAG"
            self._scopes[identity] = self._parameters if root else self._inputs(given)["parameterValues"]
            return {"execution-id": identity, "iteration-count": "0", "condition": "true"}
        if template["name"] == "system-container-driver":
            return {"pod-spec-patch": self._patch(given), "cached-decision": "false", "condition": "true"}
        return {}

    def _inputs(self, given: Mapping[str, str]) -> Object:
        """Resolve a task's inputs (resolve.go, resolveInputs)."""
        task, scope = json.loads(given["task"]), self._scopes[given["parent-dag-id"]]
        found: Object = {"parameterValues": {}, "artifacts": {}}
        for name, source in task.get("inputs", {}).get("parameters", {}).items():
            found["parameterValues"][name] = self._parameter(source, scope)
        for name in task.get("inputs", {}).get("artifacts", {}):
            metadata = {"display_name": name, "rows": {f"table_{number}": 1234567 for number in range(8)}}
            item = _artifact(name) | {"metadata": metadata}
            found["artifacts"][name] = {"artifacts": [item]}
        return found

    def _parameter(self, source: Object, scope: Mapping[str, Any]) -> Any:
        if "componentInputParameter" in source:
            return scope[source["componentInputParameter"]]
        if "taskOutputParameter" in source:
            output = source["taskOutputParameter"]
            # If steps share a pod, an output is named `<step>-<output>`.
            name = output["outputParameterKey"].rpartition("-")[2]
            return self._returned.get(name, "x" * 64)
        return source["runtimeValue"]["constant"]

    def _patch(self, given: Mapping[str, str]) -> str:
        """Return the patch of the step's pod (driver.go, initPodSpecPatch; k8s.go, extendPodSpecPatch)."""
        component, container = json.loads(given["component"]), json.loads(given["container"])
        kubernetes = json.loads(given.get("kubernetes-config") or "{}")
        outputs = component.get("outputDefinitions", {})
        names = [*outputs.get("artifacts", {}), "executor-logs"]
        executor = {
            "inputs": self._inputs(given),
            "outputs": {
                "parameters": {name: {"outputFile": f"{_FILES}/{name}"} for name in outputs.get("parameters", {})},
                "artifacts": {name: {"artifacts": [_artifact(name)]} for name in names},
                "outputFile": f"/s3/{_ROOT[5:]}/{given['task-name']}/{_RUN_ID}/output_metadata.json",
            },
        }
        # The inner JSON is protojson, which does not escape for HTML; the outer one is Go's JSON, which does.
        flags = {
            "pipeline_name": "pipeline-of-a-use-case",
            "run_id": _RUN_ID,
            "execution_id": "1234",
            "executor_input": json.dumps(executor, separators=(",", ":"), ensure_ascii=False),
            "component_spec": json.dumps(component, separators=(",", ":"), ensure_ascii=False),
            "pod_name": "$(KFP_POD_NAME)",
            "pod_uid": "$(KFP_POD_UID)",
            "ml_pipeline_server_address": "ml-pipeline.kubeflow.svc.cluster.local",
            "ml_pipeline_server_port": "8887",
            "mlmd_server_address": "metadata-grpc-service.kubeflow.svc.cluster.local",
            "mlmd_server_port": "8080",
            "publish_logs": "true",
        }
        launcher = [text for name, value in flags.items() for text in (f"--{name}", value)]
        limits = container.get("resources", {})
        main = {
            "name": "main",
            "image": container["image"],
            "command": ["/kfp-launcher/launch", *launcher, "--publish_logs", "true", "--"],
            "args": [*container.get("command", ()), *container.get("args", ())],
            "env": [*container.get("env", ()), *_environment(kubernetes)],
            "resources": {"limits": limits, "requests": limits},
            "imagePullPolicy": kubernetes.get("imagePullPolicy", ""),
            "securityContext": kubernetes.get("securityContext", {}),
        }
        pod = {
            "containers": [main],
            **{key: kubernetes[key] for key in ("tolerations", "nodeSelector") if key in kubernetes},
        }
        pod |= {"imagePullSecrets": [{"name": item["secretName"]} for item in kubernetes.get("imagePullSecret", ())]}
        return go_json(pod)


def _artifact(name: str) -> Object:
    uri = f"{_ROOT}/step-of-a-pipeline/{_RUN_ID}/{name}"
    return {"name": name, "type": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}, "uri": uri}


def _environment(kubernetes: Object) -> list[Object]:
    found = []
    for source, kind in (("secretAsEnv", "secret"), ("configMapAsEnv", "configMap")):
        for item in kubernetes.get(source, ()):
            for key in item["keyToEnv"]:
                selector = {"name": item[f"{kind}Name"], "key": key[f"{kind}Key"], "optional": False}
                found.append({"name": key["envVar"], "valueFrom": {f"{kind}KeyRef": selector}})
    fields = kubernetes.get("fieldPathAsEnv", ())
    return found + [
        {"name": item["name"], "valueFrom": {"fieldRef": {"fieldPath": item["fieldPath"]}}} for item in fields
    ]

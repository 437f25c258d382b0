"""Argo Workflows as Kubeflow Pipelines configures it, for tests: defaults, a run's nodes, their size, the pods' token.

The rules are those of argo-workflows v4.0.5 and of its configuration in Kubeflow Pipelines 2.17.0; each names its
source file.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Object = dict[str, Any]

MAX_WORKFLOW_SIZE = 1024 * 1024
"""Bytes of a whole Workflow as JSON above which `status.nodes` is compressed (workflow/packer/packer.go).

The persistence agent of Kubeflow Pipelines does not read compressed nodes (backend/src/common/util/workflow.go,
NodeStatuses): a run's task details stay as they were.
"""

WORKFLOW_DEFAULTS: Object = {
    "ttlStrategy": {"secondsAfterCompletion": 3600, "secondsAfterSuccess": 3600, "secondsAfterFailure": 3600},
    "templateDefaults": {"retryStrategy": {"limit": "2", "retryPolicy": "OnError"}},
}
"""kubeflow/pipelines 2.17.0, manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml."""

_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_PLACEHOLDER = re.compile(r"\{\{([^{}]+)\}\}")
_NOW = "2026-11-28T08:00:00Z"
_NEVER = "0001-01-01T00:00:00Z"


def go_json(value: Any) -> str:
    """Write JSON as Go's encoding/json does: no spaces, and HTML's special characters escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return "".join(_HTML.get(letter, letter) for letter in text)


def merged(defaults: Any, given: Any) -> Any:
    """Merge mappings key by key; given values win (workflow/util/merge.go, MergeTo; operator.go for templates)."""
    if not isinstance(defaults, Mapping) or not isinstance(given, Mapping):
        return given
    return {**defaults, **{key: merged(defaults.get(key), value) for key, value in given.items()}}


def defaulted(workflow: Object, defaults: Object = WORKFLOW_DEFAULTS) -> Object:
    """Return the workflow with defaults, as the controller reads it, and each template as it is executed.

    Source: workflow/controller/operator.go, setExecWorkflow and mergedTemplateDefaultsInto.
    """
    spec = merged(defaults, workflow["spec"])
    templates = [merged(spec.get("templateDefaults", {}), template) for template in spec["templates"]]
    return {**workflow, "spec": {**spec, "templates": templates}}


def kept_for(workflow: Object, succeeded: bool) -> int | None:
    """Return how many seconds a finished workflow is kept (workflow/gccontroller/gc_controller.go, ttl)."""
    ttl = workflow["spec"].get("ttlStrategy", {})
    own = ttl.get("secondsAfterSuccess" if succeeded else "secondsAfterFailure")
    return own if own is not None else ttl.get("secondsAfterCompletion")


def retries_failures(template: Object) -> bool:
    """Whether a pod that exits with an error is tried again (workflow_types.go, RetryPolicyActual; operator.go)."""
    strategy = template.get("retryStrategy", {})
    policy = strategy.get("retryPolicy") or ("Always" if "expression" in strategy else "OnFailure")
    return bool(strategy) and policy in ("Always", "OnFailure")


def has_token(account: Object, template: Object | None = None) -> bool:
    """Whether a workflow's pods get the service account token; without it argoexec panics in its init container.

    The pod does not set it unless the workflow refuses the token, so the account decides
    (workflow/controller/workflowpod.go, addVolumeReferences and the code after it; cmd/argoexec).
    """
    return (template or {}).get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))


def node_id(workflow: str, name: str) -> str:
    """Return the id of a node (pkg/apis/workflow/v1alpha1/workflow_types.go, NodeID): FNV-1a over its name."""
    if name == workflow:
        return workflow
    found = 0x811C9DC5
    for byte in name.encode():
        found = (found ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f"{workflow}-{found}"


class Nodes:
    """`status.nodes` of one workflow, as operator.go makes them."""

    def __init__(self, workflow: str) -> None:
        self.workflow = workflow
        self.found: dict[str, Object] = {}

    def add(self, name: str, kind: str, boundary: str = "", **fields: Any) -> Object:
        """Add a node (initializeNode); its display name is its name without that of its boundary."""
        parent = self.found.get(node_id(self.workflow, boundary)) if boundary else None
        shown = name.removeprefix(parent["name"]).removeprefix(".") if parent else name
        node = {"id": node_id(self.workflow, name), "name": name, "displayName": shown, "type": kind}
        times = {"startedAt": _NOW, "finishedAt": _NOW, "estimatedDuration": 10, "progress": "1/1"}
        used = {"resourcesDuration": {"cpu": 10, "memory": 100}}
        node |= {"templateScope": f"local/{self.workflow}", "phase": "Succeeded"} | times | used | fields
        if parent:
            node["boundaryID"] = parent["id"]
        self.found[node["id"]] = node
        return node

    def tasks(self, run_id: str = "") -> list[Object]:
        """Return the nodes as the task details of a run: all of them by id, children by id; names are not unique.

        Source: kubeflow/pipelines 2.17.0, backend/src/apiserver/server/api_converter.go, toModelTasks and
        toApiPipelineTaskDetail; states by backend/src/apiserver/model/run.go, ToV2.
        """
        return [_task(run_id, self.found[name]) for name in sorted(self.found)]


def _task(run_id: str, node: Object) -> Object:
    phase = node["phase"].upper()
    known = {"ERROR": "FAILED", "OMITTED": "RUNTIME_STATE_UNSPECIFIED"}
    # What has not happened yet has Go's zero time, year 1.
    ended = node["finishedAt"] if phase not in ("RUNNING", "PENDING") else _NEVER
    times = {"start_time": node["startedAt"], "end_time": ended}
    children = [{"pod_name": child} for child in node.get("children", ())]
    return {
        "run_id": run_id,
        "task_id": f"task-{node['id']}",
        "display_name": node["displayName"],
        "state": known.get(phase, phase),
        **times,
        **({"child_tasks": children} if children else {}),
    }


def progress(workflow: str, states: Mapping[str, str | tuple[str, ...]], driver_failed: str = "") -> Nodes:
    """Return the nodes of one of our runs at some moment, under Kubeflow's defaults.

    Args:
        workflow: name of the workflow.
        states: KFP's state of each step that Argo has reached, or one state per attempt; for a PENDING step, the driver
            runs.
        driver_failed: a step whose driver could not start.
    """
    nodes = Nodes(workflow)

    def pair(name: str, kind: str, boundary: str, state: str) -> str:
        phase = {"phase": state.capitalize()}
        child = nodes.add(f"{name}(0)", kind, boundary, **phase)
        nodes.add(name, "Retry", boundary, **phase, children=[child["id"]])
        return f"{name}(0)"

    entry = pair(workflow, "DAG", "", "RUNNING")
    pair(f"{entry}.root-driver", "Pod", entry, "SUCCEEDED")
    root = pair(f"{entry}.root", "DAG", entry, "RUNNING")
    pair(f"{root}.condition-1-driver", "Pod", root, "SUCCEEDED")
    pair(f"{root}.condition-1", "DAG", root, "RUNNING")
    if driver_failed:
        pair(f"{root}.{driver_failed}-driver", "Pod", root, "FAILED")
    done: list[str] = []
    for step, said in states.items():
        tries = (said,) if isinstance(said, str) else said
        pair(f"{root}.{step}-driver", "Pod", root, "RUNNING" if tries == ("PENDING",) else "SUCCEEDED")
        # As seen on 4.0.5: if step B waits for step A, A has B's driver among its children, next to its own executor.
        for earlier in done:
            nodes.found[earlier]["children"].append(node_id(workflow, f"{root}.{step}-driver"))
        if tries == ("PENDING",):
            continue
        outer = pair(f"{root}.{step}", "DAG", root, tries[-1])
        pods = [
            nodes.add(f"{outer}.executor({number})", "Pod", outer, phase=state.capitalize())["id"]
            for number, state in enumerate(tries)
        ]
        executor = nodes.add(f"{outer}.executor", "Retry", outer, phase=tries[-1].capitalize(), children=pods)
        nodes.found[node_id(workflow, outer)]["children"] = [executor["id"]]
        done.append(node_id(workflow, outer))
    return nodes


def run(workflow: Object, pod: Callable[[Object, Mapping[str, str]], Mapping[str, str]]) -> Nodes:
    """Execute a workflow, each pod once and successfully, and return the final nodes.

    Args:
        workflow: a workflow that `defaulted` returned.
        pod: returns a pod's output parameters by its template and inputs.
    """
    return _Execution(workflow, pod).nodes


class _Execution:
    """Source: workflow/controller/operator.go, executeTemplate; dag.go, executeDAG."""

    def __init__(self, workflow: Object, pod: Callable[[Object, Mapping[str, str]], Mapping[str, str]]) -> None:
        spec, self._name = workflow["spec"], workflow["metadata"]["name"]
        self._pod = pod
        self._templates = {template["name"]: template for template in spec["templates"]}
        arguments = spec["arguments"]["parameters"]
        self._globals = {f"workflow.parameters.{item['name']}": item["value"] for item in arguments}
        self.nodes = Nodes(self._name)
        self._execute(self._name, spec["entrypoint"], {}, "")

    def _execute(self, name: str, template_name: str, given: Mapping[str, str], boundary: str) -> Mapping[str, str]:
        template = self._templates[template_name]
        # Every node keeps its template's inputs with their values (initializeExecutableNode).
        inputs = [
            {**item, "value": given.get(item["name"], item.get("default"))}
            for item in template.get("inputs", {}).get("parameters", ())
        ]
        fields: Object = {"templateName": template_name, **({"inputs": {"parameters": inputs}} if inputs else {})}
        values = {item["name"]: item["value"] for item in inputs}
        parent: Object | None = None
        if "retryStrategy" in template:
            # One more node represents all attempts, with the same inputs and, at the end, the last attempt's outputs.
            parent = self.nodes.add(name, "Retry", boundary, **fields)
            name = f"{name}(0)"
            parent["children"] = [node_id(self._name, name)]
            fields["nodeFlag"] = {"retried": True}
        if "dag" in template:
            node = self.nodes.add(name, "DAG", boundary, **fields)
            outputs: Mapping[str, str] = {}
            last = self._dag(name, template["dag"]["tasks"], values)
            node |= {"children": last[:1], "outboundNodes": last[-1:]}
        else:
            node = self.nodes.add(name, "Pod", boundary, **fields, hostNodeName="node-1.cluster.local")
            outputs = self._pod(template, values)
            node["outputs"] = self._outputs(template, outputs, node["id"])
        if parent is not None and "outputs" in node:
            parent["outputs"] = node["outputs"]
        return outputs

    def _dag(self, name: str, tasks: list[Object], values: Mapping[str, str]) -> list[str]:
        scope = self._globals | {f"inputs.parameters.{key}": value for key, value in values.items()}
        done: set[str] = set()
        while waiting := [task for task in tasks if task["name"] not in done]:
            ready = [
                task for task in waiting if set(re.findall(r"([\w-]+)\.Succeeded", task.get("depends", ""))) <= done
            ]
            assert ready, f"{name} waits forever"
            for task in ready:
                arguments = task.get("arguments", {}).get("parameters", ())
                given = {item["name"]: filled(item["value"], scope) for item in arguments if "value" in item}
                made = self._execute(f"{name}.{task['name']}", task["template"], given, name)
                scope |= {f"tasks.{task['name']}.outputs.parameters.{key}": value for key, value in made.items()}
                done.add(task["name"])
        return [node_id(self._name, f"{name}.{task['name']}") for task in tasks]

    def _outputs(self, template: Object, values: Mapping[str, str], identity: str) -> Object:
        declared = template.get("outputs", {}).get("parameters", ())
        parameters = [{**item, "value": values[item["name"]]} for item in declared if item["name"] in values]
        # Kubeflow's configuration makes Argo keep the logs (archiveLogs).
        key = f"private-artifacts/kubeflow/{self._name}/2026/11/28/{identity}-{template['name']}/main.log"
        logs = {"exitCode": "0", "artifacts": [{"name": "main-logs", "s3": {"key": key}}]}
        return logs | ({"parameters": parameters} if parameters else {})


def filled(text: str, scope: Mapping[str, str]) -> str:
    """Replace the placeholders that a scope knows in a text."""
    return _PLACEHOLDER.sub(lambda match: str(scope.get(match[1], match[0])), text)


def size(workflow: Object, nodes: Nodes) -> int:
    """Return the size of the workflow with its nodes, which Argo compares with its limit (packer.go, getSize)."""
    pods = [name for name, node in nodes.found.items() if node["type"] == "Pod"]
    status = {
        "phase": "Succeeded",
        "startedAt": _NOW,
        "finishedAt": _NOW,
        "taskResultsCompletionStatus": dict.fromkeys(pods, True),
        "nodes": nodes.found,
    }
    # Labels, annotations, managed fields and the reference to the artifact store take a few kilobytes.
    rest = 4096
    return len(go_json({**workflow, "status": status}).encode()) + rest


def shares(nodes: Nodes) -> Iterator[tuple[int, str, str]]:
    """Yield the size of the nodes' parameters, largest first: bytes in all nodes, name of the parameter, in or out."""
    found: dict[tuple[str, str], int] = {}
    for node in nodes.found.values():
        for side in ("inputs", "outputs"):
            for item in node.get(side, {}).get("parameters", ()):
                key = (item["name"], side)
                found[key] = found.get(key, 0) + len(go_json(item).encode())
    return iter(sorted(((taken, *key) for key, taken in found.items()), reverse=True))

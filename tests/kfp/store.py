"""State and rules of the tests' pipelines API: experiments, pipelines, versions, runs and recurring runs.

The rules are those of Kubeflow Pipelines 2.17: what is unique, what a filter may name, how lists are sorted, how long a
description may be, which runs can be terminated, and that times have whole seconds. A run's task details are all nodes
of its Argo workflow. A run whose service account gives its pods no token fails at its first pod; tests/kfp/argo.py
names the sources.
"""

import base64
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

import yaml

from tests.kfp import argo

NEVER = "1970-01-01T00:00:00Z"
OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_SCALARS = ("EQUALS", "NOT_EQUALS", "GREATER_THAN", "GREATER_THAN_EQUALS", "LESS_THAN", "LESS_THAN_EQUALS")
_KINDS = {
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "STRING": (str,),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
FIELDS = {
    "experiments": ("experiment_id", "display_name", "created_at", "description", "namespace", "storage_state"),
    "pipelines": ("pipeline_id", "name", "display_name", "created_at", "description", "namespace"),
    "pipeline_versions": ("pipeline_version_id", "name", "display_name", "created_at", "description"),
    "runs": (
        *("run_id", "display_name", "created_at", "finished_at", "description", "scheduled_at", "storage_state"),
        *("namespace", "experiment_id", "state", "recurring_run_id"),
    ),
    "recurring_runs": ("recurring_run_id", "display_name", "created_at", "updated_at", "description"),
}
"""The fields by which each list can be filtered and sorted."""


class ApiError(Exception):
    """An error response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Store:
    """What the API stores; every operation has its name from the specification."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.multi_user = False
        self.ends_at_once = True
        self.account: Callable[[str], dict[str, Any]] = lambda _: {}
        """Returns a service account by name, as in the cluster."""
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurring: dict[str, dict[str, Any]] = {}

    def finish(self, run_id: str, state: str) -> None:
        """Let a run end with a state."""
        with self.lock:
            self.runs[run_id] |= {"state": state, "finished_at": self._now()}

    def set_tasks(self, run_id: str, **states: str | tuple[str, ...]) -> None:
        """Set the states of a run's steps, or of their attempts; a step's dashes are underscores."""
        given = {name.replace("_", "-"): state for name, state in states.items()}
        self.report(run_id, argo.progress(f"pipeline-{run_id[:5]}", given))

    def report(self, run_id: str, nodes: argo.Nodes, size: int = 0) -> None:
        """Accept the persistence agent's report of a run; the agent sees no nodes of a workflow that is too large."""
        with self.lock:
            run = self.runs[run_id]
            if size <= argo.MAX_WORKFLOW_SIZE:
                run["run_details"] = {"task_details": nodes.tasks(run_id)}
            run["state"] = "RUNNING"

    def live(self) -> list[dict[str, Any]]:
        """Return the runs that have not ended."""
        with self.lock:
            return [run for run in self.runs.values() if run["state"] not in (*OVER, "CANCELING")]

    def healthz_service_get_healthz(self, **_: Any) -> Any:
        return {"multi_user": self.multi_user}

    def experiment_service_create_experiment(self, body: Any, **_: Any) -> Any:
        self._limit(body)
        namespace = self._namespace(body.get("namespace"))
        if any(
            e["display_name"] == body["display_name"] and e["namespace"] == namespace for e in self._all("experiments")
        ):
            raise ApiError(409, "experiment already exists")
        return self._keep(
            "experiments", "experiment_id", {**body, "namespace": namespace, "storage_state": "AVAILABLE"}
        )

    def experiment_service_list_experiments(self, query: dict[str, str], **_: Any) -> Any:
        namespace = self._namespace(query.get("namespace"))
        return self._list("experiments", query, lambda item: item["namespace"] == namespace)

    def pipeline_service_create_pipeline(self, body: Any, **_: Any) -> Any:
        namespace = self._namespace(body.get("namespace"))
        if any(p["name"] == body["name"] and p["namespace"] == namespace for p in self._all("pipelines")):
            raise ApiError(409, "pipeline already exists")
        return self._keep("pipelines", "pipeline_id", {**body, "namespace": namespace})

    def pipeline_service_get_pipeline_by_name(self, query: dict[str, str], name: str) -> Any:
        namespace = self._namespace(query.get("namespace"))
        for pipeline in self._all("pipelines"):
            if pipeline["name"] == name and pipeline["namespace"] == namespace:
                return pipeline
        raise ApiError(404, f"pipeline {name} not found")

    def pipeline_service_list_pipeline_versions(self, query: dict[str, str], pipeline_id: str) -> Any:
        return self._list("pipeline_versions", query, lambda item: item["pipeline_id"] == pipeline_id)

    def upload_pipeline_version(self, query: dict[str, str], file: tuple[str, bytes], **_: Any) -> Any:
        name, content = file
        pipeline_id = query.get("pipelineid", "")
        if pipeline_id not in self.pipelines or not name.endswith((".yaml", ".yml")):
            raise ApiError(400, "Failed to create a pipeline version")
        try:
            spec = next(yaml.load_all(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
            assert spec["pipelineInfo"]["name"]
            assert spec["root"]
            assert spec["deploymentSpec"]
        except (AssertionError, KeyError, TypeError, yaml.YAMLError):
            raise ApiError(400, "Invalid input error: unknown template format") from None
        version = query.get("name") or name
        if any(v["pipeline_id"] == pipeline_id and v["name"] == version for v in self._all("versions")):
            raise ApiError(409, "Failed to create a pipeline version")
        kept = {"pipeline_id": pipeline_id, "name": version, "display_name": query.get("display_name") or version}
        return self._keep(
            "versions",
            "pipeline_version_id",
            {**kept, "description": query.get("description", ""), "pipeline_spec": {"pipeline_spec": spec}},
        )

    def run_service_create_run(self, body: Any, **_: Any) -> Any:
        self._limit(body)
        self._runnable(body)
        if body.keys() & {"run_id", "state", "created_at", "finished_at", "run_details", "error", "plugins_output"}:
            raise ApiError(400, "a field that only the server sets")
        now = self._now()
        fresh = {"state": "PENDING", "storage_state": "AVAILABLE", "scheduled_at": now, "finished_at": NEVER}
        made = self._keep("runs", "run_id", {**body, **fresh})
        if not argo.has_token(self.account(body.get("service_account", ""))):
            self.report(made["run_id"], argo.progress(f"pipeline-{made['run_id'][:5]}", {}))
            self.finish(made["run_id"], "FAILED")
        return made

    def run_service_get_run(self, run_id: str, **_: Any) -> Any:
        return self._get(self.runs, "run", run_id)

    def run_service_list_runs(self, query: dict[str, str], **_: Any) -> Any:
        return self._list("runs", query, self._in_namespace(query))

    def run_service_terminate_run(self, run_id: str, **_: Any) -> Any:
        run = self._get(self.runs, "run", run_id)
        if run["state"] not in ("PAUSED", "PENDING", "RUNNING", "RUNTIME_STATE_UNSPECIFIED"):
            raise ApiError(400, f"Failed to terminate a run {run_id}. Row not found")
        run["state"] = "CANCELING"
        if self.ends_at_once:
            self.finish(run_id, "CANCELED")
        return {}

    def recurring_run_service_create_recurring_run(self, body: Any, **_: Any) -> Any:
        self._limit(body)
        self._runnable(body, pinned=False)
        namespace = self.experiments[body["experiment_id"]]["namespace"]
        if body.get("namespace") not in (None, "", namespace):
            raise ApiError(400, f"Experiment belongs to namespace '{namespace}' instead of '{body['namespace']}'")
        if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
            raise ApiError(400, "cron expressions have six fields")
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise ApiError(400, "The max concurrency of the recurring run is out of range")
        kept = {**body, "status": {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body["mode"]], "updated_at": self._now()}
        return self._keep("recurring", "recurring_run_id", kept)

    def recurring_run_service_list_recurring_runs(self, query: dict[str, str], **_: Any) -> Any:
        return self._list("recurring_runs", query, self._in_namespace(query))

    def recurring_run_service_delete_recurring_run(self, recurring_run_id: str, query: dict[str, str]) -> Any:
        self._get(self.recurring, "recurring run", recurring_run_id)
        if query.get("propagation_policy") not in (None, "FOREGROUND", "BACKGROUND", "ORPHAN"):
            raise ApiError(400, "propagation_policy")
        del self.recurring[recurring_run_id]
        return {}

    def _all(self, kind: str) -> list[dict[str, Any]]:
        return list(getattr(self, kind).values())

    def _keep(self, kind: str, key: str, item: dict[str, Any]) -> dict[str, Any]:
        identity = str(uuid.uuid4())
        kept = {"description": "", **item, key: identity, "created_at": self._now()}
        getattr(self, kind)[identity] = kept
        return kept

    def _now(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    def _namespace(self, given: str | None) -> str:
        if not self.multi_user:
            return ""
        if not given:
            raise ApiError(400, "a namespace is required in multi-user mode")
        return given

    def _in_namespace(self, query: dict[str, str]) -> Callable[[dict[str, Any]], bool]:
        if experiment := query.get("experiment_id"):
            self._get(self.experiments, "experiment", experiment)
            return lambda item: item["experiment_id"] == experiment
        namespace = self._namespace(query.get("namespace"))
        return lambda item: self.experiments[item["experiment_id"]]["namespace"] == namespace

    @staticmethod
    def _get(items: dict[str, dict[str, Any]], kind: str, identity: str) -> dict[str, Any]:
        if identity not in items:
            raise ApiError(404, f"{kind} {identity} not found")
        return items[identity]

    @staticmethod
    def _limit(body: dict[str, Any]) -> None:
        if not body.get("display_name"):
            raise ApiError(400, "the name is empty")
        if max(len(body["display_name"]), len(body.get("description", ""))) > 255:
            raise ApiError(500, "Data too long for column")

    def _runnable(self, body: dict[str, Any], pinned: bool = True) -> None:
        """Refuse what cannot run; a recurring run without a version uses the newest.

        Source: kubeflow/pipelines 2.17.0, backend/src/apiserver/resource/resource_manager.go (CreateJob).
        """
        self._get(self.experiments, "experiment", body.get("experiment_id", ""))
        reference = body.get("pipeline_version_reference", {})
        if pinned or "pipeline_version_id" in reference:
            version = self._get(self.versions, "pipeline version", reference.get("pipeline_version_id", ""))
        else:
            ours = [item for item in self.versions.values() if item["pipeline_id"] == reference.get("pipeline_id")]
            if not ours:
                raise ApiError(404, "the pipeline has no version")
            version = max(ours, key=lambda item: item["created_at"])
        if reference.get("pipeline_id") != version["pipeline_id"]:
            raise ApiError(400, "the version belongs to another pipeline")
        root = version["pipeline_spec"]["pipeline_spec"]["root"].get("inputDefinitions", {}).get("parameters", {})
        given = body.get("runtime_config", {}).get("parameters", {})
        for name, value in given.items():
            if name not in root:
                raise ApiError(400, f"parameter {name} provided is not required by pipeline")
            kinds = _KINDS[root[name]["parameterType"]]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ApiError(400, f"input parameter {name} requires type {root[name]['parameterType']}")
        for name, item in root.items():
            if name not in given and not item.get("isOptional") and "defaultValue" not in item:
                raise ApiError(400, f"parameter {name} is not optional")

    def _list(self, kind: str, query: dict[str, str], within: Callable[[dict[str, Any]], bool]) -> Any:
        items = self._all({"pipeline_versions": "versions", "recurring_runs": "recurring"}.get(kind, kind))
        predicates = list(_predicates(kind, query.get("filter", "")))
        found = [item for item in items if within(item) and all(holds(item) for holds in predicates)]
        field, _, order = query.get("sort_by", "").partition(" ")
        if field not in ("", *FIELDS[kind]) or order not in ("", "asc", "desc"):
            raise ApiError(400, f"Invalid sorting field: {field}")
        key = next(name for name in FIELDS[kind] if name.endswith("_id"))
        found.sort(key=lambda item: (str(item.get(field or "created_at")), item[key]), reverse=order == "desc")
        criteria = [query.get("sort_by", ""), query.get("filter", "")]
        begin = 0
        if token := query.get("page_token"):
            begin, *wanted = json.loads(base64.b64decode(token))
            if wanted != criteria:
                raise ApiError(400, "page token does not match the supplied sort by and/or filtering criteria")
        size = min(int(query.get("page_size") or 20), 200)
        # The only list whose name is in camel case.
        named = "recurringRuns" if kind == "recurring_runs" else kind
        answer: dict[str, Any] = {named: found[begin : begin + size], "total_size": len(found)}
        if begin + size < len(found):
            answer["next_page_token"] = base64.b64encode(json.dumps([begin + size, *criteria]).encode()).decode()
        return answer


def _predicates(kind: str, text: str) -> Iterator[Callable[[dict[str, Any]], bool]]:
    if not text:
        return
    try:
        # The API decodes once more what HTTP has already decoded.
        found = json.loads(unquote_plus(text))["predicates"]
    except (ValueError, KeyError, TypeError):
        raise ApiError(400, f"failed to parse valid filter from {text!r}") from None
    for predicate in found:
        if set(predicate) - {"key", "operation", "string_value"}:
            raise ApiError(400, f"unknown field in {predicate}")
        key, operation, value = (predicate.get(name) for name in ("key", "operation", "string_value"))
        if key not in FIELDS[kind]:
            raise ApiError(400, f"no support for filtering on unrecognized field {key!r}")
        if operation == "IS_SUBSTRING":
            yield lambda item, key=key, value=value: value.lower() in str(item.get(key, "")).lower()
        elif operation in _SCALARS[:2]:
            same = operation == "EQUALS"
            yield lambda item, key=key, value=value, same=same: (str(item.get(key)) == value) is same
        else:
            raise ApiError(400, f"operation {operation!r} on a text")


def unique_seconds(start: datetime) -> Callable[[], datetime]:
    """Return a clock that advances by one second at each reading."""
    seconds = itertools.count(int(start.timestamp()))
    return lambda: datetime.fromtimestamp(next(seconds), UTC)

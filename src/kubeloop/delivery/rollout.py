"""Read the rollout of a manifest from KServe's status, the Deployments and the pods.

In Standard mode an InferenceService stays Ready while its pods are replaced, and its `observedGeneration` is that of a
Deployment. So a manifest is stamped before it is applied: KServe copies a component's annotations to its pods, and a
Deployment with the stamp was made from exactly this component.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kubeloop import names

SERVICE = "serving.kserve.io/inferenceservice"
"""KServe's label with the inference service's name, on its Deployments and pods."""

Object = dict[str, Any]

# They shape the Deployment or its autoscaler; a new stamp would replace pods without need.
_NOT_IN_PODS = ("minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling")
_STARTING = ("ContainerCreating", "PodInitializing")
_MESSAGE_CHARS = 500


@dataclass(frozen=True)
class Observed:
    """An inference service at one moment.

    Attributes:
        service: the InferenceService.
        deployments: those of its name.
        pods: those of its name; None without the right to read them.
    """

    service: Object
    deployments: Sequence[Object]
    pods: Sequence[Object] | None


def stamped(manifest: Object) -> Object:
    """Return an InferenceService with the digest of the whole on itself, and each component's own on its pods.

    A patch is stamped in the same way: it is merged with the rest, and KServe copies the annotations to the pods.
    """
    result = unstamped(manifest)
    metadata, spec = result.setdefault("metadata", {}), result.get("spec", {})
    inherited = [metadata.get("labels"), metadata.get("annotations")]
    digests = []
    for label, component in _components(spec):
        # A canary is merged over the predictor, and every component inherits the service's labels and annotations.
        base = spec.get("predictor") if label.startswith("canary") else None
        digests.append(_digest([inherited, _pod_part(base or {}), _pod_part(component)]))
    whole = _digest([inherited, spec])
    for (_, component), digest in zip(_components(spec), digests, strict=True):
        component.setdefault("annotations", {})[names.MANIFEST] = digest
    metadata.setdefault("annotations", {})[names.MANIFEST] = whole
    return result


def unstamped(manifest: Object) -> Object:
    """Return an InferenceService as it was before `stamped`."""
    result = copy.deepcopy(manifest)
    for holder in (result.get("metadata", {}), *(component for _, component in _components(result.get("spec", {})))):
        annotations = holder.get("annotations") or {}
        if annotations.pop(names.MANIFEST, None) and not annotations:
            del holder["annotations"]
    return result


def stamp(service: Object) -> str | None:
    """Return the digest of the manifest that was applied last."""
    return _annotation(service)


def waiting_for(found: Observed) -> str:
    """Return what the rollout still lacks, as a clause; empty if all of the manifest serves and nothing else does."""
    for label, component in _components(found.service["spec"]):
        mine = [d for d in found.deployments if _from(component, d["spec"]["template"])]
        if not mine:
            return f"KServe has not made a Deployment of the {label}"
        for deployment in mine:
            status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
            updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
            if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
                return f"Kubernetes has not processed the Deployment of the {label} yet"
            if min(updated, available) < wanted:
                return f"{min(updated, available)} of {wanted} new pods of the {label} are available"
            if status.get("replicas", 0) > updated:
                return f"{status['replicas'] - updated} old pods of the {label} still serve"
    return "" if ready(found.service) else "KServe does not report it ready"


def ready(service: Object) -> bool:
    """Return whether KServe reports the service ready, which it also does while pods are being replaced."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in _conditions(service))


def failure(found: Observed, *, settled: bool) -> str:
    """Return why the rollout cannot succeed, as a clause; empty while it still can.

    Args:
        found: the service now.
        settled: whether KServe has had time to read the manifest, so that its status is about this one.
    """
    model = found.service.get("status", {}).get("modelStatus", {})
    info = model.get("lastFailureInfo", {})
    told = _clause(info.get("reason", ""), info.get("message", "")) or "KServe gives no reason"
    if model.get("transitionStatus") == "InvalidSpec" and settled and not _deployed(found):
        return f"KServe cannot serve the manifest: {told}"
    for name, container in _crashing(found):
        return f"{container['name']} of pod {name} ends each time it starts: {_last_words(container)}"
    for deployment in _own(found):
        for condition in deployment.get("status", {}).get("conditions", []):
            if condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
                return "; ".join([_clause(condition["reason"], condition.get("message", "")), *troubles(found)])
    if found.pods is None and model.get("transitionStatus") == "BlockedByFailedLoad" and _alone(found):
        return f"the model does not load: {told}"
    return ""


def troubles(found: Observed) -> list[str]:
    """Return the errors in conditions and pods, as clauses; the closest to the cause comes last."""
    clauses = [
        f"{condition['type']} is {condition['status']}"
        + (f" ({told})" if (told := _clause(condition.get("reason", ""), condition.get("message", ""))) else "")
        for condition in _conditions(found.service)
        if condition["status"] != "True" and condition["type"].endswith("Ready")
    ]
    info = found.service.get("status", {}).get("modelStatus", {})
    if info.get("transitionStatus") == "BlockedByFailedLoad" and (last := info.get("lastFailureInfo")):
        clauses.append(_clause(last.get("reason", ""), last.get("message", "")))
    for pod in _own_pods(found):
        clauses += [f"pod {pod['metadata']['name']}: {trouble}" for trouble in _pod_troubles(pod)]
    return [clause for clause in clauses if clause]


def _components(spec: Object) -> Iterator[tuple[str, Object]]:
    for label in ("predictor", "transformer", "explainer"):
        if label in spec:
            yield label, spec[label]
    for canary in spec.get("canary") or []:
        yield f"canary {canary['predictor'].get('name', '')}".strip(), canary["predictor"]


def _pod_part(component: Object) -> Object:
    return {key: value for key, value in component.items() if key not in _NOT_IN_PODS}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _annotation(holder: Object) -> str | None:
    return (holder["metadata"].get("annotations") or {}).get(names.MANIFEST)


def _from(component: Object, holder: Object) -> bool:
    """Return whether a pod or a pod template was made from a component."""
    mark = (component.get("annotations") or {}).get(names.MANIFEST)
    return mark is not None and bool(mark == _annotation(holder))


def _own(found: Observed) -> list[Object]:
    parts = [component for _, component in _components(found.service["spec"])]
    return [d for d in found.deployments if any(_from(component, d["spec"]["template"]) for component in parts)]


def _own_pods(found: Observed) -> list[Object]:
    parts = [component for _, component in _components(found.service["spec"])]
    return [pod for pod in found.pods or () if any(_from(component, pod) for component in parts)]


def _deployed(found: Observed) -> bool:
    predictor = found.service["spec"]["predictor"]
    return any(_from(predictor, deployment["spec"]["template"]) for deployment in found.deployments)


def _alone(found: Observed) -> bool:
    """Return whether all existing pods were made from this manifest."""
    return len(_own(found)) == len(found.deployments) > 0 and all(
        d.get("status", {}).get("replicas", 0) == d.get("status", {}).get("updatedReplicas", 0)
        for d in found.deployments
    )


def _conditions(service: Object) -> list[Object]:
    conditions: list[Object] = service.get("status", {}).get("conditions") or []
    return conditions


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _crashing(found: Observed) -> Iterator[tuple[str, Object]]:
    """Yield containers that failed again after a restart; a first failure may come from a store that was down."""
    for pod in _own_pods(found):
        for container in _containers(pod):
            state = container.get("state", {})
            down = state.get("waiting", {}).get("reason") == "CrashLoopBackOff" or state.get("terminated", {}).get(
                "exitCode"
            )
            if down and container.get("restartCount", 0) >= 1:
                yield pod["metadata"]["name"], container


def _last_words(container: Object) -> str:
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
    # If a container leaves no message, the kubelet takes the end of its log; the reason is in the last line.
    line = next((line for line in reversed(ended.get("message", "").splitlines()) if line.strip()), "")
    return _clause("", line) or f"exit code {ended.get('exitCode', 'unknown')}"


def _pod_troubles(pod: Object) -> Iterator[str]:
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield _clause(condition.get("reason", ""), condition.get("message", ""))
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting and waiting.get("reason") not in _STARTING:
            yield f"{container['name']} {_clause(waiting.get('reason', ''), waiting.get('message', ''))}"


def _clause(reason: str, message: str) -> str:
    """Join reason and message on one line; keep the end of a long message, where programs name the error."""
    return ": ".join(filter(None, (reason, " ".join(message.split())[-_MESSAGE_CHARS:].rstrip("."))))

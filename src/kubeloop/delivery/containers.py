"""The common fields of our containers on Kubernetes: variables, resources, privileges, placement."""

from collections.abc import Mapping, Sequence
from typing import Any

from kubeloop.config import PUBLIC
from kubeloop.config.cluster import Gpu, Resources, SecretEnv, Toleration

HOME = "/tmp"  # noqa: S108 - the pod's own, on a read-only root file system

LEAN = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072", "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Variables that make a long-running process return freed memory: glibc keeps an arena for each thread, and Arrow's own
allocator never returns any. The chart's pods have them too (charts/kubeloop/templates/_pods.tpl)."""


def unprivileged(user: int) -> dict[str, Any]:
    """Return a pod's `securityContext`; with `confined` containers it meets the restricted Pod Security standard."""
    return {"runAsNonRoot": True, "runAsUser": user, "seccompProfile": {"type": "RuntimeDefault"}}


def confined() -> dict[str, Any]:
    """Return the fields of a container that has no privileges and writes only to the pod's volume `tmp`."""
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
        "volumeMounts": [{"name": "tmp", "mountPath": HOME}],
    }


def placement(
    node_selector: Mapping[str, str], tolerations: Sequence[Toleration], gpu: Gpu | None = None
) -> dict[str, Any]:
    """Return the fields of a pod that select its nodes; those for its accelerators are added."""
    accepted = [*tolerations, *(gpu.tolerations if gpu else ())]
    found: dict[str, Any] = {
        "nodeSelector": dict(node_selector) | (gpu.node_selector if gpu else {}),
        "tolerations": [item.model_dump(exclude_none=True) for item in accepted],
    }
    return {name: value for name, value in found.items() if value}


def pull_secrets(names: Sequence[str]) -> dict[str, Any]:
    """Return the field of a pod that names the Secrets for pulling images; empty if there are none."""
    return {"imagePullSecrets": [{"name": name} for name in names]} if names else {}


def environment(config_map: str | None, secrets: Sequence[SecretEnv]) -> list[dict[str, Any]]:
    """Return a container's `env`: the public variables from a ConfigMap, the others from Secrets, by name."""
    env: list[dict[str, Any]] = [{"name": "HOME", "value": HOME}]
    for name in PUBLIC if config_map else ():
        env.append(
            {"name": name, "valueFrom": {"configMapKeyRef": {"name": config_map, "key": name, "optional": True}}}
        )
    for secret in secrets:
        for name, key in secret.env.items():
            env.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret.secret, "key": key}}})
    return env


def resources(wanted: Resources) -> dict[str, Any]:
    """Return a container's `resources`."""
    limits = {"memory": wanted.memory}
    if wanted.cpu_limit:
        limits["cpu"] = wanted.cpu_limit
    if wanted.gpu:
        limits[wanted.gpu.resource] = str(wanted.gpu.count)
    return {"requests": {"cpu": wanted.cpu, "memory": wanted.memory}, "limits": limits}

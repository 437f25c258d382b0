"""What the containers that we describe to Kubernetes have in common: variables and resources."""

from collections.abc import Sequence
from typing import Any

from kubeloop.config import PUBLIC
from kubeloop.config_cluster import Resources, SecretEnv

HOME = "/tmp"  # noqa: S108 - the pod's own, on a read-only root file system


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

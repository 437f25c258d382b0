"""Pods for tests that Pod Security "restricted" admits."""

from typing import Any

Object = dict[str, Any]


def pod(name: str, image: str, command: tuple[str, ...], account: str = "", more: Object | None = None) -> Object:
    """Return a pod that runs once.

    Args:
        name: name of the pod.
        image: image with registry and tag.
        command: command of the container.
        account: service account whose token the pod gets.
        more: additional fields of the container; `volumes` goes to the pod.
    """
    given = dict(more or {})
    volumes = [{"name": "tmp", "emptyDir": {}}, *given.pop("volumes", [])]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, *given.pop("volumeMounts", [])]  # noqa: S108
    container = {
        "name": "main",
        "image": image,
        "command": list(command),
        "resources": {"requests": {"cpu": "10m", "memory": "256Mi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": bool(account),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container | given],
        "volumes": volumes,
    }
    if account:
        spec["serviceAccountName"] = account
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}

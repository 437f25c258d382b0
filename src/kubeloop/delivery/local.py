"""Apply a manifest to the local node and wait until it serves."""

import time
from typing import Any

import httpx

from kubeloop import access
from kubeloop.delivery import Applied, DeliveryError, RejectedError
from kubeloop.delivery.manifest import API_VERSION

_POLL_S = 0.05
_HTTP_S = 10.0
_START = "start it with `kubeloop serve`"


def apply(manifest: dict[str, Any], address: str, timeout_s: float, token: str = "") -> Applied:
    """Put a manifest and wait until the node serves exactly this generation of it.

    Args:
        manifest: an InferenceService.
        address: the node, such as `http://127.0.0.1:8080`.
        timeout_s: how long to wait.
        token: the token of the user who started the node.

    Raises:
        DeliveryError: the node does not answer, refuses the manifest, cannot start the model, got a newer manifest
            meanwhile, or is not ready in time.
    """
    began = time.monotonic()
    metadata = manifest.get("metadata") or {}
    name, namespace = str(metadata.get("name", "")), str(metadata.get("namespace", ""))
    login = access.bearer(token)
    with httpx.Client(base_url=address, timeout=_HTTP_S, trust_env=False, headers=login) as client:
        found = _call(client, "PUT", _path(namespace, name), manifest)
        generation = found["metadata"]["generation"]
        while True:
            status = found["status"]
            if status["observedGeneration"] != generation:
                raise DeliveryError(
                    f"{name}: another manifest was applied while this one was being rolled out; apply it again if it "
                    "is still wanted"
                )
            ready = _condition(found, "Ready")
            if ready["status"] == "True":
                return Applied(
                    name, namespace, generation, status["storageUri"], status["url"], time.monotonic() - began
                )
            reason = f"{ready.get('reason', '')}: {ready.get('message', '')}"
            if ready["status"] == "False" and ready.get("reason") != "Restarting":
                kept = f"; {status['storageUri']} is still served" if status.get("storageUri") else ""
                raise DeliveryError(f"{name} is not ready: {reason}{kept}")
            if time.monotonic() - began > timeout_s:
                raise DeliveryError(f"{name} was not ready within {timeout_s:g} s: {reason}")
            time.sleep(_POLL_S)
            found = _call(client, "GET", _path(namespace, name))


def status(namespace: str, name: str, address: str) -> dict[str, Any]:
    """Return an InferenceService with its status.

    Raises:
        DeliveryError: the node does not answer, or does not have it.
    """
    with httpx.Client(base_url=address, timeout=_HTTP_S, trust_env=False) as client:
        return _call(client, "GET", _path(namespace, name))


def _path(namespace: str, name: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/inferenceservices/{name}"


def _condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(condition for condition in found["status"]["conditions"] if condition["type"] == kind)


def _call(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        response = client.request(method, path, json=body)
    except httpx.TransportError as error:
        raise DeliveryError(f"the local node at {client.base_url} does not answer ({error}); {_START}") from error
    if response.is_error:
        try:
            content = response.json()
            message = content.get("message") or content["error"]
        except (ValueError, KeyError, TypeError, AttributeError):
            message = response.text[:500]
        kind = DeliveryError if response.is_server_error else RejectedError
        raise kind(f"the local node refuses {path.rpartition('/')[2]}: {message}")
    answer: dict[str, Any] = response.json()
    return answer

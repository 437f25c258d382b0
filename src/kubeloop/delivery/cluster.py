"""Apply a manifest to a cluster and wait until KServe serves it; the one importer of the Kubernetes client."""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client as kubernetes
from kubernetes import config

from kubeloop import names
from kubeloop.delivery import Applied, DeliveryError, RejectedError
from kubeloop.delivery.manifest import API_VERSION, KIND
from kubeloop.delivery.patch import lineage
from kubeloop.delivery.rollout import SERVICE, Object, Observed, failure, ready, stamp, stamped, troubles, waiting_for
from kubeloop.errors import KubeloopError

FIELD_MANAGER = "kubeloop"

AWAY_S = 60.0
"""How long to retry when the API server does not answer; every request can be repeated."""

SETTLE_S = 10.0
"""Time for KServe to read a manifest; later errors in its status are taken to be about this manifest."""

_FIRST_POLL_S, _LAST_POLL_S = 0.1, 2.0
_CONNECT_S, _READ_S = 5.0, 60.0
_RACES = 5
_BUSY = (429, 502, 503, 504)
_APPLY = "application/apply-patch+yaml"
_AGAIN = "apply it again if it is still wanted"
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_NOTHING: Object = {"metadata": {}}

LOG = logging.getLogger(__name__)


def apply(manifests: Sequence[Object], timeout_s: float, client: kubernetes.ApiClient | None = None) -> Applied:
    """Apply an InferenceService and what goes with it, and wait until all of it serves, and nothing else.

    Every object is applied as a dry run first, so that either all are accepted or nothing is changed. Objects are
    never deleted. It needs the verbs get, create and patch on what it applies, list on Deployments and, to name causes
    sooner, list on pods. The rollout shows in three kinds, which are read every two seconds: a watch of each would
    need one more verb and show no more.

    Args:
        manifests: exactly one InferenceService, and other objects, in the order in which they are applied.
        timeout_s: how long it may take until it is ready.
        client: the cluster; by default that of this pod, or else of the kubeconfig file.

    Raises:
        DeliveryError: it is refused, fails, is not ready in time or is replaced by another; the message says why and
            what to do.
    """
    began = time.monotonic()
    services = [m for m in manifests if (m.get("apiVersion"), m.get("kind")) == (API_VERSION, KIND)]
    if len(services) != 1:
        raise RejectedError(f"a delivery needs one {KIND} of {API_VERSION}, not {len(services)}; correct the manifests")
    service = stamped(services[0])
    objects = [service if manifest is services[0] else manifest for manifest in manifests]
    cluster = Cluster(client or connect())
    paths = [cluster.path(manifest) for manifest in objects]
    cluster.deployments(service["metadata"])
    for dry in (True, False):
        for path, manifest in zip(paths, objects, strict=True):
            cluster.apply(path, manifest, dry=dry)
    LOG.info("%s: applied, waiting until it is ready", service["metadata"]["name"])
    return _wait(cluster, paths[objects.index(service)], service, began, timeout_s)


def follow(cluster: "Cluster", manifest: Object, timeout_s: float) -> Applied:
    """Wait until the cluster serves an InferenceService that another program applies, such as Argo CD or Flux.

    Until its stamp arrives, the service may be missing or have an older one. It needs the verbs get on
    InferenceServices, list on Deployments and, to name causes sooner, list on pods.

    Args:
        cluster: where it is applied.
        manifest: name, namespace and lineage of the InferenceService, stamped.
        timeout_s: how long it may take until it is ready.

    Raises:
        DeliveryError: it does not arrive, fails, is not ready in time or is replaced by another; the message says why
            and what to do.
    """
    began, path = time.monotonic(), cluster.path(manifest)
    metadata, pause = manifest["metadata"], _FIRST_POLL_S
    name = metadata["name"]
    wanted = _version(manifest)
    while True:
        found = cluster.get(path, f"{KIND} {name}") or _NOTHING
        served = _version(found)
        if (stamp(found), served) == (stamp(manifest), wanted):
            break
        if served > wanted:
            raise DeliveryError(f"{name}: version {served} replaced version {wanted} before it arrived")
        if time.monotonic() - began > timeout_s:
            state = f"namespace {metadata['namespace']} has " + (f"version {served}" if served else "none")
            raise DeliveryError(
                f"version {wanted} of {name} did not arrive within {timeout_s:g} s, {state}; check that Argo CD or "
                "Flux follows the branch and is in sync, and start the step again, or allow more time with "
                "delivery.ready_timeout"
            )
        time.sleep(pause)
        pause = min(pause * 1.5, _LAST_POLL_S)
    LOG.info("%s: the version has arrived, waiting until it is ready", name)
    return _wait(cluster, path, manifest, began, timeout_s)


def _version(service: Object) -> int:
    number = lineage(service).get(names.VERSION, "")
    return int(number) if number.isdecimal() else 0


def _wait(cluster: "Cluster", path: str, manifest: Object, began: float, timeout_s: float) -> Applied:
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    applied, pause = time.monotonic(), _FIRST_POLL_S
    while True:
        found = cluster.observe(path, manifest["metadata"])
        if found is None:
            raise DeliveryError(f"{name} was deleted while it was being rolled out; {_AGAIN}")
        if stamp(found.service) != stamp(manifest):
            raise DeliveryError(f"{name}: another manifest was applied while this one was being rolled out; {_AGAIN}")
        lacks = waiting_for(found)
        if not lacks:
            status = found.service["status"]
            return Applied(
                name,
                namespace,
                found.service["metadata"]["generation"],
                found.service["spec"]["predictor"].get("model", {}).get("storageUri", ""),
                # `url` is an address for a gateway, in KServe's own domain, which is example.com unless it is set.
                status.get("address", {}).get("url") or status.get("url", ""),
                time.monotonic() - began,
            )
        kept = "; the earlier version is still served" if ready(found.service) else ""
        if reason := failure(found, settled=time.monotonic() - applied > SETTLE_S):
            raise DeliveryError(f"{name} is not ready: {reason}{kept}; fix that and deploy again")
        if time.monotonic() - began > timeout_s:
            reasons = "; ".join([lacks, *troubles(found)])
            raise DeliveryError(
                f"{name} was not ready within {timeout_s:g} s: {reasons}{kept}; fix that and deploy again, or allow "
                "more time with delivery.ready_timeout"
            )
        time.sleep(pause)
        pause = min(pause * 1.5, _LAST_POLL_S)


def connect(context: str = "") -> kubernetes.ApiClient:
    """Return a client of this pod's cluster, or of the one that the kubeconfig file names.

    Args:
        context: a context of the kubeconfig file, which is then also used in a pod; its current one if empty.

    Raises:
        DeliveryError: neither exists.
    """
    configuration = kubernetes.Configuration()
    configuration.retries = False
    try:
        try:
            if context:
                raise config.ConfigException("a context was named")
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            config.load_kube_config(context=context or None, client_configuration=configuration)
    except config.ConfigException as error:
        raise _unknown(error) from error
    return kubernetes.ApiClient(configuration)


def current_namespace(context: str = "") -> str:
    """Return the default namespace of kubectl and helm: this pod's, or the context's.

    Raises:
        DeliveryError: no cluster is known.
    """
    if not context and _POD_NAMESPACE.is_file():
        return _POD_NAMESPACE.read_text().strip()
    try:
        contexts, current = config.list_kube_config_contexts()
    except config.ConfigException as error:
        raise _unknown(error) from error
    chosen = next((item for item in contexts if item["name"] == context), {}) if context else current
    return str(chosen.get("context", {}).get("namespace") or "default")


def _unknown(error: Exception) -> RejectedError:
    return RejectedError(f"no cluster is known ({error}); set KUBECONFIG, or run in a pod of the cluster")


class Cluster:
    """Requests to an API server, repeated if it does not answer for a moment."""

    def __init__(self, client: kubernetes.ApiClient, patience_s: float | None = None) -> None:
        self._client = client
        self._patience_s = AWAY_S if patience_s is None else patience_s
        self._kinds: dict[str, list[Object]] = {}

    def path(self, manifest: Object) -> str:
        """Return the path of the object that a manifest describes."""
        version, kind = str(manifest.get("apiVersion", "")), str(manifest.get("kind", ""))
        metadata = manifest.get("metadata", {})
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if version not in self._kinds:
            found = self._ask("GET", root, f"the kinds of {version}", missing=True)
            self._kinds[version] = found["resources"] if found else []
        served = next((r for r in self._kinds[version] if r["kind"] == kind and "/" not in r["name"]), None)
        if served is None:
            who = "KServe" if version == API_VERSION else f"what serves {version}"
            raise RejectedError(
                f"the cluster has no kind {kind} of {version}; install {who}, or leave the object out ("
                f"{metadata.get('name', '')})"
            )
        within = f"/namespaces/{metadata['namespace']}" if served["namespaced"] else ""
        return f"{root}{within}/{served['name']}/{metadata['name']}"

    def apply(self, path: str, manifest: Object, *, dry: bool) -> None:
        """Apply one object server-side; a dry run gives the same answers and has no effect."""
        query = [("fieldManager", FIELD_MANAGER), ("fieldValidation", "Strict")] + [("dryRun", "All")] * dry
        what = f"{manifest['kind']} {manifest['metadata']['name']}"
        for race in range(_RACES):
            try:
                self._ask("PATCH", path, what, query=query, body=manifest, content_type=_APPLY)
            except _RaceError as error:
                if race == _RACES - 1:
                    raise DeliveryError(f"others keep changing {what} ({error}); {_AGAIN}") from error
            else:
                return

    def deployments(self, metadata: Mapping[str, Any]) -> list[Object]:
        """Return the Deployments of an inference service."""
        path = f"/apis/apps/v1/namespaces/{metadata['namespace']}/deployments"
        found = self._ask("GET", path, "Deployments", query=[("labelSelector", f"{SERVICE}={metadata['name']}")])
        items: list[Object] = found["items"] if found else []
        return items

    def observe(self, path: str, metadata: Mapping[str, Any]) -> Observed | None:
        """Return the current inference service; None if it is deleted or being deleted."""
        service = self._ask("GET", path, f"{KIND} {metadata['name']}", missing=True)
        if service is None or service["metadata"].get("deletionTimestamp"):
            return None
        pods = f"/api/v1/namespaces/{metadata['namespace']}/pods"
        query = [("labelSelector", f"{SERVICE}={metadata['name']}")]
        found = self._ask("GET", pods, "pods", query=query, forbidden=True)
        return Observed(service, self.deployments(metadata), None if found is None else found["items"])

    def config_maps(self, namespace: str, selector: str) -> list[Object]:
        """Return the ConfigMaps of a namespace that a label selector finds."""
        path, what = f"/api/v1/namespaces/{namespace}/configmaps", f"the ConfigMaps of namespace {namespace}"
        found = self._ask("GET", path, what, query=[("labelSelector", selector)])
        items: list[Object] = found["items"] if found else []
        return items

    def get(self, path: str, what: str) -> Object | None:
        """Return an object, or None if it does not exist."""
        return self._ask("GET", path, what, missing=True)

    def _ask(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        content_type: str = "application/json",
        missing: bool = False,
        forbidden: bool = False,
    ) -> Object | None:
        """Return the answer; None if the object is missing or forbidden and the caller allows that."""
        began, pause = time.monotonic(), _FIRST_POLL_S
        while True:
            try:
                response = self._client.call_api(
                    path,
                    method,
                    query_params=list(query),
                    header_params={"Accept": "application/json", "Content-Type": content_type},
                    body=body,
                    auth_settings=["BearerToken"],
                    _preload_content=False,
                    _return_http_data_only=True,
                    _request_timeout=(_CONNECT_S, _READ_S),
                )
                answer: Object = json.loads(response.data)
                return answer
            except kubernetes.ApiException as error:
                if (error.status == 404 and missing) or (error.status == 403 and forbidden):
                    return None
                if error.status and (not _passing(error) or time.monotonic() - began > self._patience_s):
                    raise _refusal(error, what) from error
                problem: Exception = error
            except urllib3.exceptions.HTTPError as error:
                problem = error
            if time.monotonic() - began > self._patience_s:
                host = self._client.configuration.host
                raise DeliveryError(
                    f"the API server at {host} does not answer ({problem}); check that it runs and that KUBECONFIG "
                    "names the right one"
                ) from problem
            time.sleep(pause)
            pause = min(pause * 1.5, _LAST_POLL_S)


class _RaceError(KubeloopError):
    """The object changed inside the API server between reading and writing; a repeated request succeeds."""

    lasting = False


def _status(error: kubernetes.ApiException) -> Object:
    try:
        status: Object = json.loads(error.body)
    except (TypeError, ValueError):
        status = {}
    return status


def _passing(error: kubernetes.ApiException) -> bool:
    """Return whether a refusal may pass in a moment; a manifest of the wrong shape gives a 500 without a reason."""
    return error.status in _BUSY or (error.status == 500 and bool(_status(error).get("reason")))


def _refusal(error: kubernetes.ApiException, what: str) -> Exception:
    """Explain a refusal in one sentence that says what to do."""
    status = _status(error)
    message = " ".join(str(status.get("message") or error.reason).split())
    causes = (status.get("details") or {}).get("causes") or []
    match error.status:
        case 401:
            text = f"the cluster does not accept our credentials ({message}); renew the kubeconfig or the token"
        case 403 if denied := re.search(
            r'User "([^"]*)" cannot (\w+) resource "([^"]*)" in API group "([^"]*)"', message
        ):
            user, verb, resource, group = denied.groups()
            right = f"{verb} on {resource}{group and '.'}{group}"
            text = f"{user} may not {verb} {what}: it lacks {right}; grant it in a Role, as the chart does for its pods"
        case 404:
            text = f"{what}: {message}; create it first"
        case 409 if conflicts := [c for c in causes if c.get("reason") == "FieldManagerConflict"]:
            owners = "; ".join(f"{c['field']} is owned by {_owner(c['message'])}" for c in conflicts)
            text = (
                f"{what} has fields that another field manager set: {owners}; remove them there, or hand them over "
                f'as docs/operations.md says under "Hand fields over"'
            )
        case 409:
            return _RaceError(message)
        case _:
            text = f"the cluster refuses {what}: {message}; correct the manifest, or the policy that forbids it"
    # A server error that remains after all retries may still pass; the others are final answers.
    return DeliveryError(text) if _passing(error) else RejectedError(text)


def _owner(message: str) -> str:
    named = re.search(r'conflict with "([^"]*)"', message)
    return named[1] if named else message

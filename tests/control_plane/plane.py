"""What tests do with a control plane: act as any user, run the tools, create namespaces.

It validates, authorizes and admits like any cluster, but it has no controllers. Tests must schedule, delete and set
statuses themselves, this module creates a namespace's default service account, and the aggregated roles (view, edit,
admin) stay empty.
"""

import contextlib
import hashlib
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client import ApiClient, Configuration

from tests.control_plane.servers import ADMIN, POLL_S, TIMEOUT_S, Servers

PROGRAMS = ("etcd", "kube-apiserver", "kubectl", "helm", "kustomize", "kube-score", "checkov")
SERVICE_ACCOUNT = "system:serviceaccount:"

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}


class CommandError(RuntimeError):
    """A tool or the API server refused; the message is its own."""


class ControlPlane(Servers):
    """A running control plane with its tools and users."""

    def install(self, folder: Path) -> None:
        """Install every CustomResourceDefinition under a folder and wait until all are served."""
        documents = [text for path in sorted(folder.rglob("*.yaml")) for text in path.read_text().split("\n---\n")]
        with ThreadPoolExecutor(4) as pool:
            names = set(pool.map(self._install, filter(str.strip, documents)))
        self.wait(lambda: names <= self._resources().keys())

    @contextlib.contextmanager
    def namespace(self, prefix: str = "test", *, restricted: bool = False) -> Iterator[str]:
        """Create a namespace with its default service account, and delete both with everything in them at the end.

        Args:
            prefix: prefix of its name.
            restricted: whether Pod Security "restricted" is enforced in it.
        """
        name = f"{prefix}-{secrets.token_hex(4)}"
        metadata = {"name": name, "labels": _RESTRICTED if restricted else {}}
        self.request("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        self.request("POST", f"/api/v1/namespaces/{name}/serviceaccounts", account)
        try:
            yield name
        finally:
            self._delete(name)

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        """Send a request to the API server as administrator and return its answer.

        Raises:
            CommandError: it refuses; the message is the API server's.
        """
        response = self.http.request(method, path, **({} if body is None else {"json": body}), **options)
        if response.is_error:
            raise CommandError(f"{method} {path}: {response.text}")
        found: dict[str, Any] = response.json()
        return found

    def kubeconfig(self, user: str = ADMIN, groups: Sequence[str] = ()) -> Path:
        """Write a kubeconfig file.

        Args:
            user: `admin`; an existing service account, as `system:serviceaccount:<namespace>:<name>`, which gets a
                token; or any other name, which gets a certificate.
            groups: groups of such another user.
        """
        entry: dict[str, str] = {}
        if user.startswith(SERVICE_ACCOUNT):
            entry["token"] = self.token(user)
        else:
            entry["client-certificate"], entry["client-key"] = map(str, self._user(user, groups))
        cluster = {"server": self.url, "certificate-authority": str(self.authority.certificate)}
        path = self._folder / f"{_file_name(user, groups)}.kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": user, "user": entry}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": user}}],
            "current-context": "tests",
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(content))
        return path

    def client(self, user: str = ADMIN, groups: Sequence[str] = ()) -> ApiClient:
        """Return a client of the official library; `kubeconfig` describes the users."""
        configuration = Configuration(host=self.url)
        configuration.ssl_ca_cert = str(self.authority.certificate)
        configuration.retries = False
        if user.startswith(SERVICE_ACCOUNT):
            configuration.api_key["authorization"] = f"Bearer {self.token(user)}"
        else:
            configuration.cert_file, configuration.key_file = map(str, self._user(user, groups))
        return ApiClient(configuration)

    def token(self, account: str, audience: str | None = None) -> str:
        """Request a token for a service account, `system:serviceaccount:<namespace>:<name>`."""
        namespace, name = account.removeprefix(SERVICE_ACCOUNT).split(":")
        spec = {"audiences": [audience] if audience else [], "expirationSeconds": 3600}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        return str(self.request("POST", path, body)["status"]["token"])

    def may(
        self, user: str, verb: str, resource: str, namespace: str, *, groups: Sequence[str] = (), within_s: float = 3.0
    ) -> bool:
        """Return whether a user is allowed to do something; new roles take a moment to apply.

        Args:
            user: a name, or `system:serviceaccount:<namespace>:<name>`.
            verb: such as `patch`.
            resource: plural, with its group if it has one, e.g. `deployments.apps`; a subresource such as `pods/log`.
            namespace: the namespace; "" for the whole cluster.
            groups: groups of the user; a service account's own are added.
            within_s: how long to ask again after a refusal.
        """
        kind, _, subresource = resource.partition("/")
        plural, _, group = kind.partition(".")
        groups = [*groups, "system:authenticated"]
        if user.startswith(SERVICE_ACCOUNT):
            groups += ["system:serviceaccounts", f"system:serviceaccounts:{user.split(':')[2]}"]
        what = {"verb": verb, "group": group, "resource": plural, "subresource": subresource, "namespace": namespace}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": groups, "resourceAttributes": what},
        }
        path, deadline = "/apis/authorization.k8s.io/v1/subjectaccessreviews", time.monotonic() + within_s
        while not (allowed := self.request("POST", path, body)["status"]["allowed"]) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return bool(allowed)

    def kubectl(self, *args: str, input: str | None = None, user: str = ADMIN) -> str:
        """Run kubectl and return what it prints.

        Raises:
            CommandError: it failed.
        """
        return self._run("kubectl", args, input, user)

    def helm(self, *args: str, input: str | None = None, user: str = ADMIN) -> str:
        """Run helm with caches for this run and return what it prints.

        Raises:
            CommandError: it failed.
        """
        return self._run("helm", args, input, user)

    def kustomize(self, *args: str) -> str:
        """Run kustomize and return what it prints.

        Raises:
            CommandError: it failed.
        """
        return self._run("kustomize", args, None, ADMIN)

    def _run(self, program: str, args: Sequence[str], text: str | None, user: str) -> str:
        env = {"HOME": str(self._folder), "PATH": os.defpath, "KUBECONFIG": str(self.kubeconfig(user))}
        done = subprocess.run(
            [self._assets / program, *args],
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            env=env,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise CommandError(f"{program} {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _user(self, user: str, groups: Sequence[str]) -> tuple[Path, Path]:
        return self.admin if user == ADMIN else self.authority.user(user, groups, _file_name(user, groups))

    def _install(self, document: str) -> str:
        # The server parses YAML faster than Python does, and need not send everything back.
        headers = {
            "content-type": "application/yaml",
            "accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        }
        return str(self.request("POST", _CRDS, content=document, headers=headers)["metadata"]["name"])

    def _delete(self, namespace: str) -> None:
        # No controller empties a namespace here. Deleting each collection through the API server takes seconds, because
        # it sets up the storage of every kind. In etcd it means scanning a few hundred names.
        self.erase(f"/{namespace}/")
        path = f"/api/v1/namespaces/{namespace}"
        found = self.request("DELETE", path)
        self.request("PUT", f"{path}/finalize", found | {"spec": {"finalizers": []}})

    def _resources(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return path (like `/apis/apps/v1`) and description of every resource by name (like `deployments.apps`)."""
        accept = "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList"
        return {
            f"{resource['resource']}.{name}": ("/".join(filter(None, (top, name, version["version"]))), resource)
            for top in ("/api", "/apis")
            for group in self.request("GET", top, headers={"accept": accept})["items"]
            for name in [group["metadata"].get("name", "")]
            for version in group["versions"]
            for resource in version["resources"]
        }


def _file_name(user: str, groups: Sequence[str]) -> str:
    return "user-" + hashlib.sha256(json.dumps([user, *groups]).encode()).hexdigest()[:12]

"""Find the folders of the model versions that answered, and load the references in them."""

import contextlib
import ssl
from collections.abc import Collection, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from kubeloop import names, paths
from kubeloop.errors import KubeloopError
from kubeloop.monitoring.store import Store
from kubeloop.tasks.reference import BrokenReferenceError, Reference

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Folder with a pod's service account token and the API server's certificate authority."""

_FOLDER = "reference"
_VERSION_FLAG = "--version="


class VersionError(KubeloopError, LookupError):
    """A version's reference cannot be found, and waiting would not help; the message says why."""

    lasting = True


class NodeError(KubeloopError):
    """The node does not say what it serves; a later attempt may succeed."""

    lasting = False


def served(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return version and storageUri of every model in an InferenceService, the canaries included."""
    found = {}
    for predictor in _predictors(manifest):
        model = predictor.get("model", {})
        version = predictor.get("annotations", {}).get(names.VERSION) or _argument(model)
        if predictor is manifest["spec"].get("predictor"):
            version = version or manifest["metadata"].get("annotations", {}).get(names.VERSION)
        if version and model.get("storageUri"):
            found[str(version)] = str(model["storageUri"])
    return found


def folder(uri: str) -> Path:
    """Return the folder that a storageUri names on this machine.

    Raises:
        VersionError: it is neither a path nor a file:// address.
    """
    found = paths.local(uri)
    if found is None:
        raise VersionError(f"{uri} is not on this machine; mount the model folders and pass --references")
    return found


class Versions:
    """The references of a service's model versions, loaded once each.

    They are found under `references`/<version>/reference, or else at the storageUri of the version when the monitor
    last asked the node. The store keeps that address for versions that are gone.
    """

    def __init__(
        self,
        store: Store,
        service: str,
        namespace: str,
        node_url: str | None = None,
        references: Path | None = None,
        state: Path | None = None,
        timeout_s: float = 5.0,
        pod: bool = False,
    ) -> None:
        self._store = store
        self._service = service
        self._references, self._state = references, state
        if pod:
            node_url = node_url or "https://kubernetes.default.svc"
            self._client = httpx.Client(timeout=timeout_s, auth=_Account(), verify=_authority(), trust_env=False)
        else:
            self._client = httpx.Client(timeout=timeout_s)
        self._address = (
            f"{node_url.rstrip('/')}/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{service}"
            if node_url
            else None
        )
        self._loaded: dict[str, Reference] = {}

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def meet(self, versions: Collection[str]) -> None:
        """Look up and store where new versions are.

        Raises:
            NodeError: the node does not answer.
        """
        if self._address is None:
            return
        known = self._store.versions(self._service)
        if all(version in known and known[version]["uri"] for version in versions):
            return
        for version, uri in served(self._manifest()).items():
            if version not in known or known[version]["uri"] != uri:
                self._store.remember(self._service, version, uri)

    def reference(self, version: str) -> Reference:
        """Return a version's reference.

        Raises:
            VersionError: it cannot be found.
            NodeError: the version is new and the node does not answer.
        """
        if version not in self._loaded:
            try:
                self._loaded[version] = Reference.load(self._folder(version) / _FOLDER)
            except BrokenReferenceError as error:
                raise VersionError(str(error)) from error
        return self._loaded[version]

    def _folder(self, version: str) -> Path:
        # A version's name comes from a model server's response, and must not lead out of the folder.
        if self._references is not None:
            with contextlib.suppress(paths.PathError):
                here = paths.inside(self._references, version)
                if here.is_dir():
                    return here
        self.meet([version])
        known = self._store.versions(self._service).get(version)
        uri = known["uri"] if known else None
        if not uri:
            raise VersionError(f"the folder of version {version} is unknown; pass --node-url or --references")
        return folder(paths.rehome(uri, self._state) if self._state else uri)

    def _manifest(self) -> dict[str, Any]:
        try:
            response = self._client.get(str(self._address))
            response.raise_for_status()
            manifest = response.json()
        except (OSError, httpx.HTTPError, ValueError) as error:
            raise NodeError(f"the node does not say which models it serves ({error}); check --node-url") from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("spec"), dict):
            raise NodeError(f"{self._address} is not an InferenceService; check --node-url")
        return manifest


class _Account(httpx.Auth):
    """The pod's service account. Its token is read at each request, since Kubernetes replaces it every hour."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["authorization"] = f"Bearer {(ACCOUNT / 'token').read_text().strip()}"
        yield request


def _authority() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))


def _predictors(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    spec = manifest["spec"]
    if "predictor" in spec:
        yield spec["predictor"]
    for canary in spec.get("canary", ()):
        yield canary.get("predictor", {})


def _argument(model: Mapping[str, Any]) -> str | None:
    found = [a.removeprefix(_VERSION_FLAG) for a in model.get("args", ()) if a.startswith(_VERSION_FLAG)]
    return found[0] if found else None

"""The inference services of this machine by name, stored on disk so that a restart brings them back."""

import asyncio
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from kubeloop import paths
from kubeloop.errors import KubeloopError
from kubeloop.node.desired import Commands, Desired, ManifestError, Program, read
from kubeloop.node.processes import Replica
from kubeloop.node.router import PREDICTOR_ENTRY, Router
from kubeloop.node.service import Service
from kubeloop.stores import kept, whole

LOG = logging.getLogger(__name__)


class ConflictError(KubeloopError, ValueError):
    """A service of another namespace has this name."""

    lasting = True


class Controller:
    """Accepts manifests, and stores them in `<state>/manifests` and the programs' logs in `<state>/logs`.

    `manifests/<name>.yaml` is the newest manifest, `manifests/ready/<name>.yaml` the newest that was ready. After a bad
    manifest, a restart serves the last good one and reports the bad one.
    """

    def __init__(self, router: Router, commands: Commands, state: Path, ready_s: float) -> None:
        self._router = router
        self._commands = commands
        self._manifests = state / "manifests"
        self._logs = state / "logs"
        self._url = ""
        self._ready_s = ready_s
        self._services: dict[str, Service] = {}

    def restore(self, url: str) -> None:
        """Set the node's address, and apply the stored manifests."""
        self._url = url
        folders = (self._manifests, self._manifests / "ready")
        for name in sorted({path.name for folder in folders for path in folder.glob("*.yaml")}):
            newest, ready = (self._kept(folder / name) for folder in folders)
            taken = newest or ready
            if taken is None:
                continue
            manifest, desired = taken
            service = self._services[desired.name] = self._service(desired.name)
            service.apply(manifest, desired, ready[1] if newest and ready else None)

    def _kept(self, path: Path) -> tuple[dict[str, Any], Desired] | None:
        """Return a stored manifest; None if there is none, or it cannot be applied."""
        try:
            manifest = yaml.safe_load(kept.unseal(path))
            return manifest, self._read(manifest)
        except FileNotFoundError:
            return None
        except (ManifestError, kept.DamagedError, OSError, yaml.YAMLError) as error:
            LOG.error(
                "%s is not applied: %s; the next promotion writes it again", path, str(error).removeprefix(f"{path} ")
            )
            return None

    def put(self, namespace: str, name: str, manifest: Any) -> dict[str, Any]:
        """Apply a manifest and return it with its status; the rollout runs in the background.

        Raises:
            ManifestError: it is malformed, or is not the object that the path names.
            ConflictError: another namespace has a service of that name.
        """
        desired = self._read(manifest)
        if (desired.namespace, desired.name) != (namespace, name):
            raise ManifestError(
                f"metadata: the manifest is {desired.namespace}/{desired.name}, the path {namespace}/{name}"
            )
        service = self._services.get(name) or self._service(name)
        if service.generation and service.namespace != namespace:
            raise ConflictError(
                f"{name} is served for namespace {service.namespace}; a name can be used once on this machine, "
                "so delete that service first"
            )
        changed = service.spec != manifest["spec"]
        generation = service.generation + changed
        manifest = {key: manifest[key] for key in ("apiVersion", "kind", "metadata", "spec")}
        manifest["metadata"] = manifest["metadata"] | {"generation": generation}
        if changed or not service.settled:
            _save(self._manifests / f"{name}.yaml", manifest)
            self._services[name] = service
            service.apply(manifest, desired)
        return service.object()

    def get(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return one service with its status."""
        service = self._services.get(name)
        return service.object() if service and service.namespace == namespace else None

    def list(self, namespace: str | None = None) -> list[dict[str, Any]]:
        """Return the services of a namespace, or all."""
        return [s.object() for s in self._services.values() if namespace in (None, s.namespace)]

    async def delete(self, namespace: str, name: str) -> dict[str, Any] | None:
        """End a service, delete its manifest and return it."""
        gone = self.get(namespace, name)
        if gone:
            service = self._services.pop(name)
            # In this order: otherwise a kill in between would bring the service back.
            (self._manifests / "ready" / f"{name}.yaml").unlink(missing_ok=True)
            (self._manifests / f"{name}.yaml").unlink(missing_ok=True)
            await service.close()
        return gone

    async def close(self) -> None:
        """End every program; the manifests stay."""
        await asyncio.gather(*(service.close() for service in self._services.values()))

    def _read(self, manifest: Any) -> Desired:
        return read(manifest, self._commands, f"{self._url}{PREDICTOR_ENTRY}")

    def _service(self, name: str) -> Service:
        on_ready = functools.partial(_save, self._manifests / "ready" / f"{name}.yaml")
        return Service(self._router, functools.partial(self._replica, name), self._url, on_ready)

    def _replica(self, service: str, program: Program, on_change: Callable[[], None]) -> Replica:
        parts = (service, program.component, program.version)
        log = paths.inside(self._logs, f"{'-'.join(part for part in parts if part)}.log", what="the log of")
        return Replica(program, log, self._ready_s, on_change)


def _save(path: Path, manifest: dict[str, Any]) -> None:
    """Replace a file in one step: a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through JSON, since an object that occurs twice would become a YAML alias.
    whole.write(path, kept.seal(yaml.safe_dump(json.loads(json.dumps(manifest)), sort_keys=False)), sync=True)

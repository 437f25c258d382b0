"""One inference service on this machine: turn a manifest into processes and a route, and report their status."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kubeloop import names
from kubeloop.node.desired import Desired, Program
from kubeloop.node.processes import Replica, StartError
from kubeloop.node.router import Route, Router, Target

LOG = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_LAST_S = 30.0


class Service:
    """Brings the processes of an inference service in line with its newest manifest.

    New programs start while the old ones run. When all are ready, the route is switched, and the old ones finish their
    requests and end. If a program does not become ready, nothing changes. While nothing serves, starting is repeated,
    first with the newest manifest, then with the last one that was ready.

    Args:
        router: holds the route.
        start: makes the replica of a program.
        url: the node's address.
        on_ready: called with each manifest that becomes ready.
    """

    def __init__(
        self,
        router: Router,
        start: Callable[[Program, Callable[[], None]], Replica],
        url: str,
        on_ready: Callable[[dict[str, Any]], None],
    ) -> None:
        self._router = router
        self._make = start
        self._url = url
        self._on_ready = on_ready
        self._manifest: dict[str, Any] = {}
        self._desired: Desired | None = None
        self._serving: Desired | None = None
        self._fallback: Desired | None = None
        self._replicas: dict[Program, Replica] = {}
        self._failure: StartError | None = None
        self._rolling = False
        self._conditions: dict[str, dict[str, str]] = {}
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def namespace(self) -> str:
        """The namespace of the newest manifest."""
        return str(self._manifest["metadata"]["namespace"])

    @property
    def generation(self) -> int:
        """The generation of the newest manifest; 0 before the first."""
        return int(self._manifest.get("metadata", {}).get("generation", 0))

    @property
    def spec(self) -> Any:
        """The spec of the newest manifest; None before the first."""
        return self._manifest.get("spec")

    @property
    def settled(self) -> bool:
        """Whether the newest manifest is served."""
        return not self._rolling and self._failure is None and self._serving == self._desired

    def apply(self, manifest: dict[str, Any], desired: Desired, fallback: Desired | None = None) -> None:
        """Make `manifest` the newest one; an unfinished start of an older one is given up."""
        self._manifest, self._desired, self._fallback = manifest, desired, fallback
        self._failure, self._rolling = None, True
        if self._task:
            self._task.cancel()
        self._task = asyncio.create_task(self._reconcile(manifest, desired))
        self.refresh()

    async def close(self) -> None:
        """Remove the service: stop its requests, then end its processes."""
        if self._task:
            self._task.cancel()
        async with self._lock:
            if self._desired:
                self._router.remove(self._desired.name)
            await asyncio.gather(*(replica.drain() for replica in self._replicas.values()), *self._retiring)
            self._replicas = {}

    async def _reconcile(self, manifest: dict[str, Any], desired: Desired) -> None:
        pause = RETRY_FIRST_S
        async with self._lock:
            while True:
                try:
                    await self._roll(desired)
                except StartError as error:
                    self._failure = error
                    LOG.error("%s: the %s does not start: %s", desired.name, error.program.component, error)
                else:
                    self._failure = None
                self._rolling = False
                self.refresh()
                if not self._failure:
                    try:
                        self._on_ready(manifest)
                    except OSError as error:
                        LOG.error(
                            "%s serves, but its manifest could not be stored for a restart: %s", desired.name, error
                        )
                if not self._replicas and self._fallback:
                    with contextlib.suppress(StartError):
                        await self._roll(self._fallback)
                if self._replicas:
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_LAST_S)

    async def _roll(self, desired: Desired) -> None:
        """Start the missing programs, switch the route, and end the programs that are no longer wanted."""
        wanted = desired.programs()
        fresh = {p: self._make(p, self.refresh) for p in wanted if p not in self._replicas}
        first = not self._replicas
        replicas = self._replicas | fresh
        if first:
            # Nothing serves yet. With the route set, each part answers as soon as it is up, which a transformer may
            # need to start.
            self._switch(desired, replicas)
        try:
            await _start(list(fresh.values()))
        except BaseException:
            if first:
                self._router.remove(desired.name)
            raise
        old = [replica for program, replica in self._replicas.items() if program not in wanted]
        self._replicas = {program: replicas[program] for program in wanted}
        self._serving = desired
        self._switch(desired, self._replicas)
        LOG.info(
            "%s: serving %s", desired.name, ", ".join(f"{s.endpoint} {s.program.version}" for s in desired.predictors)
        )
        for replica in old:
            task = asyncio.create_task(replica.drain())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _switch(self, desired: Desired, replicas: dict[Program, Replica]) -> None:
        route = Route(
            service=desired.name,
            namespace=desired.namespace,
            transformer=replicas[desired.transformer].backend if desired.transformer else None,
            predictors=tuple(
                Target(s.endpoint, s.percent, replicas[s.program].backend, s.program.version)
                for s in desired.predictors
            ),
            logger_url=desired.logger_url,
            timeout_s=desired.timeout_s,
        )
        self._router.switch(route)

    def refresh(self) -> None:
        """Bring the conditions up to date; a condition's time changes only with its status."""
        assert self._desired  # noqa: S101 - `apply` comes first
        parts = ["predictor"] + (["transformer"] if self._desired.transformer else [])
        states = {f"{part.capitalize()}Ready": self._state(part) for part in parts}
        worst = min(states.values(), key=lambda state: ("False", "Unknown", "True").index(state[0]))
        for kind, (status, reason, message) in (states | {"Ready": worst}).items():
            before = self._conditions.get(kind, {})
            moved = before.get("lastTransitionTime") if before.get("status") == status else None
            condition = {"type": kind, "status": status, "lastTransitionTime": moved or _now()}
            condition |= {"reason": reason} if reason else {}
            condition |= {"message": message} if message else {}
            self._conditions[kind] = condition

    def _state(self, component: str) -> tuple[str, str, str]:
        """Return status, reason and message of one component's condition."""
        if self._failure and self._failure.program.component == component:
            return "False", f"{component.capitalize()}Failed", str(self._failure)
        if self._rolling:
            return "Unknown", "Starting", "the new generation is not serving yet"
        replicas = [replica for program, replica in self._replicas.items() if program.component == component]
        down = next((replica for replica in replicas if not replica.ready), None)
        if down:
            return "False", "Restarting", down.error
        return ("True", "", "") if replicas else ("Unknown", "NotStarted", "")

    def object(self) -> dict[str, Any]:
        """Return the manifest with its status, in the form that KServe gives it.

        Beyond KServe's fields the status has `storageUri` (the model that serves the default traffic) and
        `processes`.
        """
        ready = self._conditions["Ready"]["status"]
        model = {"transitionStatus": {"True": "UpToDate", "Unknown": "InProgress"}.get(ready, "BlockedByFailedLoad")}
        status: dict[str, Any] = {
            "observedGeneration": self.generation,
            "conditions": list(self._conditions.values()),
            "deploymentMode": "Standard",
            "servingRuntimeName": names.RUNTIME,
            "modelStatus": model,
            "processes": [self._process(program, replica) for program, replica in self._replicas.items()],
        }
        if serving := self._serving:
            status |= {
                "url": self._url,
                "address": {"url": self._url},
                "storageUri": serving.predictors[0].program.storage_uri,
                "traffic": [
                    {
                        "endpoint": share.endpoint,
                        "percent": share.percent,
                        "version": share.program.version,
                        "storageUri": share.program.storage_uri,
                    }
                    for share in serving.predictors
                ],
            }
        return self._manifest | {"status": status}

    @staticmethod
    def _process(program: Program, replica: Replica) -> dict[str, Any]:
        url = replica.backend.url
        return {
            "component": program.component,
            "version": program.version,
            "pid": replica.pid,
            "port": int(url.rpartition(":")[2]) if url else None,
            "ready": replica.ready,
            "restarts": replica.restarts,
            "lastError": replica.error,
        }


async def _start(replicas: list[Replica]) -> None:
    """Start all at the same time; if one fails, end the others."""
    starts = [asyncio.create_task(replica.start()) for replica in replicas]
    try:
        await asyncio.gather(*starts)
    except BaseException:
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        await asyncio.gather(*(replica.stop() for replica in replicas))
        raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

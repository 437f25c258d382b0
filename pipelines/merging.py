"""Merge the containers and platform specs of several steps into one pod that meets the needs of each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from kubeloop.config import ConfigError

Object = dict[str, Any]

_LARGEST = (
    ("resourceCpuRequest", "cpuRequest"),
    ("resourceCpuLimit", "cpuLimit"),
    ("resourceMemoryRequest", "memoryRequest"),
    ("resourceMemoryLimit", "memoryLimit"),
)
"""A quantity as Kubernetes writes it, and as the number that kfp's compiler adds."""


class Part(NamedTuple):
    """What one step asks of its pod."""

    step: str
    container: Object
    platform: Object


class _Merger:
    """Merges the requirements of steps, and names the steps that differ."""

    def __init__(self, grouping: str) -> None:
        self._grouping = grouping

    def lay(self, path: str, ours: Any, theirs: Any, step: str) -> Any:
        """Merge two values: mappings by key, lists by joining; all other values must be equal."""
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return ours | {
                key: self.lay(f"{path}.{key}", ours[key], value, step) if key in ours else value
                for key, value in theirs.items()
            }
        if isinstance(ours, list) and isinstance(theirs, list):
            return ours + [item for item in theirs if item not in ours]
        if ours != theirs:
            self.refuse(step, path, ours, theirs)
        return ours

    def refuse(self, step: str, what: str, ours: Any, theirs: Any) -> None:
        """Say that two steps of a group cannot share a pod.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"pipelines.grouping: {self._grouping} puts {step} into one pod with steps that need another {what} "
            f"({ours} and {theirs}); give all of them the same, or write grouping: step"
        )


def merge(parts: Sequence[Part], grouping: str) -> tuple[Object, Object]:
    """Return container and platform spec of a pod: the maximum of each resource, and every variable and node rule.

    Raises:
        ConfigError: the requirements of two steps exclude each other.
    """
    merger = _Merger(grouping)
    container: Object = {}
    platform: Object = {}
    for part in parts:
        own = {name: value for name, value in part.container.items() if name not in ("command", "args", "resources")}
        container = merger.lay("container", container, own, part.step)
        wanted = {name: value for name, value in part.platform.items() if name != "activeDeadlineSeconds"}
        platform = merger.lay("pod", platform, wanted, part.step)
    container["resources"] = _resources(parts, merger)
    deadlines = [int(part.platform.get("activeDeadlineSeconds", 0)) for part in parts]
    if all(deadlines):
        platform["activeDeadlineSeconds"] = str(sum(deadlines))
    _check_variables(parts, merger)
    return container, platform


def _resources(parts: Sequence[Part], merger: _Merger) -> Object:
    wanted = [part.container.get("resources", {}) for part in parts]
    found: Object = {}
    for quantity, number in _LARGEST:
        if most := max((item for item in wanted if number in item), key=lambda item: float(item[number]), default=None):
            found |= {quantity: most[quantity], number: most[number]}
    for part, item in zip(parts, wanted, strict=True):
        if "accelerator" in item:
            found["accelerator"] = merger.lay(
                "accelerator", found.get("accelerator", item["accelerator"]), item["accelerator"], part.step
            )
    return found


def _check_variables(parts: Sequence[Part], merger: _Merger) -> None:
    """Refuse a variable that comes from different sources for two steps."""
    known: dict[str, Any] = {}
    for part in parts:
        for name, source in _variables(part).items():
            if known.setdefault(name, source) != source:
                merger.refuse(part.step, f"variable {name}", known[name], source)


def _variables(part: Part) -> Object:
    found: Object = {item["name"]: item["value"] for item in part.container.get("env", ())}
    for kind, name in (("secretAsEnv", "secretName"), ("configMapAsEnv", "configMapName")):
        key = kind.removesuffix("AsEnv") + "Key"
        for item in part.platform.get(kind, ()):
            found |= {pair["envVar"]: f"{item[name]}/{pair[key]}" for pair in item["keyToEnv"]}
    return found | {item["name"]: item["fieldPath"] for item in part.platform.get("fieldPathAsEnv", ())}

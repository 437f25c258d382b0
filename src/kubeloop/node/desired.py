"""Read from an InferenceService which programs this machine must run, and how to share the traffic."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from kubeloop import names, paths
from kubeloop.config import DnsName
from kubeloop.delivery.manifest import TRANSFORMER_COMMAND
from kubeloop.errors import KubeloopError

DEFAULT = "default"
"""The endpoint of `spec.predictor`; canaries have the endpoint `canary`, as in KServe's payload events."""

_LOCAL = ("--port", "0", "--drain-s", "0")
"""The router has taken a program out of the route before it ends, so there is nothing to wait for."""


class ManifestError(KubeloopError, ValueError):
    """The manifest is malformed, or the local node does not support it; the message names the field."""

    lasting = True


@dataclass(frozen=True)
class Commands:
    """How this machine starts the two kinds of program; a manifest only adds arguments, see `_FLAGS`.

    Attributes:
        predictor: the model server.
        transformer: the feature transformer.
        features: the one folder of feature tables that a transformer may open: Feast runs the source text that it
            finds in a registry.
    """

    predictor: tuple[str, ...]
    transformer: tuple[str, ...]
    features: Path


@dataclass(frozen=True)
class Program:
    """One process to run; two equal programs are one process."""

    component: Literal["predictor", "transformer"]
    command: tuple[str, ...]
    grace_s: float
    version: str = ""
    storage_uri: str = ""


@dataclass(frozen=True)
class Share:
    """A predictor and its percentage of the traffic."""

    endpoint: str
    percent: int
    program: Program


@dataclass(frozen=True)
class Desired:
    """One inference service, ready to run."""

    name: str
    namespace: str
    predictors: tuple[Share, ...]
    transformer: Program | None
    logger_url: str | None
    timeout_s: float

    def programs(self) -> tuple[Program, ...]:
        """Return every program once, predictors first."""
        programs = [share.program for share in self.predictors]
        if self.transformer:
            programs.append(self.transformer)
        return tuple(dict.fromkeys(programs))


def read(manifest: Any, commands: Commands, predictor_url: str) -> Desired:
    """Read an InferenceService.

    Fields for a cluster (images, variables, resources, probes, replicas) are ignored; an unknown field that would
    change the answers of the service is refused.

    Args:
        manifest: the object as it was sent.
        commands: the programs of this machine.
        predictor_url: where a transformer reaches the predictors.

    Raises:
        ManifestError: see there.
    """
    try:
        parsed = _InferenceService.model_validate(manifest)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors()]
        raise ManifestError("; ".join(lines)) from error
    spec = parsed.spec
    rest = 100 - sum(canary.traffic_percent for canary in spec.canary)
    name = parsed.metadata.name
    shares = [Share(DEFAULT, rest, _predictor(spec.predictor, commands, name))]
    shares += [Share("canary", c.traffic_percent, _predictor(c.predictor, commands, name)) for c in spec.canary]
    transformer = None
    if spec.transformer:
        given = spec.transformer.containers[0].args
        folder: dict[str, Check] = {"--feature-dir": lambda text: text == str(commands.features)}
        known = _arguments("spec.transformer.containers.0.args", given, _TRANSFORMER_FLAGS | folder, name)
        args = (*known, "--predictor-url", predictor_url, *_LOCAL)
        transformer = Program(
            "transformer", (*commands.transformer, *args), spec.transformer.termination_grace_period_seconds
        )
    return Desired(
        name=name,
        namespace=parsed.metadata.namespace,
        predictors=tuple(shares),
        transformer=transformer,
        logger_url=str(spec.predictor.logger.url) if spec.predictor.logger else None,
        timeout_s=float(spec.predictor.timeout),
    )


def _predictor(predictor: "_Predictor", commands: Commands, name: str) -> Program:
    model = predictor.model
    args = _arguments("spec.predictor.model.args", model.args, _PREDICTOR_FLAGS, name)
    version = predictor.annotations.get(names.VERSION, "")
    if version:
        try:
            paths.part(version, "the version")
        except paths.PathError as error:
            raise ManifestError(f"spec.predictor.annotations.{names.VERSION}: {error}") from error
    return Program(
        component="predictor",
        command=(*commands.predictor, *args, "--model-dir", _folder(model.storage_uri), *_LOCAL),
        grace_s=predictor.termination_grace_period_seconds,
        version=version,
        storage_uri=model.storage_uri,
    )


Check = Callable[[str], bool]


def _number(text: str) -> bool:
    return re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text) is not None


def _name(text: str) -> bool:
    try:
        return bool(paths.part(text, "it"))
    except paths.PathError:
        return False


_ASIDE = frozenset({"--host", "--port", "--grpc-port", "--metrics-port", "--drain-s"})
"""Flags that a pod needs; here the node decides where a program listens."""
_LIMITS: dict[str, Check] = {"--max-body-bytes": _number, "--max-rows": _number, "--timeout-s": _number}
_PREDICTOR_FLAGS: dict[str, Check] = {
    **_LIMITS,
    "--version": _name,
    "--sha256": lambda text: re.fullmatch(r"[0-9a-f]{64}", text) is not None,
    "--threads": _number,
    "--device": lambda text: text in ("cpu", "cuda"),
}
_TRANSFORMER_FLAGS: dict[str, Check] = {
    **_LIMITS,
    "--feature-service": _name,
    "--missing": lambda text: text in ("null", "nan"),
}


def _arguments(where: str, given: Sequence[str], flags: Mapping[str, Check], name: str) -> tuple[str, ...]:
    """Return the arguments of a program, and refuse those whose meaning is unknown here.

    Raises:
        ManifestError: one is not `--flag=value` with a flag of the list and a value that fits it.
    """
    known: dict[str, Check] = {**flags, "--name": lambda text: text == name}
    found = []
    for word in given:
        flag, equals, value = word.partition("=")
        if flag in _ASIDE:
            continue
        if not equals or flag not in known:
            raise ManifestError(
                f"{where}: {word[:80]!r} is not one of {', '.join(f'{each}=…' for each in sorted(known))}"
            )
        if not known[flag](value):
            raise ManifestError(f"{where}: {flag} may not be {value[:200]!r} on this machine")
        found.append(word)
    return tuple(found)


def _folder(uri: str) -> str:
    """Return the folder that a `file://` URI or an absolute path names."""
    found = paths.local(uri)
    if found is not None and found.is_absolute():
        return str(found)
    raise ManifestError(
        f"spec.predictor.model.storageUri: {uri!r} is not on this machine; the local node serves an absolute path or "
        "a file:// URI"
    )


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


class _ModelFormat(_Part):
    name: Literal["onnx"]


class _Model(_Part):
    model_format: _ModelFormat
    runtime: str = names.RUNTIME
    storage_uri: str = Field(min_length=1)
    args: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _ours(self) -> "_Model":
        if self.runtime != names.RUNTIME:
            raise ValueError(f"the local node runs {names.RUNTIME}, not {self.runtime}")
        return self


class _Logger(_Part):
    mode: Literal["all"]
    url: AnyHttpUrl


class _Component(_Part):
    timeout: int = Field(default=60, gt=0)
    termination_grace_period_seconds: float = Field(default=30.0, ge=0)


class _Predictor(_Component):
    name: str = ""
    annotations: dict[str, str] = Field(default_factory=dict)
    logger: _Logger | None = None
    model: _Model


class _Canary(_Part):
    predictor: _Predictor
    traffic_percent: int = Field(ge=0, le=100)


class _Container(_Part):
    command: tuple[str, ...]
    args: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _ours(self) -> "_Container":
        # Every client of the port may send a manifest, so a manifest can choose arguments, but not the program.
        if self.command != TRANSFORMER_COMMAND:
            raise ValueError(f"the local node runs {list(TRANSFORMER_COMMAND)}, not {list(self.command)}")
        return self


class _Transformer(_Component):
    containers: Annotated[tuple[_Container, ...], Field(min_length=1, max_length=1)]


class _Spec(_Part):
    predictor: _Predictor
    transformer: _Transformer | None = None
    canary: tuple[_Canary, ...] = ()

    @model_validator(mode="after")
    def _shares(self) -> "_Spec":
        total = sum(canary.traffic_percent for canary in self.canary)
        if total > 100:
            raise ValueError(f"the canaries' trafficPercent add up to {total}, more than 100")
        named = [canary.predictor.name for canary in self.canary]
        if "" in named or len({*named, self.predictor.name}) <= len(named):
            raise ValueError("every canary needs its own predictor.name")
        return self


class _Metadata(_Part):
    name: DnsName
    namespace: DnsName


class _InferenceService(_Part):
    api_version: Literal["serving.kserve.io/v1beta1"]
    kind: Literal["InferenceService"]
    metadata: _Metadata
    spec: _Spec

"""The use case: `loop.yaml`. A pipeline run gets it as a parameter, and its digest is part of a model's lineage."""

import functools
import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from kubeloop import moments
from kubeloop.config import kinds
from kubeloop.config.cluster import Delivery, Pipelines
from kubeloop.config.reading import Columns, Read
from kubeloop.config.rollout import Rollout
from kubeloop.config.types import (
    ConfigError,
    DnsName,
    Duration,
    Instant,
    Model,
    Share,
    number,
)

__all__ = ["Gates", "Loop", "Training", "load"]

TableName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,199}$")]
"""Each table is stored in a file with this name; see `paths.part`."""


class Table(Model):
    """One raw table of the source."""

    available_at: str = Field(description="Column with the moment (UTC) at which a row became known.")
    static: bool = Field(
        default=False, description="Facts without a history, which are never too old for a training window."
    )
    path: str | None = Field(
        default=None,
        description="Parquet, Feather, CSV, JSON or Excel file, relative to loop.yaml; leave out when `source.entry` "
        "writes the table.",
    )
    read: Read = Field(default=Read(), description="How to open the file, if this cannot be found from the file.")
    columns: Columns = Field(
        default={},
        description="How to read text, by column: a kind, or a kind with options. A row that does not fit is "
        "quarantined. For a file without types, kinds that are not given are found each time it is read.",
    )
    where: str = Field(default="", description="SQL condition; rows of `path` that do not meet it are not used.")


class Source(Model):
    """The source of raw data."""

    entry: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function in the feature repo; it gets a folder and writes one Parquet file per table.",
    )
    live: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function in the feature repo for runs after `replay.until`, or for all runs without a "
        "`replay`; it gets a folder and the moments `since` and `until` between which the run needs rows, and writes "
        "what `entry` writes. The same moments must give the same rows; a later `until` may only add rows.",
    )
    tables: dict[TableName, Table] = Field(min_length=1)


class Features(Model):
    """The features that the model reads."""

    repo: str = Field(default="feature_repo", description="Feature repo folder, relative to loop.yaml.")
    service: str = Field(description="The Feast feature service; its name contains its version.")
    history: Duration = Field(
        default=timedelta(days=14),
        description="Raw data before the training window, for rolling features.",
    )


class Training(Model):
    """How a model is trained; a kind of task adds its algorithms and settings."""

    algorithm: str
    parameters: dict[str, Annotated[int | float | str | bool, BeforeValidator(number)]] = Field(default_factory=dict)
    trials: int = Field(default=0, ge=0, le=500, description="Optuna trials; 0 uses `parameters` unchanged.")
    seed: int = Field(default=7, ge=0)
    window: Duration = Field(default=timedelta(days=90), description="Labelled data that a run trains and tests on.")
    holdout: Duration = Field(default=timedelta(days=14), description="Newest part of the window, used by the gate.")
    threads: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _holdout_fits(self) -> "Training":
        if self.holdout * 2 > self.window:
            raise ValueError("training.holdout takes more than half of training.window")
        return self


class Gates(Model):
    """When a challenger may become the champion; a kind of task names its metrics."""

    metric: str
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: int = Field(default=1000, ge=100)
    block: Duration = Field(
        default=timedelta(days=1),
        description="Rows of one block of time are resampled together, since they are not independent.",
    )
    min_gain: float = Field(default=0.0, ge=0, description="The lower end of the gain's interval must exceed this.")
    floors: Mapping[Any, float]
    ceilings: Mapping[Any, float]
    slices: tuple[str, ...] = ()
    slice_tolerance: float = Field(default=0.03, ge=0, description="Largest allowed loss of the metric in a slice.")
    slice_min_rows: int = Field(default=300, ge=1)
    refuse_on_warning: bool = Field(
        default=False,
        description="Reject a model if training gave a warning, for example that a single feature predicts the label. "
        "If false, the model can be promoted, and its reason holds the warning.",
    )


class Drift(Model):
    """What counts as drift, and when drift opens an episode."""

    engine: Literal["alibi", "builtin"] = "alibi"
    window: Duration = timedelta(days=7)
    min_rows: int = Field(default=200, ge=10, description="A window with fewer rows is reported, not tested.")
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    min_effect: Share = Field(
        default=0.2,
        description="Smallest change that counts: Kolmogorov-Smirnov D (numeric) or Cramér's V (categorical).",
    )
    min_importance: Share = Field(
        default=0.1, description="Share of the model's feature importance that the drifted features must have."
    )
    votes: int = Field(default=2, ge=1, description="Drifted windows among the last `of` that open an episode.")
    of: int = Field(default=3, ge=1)
    min_auc: Share = Field(
        default=0.6,
        description="If gates.metric is auc: a window with a live AUC below this counts as drifted in any case.",
    )
    max_auc_drop: Share = Field(
        default=0.05, description="If gates.metric is auc: largest loss of live AUC against the gate's hold-out."
    )
    limit: float | None = Field(
        default=None,
        description="A window whose live gates.metric is worse than this counts as drifted in any case. "
        "If left out: min_auc for auc, no limit for other metrics.",
    )
    max_drop: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="By how much live gates.metric may be worse than on the gate's hold-out. If left out: max_auc_drop "
        "for auc, 0.05 for other shares, and a tenth of the hold-out's value for losses.",
    )
    skew: Annotated[Duration, Field(ge=timedelta(0), le=moments.MOST)] = Field(
        default=moments.SKEW,
        description="How far a client's clock may run ahead; later events are counted but are not in any window.",
    )
    label_wait: Duration = Field(default=timedelta(days=1), description="How long a window waits for its labels.")
    retrain_on: tuple[Literal["drift", "performance"], ...] = Field(
        default=("drift", "performance"),
        description="Findings that open an episode, and so start a retraining; with [] they are only shown.",
    )
    retrain_every: Duration | None = Field(
        default=None,
        description="Retrain at least this often, at the end of a window, whatever was found.",
    )
    cooldown: Duration = Field(
        default=timedelta(days=14), description="Pause after an episode; doubles after a rejection."
    )
    max_cooldown: Duration = timedelta(days=56)

    @model_validator(mode="after")
    def _votes_fit(self) -> "Drift":
        if self.votes > self.of:
            raise ValueError(f"drift.votes ({self.votes}) cannot exceed drift.of ({self.of})")
        if self.cooldown > self.max_cooldown:
            raise ValueError("drift.cooldown cannot exceed drift.max_cooldown")
        return self


class Serving(Model):
    """The limits of the inference service."""

    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    max_rows: int = Field(default=10_000, ge=1, description="Largest number of rows in a request.")
    timeout_s: float = Field(default=10.0, gt=0)
    grpc: bool = Field(
        default=False,
        description="On a cluster, let the transformer also serve gRPC (inference.GRPCInferenceService) on port 9000.",
    )
    log_queue: int = Field(
        default=10_000, ge=1, description="Payload events that wait for a slow collector; more are dropped."
    )


class Replay(Model):
    """The part of the table that trains the first model, and the part that is replayed as traffic."""

    train_from: Instant = Field(description="No run learns from older data, however long `training.window` is.")
    train_to: Instant
    until: Instant
    sample: Annotated[float, Field(gt=0, le=1)] = 0.25
    fast_sample: Annotated[float, Field(gt=0, le=1)] = 0.08
    fast_until: Instant | None = None
    group_by: str | None = Field(
        default=None,
        description="Events of one moment are sent as one request; with a column here, as one request per value.",
    )
    seed: int = 7

    @model_validator(mode="after")
    def _in_order(self) -> "Replay":
        if not self.train_from < self.train_to < self.until:
            raise ValueError("replay needs train_from < train_to < until")
        return self


_DNS_LABEL = 63
"""Most characters in one part of a host name."""


class Loop(Model):
    """The use case: one loop.yaml."""

    # A refused value may be an address that contains a password.
    model_config = ConfigDict(hide_input_in_errors=True)

    task: str = Field(
        default=kinds.DEFAULT,
        description="Kind of what is predicted: whether something happens (binary), which of several classes "
        "(multiclass), or how much (regression). It selects the settings of training and gates.",
    )
    name: DnsName = Field(description="Name of the loop, its model, its inference service and its pipelines.")
    description: str = ""
    assumptions: tuple[str, ...] = Field(
        default=(), description="Assumptions that nobody has confirmed yet, one sentence each; the report shows them."
    )
    source: Source
    features: Features
    training: Training
    gates: Gates
    drift: Drift = Drift()
    rollout: Rollout = Rollout()
    serving: Serving = Serving()
    delivery: Delivery = Delivery()
    pipelines: Pipelines = Pipelines()
    replay: Replay | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, data: Any, settle: ModelWrapValidatorHandler["Loop"]) -> "Loop":
        """Read the sections that differ by `task` as the kind's own types; see `kinds`."""
        if cls is not Loop or isinstance(data, Loop):
            return settle(data)
        named = data.get("task", kinds.DEFAULT) if isinstance(data, Mapping) else "binary"
        if named not in kinds.names():
            raise ValueError(f"task {named!r} is unknown; write one of {', '.join(kinds.names())}")
        return _of_kind(named).model_validate(data)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        if cls is not Loop:
            return handler(schema)
        return handler(TypeAdapter(_of_any_kind()).core_schema)

    @model_validator(mode="after")
    def _nodes_need_lightgbm(self) -> "Loop":
        job = self.pipelines.train_job
        if job and job.nodes > 1 and self.training.algorithm != "lightgbm":
            raise ValueError(
                f"training.algorithm {self.training.algorithm} trains on one node; write pipelines.train_job.nodes: 1, "
                "or algorithm: lightgbm"
            )
        return self

    @model_validator(mode="after")
    def _kserve_can_name_the_hosts(self) -> "Loop":
        host = f"{self.name}-transformer-{self.delivery.namespace}"
        if self.delivery.applier != "local" and len(host) > _DNS_LABEL:
            raise ValueError(
                f"name {self.name} and delivery.namespace {self.delivery.namespace} are too long together: KServe "
                f"combines them into the host name {host} with {len(host)} characters; {_DNS_LABEL} are allowed"
            )
        return self

    def dump(self) -> str:
        """Return the given settings as JSON, without the defaults; `Loop.parse` reads it back unchanged.

        A given setting is kept even if it equals the default. A setting that was left out gets the default of the
        version that reads it, as in loop.yaml. `digest`, and what `loops.keep` writes, include every default.
        """
        return self.model_dump_json(exclude_unset=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # The type of a kind is made when it is first used, so another process does not find it by name.
        return Loop.parse, (self.dump(),)

    def digest(self) -> str:
        """Return the SHA-256 hex digest of the settings that shape a model, not those of traffic or places."""
        content = self.model_dump(mode="json", exclude={"assumptions", "replay", "delivery", "pipelines"})
        if self.replay:
            content["train_from"] = self.replay.train_from.isoformat()
        # Sorted, since the order of a mapping has no meaning and a chart's values have another order.
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def parse(cls, text: str, over: Mapping[str, Any] | None = None) -> "Loop":
        """Read YAML or JSON text; the settings in `over` replace the text's, section by section.

        Raises:
            ConfigError: the text is not a mapping, or a setting is missing, wrong or unknown.
        """
        try:
            data = json.loads(text)
        except ValueError:
            # JSON is tried first, since PyYAML reads some JSON differently: 1e-5 is a string to it.
            try:
                data = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ConfigError(f"loop.yaml is not valid YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError("loop.yaml must be a mapping with at least name, source and features")
        try:
            return cls.model_validate(_over(data, over or {}))
        except ValidationError as error:
            lines = [f"  {'.'.join(map(str, e['loc'])) or 'loop'}: {e['msg']}" for e in error.errors()]
            raise ConfigError("loop.yaml is not valid:\n" + "\n".join(lines)) from error


@functools.cache
def _of_kind(name: str) -> type[Loop]:
    """Return the type of a loop of one kind."""
    found, about = kinds.settings(name), Loop.model_fields["task"].description
    fields: dict[str, Any] = {
        # Only one kind can be the default, or a schema could not tell which kind is meant.
        "task": (Literal[name], Field(default=name if name == kinds.DEFAULT else ..., description=about)),
        "training": (found.Training, _section(found.Training)),
        "gates": (found.Gates, _section(found.Gates)),
    }
    return create_model(f"{name.title()}Loop", __base__=Loop, __doc__=Loop.__doc__, **fields)


def _section(kind: type[Model]) -> Any:
    """Return the field of a section, which may be left out if all of its settings have a default."""
    needed = any(field.is_required() for field in kind.model_fields.values())
    return Field() if needed else kind()


def _of_any_kind() -> Any:
    """Return the union of the loops of every kind, told apart by `task`."""
    tagged = [Annotated[_of_kind(name), Tag(name)] for name in kinds.names()]
    told = Discriminator(lambda data: data.get("task", kinds.DEFAULT) if isinstance(data, Mapping) else data.task)
    return Annotated[Union[tuple(tagged)], told]  # noqa: UP007 - as many as there are


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        name: _over(below[name], value)
        for name, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(name), Mapping)
    }
    return {**below, **above, **nested}


def load(path: Path) -> Loop:
    """Read a loop.yaml file.

    Raises:
        ConfigError: the file is missing or not valid.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist; run the command in the folder with loop.yaml, or write one with "
            "`kubeloop init TABLE` for your own table, or with `kubeloop demo` for the demo"
        )
    return Loop.parse(path.read_text())

"""The use case: `loop.yaml`. It travels with a pipeline run, and its digest is part of a model's lineage."""

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
"""A table is a file of its name; see `paths.part`."""


class Table(Model):
    """One raw table of the source."""

    available_at: str = Field(description="Column with the moment (UTC) from which a row was known.")
    static: bool = Field(default=False, description="Facts without a history: never too old for a training window.")
    path: str | None = Field(
        default=None,
        description="Parquet, Feather, CSV, JSON or Excel file, relative to loop.yaml; leave out when `source.entry` "
        "writes the table.",
    )
    read: Read = Field(default=Read(), description="How the file is opened, where it does not say so itself.")
    columns: Columns = Field(
        default={},
        description="How texts are read, by column: a kind, or a kind with more. A row that does not fit is "
        "quarantined. Where nothing is said of a file without types, kinds are found whenever it is read.",
    )
    where: str = Field(default="", description="SQL condition; rows of `path` for which it does not hold are not used.")


class Source(Model):
    """Where raw data come from."""

    entry: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function in the feature repo; called with a folder, writes one Parquet file a table.",
    )
    live: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function in the feature repo for runs after `replay.until`, or for all runs without a "
        "`replay`; called with a folder and the moments `since` and `until` between which the run needs rows, writes "
        "what `entry` writes. The same moments must give the same rows, and later ones the same rows and more.",
    )
    tables: dict[TableName, Table] = Field(min_length=1)


class Features(Model):
    """Which features the model reads."""

    repo: str = Field(default="feature_repo", description="Feature repo folder, relative to loop.yaml.")
    service: str = Field(description="The Feast feature service, with its version in the name.")
    history: Duration = Field(
        default=timedelta(days=14),
        description="Raw data before the training window that rolling features look back on.",
    )


class Training(Model):
    """How a model is made; a kind of task adds its algorithms and settings."""

    algorithm: str
    parameters: dict[str, Annotated[int | float | str | bool, BeforeValidator(number)]] = Field(default_factory=dict)
    trials: int = Field(default=0, ge=0, le=500, description="Optuna trials; 0 takes `parameters` as they are.")
    seed: int = Field(default=7, ge=0)
    window: Duration = Field(default=timedelta(days=90), description="Labelled data a run trains and tests on.")
    holdout: Duration = Field(default=timedelta(days=14), description="Newest part of the window, kept for the gate.")
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
        description="Rows of one block of time are resampled together, since they share weather and delays.",
    )
    min_gain: float = Field(default=0.0, ge=0, description="The interval's lower end must exceed this gain.")
    floors: Mapping[Any, float]
    ceilings: Mapping[Any, float]
    slices: tuple[str, ...] = ()
    slice_tolerance: float = Field(default=0.03, ge=0, description="Largest loss of the metric allowed in a slice.")
    slice_min_rows: int = Field(default=300, ge=1)
    refuse_on_warning: bool = Field(
        default=False,
        description="Refuse a model that training warned of, such as one with a feature that alone predicts the label. "
        "Left off, it is promoted with the warning in its reason: some tables are that easy.",
    )


class Drift(Model):
    """What counts as drift, and when it becomes an episode."""

    engine: Literal["alibi", "builtin"] = "alibi"
    window: Duration = timedelta(days=7)
    min_rows: int = Field(default=200, ge=10, description="A window with fewer rows is reported, not tested.")
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    min_effect: Share = Field(
        default=0.2,
        description="Kolmogorov-Smirnov D (numeric) or Cramér's V (categorical) under which a change is too small.",
    )
    min_importance: Share = Field(
        default=0.1, description="Share of the model's importance that the drifted features must carry."
    )
    votes: int = Field(default=2, ge=1, description="Drifted windows (k) of the last `of` (m) that open an episode.")
    of: int = Field(default=3, ge=1)
    min_auc: Share = Field(
        default=0.6,
        description="Where gates.metric is auc: live AUC under which a window counts as drifted by itself.",
    )
    max_auc_drop: Share = Field(
        default=0.05, description="Where gates.metric is auc: largest live AUC loss against the gate's hold-out."
    )
    limit: float | None = Field(
        default=None,
        description="Live gates.metric beyond which a window counts as drifted by itself: a floor where more is "
        "better, a ceiling where less is. Left out, it is min_auc for auc, and none for other metrics.",
    )
    max_drop: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="By how much gates.metric may be worse than on the gate's hold-out. Left out, it is max_auc_drop "
        "for auc, 0.05 for other shares, and a tenth of the hold-out's value for losses.",
    )
    skew: Annotated[Duration, Field(ge=timedelta(0), le=moments.MOST)] = Field(
        default=moments.SKEW,
        description="How far a client's clock may run ahead; events beyond are counted, and in no window.",
    )
    label_wait: Duration = Field(default=timedelta(days=1), description="How long a window waits for its labels.")
    retrain_on: tuple[Literal["drift", "performance"], ...] = Field(
        default=("drift", "performance"),
        description="Which findings open an episode, and so a retraining; [] shows them and retrains on none.",
    )
    retrain_every: Duration | None = Field(
        default=None,
        description="Retrain at least once in every such span, at the end of a window, whatever was found.",
    )
    cooldown: Duration = Field(default=timedelta(days=14), description="Rest after an episode; doubles on rejection.")
    max_cooldown: Duration = timedelta(days=56)

    @model_validator(mode="after")
    def _votes_fit(self) -> "Drift":
        if self.votes > self.of:
            raise ValueError(f"drift.votes ({self.votes}) cannot exceed drift.of ({self.of})")
        if self.cooldown > self.max_cooldown:
            raise ValueError("drift.cooldown cannot exceed drift.max_cooldown, to which it doubles")
        return self


class Serving(Model):
    """The limits of the inference service."""

    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    max_rows: int = Field(default=10_000, ge=1, description="Most rows one request may carry.")
    timeout_s: float = Field(default=10.0, gt=0)
    grpc: bool = Field(
        default=False,
        description="On a cluster, the transformer speaks gRPC as well (inference.GRPCInferenceService), on port 9000.",
    )
    log_queue: int = Field(default=10_000, ge=1, description="Payload events held for a slow collector before drops.")


class Replay(Model):
    """The part of the table that trains the first model, and the part that is replayed as traffic."""

    train_from: Instant = Field(description="No run learns from anything older, however long `training.window` is.")
    train_to: Instant
    until: Instant
    sample: Annotated[float, Field(gt=0, le=1)] = 0.25
    fast_sample: Annotated[float, Field(gt=0, le=1)] = 0.08
    fast_until: Instant | None = None
    group_by: str | None = Field(
        default=None,
        description="Events of one moment go out as one request; with a column here, as one request a value.",
    )
    seed: int = 7

    @model_validator(mode="after")
    def _in_order(self) -> "Replay":
        if not self.train_from < self.train_to < self.until:
            raise ValueError("replay needs train_from < train_to < until")
        return self


_DNS_LABEL = 63
"""Characters of one part of a host name."""


class Loop(Model):
    """The use case: one loop.yaml."""

    # What is refused may be an address with a password in it.
    model_config = ConfigDict(hide_input_in_errors=True)

    task: str = Field(
        default=kinds.DEFAULT,
        description="Kind of what is predicted: whether something happens (binary), which of several classes "
        "(multiclass), or how much (regression). It selects the settings of training and gates.",
    )
    name: DnsName = Field(description="Names the model, the inference service and the pipelines.")
    description: str = ""
    assumptions: tuple[str, ...] = Field(
        default=(), description="What nobody has confirmed yet, one sentence each; the report shows them."
    )
    source: Source
    features: Features
    training: Training
    gates: Gates
    drift: Drift = Drift()
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
            raise ValueError(f"task {named!r} is none of {', '.join(kinds.names())}")
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
                f"makes the host name {host} of them, which may have {_DNS_LABEL} characters, not {len(host)}"
            )
        return self

    def dump(self) -> str:
        """Write as JSON what was said, without the defaults; `Loop.parse` reads it back unchanged.

        What is said stays said, also where it is the default. What was left out is the default of the version that
        reads it, as in loop.yaml. `digest`, and what `loops.keep` writes, hold every default.
        """
        return self.model_dump_json(exclude_unset=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # The type of a kind is made when it is first asked for, so another process does not find it by name.
        return Loop.parse, (self.dump(),)

    def digest(self) -> str:
        """Return the SHA-256 hex digest of what shapes a model: neither the traffic nor where things run."""
        content = self.model_dump(mode="json", exclude={"assumptions", "replay", "delivery", "pipelines"})
        if self.replay:
            content["train_from"] = self.replay.train_from.isoformat()
        # Sorted, since the order of a mapping says nothing and a chart's values have another one.
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def parse(cls, text: str, over: Mapping[str, Any] | None = None) -> "Loop":
        """Read YAML or JSON text; the settings in `over` replace the text's, section by section.

        Raises:
            ConfigError: the text is no mapping, or a setting is missing, wrong or unknown.
        """
        try:
            data = json.loads(text)
        except ValueError:
            # Not every JSON text means the same to a YAML reader: 1e-5 is a string to PyYAML.
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
        # Only one kind may be left out, or a schema could not tell which of them is meant.
        "task": (Literal[name], Field(default=name if name == kinds.DEFAULT else ..., description=about)),
        "training": (found.Training, _section(found.Training)),
        "gates": (found.Gates, _section(found.Gates)),
    }
    return create_model(f"{name.title()}Loop", __base__=Loop, __doc__=Loop.__doc__, **fields)


def _section(kind: type[Model]) -> Any:
    """Return the field of a section that may be left out where all of its settings have a default."""
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
        raise ConfigError(f"{path} does not exist; run in the folder with loop.yaml, or `kubeloop init` makes one")
    return Loop.parse(path.read_text())

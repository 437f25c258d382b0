"""The one reader of settings: the use case (`loop.yaml`) and where this installation keeps things.

Two objects, because they change for different reasons. `Loop` is the use case: it travels with a
pipeline run as a parameter, and its digest is part of a model's lineage. `Settings` is the place:
folders, ports, interpreters; it comes from `KUBELOOP_*` variables and never changes what is learned.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from kubeloop import moments
from kubeloop.config_cluster import Delivery, Pipelines
from kubeloop.config_types import (
    ConfigError,
    DnsName,
    Duration,
    Instant,
    Model,
    Share,
    duration,
    duration_text,
    instant,
    number,
    past,
)
from kubeloop.reading.spec import Columns, Read

__all__ = [
    "ConfigError",
    "DnsName",
    "Loop",
    "Settings",
    "duration",
    "duration_text",
    "instant",
    "load",
    "past",
    "settings",
]


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
    """How a model is made."""

    algorithm: Literal["lightgbm", "logistic_regression", "random_forest", "hist_gradient_boosting"] = "lightgbm"
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
    """When a challenger may become the champion."""

    metric: Literal["auc", "pr_auc", "log_loss", "brier"] = "auc"
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: int = Field(default=1000, ge=100)
    block: Duration = Field(
        default=timedelta(days=1),
        description="Rows of one block of time are resampled together, since they share weather and delays.",
    )
    min_gain: float = Field(default=0.0, ge=0, description="The interval's lower end must exceed this gain.")
    floors: dict[Literal["auc", "pr_auc"], Share] = Field(default={"auc": 0.6})
    ceilings: dict[Literal["log_loss", "brier", "ece"], float] = Field(default={"ece": 0.15})
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
    min_auc: Share = Field(default=0.6, description="Live AUC under which a window counts as drifted by itself.")
    max_auc_drop: Share = Field(default=0.05, description="Largest live AUC loss against the gate's hold-out.")
    skew: Annotated[Duration, Field(ge=timedelta(0), le=moments.MOST)] = Field(
        default=moments.SKEW,
        description="How far a client's clock may run ahead; events beyond are counted, and in no window.",
    )
    label_wait: Duration = Field(default=timedelta(days=1), description="How long a window waits for its labels.")
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

    name: DnsName = Field(description="Names the model, the inference service and the pipelines.")
    description: str = ""
    assumptions: tuple[str, ...] = Field(
        default=(), description="What nobody has confirmed yet, one sentence each; the report shows them."
    )
    source: Source
    features: Features
    training: Training = Training()
    gates: Gates = Gates()
    drift: Drift = Drift()
    serving: Serving = Serving()
    delivery: Delivery = Delivery()
    pipelines: Pipelines = Pipelines()
    replay: Replay | None = None

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


class Settings(Model):
    """Where this installation keeps its state and finds its interpreters."""

    model_config = ConfigDict(hide_input_in_errors=True)

    home: Path = Field(description="Folder of loop.yaml and the feature repo.")
    state: Path = Field(description="Folder with everything a run leaves; deleting it starts over.")
    mlflow_uri: str = Field(description="MLflow's tracking and registry server.")
    mlflow_run_id: str = Field(default="", description="MLflow run to log to; empty makes a run of our own.")
    core_python: Path
    runtime_python: Path
    detector_python: Path
    code: str = Field(default="", description="Commit that an image was built from; asked of git when empty.")
    ledger_db: str = Field(description="SQLAlchemy URL of the trigger ledger.", repr=False)
    monitor_db: str = Field(description="SQLAlchemy URL of the monitor's state.", repr=False)
    feature_registry: str = Field(default="", repr=False, description="SQLAlchemy URL of a shared Feast registry.")
    online_store: str = Field(default="", repr=False, description="redis:// or postgresql:// URL of the online store.")
    bucket: str = Field(default="", description="s3:// address under which the payload log and references are kept.")
    s3_endpoint: str = Field(default="", description="Address of an S3 store that is not AWS.")
    owner: str = Field(
        default="", description="This installation's name in the bucket's owner.json; not compared when empty."
    )
    loop: Path | None = Field(
        default=None, description="The loop as the chart installed it, for what is sent to Kubeflow; else loop.yaml."
    )
    collector_url: str = Field(default="", description="The collector, where it is no process of this machine.")
    monitor_url: str = Field(default="", description="The monitor, likewise; {loop} stands for the loop's name.")
    hosts: str = Field(
        default="",
        description="Names beyond localhost by which clients of this machine call its services, separated by commas.",
    )
    namespace: str = Field(default="kubeflow", description="Namespace of the pipeline's steps and of their TrainJobs.")
    run_id: str = Field(default="", description="The run of Kubeflow Pipelines that a step is part of.")
    kfp_url: str = Field(
        default="", description="The Kubeflow Pipelines API, such as http://ml-pipeline.kubeflow:8888."
    )
    kfp_ui: str = Field(default="", description="Where people open the Kubeflow UI; for links alone.")
    kfp_token_file: Path | None = Field(default=None, description="Service account token for the pipelines API.")
    git_user: str = Field(default="x-access-token", description="User name that goes with the token for Git.")
    git_token: SecretStr = Field(default=SecretStr(""), description="Token, or password, for `delivery.git`.")

    @model_validator(mode="before")
    @classmethod
    def _databases_are_in_the_state(cls, given: Any) -> Any:
        return {**_databases(given["state"]), **given}

    @property
    def loop_file(self) -> Path:
        """The use case."""
        return self.home / "loop.yaml"

    @property
    def raw(self) -> Path:
        """Raw tables, one Parquet file each."""
        return self.state / "raw"

    @property
    def features(self) -> Path:
        """Feature tables, Feast registry and online store."""
        return self.state / "features"

    @property
    def payloads(self) -> Path:
        """The payload log."""
        return self.state / "payloads"

    @property
    def runs(self) -> Path:
        """One folder a pipeline run."""
        return self.state / "runs"

    @property
    def logs(self) -> Path:
        """One log file a service."""
        return self.state / "logs"

    @property
    def token_file(self) -> Path:
        """The token that the services of this machine ask for; see `access`."""
        return self.state / "token"

    @property
    def services_file(self) -> Path:
        """Addresses and process ids of the services that are up."""
        return self.state / "services.json"

    def environ(self) -> dict[str, str]:
        """Return the variables from which a child process reads these same settings."""
        # What follows from the state folder is left out, or it would outlive a change of that folder.
        usual = {name: field.default for name, field in Settings.model_fields.items()} | _databases(self.state)
        found = {name: getattr(self, name) for name in Settings.model_fields if name not in _OTHERS}
        return {f"KUBELOOP_{name.upper()}": _text(value) for name, value in found.items() if value != usual[name]}


def _text(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _databases(state: Path | str) -> dict[str, str]:
    names = {"mlflow_uri": "mlflow", "ledger_db": "ledger", "monitor_db": "monitor"}
    return {field: f"sqlite:///{state}/{name}.db" for field, name in names.items()}


PUBLIC = (
    *("KUBELOOP_MLFLOW_URI", "KUBELOOP_BUCKET", "KUBELOOP_COLLECTOR_URL", "KUBELOOP_MONITOR_URL"),
    *("KUBELOOP_NAMESPACE", "KUBELOOP_OWNER", "AWS_ENDPOINT_URL", "AWS_REGION"),
)
"""Variables of a pipeline step that are no secret; the chart's ConfigMap holds them."""

# Settings whose variables are not ours to name.
_OTHERS = {"mlflow_run_id": "MLFLOW_RUN_ID", "s3_endpoint": "AWS_ENDPOINT_URL"}


class Node(NamedTuple):
    """Which of the nodes of a TrainJob this process is; Kubeflow Trainer's variables say it."""

    rank: int
    nodes: int
    first: str


def node() -> Node:
    """Return this process's place among the nodes of its TrainJob; alone where nothing says otherwise."""
    env = os.environ
    rank = env.get("PET_NODE_RANK") or env.get("JOB_COMPLETION_INDEX") or "0"
    return Node(int(rank), int(env.get("PET_NNODES") or "1"), env.get("PET_MASTER_ADDR", ""))


QUIET = {
    "DO_NOT_TRACK": "1",
    "FEAST_USAGE": "False",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A minute without an answer, not four: the step is repeated anyway.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Eight processes of 250 MB for jobs that nobody asks for.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # Training shares the cores with serving: its threads must sleep while they wait, not spin.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Variables that keep the libraries from calling home, loading pickles, and waiting or working for nothing."""


def adopt(settings: Settings) -> None:
    """Give this process the settings' variables and the quiet ones, for the libraries and steps that read them."""
    os.environ.update({**QUIET, **settings.environ()})


def inherited() -> dict[str, str]:
    """Return this process's variables, for a child that needs the same proxies, certificates and credentials."""
    return dict(os.environ)


def settings(home: Path | None = None, state: Path | None = None) -> Settings:
    """Read the settings from `KUBELOOP_*` variables, with the laptop's defaults.

    Args:
        home: folder of loop.yaml; the variable `KUBELOOP_HOME`, else the current folder, when left out.
        state: state folder; the variable `KUBELOOP_STATE`, else `.kubeloop` in `home`, when left out.
    """
    env = os.environ
    home = (home or Path(env.get("KUBELOOP_HOME", "."))).resolve()
    state = (state or Path(env.get("KUBELOOP_STATE", home / ".kubeloop"))).resolve()
    project = Path(sys.prefix).parent

    def python(name: str, folder: str) -> Path:
        return Path(env.get(name, project / folder / "bin" / "python")).absolute()

    given = {field: env.get(_OTHERS.get(field, f"KUBELOOP_{field.upper()}")) for field in Settings.model_fields}
    place = {
        "home": home,
        "state": state,
        "core_python": python("KUBELOOP_CORE_PYTHON", ".venv"),
        "runtime_python": python("KUBELOOP_RUNTIME_PYTHON", ".venv-runtime"),
        "detector_python": python("KUBELOOP_DETECTOR_PYTHON", ".venv-detector"),
    }
    return Settings.model_validate({**{name: value for name, value in given.items() if value}, **place})

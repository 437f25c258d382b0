"""The places of this installation: folders, addresses, interpreters, from `KUBELOOP_*` variables.

Only this module reads the environment.
"""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field, SecretStr, model_validator

from kubeloop.config import environments
from kubeloop.config.types import Model


class Settings(Model):
    """Where this installation keeps its state and finds its interpreters."""

    model_config = ConfigDict(hide_input_in_errors=True)

    home: Path = Field(description="Folder of loop.yaml and the feature repo.")
    state: Path = Field(description="Folder with everything that runs store; delete it to start over.")
    mlflow_uri: str = Field(description="MLflow's tracking and registry server.")
    mlflow_run_id: str = Field(default="", description="MLflow run to log to; a new run if empty.")
    core_python: Path
    runtime_python: Path
    detector_python: Path
    code: str = Field(default="", description="Commit that an image was built from; if empty, git is asked.")
    ledger_db: str = Field(description="SQLAlchemy URL of the trigger ledger.", repr=False)
    monitor_db: str = Field(description="SQLAlchemy URL of the monitor's state.", repr=False)
    feature_registry: str = Field(default="", repr=False, description="SQLAlchemy URL of a shared Feast registry.")
    online_store: str = Field(default="", repr=False, description="redis:// or postgresql:// URL of the online store.")
    bucket: str = Field(default="", description="s3:// address of the payload log and the references.")
    s3_endpoint: str = Field(default="", description="Address of an S3 store that is not AWS.")
    owner: str = Field(
        default="", description="This installation's name in the bucket's owner.json; not compared when empty."
    )
    loop: Path | None = Field(
        default=None,
        description="File with the loop as the chart installed it, for commands that use Kubeflow; else loop.yaml.",
    )
    collector_url: str = Field(default="", description="Address of the collector, if it does not run on this machine.")
    monitor_url: str = Field(
        default="", description="Address of the monitor, in the same case; {loop} is replaced by the loop's name."
    )
    hosts: str = Field(
        default="",
        description="Host names besides localhost that clients use for this machine's services, separated by commas.",
    )
    namespace: str = Field(default="kubeflow", description="Namespace of the pipeline's steps and of their TrainJobs.")
    installed_loop: str = Field(
        default="", description="Text of the loop that the chart has now; a run of another loop reports that."
    )
    compiled: str = Field(default="", description="Digest of the settings that a step's pod was compiled with.")
    release: str = Field(default="", description="Namespace and name of the Helm release, `kubeloop/kubeloop`.")
    run_id: str = Field(default="", description="The run of Kubeflow Pipelines that a step is part of.")
    kfp_url: str = Field(
        default="", description="The Kubeflow Pipelines API, such as http://ml-pipeline.kubeflow:8888."
    )
    kfp_ui: str = Field(default="", description="Address of the Kubeflow UI for people; only used in links.")
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
        """One folder per pipeline run."""
        return self.state / "runs"

    @property
    def logs(self) -> Path:
        """One log file per service."""
        return self.state / "logs"

    @property
    def token_file(self) -> Path:
        """The token that the services of this machine ask for; see `access`."""
        return self.state / "token"

    @property
    def services_file(self) -> Path:
        """Addresses and process IDs of the running services."""
        return self.state / "services.json"

    def environ(self) -> dict[str, str]:
        """Return the variables from which a child process reads these same settings."""
        # Settings that follow from the state folder are left out, or a change of that folder would not affect them.
        usual = {name: field.default for name, field in Settings.model_fields.items()} | _databases(self.state)
        found = {name: getattr(self, name) for name in Settings.model_fields if name not in _OTHERS}
        return {f"KUBELOOP_{name.upper()}": _text(value) for name, value in found.items() if value != usual[name]}


def _text(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _databases(state: Path | str) -> dict[str, str]:
    names = {"mlflow_uri": "mlflow", "ledger_db": "ledger", "monitor_db": "monitor"}
    return {field: f"sqlite:///{state}/{name}.db" for field, name in names.items()}


def _cache() -> Path:
    """Return the folder for what can be made again, by the XDG Base Directory Specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "kubeloop" / "environments"


def own(settings: Settings, name: environments.Name) -> environments.Environment | None:
    """Return the environment that this installation makes; None if the interpreter is set to another one."""
    made = environments.made(name, _cache()) if environments.carried() else None
    return made if made and made.python == getattr(settings, f"{name}_python") else None


PUBLIC = (
    *("KUBELOOP_MLFLOW_URI", "KUBELOOP_BUCKET", "KUBELOOP_COLLECTOR_URL", "KUBELOOP_MONITOR_URL"),
    *("KUBELOOP_NAMESPACE", "KUBELOOP_OWNER", "AWS_ENDPOINT_URL", "AWS_REGION"),
)
"""Variables of a pipeline step that are not secret; the chart's ConfigMap holds them."""

# Settings whose variables are not ours to name.
_OTHERS = {"mlflow_run_id": "MLFLOW_RUN_ID", "s3_endpoint": "AWS_ENDPOINT_URL"}


class Node(NamedTuple):
    """This process's position among the nodes of a TrainJob, from Kubeflow Trainer's variables."""

    rank: int
    nodes: int
    first: str


def node() -> Node:
    """Return this process's position among the nodes of its TrainJob; one node without Trainer's variables."""
    env = os.environ
    rank = env.get("PET_NODE_RANK") or env.get("JOB_COMPLETION_INDEX") or "0"
    return Node(int(rank), int(env.get("PET_NNODES") or "1"), env.get("PET_MASTER_ADDR", ""))


QUIET = {
    "DO_NOT_TRACK": "1",
    "FEAST_USAGE": "False",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Give up after one minute without an answer, not four: the step is repeated anyway.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Otherwise these would be eight processes of 250 MB for jobs that kubeloop does not use.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # Training shares the cores with serving: its threads must sleep while they wait, not spin.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Variables that stop the libraries from sending usage data, loading pickles, and waiting or working needlessly."""


def adopt(settings: Settings) -> None:
    """Give this process the settings' variables and the quiet ones, for the libraries and steps that read them."""
    os.environ.update({**QUIET, **settings.environ()})


def inherited() -> dict[str, str]:
    """Return this process's variables, for a child that needs the same proxies, certificates and credentials."""
    return dict(os.environ)


def settings(home: Path | None = None, state: Path | None = None) -> Settings:
    """Read the settings from `KUBELOOP_*` variables, with the laptop's defaults.

    Args:
        home: folder of loop.yaml; if left out, the variable `KUBELOOP_HOME`, else the current folder.
        state: state folder; if left out, the variable `KUBELOOP_STATE`, else `.kubeloop` in `home`.
    """
    env = os.environ
    home = (home or Path(env.get("KUBELOOP_HOME", "."))).resolve()
    state = (state or Path(env.get("KUBELOOP_STATE", home / ".kubeloop"))).resolve()
    project = Path(sys.prefix).parent

    def python(name: environments.Name, folder: str) -> Path:
        beside = project / folder / "bin" / "python"
        if given := env.get(f"KUBELOOP_{name.upper()}_PYTHON"):
            return Path(given).absolute()
        if not environments.carried() or beside.exists():
            return beside.absolute()
        made = environments.made(name, _cache())
        return made.python if made else Path(sys.executable).absolute()

    given = {field: env.get(_OTHERS.get(field, f"KUBELOOP_{field.upper()}")) for field in Settings.model_fields}
    place = {
        "home": home,
        "state": state,
        "core_python": python("core", ".venv"),
        "runtime_python": python("runtime", ".venv-runtime"),
        "detector_python": python("detector", ".venv-detector"),
    }
    return Settings.model_validate({**{name: value for name, value in given.items() if value}, **place})

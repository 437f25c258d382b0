"""The settings for a cluster: images, resources, pipeline steps, recurring runs and the inference service."""

from datetime import timedelta
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from kubeloop import __version__, names
from kubeloop.config.types import DnsName, Duration, EnvName, ImageRef, Model, Quantity

Percent = Annotated[int, Field(ge=1, le=100)]


class Images(Model):
    """The images, each with a full version tag or a digest; a release names them by digest."""

    core: ImageRef = f"kubeloop-core:{__version__}"
    runtime: ImageRef = f"kubeloop-runtime:{__version__}"
    runtime_gpu: ImageRef = f"kubeloop-runtime-gpu:{__version__}"
    detector: ImageRef = f"kubeloop-detector:{__version__}"
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[DnsName, ...] = ()


class Toleration(Model):
    """A taint that a pod accepts."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Gpu(Model):
    """Accelerators of one pod."""

    count: int = Field(default=1, ge=1)
    resource: str = Field(default="nvidia.com/gpu", description="The extended resource that the device plugin offers.")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),)


class Resources(Model):
    """Resources of one container; the memory limit equals the request, so that no pod takes another's memory."""

    cpu: Quantity = "500m"
    cpu_limit: Quantity | None = None
    memory: Quantity = "1Gi"
    gpu: Gpu | None = None


class PredictorResources(Resources):
    """Resources of a predictor."""

    cpu: Quantity = "250m"


class TransformerResources(Resources):
    """Resources of a transformer; it uses 130 MiB when idle, nearly all of it for Feast."""

    cpu: Quantity = "250m"
    memory: Quantity = "1Gi"


class NodeResources(Resources):
    """Resources of one node of a TrainJob."""

    cpu: Quantity = "4"
    memory: Quantity = "16Gi"


class StepSettings(Resources):
    """How a pipeline step runs."""

    memory: Quantity = "4Gi"
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    retries: int = Field(default=2, ge=0, le=10)
    backoff: Duration = Field(default=timedelta(seconds=30), description="Wait before the first retry; it doubles.")
    timeout: Duration = Field(
        default=timedelta(hours=4), description="Longest time of the step, including all attempts and waits."
    )
    cache: bool = Field(default=True, description="Reuse the result of an earlier step with the same inputs.")


class Step(Model):
    """Settings of one step; those left out are as in `pipelines.defaults`."""

    cpu: Quantity | None = None
    cpu_limit: Quantity | None = None
    memory: Quantity | None = None
    gpu: Gpu | None = None
    node_selector: dict[str, str] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    retries: int | None = Field(default=None, ge=0, le=10)
    backoff: Duration | None = None
    timeout: Duration | None = None
    cache: bool | None = None


class TrainJob(Model):
    """Training on several nodes, as a TrainJob of Kubeflow Trainer >= 2.2, for data that outgrow one pod."""

    runtime: DnsName = Field(
        default="torch-distributed", description="Training runtime; it numbers the nodes, and the image is kubeloop's."
    )
    runtime_kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"
    nodes: int = Field(default=2, ge=1, le=64)
    resources: NodeResources = NodeResources()
    timeout: Duration = timedelta(hours=12)


class SecretEnv(Model):
    """Variables of every step that come from a Secret, by name."""

    secret: DnsName
    env: dict[EnvName, str] = Field(min_length=1, description="Names of variables, each with a key of the Secret.")


class Recurring(Model):
    """A pipeline that runs on a schedule."""

    name: DnsName
    pipeline: names.Pipeline
    cron: str = Field(pattern=r"^(\S+\s+){5}\S+$", description="Six fields, seconds first, as in Kubeflow Pipelines.")
    max_concurrency: int = Field(
        default=1,
        ge=1,
        le=10,
        description="Most runs at the same time. A missed run is not repeated: the next one does its work too.",
    )
    enabled: bool = True


class Pipelines(Model):
    """How the pipelines run on Kubeflow."""

    experiment: str = Field(default="", description="Experiment of the runs; the loop's name if empty.")
    service_account: DnsName = "kubeloop-pipeline"
    images: Images = Images()
    grouping: Literal["step", "stage", "run"] = Field(
        default="stage",
        description="Steps that share a pod: none (step), those of a stage (data, model, decision), or all of a run. "
        "Each pod adds about 20 seconds.",
    )
    defaults: StepSettings = StepSettings()
    steps: dict[DnsName, Step] = Field(default_factory=dict, description="Settings of single steps, by name.")
    train_job: TrainJob | None = Field(default=None, description="Train in a TrainJob instead of in the step's pod.")
    secrets: tuple[SecretEnv, ...] = ()
    config_map: DnsName | None = Field(
        default="kubeloop-env",
        description="ConfigMap with the KUBELOOP_* variables of every step; the chart creates it.",
    )
    run_as_user: int = Field(default=65532, ge=1, description="User id of the steps; never root.")
    deadline: Duration = Field(default=timedelta(hours=12), description="Longest time of a whole run.")
    ttl: Duration = Field(default=timedelta(days=7), description="How long a finished run's pods are kept.")
    findings_ttl: Duration = Field(
        default=timedelta(days=30),
        description="How long the Data Docs and the quarantined rows of a run are kept in the bucket and in the state "
        "folder; each validation removes older ones.",
    )
    recurring: tuple[Recurring, ...] = ()

    def step(self, name: str) -> StepSettings:
        """Return the settings of a step: its own, and the defaults for the rest."""
        own = self.steps.get(name, Step())
        return self.defaults.model_copy(update={field: getattr(own, field) for field in own.model_fields_set})

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Pipelines":
        found = [item.name for item in self.recurring]
        if len(set(found)) < len(found):
            raise ValueError(f"pipelines.recurring names {', '.join(sorted(found))}; give each a different name")
        return self


class Autoscaling(Model):
    """The number of predictor pods."""

    scaler: Literal["hpa", "keda", "none"] = "hpa"
    min_replicas: int = Field(
        default=1, ge=1, description="At least 1: pods scale by CPU, and without a pod there is no CPU use to measure."
    )
    max_replicas: int = Field(default=4, ge=1)
    cpu_percent: Percent = Field(default=70, description="Target CPU utilization of a replica.")

    @model_validator(mode="after")
    def _bounds_fit(self) -> "Autoscaling":
        if self.min_replicas > self.max_replicas:
            raise ValueError("delivery.autoscaling.min_replicas cannot exceed max_replicas")
        return self

    @field_validator("min_replicas", mode="before")
    @classmethod
    def _one_stays(cls, value: Any) -> Any:
        """Say why 0 is refused, as KEDA's webhook does for a ScaledObject whose only trigger is CPU."""
        if value in (0, "0"):
            raise ValueError(
                "write at least 1: pods scale by CPU, and a service without pods has no CPU use that could start one"
            )
        return value


def _repository(text: str) -> str:
    url = urlsplit(text)
    if url.password or (url.username and url.scheme != "ssh"):
        raise ValueError("the address contains credentials; remove them and put the token into KUBELOOP_GIT_TOKEN")
    here = url.hostname in ("127.0.0.1", "::1", "localhost")
    if url.scheme in ("https", "ssh") or (here and url.scheme in ("http", "git")):
        known = bool(url.hostname) and len(url.path) > 1
    else:
        known = url.scheme in ("", "file") and PurePosixPath(url.path).is_absolute()
    if not known or url.query or url.fragment:
        raise ValueError("write an address such as https://git.example.org/team/loops or ssh://git@host/team/loops")
    return text


def _inside(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{text!r} is not a path inside the repository; write one such as overlays/prod/{{loop}}.yaml")
    return text


GitAddress = Annotated[str, AfterValidator(_repository)]
GitBranch = Annotated[str, Field(pattern=r"^[\w{][\w{}+-]*([./][\w{}+-]+)*$")]


class Git(Model):
    """The repository where a promotion is committed; Argo CD or Flux applies it to the cluster."""

    repository: GitAddress = Field(description="https:// or ssh:// address, without credentials.")
    branch: GitBranch = Field(default="main", description="The branch that Argo CD or Flux follows.")
    path: Annotated[str, AfterValidator(_inside)] = Field(
        default="manifests/overlays/prod/models/{loop}.yaml",
        description="The patch that names the version; {loop} is replaced by the loop's name.",
    )
    review_branch: GitBranch | None = Field(
        default=None,
        description="Propose on this branch, such as kubeloop/{loop}, instead of committing to `branch`.",
    )
    author: str = Field(default="kubeloop <kubeloop@noreply.invalid>", pattern=r"^[^<>\n]+ <[^<>\s]+@[^<>\s]+>$")
    wait: bool = Field(default=True, description="Let the step wait until the cluster serves the version.")
    secrets: tuple[SecretEnv, ...] = Field(
        default=(), description="KUBELOOP_GIT_TOKEN and, if needed, KUBELOOP_GIT_USER for the steps that use Git."
    )

    @model_validator(mode="after")
    def _a_review_has_a_branch_of_its_own(self) -> "Git":
        if self.review_branch == self.branch:
            raise ValueError(
                "delivery.git.review_branch equals delivery.git.branch; leave it out to commit to that branch"
            )
        return self


class Delivery(Model):
    """How a promoted model gets the traffic."""

    applier: Literal["local", "cluster", "gitops"] = "local"
    git: Git | None = Field(default=None, description="The repository of `applier: gitops`.")
    namespace: DnsName = "kubeloop"
    drain_s: float = Field(
        default=5.0,
        ge=0,
        description="Seconds that a server keeps listening after SIGTERM, since clients and routers still know its "
        "address. It stops after that long without a request, and at the latest after three times that. On a cluster "
        "it must be above 4, because a transformer keeps an idle connection for 4 seconds.",
    )
    ready_timeout: Duration = Field(
        default=timedelta(minutes=10), description="How long to wait until the cluster is ready."
    )
    runtime: DnsName | None = Field(
        default=None,
        description="ServingRuntime of the predictor, for ONNX; if left out, kubeloop's own for CPU or GPU.",
    )
    runtimes: DnsName = Field(
        default=names.RUNTIMES,
        description="Prefix of the names of the chart's ServingRuntimes; the chart sets it.",
    )
    service_account: DnsName | None = Field(
        default="kubeloop-serving", description="Service account whose Secret gives access to the model store."
    )
    secrets: tuple[SecretEnv, ...] = Field(
        default=(), description="Variables of the transformer, such as KUBELOOP_ONLINE_STORE, that come from a Secret."
    )
    config_map: DnsName | None = Field(
        default="kubeloop-env", description="ConfigMap with the transformer's other variables; the chart creates it."
    )
    predictor: PredictorResources = PredictorResources()
    transformer: TransformerResources = TransformerResources()
    autoscaling: Autoscaling = Autoscaling()

    @model_validator(mode="after")
    def _runtime_serves_tables(self) -> "Delivery":
        if self.runtime == names.runtime(self.runtimes, "vllm"):
            raise ValueError(
                f"runtime: {self.runtime} serves only language models, and a loop's models are ONNX; leave it out, or "
                f"write {names.runtime(self.runtimes, 'triton')} for another server"
            )
        return self

    @model_validator(mode="after")
    def _a_predictor_outlives_idle_connections(self) -> "Delivery":
        if self.applier != "local" and self.drain_s <= names.IDLE_CONNECTION_S:
            raise ValueError(
                f"with `drain_s: {self.drain_s:g}` requests would fail while a predictor's pod is replaced, because a "
                f"transformer keeps an idle connection for {names.IDLE_CONNECTION_S:g} s; write more than that, "
                "such as 5"
            )
        return self

    @model_validator(mode="after")
    def _gitops_has_a_repository(self) -> "Delivery":
        if self.applier == "gitops" and self.git is None:
            raise ValueError(
                "`applier: gitops` commits to a repository; add its address, such as "
                "`git: {repository: https://git.example.org/team/loops}`"
            )
        return self

"""The values of the Helm chart as a typed model: what can be set, what it means and its default."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from kubeloop.config import Loop
from kubeloop.config.cluster import Images
from kubeloop.config.types import DnsName, EnvName, ImageRef, Model, Quantity

Namespace = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$")]
SecretName = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Replicas = Annotated[int, Field(ge=1, le=100)]


class Part(Model):
    """A section of the values; keys are camelCase."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)


class ChartImages(Part, Images):
    """Images by full version tag or digest; they are the pipeline steps' too, unless a loop names its own."""

    registry: str = Field(
        default="",
        pattern=r"^([\w.:/-]*[\w])?$",
        description="Put before every name, such as ghcr.io/acme; no slash at the end.",
    )


class SecretKey(Part):
    """A key of a Secret that exists; the chart makes none."""

    name: SecretName = ""
    key: str = Field(default="url", pattern=r"^[\w.-]+$")


class Env(Part):
    """A variable of a container."""

    name: EnvName
    value: str | None = None
    value_from: dict[str, Any] | None = Field(default=None, description="As in a container of Kubernetes.")


class Resources(Part):
    """What a container asks for, and what it cannot exceed."""

    requests: dict[str, Quantity] = Field(default={})
    limits: dict[str, Quantity] = Field(default={})


def _resources(cpu: str, memory: str) -> Resources:
    # No limit of CPU: it would throttle an idle node's only pod. Memory is limited at what is asked for.
    return Resources(requests={"cpu": cpu, "memory": memory}, limits={"memory": memory})


class Pods(Part):
    """Where pods run, and what all of them carry."""

    node_selector: dict[str, str] = Field(default={})
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] = Field(default={})
    topology_key: str = Field(
        default="kubernetes.io/hostname",
        description="Replicas are spread over this label's values; not at all if empty.",
    )
    priority_class_name: SecretName = ""
    annotations: dict[str, str] = Field(default={})
    extra_env: tuple[Env, ...] = ()


class PodChanges(Part):
    """What is different for one part; what is left out is as in `pods`."""

    node_selector: dict[str, str] | None = None
    tolerations: tuple[dict[str, Any], ...] | None = None
    affinity: dict[str, Any] | None = None
    topology_key: str | None = None
    priority_class_name: SecretName | None = None
    annotations: dict[str, str] | None = None
    extra_env: tuple[Env, ...] | None = None


class Storage(Part):
    """The S3 store of the payload log, the references and the models."""

    bucket: str = Field(default="s3://kubeloop", pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/[\w./-]+)?$")
    endpoint: str = Field(
        default="", description="Address of a store that is not AWS, such as http://minio.minio:9000."
    )
    region: str = "us-east-1"
    owner: str = Field(
        default="",
        pattern=r"^([\w.:/-]{1,200})?$",
        description="Name under which this installation owns the bucket, which refuses others; "
        "<namespace>/<release> when empty.",
    )
    secret: SecretName = Field(
        default="",
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; empty with a workload identity.",
    )
    identity_annotations: dict[str, str] = Field(
        default={}, description="Of every service account that reads the store, such as eks.amazonaws.com/role-arn."
    )


class Kubeflow(Part):
    """Kubeflow Pipelines."""

    url: str = Field(default="http://ml-pipeline.kubeflow:8888", pattern=r"^https?://\S+$")
    ui: str = Field(default="", description="Where people open it; for links alone.")
    system_namespace: Namespace = Field(default="kubeflow", description="Where its API server runs.")
    namespace: Namespace = Field(default="", description="Where pipeline steps run; the release's when empty.")
    artifact_secret: SecretName = Field(
        default="mlpipeline-minio-artifact",
        description="Secret that Kubeflow's launcher reads for its own store; may be empty.",
    )


class Collector(Part):
    """Takes the payload events of every inference service; one pod."""

    resources: Resources = _resources("250m", "1Gi")
    mirror_resources: Resources = _resources("50m", "256Mi")
    volume_size: Quantity = "20Gi"
    storage_class: str | None = Field(
        default=None, description="Storage class of its volume; the cluster's own when left out."
    )
    max_disk_bytes: int = Field(
        default=16 * 2**30, ge=2**20, description="Size of the log at which it refuses; under the volume's."
    )
    pod: PodChanges = PodChanges()


class Monitor(Part):
    """Watches one loop; one pod a loop."""

    database: SecretKey = SecretKey(name="kubeloop-monitor")
    resources: Resources = Field(
        default=_resources("250m", "1Gi"),
        description="70 MiB at rest, 250 while it judges windows of 100,000 predictions of three features.",
    )
    mirror_resources: Resources = _resources("50m", "256Mi")
    detector_resources: Resources = Field(
        default=_resources("250m", "1Gi"),
        description="10 MiB at rest, 135 for Alibi Detect, and while it tests three copies of a window's rows.",
    )
    volume_size: Quantity = Field(default="20Gi", description="Largest copy of the payload log that it may keep.")
    pod: PodChanges = PodChanges()


class Trigger(Part):
    """Keeps the ledger of one loop's runs and starts them."""

    ledger: SecretKey = SecretKey(name="kubeloop-ledger")
    replicas: Replicas = 2
    resources: Resources = _resources("100m", "256Mi")
    pod: PodChanges = PodChanges()


class Migrations(Part):
    """Migrates the ledger's and the monitor's database before an upgrade."""

    resources: Resources = _resources("50m", "256Mi")
    pod: PodChanges = PodChanges()


class LoopResources(Part):
    """Resources of one loop's containers, in place of everyone's."""

    monitor: Resources | None = None
    detector: Resources | None = None
    trigger: Resources | None = None


class LoopEntry(Part):
    """One loop."""

    config: Loop | str = Field(description="What is in loop.yaml, as a mapping, or as text (helm --set-file).")
    replicas: Replicas | None = Field(default=None, description="Triggers of this loop.")
    resources: LoopResources = LoopResources()


class Scaling(Part):
    """Replicas that follow the load; KEDA scales when `keda.enabled` is set, an HPA otherwise."""

    enabled: bool = False
    min_replicas: Replicas = 2
    max_replicas: Replicas = 6
    cpu_percent: int = Field(default=70, ge=1, le=100)


class Login(Part):
    """Names and passwords for MLflow (its `basic-auth`); whoever reaches it may do everything when both are empty."""

    server: SecretName = Field(
        default="",
        description="Secret of the chart's server: auth.ini, as MLflow documents it, and session-key, a random text.",
    )
    clients: SecretName = Field(
        default="",
        description="Secret with username and password of pipeline steps, where they run; for any MLflow.",
    )


class Mlflow(Part):
    """The MLflow server of the chart, or one that runs elsewhere."""

    enabled: bool = True
    uri: str = Field(
        default="", pattern=r"^(https?://\S+)?$", description="The one elsewhere; needed when not enabled."
    )
    backend_store: SecretKey = SecretKey(name="kubeloop-mlflow")
    artifact_root: str = Field(default="", pattern=r"^(s3://\S+)?$", description="<storage.bucket>/mlflow when empty.")
    login: Login = Login()
    allowed_hosts: tuple[str, ...] = Field(default=(), description="More names that people open it under.")
    replicas: Replicas = 1
    resources: Resources = _resources("250m", "1Gi")
    autoscaling: Scaling = Scaling()
    pod: PodChanges = PodChanges()


class Features(Part):
    """The feature store that many pods share."""

    registry: SecretKey = Field(
        default=SecretKey(name="kubeloop-features", key="registry"),
        description="Secret with KUBELOOP_FEATURE_REGISTRY.",
    )
    online_store: SecretKey = Field(
        default=SecretKey(name="kubeloop-features", key="online"), description="Secret with KUBELOOP_ONLINE_STORE."
    )


class Runtime(Part):
    """A serving runtime."""

    enabled: bool = True
    resources: Resources = _resources("250m", "1Gi")


class GpuRuntime(Runtime):
    """A serving runtime on accelerators; `resources` limits them."""

    enabled: bool = False
    resources: Resources = Resources(
        requests={"cpu": "1", "memory": "8Gi"}, limits={"memory": "8Gi", "nvidia.com/gpu": "1"}
    )
    node_selector: dict[str, str] = Field(default={})
    tolerations: tuple[dict[str, Any], ...] = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)


class OurGpuRuntime(GpuRuntime):
    """Our server on accelerators."""

    device: Literal["cuda", "tensorrt"] = Field(
        default="cuda",
        description="TensorRT compiles a model when it loads, and needs an image built with TENSORRT=1.",
    )


class OtherRuntime(GpuRuntime):
    """A serving runtime of another project."""

    image: ImageRef


class Runtimes(Part):
    """KServe's serving runtimes."""

    cluster_wide: bool = Field(
        default=False, description="One ClusterServingRuntime each, in place of one a namespace."
    )
    onnx: Runtime = Runtime()
    onnx_gpu: OurGpuRuntime = OurGpuRuntime()
    triton: OtherRuntime = Field(
        default=OtherRuntime(image="nvcr.io/nvidia/tritonserver:25.04-py3"),
        description="For the models of loops that name it as delivery.runtime: kubeloop-triton.",
    )
    vllm: OtherRuntime = Field(
        default=OtherRuntime(image="docker.io/vllm/vllm-openai:v0.10.2"),
        description="For InferenceServices of language models that you write; no loop makes one.",
    )


class Metrics(Part):
    """ServiceMonitors and PodMonitors for the Prometheus operator."""

    enabled: bool = False
    interval: str = Field(default="30s", pattern=r"^[0-9]+(s|m)$")
    labels: dict[str, str] = Field(default={}, description="That the operator selects them by.")


class Alerts(Part):
    """The PrometheusRule."""

    enabled: bool = False
    labels: dict[str, str] = Field(default={}, description="That the operator selects it by.")
    runbook_url: str = Field(
        default="https://github.com/kubeloop/kubeloop/blob/main/docs/operations.md",
        pattern=r"^https?://[^#\s]+$",
        description="The page whose anchors are the runbooks.",
    )
    drift_open_for: str = Field(
        default="6h", pattern=r"^[0-9]+(m|h|d)$", description="How long an episode may stay open."
    )
    missing_share: float = Field(
        default=0.3, gt=0, le=1, description="Share of a feature's values that may be missing."
    )
    rejections: int = Field(
        default=3, ge=1, description="Challengers turned down in two weeks without one that passed."
    )


class Dashboard(Part):
    """The Grafana dashboard, as a ConfigMap that Grafana's sidecar finds."""

    enabled: bool = False
    labels: dict[str, str] = Field(default={"grafana_dashboard": "1"})


class Destination(Part):
    """Where pods may connect to."""

    ports: tuple[Port, ...]
    namespaces: tuple[Namespace, ...] = Field(default=(), description="Namespaces of the pods that answer there.")
    to: tuple[dict[str, Any], ...] = Field(
        default=(), description="More peers of a NetworkPolicy, such as {ipBlock: {cidr: 10.9.0.0/16}}."
    )


class NetworkPolicies(Part):
    """Default deny for every pod of kubeloop, and what each part needs."""

    enabled: bool = True
    blocked: tuple[str, ...] = Field(
        default=("169.254.169.254/32", "fd00:ec2::254/128"),
        description="Addresses that no pod reaches: the cloud's metadata.",
    )
    dns: Destination = Destination(
        ports=(53,), namespaces=("kube-system",), to=({"ipBlock": {"cidr": "169.254.20.10/32"}},)
    )
    database: Destination = Field(
        default=Destination(ports=(5432,)), description="The release's own namespace when none is named."
    )
    object_store: Destination = Field(
        default=Destination(ports=(443, 8333, 9000)),
        description="The namespace in storage.endpoint when none is named; any address but the blocked for a store "
        "outside the cluster.",
    )
    online_store: Destination = Field(
        default=Destination(ports=(6379, 5432)), description="The release's own namespace when none is named."
    )
    kubernetes: Destination = Field(
        default=Destination(ports=(443, 6443)),
        description="The API server, which the monitor asks and which no selector names: any address but the blocked "
        "when none is named.",
    )
    sources: Destination = Field(
        default=Destination(ports=()),
        description="What pipeline steps read beyond kubeloop, Kubeflow, databases and store, on all ports when no "
        "port is listed: anywhere but the blocked addresses when none is named.",
    )
    prometheus_namespace: Namespace = Field(default="monitoring", description="May read /metrics; nobody when empty.")
    clients: tuple[Namespace, ...] = Field(
        default=(), description="Namespaces that ask for predictions, the gateway's too."
    )
    labellers: tuple[Namespace, ...] = Field(default=(), description="Namespaces that post labels to the collector.")
    event_sources: tuple[Namespace, ...] = Field(
        default=(), description="Namespaces that post events to triggers: Knative, Argo Events."
    )
    mlflow_clients: tuple[Namespace, ...] = Field(
        default=(), description="Namespaces that open MLflow, such as notebooks'."
    )


class Gateway(Part):
    """An HTTPRoute that lets labels and events in from outside; the gateway must authenticate its clients."""

    enabled: bool = False
    name: DnsName = "kubeloop"
    namespace: Namespace = Field(default="gateway-system", description="The gateway's; its pods may connect.")
    section_name: str = ""
    hostname: str = Field(default="", description="Of /labels and /loops/<name>/events; any when empty.")
    mlflow_hostname: str = Field(default="", description="Of MLflow; no route when empty.")


class Switch(Part):
    """An optional branch."""

    enabled: bool = False


class Values(Part):
    """The values of the chart."""

    # Helm adds this key where the chart is another chart's dependency.
    globals_: dict[str, Any] = Field(default={}, alias="global", description="Of a parent chart; not read.")
    fullname_override: str = Field(
        default="",
        pattern=r"^([a-z]([a-z0-9-]{0,10}[a-z0-9])?)?$",
        description="Start of the names, in place of the release's.",
    )
    images: ChartImages = ChartImages()
    storage: Storage = Storage()
    kubeflow: Kubeflow = Kubeflow()
    pods: Pods = Pods()
    loops: dict[DnsName, LoopEntry] = Field(
        default={}, description="The loops by name: {flight-delay: {config: <what loop.yaml says>}}."
    )
    collector: Collector = Collector()
    monitor: Monitor = Monitor()
    trigger: Trigger = Trigger()
    migrations: Migrations = Migrations()
    mlflow: Mlflow = Mlflow()
    features: Features = Features()
    runtimes: Runtimes = Runtimes()
    metrics: Metrics = Metrics()
    alerts: Alerts = Alerts()
    dashboard: Dashboard = Dashboard()
    network_policy: NetworkPolicies = NetworkPolicies()
    pod_disruption_budgets: Switch = Switch(enabled=True)
    keda: Switch = Field(
        default=Switch(), description="KEDA's ScaledObjects where a part's autoscaling is enabled, not HPAs."
    )
    gateway: Gateway = Gateway()

    @model_validator(mode="after")
    def _names_fit(self) -> "Values":
        for name, entry in self.loops.items():
            loop = Loop.parse(entry.config) if isinstance(entry.config, str) else entry.config
            if loop.name != name:
                raise ValueError(f"loops.{name}.config.name is {loop.name}; call the entry loops.{loop.name}")
        return self

"""The values of the Helm chart as a typed model: their names, meanings and defaults."""

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
    """Images by full version tag or digest; pipeline steps use them too, unless a loop names its own."""

    registry: str = Field(
        default="",
        pattern=r"^([\w.:/-]*[\w])?$",
        description="Put before every name, such as ghcr.io/acme; no slash at the end.",
    )


class SecretKey(Part):
    """A key of an existing Secret; the chart creates none."""

    name: SecretName = ""
    key: str = Field(default="url", pattern=r"^[\w.-]+$")


class Env(Part):
    """A variable of a container."""

    name: EnvName
    value: str | None = None
    value_from: dict[str, Any] | None = Field(default=None, description="valueFrom, as in a Kubernetes container.")


class Resources(Part):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] = Field(default={})
    limits: dict[str, Quantity] = Field(default={})


def _resources(cpu: str, memory: str) -> Resources:
    # No CPU limit, since it would throttle the only pod of an idle node. The memory limit equals the request.
    return Resources(requests={"cpu": cpu, "memory": memory}, limits={"memory": memory})


class Pods(Part):
    """Where pods run, and the settings that all of them share."""

    node_selector: dict[str, str] = Field(default={})
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] = Field(default={})
    topology_key: str = Field(
        default="kubernetes.io/hostname",
        description="Label whose values replicas are spread over; not spread if empty.",
    )
    priority_class_name: SecretName = ""
    annotations: dict[str, str] = Field(default={})
    extra_env: tuple[Env, ...] = ()


class PodChanges(Part):
    """Settings of one part's pods; those left out are as in `pods`."""

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
        description="Name of this installation in the bucket, which only one installation may use; "
        "<namespace>/<release> if empty.",
    )
    secret: SecretName = Field(
        default="",
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; leave empty with a workload identity.",
    )
    identity_annotations: dict[str, str] = Field(
        default={},
        description="Annotations of service accounts that use the store, such as eks.amazonaws.com/role-arn.",
    )


class Kubeflow(Part):
    """Kubeflow Pipelines."""

    url: str = Field(default="http://ml-pipeline.kubeflow:8888", pattern=r"^https?://\S+$")
    ui: str = Field(default="", description="Address of the Kubeflow UI for people; only used in links.")
    system_namespace: Namespace = Field(default="kubeflow", description="Namespace of its API server.")
    namespace: Namespace = Field(default="", description="Namespace of pipeline steps; the release's if empty.")
    artifact_secret: SecretName = Field(
        default="mlpipeline-minio-artifact",
        description="Secret that Kubeflow's launcher reads for its store; may be empty.",
    )


class Collector(Part):
    """Collects the payload events of every inference service; one pod."""

    resources: Resources = _resources("250m", "1Gi")
    mirror_resources: Resources = _resources("50m", "256Mi")
    volume_size: Quantity = "20Gi"
    storage_class: str | None = Field(
        default=None, description="Storage class of its volume; the cluster's default if left out."
    )
    max_disk_bytes: int = Field(
        default=16 * 2**30,
        ge=2**20,
        description="The collector refuses events when the log has this size; keep it below volumeSize.",
    )
    pod: PodChanges = PodChanges()


class Monitor(Part):
    """Watches a loop; one pod per loop."""

    database: SecretKey = SecretKey(name="kubeloop-monitor")
    resources: Resources = Field(
        default=_resources("250m", "1Gi"),
        description="It uses 70 MiB when idle; 250 MiB to judge windows of 100,000 predictions with three features.",
    )
    mirror_resources: Resources = _resources("50m", "256Mi")
    detector_resources: Resources = Field(
        default=_resources("250m", "1Gi"),
        description="It uses 10 MiB when idle; in a test, 135 MiB for Alibi Detect plus three copies of a window.",
    )
    volume_size: Quantity = Field(default="20Gi", description="Largest size of its copy of the payload log.")
    pod: PodChanges = PodChanges()


class Trigger(Part):
    """Keeps the ledger of a loop's runs and starts the runs."""

    ledger: SecretKey = SecretKey(name="kubeloop-ledger")
    replicas: Replicas = 2
    resources: Resources = _resources("100m", "256Mi")
    pod: PodChanges = PodChanges()


class Migrations(Part):
    """Migrates the ledger's and the monitor's database before an upgrade."""

    resources: Resources = _resources("50m", "256Mi")
    pod: PodChanges = PodChanges()


class LoopResources(Part):
    """Resources of one loop's containers, in place of the general ones."""

    monitor: Resources | None = None
    detector: Resources | None = None
    trigger: Resources | None = None


class LoopEntry(Part):
    """One loop."""

    config: Loop | str = Field(description="The content of loop.yaml, as a mapping or as text (helm --set-file).")
    replicas: Replicas | None = Field(default=None, description="Number of triggers of this loop.")
    resources: LoopResources = LoopResources()


class Scaling(Part):
    """Number of replicas that follows the load; KEDA scales if `keda.enabled` is set, else an HPA does."""

    enabled: bool = False
    min_replicas: Replicas = 2
    max_replicas: Replicas = 6
    cpu_percent: int = Field(default=70, ge=1, le=100)


class Login(Part):
    """Names and passwords for MLflow (its `basic-auth`); if both are empty, every client may do everything."""

    server: SecretName = Field(
        default="",
        description="Secret of the chart's server with auth.ini (see MLflow's docs) and session-key, a random text.",
    )
    clients: SecretName = Field(
        default="",
        description="Secret with username and password of pipeline steps, in their namespace; for any MLflow server.",
    )


class Mlflow(Part):
    """The MLflow server of the chart, or one that runs elsewhere."""

    enabled: bool = True
    uri: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="Address of another MLflow server; needed if enabled is false.",
    )
    backend_store: SecretKey = SecretKey(name="kubeloop-mlflow")
    artifact_root: str = Field(default="", pattern=r"^(s3://\S+)?$", description="<storage.bucket>/mlflow if empty.")
    login: Login = Login()
    allowed_hosts: tuple[str, ...] = Field(default=(), description="More host names that people use for it.")
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
        default=False, description="Create ClusterServingRuntimes instead of a ServingRuntime per namespace."
    )
    onnx: Runtime = Runtime()
    onnx_gpu: OurGpuRuntime = OurGpuRuntime()
    triton: OtherRuntime = Field(
        default=OtherRuntime(image="nvcr.io/nvidia/tritonserver:25.04-py3"),
        description="For loops that set delivery.runtime: kubeloop-triton.",
    )
    vllm: OtherRuntime = Field(
        default=OtherRuntime(image="docker.io/vllm/vllm-openai:v0.10.2"),
        description="For your own InferenceServices of language models; loops do not use it.",
    )


class Metrics(Part):
    """ServiceMonitors and PodMonitors for the Prometheus operator."""

    enabled: bool = False
    interval: str = Field(default="30s", pattern=r"^[0-9]+(s|m)$")
    labels: dict[str, str] = Field(default={}, description="Labels by which the operator selects them.")


class Alerts(Part):
    """The PrometheusRule."""

    enabled: bool = False
    labels: dict[str, str] = Field(default={}, description="Labels by which the operator selects it.")
    runbook_url: str = Field(
        default="https://github.com/kubeloop/kubeloop/blob/main/docs/operations.md",
        pattern=r"^https?://[^#\s]+$",
        description="The page whose anchors are the runbooks.",
    )
    drift_open_for: str = Field(
        default="6h", pattern=r"^[0-9]+(m|h|d)$", description="How long an episode may stay open before the alert."
    )
    missing_share: float = Field(
        default=0.3, gt=0, le=1, description="Largest share of a feature's values that may be missing."
    )
    rejections: int = Field(default=3, ge=1, description="Rejected challengers in two weeks without a promotion.")


class Dashboard(Part):
    """The Grafana dashboard, as a ConfigMap that Grafana's sidecar finds."""

    enabled: bool = False
    labels: dict[str, str] = Field(default={"grafana_dashboard": "1"})


class Destination(Part):
    """A destination that pods may connect to."""

    ports: tuple[Port, ...]
    namespaces: tuple[Namespace, ...] = Field(default=(), description="Namespaces of the destination's pods.")
    to: tuple[dict[str, Any], ...] = Field(
        default=(), description="More peers of a NetworkPolicy, such as {ipBlock: {cidr: 10.9.0.0/16}}."
    )


class NetworkPolicies(Part):
    """Deny every connection of kubeloop's pods, except those that each part needs."""

    enabled: bool = True
    blocked: tuple[str, ...] = Field(
        default=("169.254.169.254/32", "fd00:ec2::254/128"),
        description="Addresses that no pod may reach, such as the cloud's metadata service.",
    )
    dns: Destination = Destination(
        ports=(53,), namespaces=("kube-system",), to=({"ipBlock": {"cidr": "169.254.20.10/32"}},)
    )
    database: Destination = Field(
        default=Destination(ports=(5432,)), description="If no namespace is listed: the release's namespace."
    )
    object_store: Destination = Field(
        default=Destination(ports=(443, 8333, 9000)),
        description="If no namespace is listed: the namespace in storage.endpoint or, for a store outside the "
        "cluster, every address that is not blocked.",
    )
    online_store: Destination = Field(
        default=Destination(ports=(6379, 5432)), description="If no namespace is listed: the release's namespace."
    )
    kubernetes: Destination = Field(
        default=Destination(ports=(443, 6443)),
        description="The API server, which the monitor calls and which no selector can name. If nothing is listed: "
        "every address that is not blocked.",
    )
    sources: Destination = Field(
        default=Destination(ports=()),
        description="Other sources that pipeline steps read. If no port is listed: all ports. If nothing else is "
        "listed: every address that is not blocked.",
    )
    prometheus_namespace: Namespace = Field(
        default="monitoring", description="Namespace that may read /metrics; none if empty."
    )
    clients: tuple[Namespace, ...] = Field(
        default=(), description="Namespaces that request predictions, including the gateway's."
    )
    labellers: tuple[Namespace, ...] = Field(default=(), description="Namespaces that post labels to the collector.")
    event_sources: tuple[Namespace, ...] = Field(
        default=(), description="Namespaces that post events to triggers: Knative, Argo Events."
    )
    mlflow_clients: tuple[Namespace, ...] = Field(
        default=(), description="Namespaces that use MLflow, such as those of notebooks."
    )


class Gateway(Part):
    """An HTTPRoute for labels and events from outside the cluster; the gateway must authenticate its clients."""

    enabled: bool = False
    name: DnsName = "kubeloop"
    namespace: Namespace = Field(
        default="gateway-system", description="Namespace of the gateway; its pods may connect."
    )
    section_name: str = ""
    hostname: str = Field(default="", description="Host name of /labels and /loops/<name>/events; any if empty.")
    mlflow_hostname: str = Field(default="", description="Host name of MLflow; no route if empty.")


class Switch(Part):
    """An optional branch."""

    enabled: bool = False


class Values(Part):
    """The values of the chart."""

    # Helm adds this key if the chart is a dependency of another chart.
    globals_: dict[str, Any] = Field(default={}, alias="global", description="Values of a parent chart; not used.")
    fullname_override: str = Field(
        default="",
        pattern=r"^([a-z]([a-z0-9-]{0,10}[a-z0-9])?)?$",
        description="Prefix of the names, instead of the release's name.",
    )
    images: ChartImages = ChartImages()
    storage: Storage = Storage()
    kubeflow: Kubeflow = Kubeflow()
    pods: Pods = Pods()
    loops: dict[DnsName, LoopEntry] = Field(
        default={}, description="The loops by name: {flight-delay: {config: <content of loop.yaml>}}."
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
        default=Switch(), description="For parts with autoscaling, create KEDA's ScaledObjects instead of HPAs."
    )
    gateway: Gateway = Gateway()

    @model_validator(mode="after")
    def _names_fit(self) -> "Values":
        for name, entry in self.loops.items():
            loop = Loop.parse(entry.config) if isinstance(entry.config, str) else entry.config
            if loop.name != name:
                raise ValueError(f"loops.{name}.config.name is {loop.name}; call the entry loops.{loop.name}")
        return self

"""Every Kubernetes name, label, annotation and CloudEvent type, and the other names that parts must share."""

from typing import Literal, get_args

LABEL_DOMAIN = "kubeloop.io"

VERSION = f"{LABEL_DOMAIN}/model-version"
DIGEST = f"{LABEL_DOMAIN}/model-sha256"
RUN = f"{LABEL_DOMAIN}/run"
MANIFEST = f"{LABEL_DOMAIN}/manifest-sha256"
MANAGED_BY = "app.kubernetes.io/managed-by"
PART_OF = "app.kubernetes.io/part-of"
COMPONENT = "app.kubernetes.io/component"
INSTANCE = "app.kubernetes.io/instance"
LOOP = f"{LABEL_DOMAIN}/loop"

REQUEST_EVENT = "org.kubeflow.serving.inference.request"
RESPONSE_EVENT = "org.kubeflow.serving.inference.response"
LABEL_EVENT = "io.kubeloop.label"
EXPOSURE_EVENT = "io.kubeloop.exposure"
"""Which version requests were given to by chance, and whether it answered them; see `payloads.exposed`."""
Pipeline = Literal["training", "materialize", "batch-scoring", "backfill"]
PIPELINES: tuple[Pipeline, ...] = get_args(Pipeline)

DRIFT_EVENT = "io.kubeloop.drift"
DECISION_EVENT = "io.kubeloop.decision"

ENDPOINT = "endpoint"
"""The label of a predictor's pod that KServe's agent reports as `ce-endpoint` (kserve, agent_injector.go)."""
EVENT_SOURCE = "http://localhost:9081/"
"""`ce-source` of payload events: KServe's agent takes its pod's name, which is not known when it is injected."""

RUNTIMES = "kubeloop"
"""First part of the names of the chart's ServingRuntimes in a release called `kubeloop`."""


def runtime(release: str, server: Literal["onnx", "onnx-gpu", "triton", "vllm"]) -> str:
    """Return the name of one of the chart's ServingRuntimes: ours on CPUs or GPUs, or another project's server."""
    return f"{release}-{server}"


RUNTIME = runtime(RUNTIMES, "onnx")
"""The runtime that the node on a laptop imitates."""

PAYLOADS = "payloads"
REFERENCES = "references"
"""Prefixes of the bucket: segments of the payload log, and the references of model versions."""


def reference(service: str, version: str) -> str:
    """Return the bucket's prefix of a version's reference."""
    return f"{REFERENCES}/{service}/{version}/reference"


def outcome(run: str) -> str:
    """Return the name of the object that holds the decision of a pipeline run."""
    return f"outcomes/{run}.json"


def failure(run_id: str) -> str:
    """Return the name of the object that says why a run of Kubeflow Pipelines failed."""
    return f"failures/{run_id}.json"


def loop(digest: str) -> str:
    """Return the name, in the bucket or the state folder, of the use case with a SHA-256 hex digest."""
    return f"loops/{digest}.json"


def installed(loop: str) -> str:
    """Return the key under which the ConfigMap of the steps' variables holds a loop as the chart installed it."""
    return f"loop.{loop}"


def job(name: str) -> str:
    """Return the bucket's prefix of a TrainJob's data and model."""
    return f"jobs/{name}"


def labels(service: str, component: str) -> dict[str, str]:
    """Return the labels that every object of an inference service carries."""
    return {
        "app.kubernetes.io/name": service,
        COMPONENT: component,
        MANAGED_BY: "kubeloop",
        PART_OF: "kubeloop",
    }


def model_format() -> dict[str, str]:
    """Return the `modelFormat` that our runtimes take."""
    return {"name": "onnx", "version": "1"}


IDLE_CONNECTION_S = 4.0
"""Seconds that a transformer keeps an idle connection to a predictor, which must keep listening for longer."""

"""The loop on a cluster without kubelets: real MLflow, PostgreSQL, Redis, S3 and API server.

The test plays the node: it copies the model like the storage initializer, starts the containers with the arguments of
the InferenceService, and sends the agent's payload events.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kubeloop import config, features, names
from kubeloop.config import Loop, Settings
from kubeloop.features import online
from kubeloop.models import registry
from kubeloop.node.payload_events import EventLog, Pair
from kubeloop.node.processes import die_with_parent
from kubeloop.stores.bucket import Bucket
from kubeloop.tasks.tabular import model_folder

pytestmark = pytest.mark.timeout(600)


@dataclass
class Cluster:
    """An installation, described by the environment variables that its pods would get."""

    loop: Loop
    settings: Settings
    environ: dict[str, str]
    folder: Path
    stack: contextlib.ExitStack
    known: dict[str, Any] = field(default_factory=dict)

    def run(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env=self.environ,
            cwd=self.settings.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done

    def start(self, *command: str, environ: dict[str, str] | None = None) -> str:
        """Start one of our programs and return its address."""
        parent = os.getpid()
        process = self.stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environ or self.environ,
                cwd=self.settings.home,
                stdout=subprocess.PIPE,
                stderr=(self.folder / "log.txt").open("a"),
                text=True,
                preexec_fn=lambda: die_with_parent(parent),
            )
        )
        self.stack.callback(process.terminate)
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("ready "), (self.folder / "log.txt").read_text()[-3000:]
        return line.split()[1]


@pytest.fixture(scope="module")
def cluster(
    control_plane: Any,
    postgres_server: Any,
    redis_server: Any,
    seaweed: Any,
    loop: Loop,
    make_home: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        namespace = stack.enter_context(control_plane.namespace("models"))
        _grant(control_plane, namespace)
        delivery = {"applier": "cluster", "namespace": namespace, "ready_timeout": "60s"}
        ours = Loop.parse(loop.dump(), {"name": "flights", "delivery": delivery})
        home = make_home(_made(folder / "home"), ours)
        prefix = f"s3://kubeloop/{secrets.token_hex(4)}"
        account = f"system:serviceaccount:{namespace}:kubeloop-pipeline"
        variables = {
            **seaweed.environ,
            **config.QUIET,
            "KUBELOOP_HOME": str(home.home),
            "KUBELOOP_STATE": str(home.state),
            "KUBELOOP_BUCKET": f"{prefix}/loop",
            "KUBELOOP_FEATURE_REGISTRY": postgres_server.database(f"feast_{secrets.token_hex(4)}"),
            "KUBELOOP_ONLINE_STORE": redis_server(),
            "KUBELOOP_MONITOR_DB": postgres_server.database(f"monitor_{secrets.token_hex(4)}"),
            "KUBELOOP_MLFLOW_URI": _mlflow(
                stack, folder, postgres_server.database(f"mlflow_{secrets.token_hex(4)}"), f"{prefix}/mlflow", seaweed
            ),
            "KUBECONFIG": str(control_plane.kubeconfig(account)),
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        found = Cluster(ours, config.settings(), {**os.environ, **variables}, folder, stack)
        found.environ["KUBELOOP_COLLECTOR_URL"] = found.start(
            "kubeloop.payloads.collector", "--dir", str(folder / "collector"), "--port", "0"
        )
        yield found


def _grant(plane: Any, namespace: str) -> None:
    """Give the pipeline's account the rights that the chart gives it."""
    plane.kubectl("create", "serviceaccount", "kubeloop-pipeline", "-n", namespace)
    rules = [
        {
            "apiGroups": ["serving.kserve.io"],
            "resources": ["inferenceservices"],
            "verbs": ["get", "create", "patch"],
        },
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "p"}, "rules": rules}
    plane.kubectl("apply", "-n", namespace, "-f", "-", input=yaml.safe_dump(role))
    plane.kubectl(
        *("create", "rolebinding", "p", "-n", namespace, "--role=p"), f"--serviceaccount={namespace}:kubeloop-pipeline"
    )


def _mlflow(stack: contextlib.ExitStack, folder: Path, database: str, root: str, seaweed: Any) -> str:
    """Start an MLflow server as the chart does and return its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    parent = os.getpid()
    command = [
        *(str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", database, "--default-artifact-root", root, "--no-serve-artifacts"),
    ]
    log = (folder / "mlflow.txt").open("w")
    process = stack.enter_context(
        subprocess.Popen(
            command,
            env={**os.environ, **seaweed.environ, **config.QUIET},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )
    )
    stack.callback(lambda: os.killpg(process.pid, signal.SIGKILL))
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", trust_env=False).is_success:
                return url
        assert process.poll() is None, (folder / "mlflow.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, (folder / "mlflow.txt").read_text()[-3000:]
        time.sleep(0.2)


@pytest.fixture(scope="module")
def promoted(cluster: Cluster, control_plane: Any, as_of: datetime) -> Cluster:
    """The cluster after its first training run, with the model served by KServe."""
    from tests.cluster.conftest import Kserve, meanwhile

    kserve = Kserve(control_plane, cluster.loop.delivery.namespace)

    def play() -> None:
        _wait_for(kserve)
        kserve.serve()

    with meanwhile(play):
        cluster.run("pipelines", "run", "training", "--run-name", "first", "--as-of", as_of.isoformat())
    cluster.known["manifest"] = kserve.service()
    return cluster


def test_a_run_promotes_through_s3_mlflow_and_the_api_server(promoted: Cluster) -> None:
    champion = registry.champion(promoted.settings, "flights")
    assert champion is not None
    assert champion.uri.startswith("s3://kubeloop/")
    manifest = promoted.known["manifest"]
    model = manifest["spec"]["predictor"]["model"]
    assert model["storageUri"] == champion.uri
    assert f"--sha256={champion.sha256}" in model["args"]
    assert manifest["spec"]["predictor"]["annotations"][names.VERSION] == champion.version == "1"
    assert champion.tags["kubeloop.served_at"] == manifest["status"]["address"]["url"]
    outcome = json.loads(Bucket.open(promoted.settings).get(names.outcome("first")) or b"{}")
    assert outcome["promote"] is True
    assert outcome["version"] == "1"


def test_a_second_run_meets_the_champion_in_s3(promoted: Cluster, as_of: datetime) -> None:
    later = as_of + timedelta(days=7)
    impatient = Loop.parse(promoted.loop.dump(), {"delivery": {"ready_timeout": "5s"}})
    (promoted.settings.home / "impatient.yaml").write_text(impatient.dump())
    done = promoted.run(
        *("pipelines", "run", "training", "--run-name", "second", "--as-of", later.isoformat()),
        *("--loop", "impatient.yaml"),
        check=False,
    )
    verdict = json.loads(registry.get(promoted.settings, "flights", "2").tags["kubeloop.gate"])
    assert verdict["champion"] is not None
    champion = registry.champion(promoted.settings, "flights")
    assert champion is not None
    assert champion.version == "1"
    # Nobody plays KServe here: the promoted version never becomes ready, and the alias must not move.
    assert (done.returncode != 0) is verdict["promote"], done.stdout[-3000:]


def test_a_transformer_starts_before_any_value_was_materialized(promoted: Cluster, postgres_server: Any) -> None:
    repo = promoted.settings.home / "feature_repo"
    assert online.OnlineFeatures.open(repo, "flight_delay_v1", promoted.settings).features
    empty = postgres_server.database(f"feast_{secrets.token_hex(4)}")
    other = promoted.settings.model_copy(update={"feature_registry": empty})
    with pytest.raises(features.FeatureError, match="has no flight_delay_v1 yet; `kubeloop submit materialize`"):
        online.OnlineFeatures.open(repo, "flight_delay_v1", other)


def test_pods_serve_what_the_pipelines_wrote(promoted: Cluster, as_of: datetime) -> None:
    promoted.run("pipelines", "run", "materialize", "--run-name", "m1", "--as-of", as_of.isoformat())
    manifest = promoted.known["manifest"]
    model = manifest["spec"]["predictor"]["model"]
    here = promoted.folder / "mnt" / "models"
    _initialize(promoted.settings, model["storageUri"], here)
    predictor = promoted.start("kubeloop.serving.server", f"--model-dir={here}", "--port=0", *model["args"])
    (container,) = manifest["spec"]["transformer"]["containers"]
    arguments = [argument for argument in container["args"] if not argument.startswith(("--host", "--port"))]
    # The test's home folder stands in for the image's /project.
    transformer = promoted.start(
        "kubeloop.serving.transformer", *arguments, "--port=0", "--predictor_host", predictor.removeprefix("http://")
    )
    moment = as_of - timedelta(hours=4)
    repo, raw = promoted.settings.home / "feature_repo", promoted.settings.raw
    rows = features.events(repo, raw, start=moment, end=moment + timedelta(hours=1))
    metadata = httpx.get(f"{transformer}/v2/models/flights", trust_env=False).raise_for_status().json()
    inputs = []
    for tensor in metadata["inputs"]:
        values = [v.isoformat() if isinstance(v, datetime) else v for v in rows[tensor["name"]].to_pylist()]
        inputs.append({**tensor, "shape": [rows.num_rows], "data": values})
    body = {"parameters": {"event_time": as_of.isoformat()}, "inputs": inputs}
    answer = httpx.post(f"{transformer}/v2/models/flights/infer", json=body, trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["model_version"] == "1"
    probabilities = found["outputs"][0]["data"]
    assert len(probabilities) == rows.num_rows
    assert len(set(probabilities)) > 10, "the features were found"
    request = json.dumps(body).encode()
    promoted.known |= {"request": request, "response": answer.content, "url": f"{transformer}/v2/models/flights/infer"}


def test_a_model_that_was_changed_is_not_served(promoted: Cluster, tmp_path: Path) -> None:
    model = promoted.known["manifest"]["spec"]["predictor"]["model"]
    _initialize(promoted.settings, model["storageUri"], tmp_path / "models")
    graph = tmp_path / "models" / model_folder.GRAPH
    graph.write_bytes(graph.read_bytes() + b" ")
    done = promoted.run(
        "kubeloop.serving.server", f"--model-dir={graph.parent}", "--port=0", *model["args"], check=False
    )
    assert done.returncode != 0
    assert "refusing to serve it" in done.stderr


def test_payloads_reach_the_monitor_through_the_store(promoted: Cluster, control_plane: Any) -> None:
    assert "response" in promoted.known, "runs after the test that predicts"
    url = promoted.environ["KUBELOOP_COLLECTOR_URL"]
    asyncio.run(_log(promoted, url))
    httpx.post(f"{url}/flush", trust_env=False).raise_for_status()
    there, references = promoted.folder / "monitor" / "payloads", promoted.folder / "monitor" / "references"
    pushed = promoted.run(
        "kubeloop.payloads.mirror", "push", "--dir", str(promoted.folder / "collector"), "--once"
    ).stdout
    assert int(pushed) >= 1
    promoted.run(*("kubeloop.payloads.mirror", "pull", "--dir", str(there), "--references", str(references), "--once"))
    state = {**promoted.environ, "KUBELOOP_STATE": str(there.parent)}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kubeloop.monitoring.monitor", "--once", "--loop", "loop.yaml"),
            *("--references", str(references / "flights")),
        ],
        env=state,
        cwd=promoted.settings.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    status = json.loads(done.stdout)
    assert status["service"] == "flights"
    assert status["malformed"] == 0
    assert status["last_seq"] == 2, "a request and its response"
    assert status["waiting_rows"] + status["early_rows"] + status["late_rows"] > 0, "the monitor understood them"


def test_predictions_need_neither_databases_nor_the_bucket(
    promoted: Cluster, postgres_server: Any, seaweed: Any
) -> None:
    """The test stops MLflow's database as well. Events that are logged meanwhile wait on the collector's disk."""
    assert "url" in promoted.known, "runs after the test that predicts"
    collector = promoted.environ["KUBELOOP_COLLECTOR_URL"]
    push = ("kubeloop.payloads.mirror", "push", "--dir", str(promoted.folder / "collector"), "--once")
    promoted.run(*push)
    postgres_server.stop()
    seaweed.stop()
    try:
        for _ in range(20):
            answer = httpx.post(
                promoted.known["url"],
                content=promoted.known["request"],
                headers={"content-type": "application/json"},
                trust_env=False,
                timeout=10,
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"] == json.loads(promoted.known["response"])["outputs"]
        asyncio.run(_log(promoted, collector, "two"))
        httpx.post(f"{collector}/flush", trust_env=False).raise_for_status()
        failed = promoted.run(*push, check=False)
        assert failed.returncode != 0
        assert "cannot" in failed.stderr
        assert "Traceback" not in failed.stderr
    finally:
        postgres_server.start()
        seaweed.start()
    assert int(promoted.run(*push).stdout) == 1, "no acknowledged event is lost"


async def _log(cluster: Cluster, url: str, name: str = "one") -> None:
    """Send the payload events of one prediction as KServe's agent does."""
    log = EventLog(10)
    log.urls["flights"] = url
    now = time.time()
    log.open()
    log.offer(
        Pair(
            id=name,
            service="flights",
            namespace=cluster.loop.delivery.namespace,
            endpoint="",
            media_type=b"application/json",
            request=cluster.known["request"],
            requested_at=now,
            response=cluster.known["response"],
            responded_at=now,
            rows=1,
        )
    )
    await log.close(10)


def _wait_for(kserve: Any) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            kserve.service()
        except AssertionError:
            assert time.monotonic() < deadline
        else:
            return


def _initialize(settings: Settings, uri: str, folder: Path) -> None:
    """Copy a model as KServe's storage initializer does."""
    shutil.rmtree(folder, ignore_errors=True)
    root, _, prefix = uri.removeprefix("s3://").partition("/")
    bucket = Bucket.open(settings.model_copy(update={"bucket": f"s3://{root}"}))
    assert bucket.pull(prefix, folder)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder

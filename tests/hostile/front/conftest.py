"""Every server of kubeloop, started once per session."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubeloop.config import Loop
from kubeloop.names import DRIFT_EVENT, LABEL_EVENT
from tests.hostile.front.servers import Server, serve
from tests.unit.node.conftest import STAND_IN
from tests.unit.serving.conftest import models

__all__ = ["models"]

HERE = Path(__file__).parent
SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices"
EVERY = ("collector", "monitor", "trigger", "predictor", "transformer", "node", "router")
LIVE = "/v2/health/live"
JSON = {"content-type": "application/json"}
V2 = {"inputs": [{"name": "hour", "datatype": "FP32", "shape": [1], "data": [5.0]}]}


def event(kind: str, name: str) -> dict[str, str]:
    return {"ce-specversion": "1.0", "ce-type": kind, "ce-id": name, "ce-source": "test", **JSON}


LABEL = json.dumps({"labels": [{"event_id": "a", "label": 1, "observed_at": "2013-04-01T12:00:00Z"}]}).encode()
DRIFT = {
    "service": "another", "episode": "e", "opened_at": "2013-04-01T00:00:00Z", "as_of": "2013-04-01T00:00:00Z",
    "kind": "drift", "features": [], "reason": "because",
}  # fmt: skip

Run = Callable[..., contextlib.AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def run(models: Path, demo: Loop, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run one server by its name in these tests."""
    loop = demo.model_copy(update={"drift": demo.drift.model_copy(update={"engine": "builtin"})})

    @contextlib.contextmanager
    def begin(name: str, **options: object) -> Iterator[Server]:
        folder = tmp_path_factory.mktemp(name)
        file = folder / "loop.yaml"
        file.write_text(loop.dump())
        with contextlib.ExitStack() as stack:

            def start(module: str | Path, *flags: object, **request: object) -> Server:
                return stack.enter_context(serve(name, module, *flags, folder=folder, **options, **request))

            if name == "collector":
                yield start(
                    "kubeloop.payloads.collector", "--dir", folder / "log", "--port=0",
                    headers=event(LABEL_EVENT, "l"), body=LABEL, status=202,
                )  # fmt: skip
            elif name == "monitor":
                (folder / "state" / "payloads").mkdir(parents=True)
                yield start(
                    "kubeloop.monitoring.monitor", "--loop", file, "--port=0",
                    path="/advance", headers=JSON, body=b'{"until": "2013-04-05T00:00:00Z"}',
                )  # fmt: skip
            elif name == "trigger":
                yield start(
                    "kubeloop.trigger.server", "--loop", file, "--port=0",
                    path="/events", headers=event(DRIFT_EVENT, "d"), body=json.dumps(DRIFT).encode(), status=400,
                )  # fmt: skip
            elif name == "predictor":
                yield predictor(stack, models, folder, **options)
            elif name == "transformer":
                url = predictor(stack, models, folder).url
                yield start(
                    HERE / "transformer.py", "--predictor-url", url,
                    path="/v2/models/flights/infer", headers=JSON, body=json.dumps(V2).encode(), probe=LIVE,
                )  # fmt: skip
            elif name == "node":
                yield start(
                    STAND_IN, "--state", folder / "node", method="PUT", path=f"{SERVICES}/flights", headers=JSON,
                    body=b'{"kind": "Nothing"}', status=400, probe="/status", token=folder / "node" / "token",
                )  # fmt: skip
            else:
                yield start(
                    STAND_IN, "--state", folder / "node", path="/v2/models/flights/infer", headers=JSON,
                    body=json.dumps(V2).encode(), status=404, probe="/status",
                )  # fmt: skip

    return begin


def predictor(stack: contextlib.ExitStack, models: Path, folder: Path, **options: object) -> Server:
    flags = ("--model-dir", models / "columns", "--name=flights", "--port=0", "--drain-s=0.05")
    row = {"instances": [{"distance": 1, "hour": 1, "carrier": "AA"}]}
    request = {"path": "/v1/models/flights:predict", "headers": JSON, "body": json.dumps(row).encode(), "probe": LIVE}
    return stack.enter_context(
        serve("predictor", "kubeloop.serving.server", *flags, folder=folder, **options, **request)
    )


@pytest.fixture(scope="session")
def every(run: Run) -> Iterator[dict[str, Server]]:
    """All servers at the same time."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(run(name)) for name in EVERY}


@pytest.fixture(params=EVERY)
def server(every: dict[str, Server], request: pytest.FixtureRequest) -> Server:
    """Each server in turn; it must still be healthy afterwards."""
    return every[request.param]

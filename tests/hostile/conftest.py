"""The services of one machine, as `kubeloop serve` starts them, with a model that they serve, and the attackers."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from kubeloop import config
from kubeloop.config import Loop, Settings
from kubeloop.delivery import apply
from kubeloop.delivery.manifest import ModelRef, inference_service
from kubeloop.session.services import Services
from tests import outside

NAME = "flights"
OBJECT = f"/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices/{NAME}"
INFER = f"/v2/models/{NAME}/infer"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}]}
HTTP = httpx.Client(timeout=30, trust_env=False)
STRANGER = 65534
WHOLE = os.environ.get("KUBELOOP_HOSTILE") == "whole"
"""Whether `make hostile` runs: longer soaks, and all cases where `make test` takes a sample."""


def model(folder: Path, products: int = 0) -> ModelRef:
    """Write a model with one numeric input; each matrix product slows an answer by some ten milliseconds."""
    size = 900
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    nodes = [node("MatMul", [f"m{n}", "m0"], [f"m{n + 1}"]) for n in range(products)]
    # Adding the sum times 0 changes nothing, but no optimizer can remove it, since the sum might not be finite.
    nodes += [
        node("ReduceSum", [f"m{products}"], ["sum"], keepdims=0),
        node("Mul", ["sum", "zero"], ["nothing"]),
        node("Add", ["x", "nothing"], ["probability"]),
    ]
    start = [node("Mul", ["ones", "first"], ["m0"]), node("ReduceMin", ["x"], ["first"], keepdims=0)]
    ones = np.full((size, size), 1 / size, np.float32)
    graph = onnx.helper.make_graph(
        [start[1], start[0], *nodes],
        "slow",
        [value("x", onnx.TensorProto.FLOAT, [None])],
        [value("probability", onnx.TensorProto.FLOAT, [None])],
        [onnx.numpy_helper.from_array(ones, "ones"), onnx.numpy_helper.from_array(np.float32(0), "zero")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    content = made.SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    return ModelRef("1", folder.as_uri(), hashlib.sha256(content).hexdigest(), "run")


def manifest(loop: Loop, ref: ModelRef, collector: str) -> dict[str, Any]:
    """Return a manifest of a model without features, which needs no feature store."""
    made = inference_service(loop, ref, logger_url=collector, feature_dir="unused")
    del made["spec"]["transformer"]
    return made


@dataclass
class Laptop:
    """The services that listen on the owner's machine."""

    settings: Settings
    services: Services
    urls: dict[str, str]

    @property
    def predictor(self) -> str:
        """The address of the model server itself."""
        process = HTTP.get(self.urls["node"] + OBJECT).json()["status"]["processes"][0]
        return f"http://127.0.0.1:{process['port']}"

    def settle(self) -> None:
        """Wait until the collector has the requests of earlier tests: predictions are logged in the background."""
        while HTTP.get(f"{self.urls['node']}/status").json()["queued"]:
            time.sleep(0.01)

    def state(self) -> dict[str, Any]:
        """Return what an attack must not change; of the clock only the year, which an attack would move."""
        self.settle()
        trigger = HTTP.get(f"{self.urls['trigger']}/status").json()
        collector = HTTP.get(f"{self.urls['collector']}/status").json()
        node = HTTP.get(self.urls["node"] + "/status").json()
        return {
            "received": collector["received"],
            "events": trigger["events"],
            "clock": (HTTP.get(f"{self.urls['monitor']}/status").json()["watermark"] or "2026")[:4],
            "routes": node["routes"],
            "predictions": node["predictions"],
            "object": HTTP.get(self.urls["node"] + OBJECT).json(),
            "logs": sorted(path.name for path in self.settings.logs.iterdir()),
        }


@pytest.fixture(scope="session")
def case(demo: Loop) -> Loop:
    """A use case whose monitor needs no second environment."""
    drift = demo.drift.model_copy(update={"engine": "builtin"})
    return demo.model_copy(update={"name": NAME, "drift": drift})


@pytest.fixture(scope="session")
def laptop(case: Loop, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """All services, with a model served."""
    home = tmp_path_factory.mktemp("laptop")
    (home / "loop.yaml").write_text(case.dump())
    shutil.copytree(repo, home / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    settings = config.settings(home, home / "state")
    with Services(case, settings, os.environ) as services:
        services.start_all("2013-04-01T00:00:00+00:00")
        urls = {name: services.url(name) for name in ("collector", "node", "trigger", "monitor")}
        apply.apply(case, manifest(case, model(home / "model"), urls["collector"]), settings)
        yield Laptop(settings, services, urls)


@pytest.fixture(scope="session")
def browser() -> str:
    """Chromium, which shows pages."""
    return outside.browser()


@pytest.fixture(scope="session")
def stranger() -> str:
    """A Python that another user of the machine can run."""
    return outside.stranger()

"""Multiclass and regression models over every protocol, and the same answers decoded from their events."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pandas as pd
import pytest
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

from kubeloop.config import Loop
from kubeloop.payloads.exchanges import Faults, Pair, predictions
from kubeloop.tasks import port
from kubeloop.tasks.tabular import export, maker, model_folder, training

BASE = {"name": "parcels", "source": {"tables": {"t": {"available_at": "at"}}}, "features": {"service": "v1"}}
KINDS: dict[str, dict[str, Any]] = {
    "multiclass": {"task": "multiclass", "training": {"classes": ["lento", "usual", "rápido"], "threads": 1}},
    "regression": {"task": "regression", "training": {"threads": 1}},
}


def rows(kind: str) -> pd.DataFrame:
    random = np.random.default_rng(1)
    x, shop = random.normal(size=1500), random.choice(["a", "b"], 1500)
    level = x + (shop == "a") + random.normal(0, 0.3, 1500)
    classes = np.array(["lento", "usual", "rápido"])[np.digitize(level, [-0.5, 1])]
    return pd.DataFrame(
        {
            "event_timestamp": pd.date_range("2024-01-01", periods=1500, freq="1h", tz="UTC"),
            "label": classes if kind == "multiclass" else 10 * level,
            "x": x,
            "shop": shop,
        }
    )


@pytest.fixture(scope="module", params=KINDS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Loop, Path, pd.DataFrame]:
    """Return a loop, its model folder and five rows for requests."""
    loop = Loop.model_validate(BASE | KINDS[request.param])
    ours, folder = maker.of(loop), tmp_path_factory.mktemp(request.param)
    learn, holdout = training.split(ours.task, rows(request.param), timedelta(days=10))
    fitted = training.fit(ours, learn, loop.training)
    model_folder.write(folder, fitted, export.to_onnx(fitted), learn, holdout, name="parcels")
    return loop, folder, holdout.head(5)


def question(frame: pd.DataFrame, **more: Any) -> dict[str, Any]:
    inputs = [
        {"name": name, "datatype": kind, "shape": [len(frame)], "data": frame[name].tolist()}
        for name, kind in (("x", "FP32"), ("shop", "BYTES"))
    ]
    return {"id": "7", "inputs": inputs, **more}


def test_v2_v1_and_the_payload_log_agree(
    trained: tuple[Loop, Path, pd.DataFrame], start: Callable[..., Any], client: httpx.Client
) -> None:
    loop, folder, frame = trained
    url = start(f"--model-dir={folder}", "--name=parcels", "--version=4").url
    task = port.of(loop)
    expected = model_folder.predict(task, folder, frame)
    asked = question(frame, parameters={"event_ids": json.dumps(list("abcde"))})
    answer = client.post(f"{url}/v2/models/parcels/infer", json=asked)
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert task.read(outputs) == pytest.approx(expected, abs=1e-6)
    if loop.task == "multiclass":
        assert outputs["class"] == [loop.training.classes[code] for code in expected.argmax(axis=1)]  # type: ignore[attr-defined]

    instances = frame[["x", "shop"]].to_dict("records")
    said = client.post(f"{url}/v1/models/parcels:predict", json={"instances": instances}).json()["predictions"]
    columns = {name: [row[name] for row in said] for name in said[0]}
    assert task.read(columns) == pytest.approx(expected, abs=1e-6)

    faults = Faults()
    request, response = memoryview(orjson.dumps(asked)), memoryview(answer.content)
    logged = predictions([Pair(1, "r", 0, "default", 0, request, response)], faults, task)
    assert faults.count == 0, faults.reasons
    assert task.answers(logged) == pytest.approx(expected, abs=1e-6)
    assert logged["event_id"].to_pylist() == list("abcde")


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_reads_every_output(
    trained: tuple[Loop, Path, pd.DataFrame], start: Callable[..., Any], binary: bool
) -> None:
    loop, folder, frame = trained
    task = port.of(loop)
    address = start(f"--model-dir={folder}", "--name=parcels").url.removeprefix("http://")
    inputs = []
    for name, kind, values in (
        ("x", "FP32", frame["x"].to_numpy(np.float32)),
        ("shop", "BYTES", frame["shop"].to_numpy(object)),
    ):
        inputs.append(triton.InferInput(name, [len(frame)], kind))
        inputs[-1].set_data_from_numpy(values, binary_data=binary)
    names = [tensor.name for tensor in task.tensors] + (["class"] if loop.task == "multiclass" else [])
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    with triton.InferenceServerClient(address) as client:
        answer = client.infer("parcels", inputs, outputs=wanted)
        outputs = {name: answer.as_numpy(name) for name in names}
    expected = model_folder.predict(task, folder, frame)
    assert task.read(outputs) == pytest.approx(expected, abs=1e-6)
    if loop.task == "multiclass":
        said = [name.decode() if isinstance(name, bytes) else name for name in outputs["class"].tolist()]
        assert said == [loop.training.classes[code] for code in expected.argmax(axis=1)]  # type: ignore[attr-defined]


def test_kserves_client_reads_every_output(trained: tuple[Loop, Path, pd.DataFrame], start: Callable[..., Any]) -> None:
    loop, folder, frame = trained
    task = port.of(loop)
    url = start(f"--model-dir={folder}", "--name=parcels").url
    inputs = [InferInput(**item) for item in question(frame)["inputs"]]

    async def ask() -> Any:
        client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=20))
        try:
            return await client.infer(url, InferRequest("parcels", inputs), model_name="parcels")
        finally:
            await client.close()

    answer = asyncio.run(ask())
    outputs = {output.name: output.as_numpy() for output in answer.outputs}
    assert task.read(outputs) == pytest.approx(model_folder.predict(task, folder, frame), abs=1e-6)


def test_an_answer_that_lacks_an_output_is_counted(trained: tuple[Loop, Path, pd.DataFrame]) -> None:
    loop, _, frame = trained
    task, faults = port.of(loop), Faults()
    lost = {"model_version": "4", "outputs": [{"name": "other", "data": [1.0] * 5}]}
    pair = Pair(1, "r", 0, "", 0, memoryview(orjson.dumps(question(frame))), memoryview(orjson.dumps(lost)))
    assert predictions([pair], faults, task).num_rows == 0
    assert f"no output named {task.tensors[0].name}" in faults.reasons[0]

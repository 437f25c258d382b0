"""The protocol's own clients, tritonclient and KServe's, against the transformer and the predictor over HTTP."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from tritonclient.utils import InferenceServerException

from tests.unit.serving.front import Routes, open_front

TIME = {"event_time": "2013-04-01T04:00:00Z"}


@dataclass
class Served:
    """A server of the model `flights`, and two rows for it, the second without a distance."""

    url: str
    inputs: dict[str, tuple[str, np.ndarray]]
    parameters: dict[str, Any]

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")


@pytest.fixture(scope="module", params=["predictor", "transformer"])
def served(request: pytest.FixtureRequest, columns: str) -> Iterator[Served]:
    if request.param == "predictor":
        inputs = {
            "distance": ("FP32", np.float32([[2475], [np.nan]])),
            "hour": ("FP32", np.float32([[5], [5]])),
            "carrier": ("BYTES", np.array([["AA"], ["AA"]], object)),
        }
        yield Served(columns, inputs, TIME)
        return
    texts = {"route": ["JFK-LAX", "nowhere"], "carrier": ["AA", "AA"], "departure": ["2013-04-01T05:00:00Z"] * 2}
    keys = {name: ("BYTES", np.array(values, object)) for name, values in texts.items()}
    for front in open_front(columns, max_rows=100):
        assert [*keys, "delay"] == [field.name for field in Routes.fields]
        yield Served(front.url, keys | {"delay": ("FP32", np.float32([1.5, np.nan]))}, TIME)


@pytest.fixture(scope="module")
def expected(served: Served) -> list[float | None]:
    """The answer for the same rows in plain JSON."""
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": list(array.shape),
            "data": [None if value != value else value for value in array.ravel().tolist()],
        }
        for name, (datatype, array) in served.inputs.items()
    ]
    body = {"inputs": inputs, "parameters": served.parameters}
    answer = httpx.post(f"{served.url}/v2/models/flights/infer", json=body).json()
    data: list[float | None] = answer["outputs"][0]["data"]
    assert data[0] is not None
    assert data[0] > 0.9
    assert data[1] is None
    return data


def as_json(array: np.ndarray | None) -> list[float | None]:
    assert array is not None
    assert array.dtype == np.float32
    return [None if np.isnan(value) else pytest.approx(value) for value in array.tolist()]


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None], ids=["binary", "json", "all"])
def test_triton(served: Served, expected: list[float | None], binary_input: bool, binary_output: bool | None) -> None:
    outputs = None if binary_output is None else [triton.InferRequestedOutput("probability", binary_data=binary_output)]
    inputs = []
    for name, (datatype, array) in served.inputs.items():
        inputs.append(triton.InferInput(name, list(array.shape), datatype))
        if not binary_input and datatype == "FP32":
            # The client's JSON contains NaN, which is not valid JSON.
            array = np.nan_to_num(array)
        inputs[-1].set_data_from_numpy(array, binary_data=binary_input)
    with triton.InferenceServerClient(served.address) as client:
        answer = client.infer("flights", inputs, outputs=outputs, request_id="r1", parameters=served.parameters)
        versioned = client.infer("flights", inputs, model_version="3", parameters=served.parameters)
        assert versioned.as_numpy("probability") is not None
    head = answer.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("r1", "flights", "3")
    assert ("data" in head["outputs"][0]) == (binary_output is False)
    scores = as_json(answer.as_numpy("probability")) if binary_output is not False else head["outputs"][0]["data"]
    assert scores[0] == expected[0]
    if binary_input or "route" in served.inputs:
        assert scores == expected


def test_triton_asks_about_the_server(served: Served) -> None:
    with triton.InferenceServerClient(served.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("flights")
        assert client.is_model_ready("flights", "3")
        assert not client.is_model_ready("flights", "9")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata("flights", "3")["outputs"][0]["name"] == "probability"
        names = [tensor["name"] for tensor in client.get_model_metadata("flights")["inputs"]]
        assert names == list(served.inputs)


def test_triton_is_told_what_is_wrong(served: Served) -> None:
    name, (datatype, array) = next(iter(served.inputs.items()))
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    with triton.InferenceServerClient(served.address) as client:
        with pytest.raises(InferenceServerException, match=r"missing 'carrier'|missing 'hour'") as caught:
            client.infer("flights", [tensor])
        assert caught.value.status() == "400"
        inputs = []
        for name, (datatype, array) in served.inputs.items():
            inputs.append(triton.InferInput(name, list(array.shape), datatype))
            inputs[-1].set_data_from_numpy(array)
        for binary in (True, False):
            wanted = [triton.InferRequestedOutput("label", binary_data=binary)]
            with pytest.raises(
                InferenceServerException, match="unknown output 'label'; expected 'probability'"
            ) as caught:
                client.infer("flights", inputs, outputs=wanted)
            assert caught.value.status() == "400"


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_kserve(served: Served, expected: list[float | None], binary_input: bool, binary_output: bool | None) -> None:
    inputs = []
    for name, (datatype, array) in served.inputs.items():
        inputs.append(InferInput(name, list(array.shape), datatype))
        if not binary_input and datatype == "FP32":
            array = np.nan_to_num(array)
        inputs[-1].set_data_from_numpy(array, binary_data=binary_input)
    wanted = None
    if binary_output is not None:
        wanted = [RequestedOutput("probability", {"binary_data": binary_output})]
    request = InferRequest("flights", inputs, "r1", parameters=dict(served.parameters), request_outputs=wanted)

    async def talk() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            assert await client.is_server_live(served.url)
            assert await client.is_model_ready(served.url, "flights")
            return await client.infer(served.url, request, model_name="flights")

    answer = asyncio.run(talk())
    assert (answer.id, answer.model_name) == ("r1", "flights")
    scores = answer.outputs[0].as_numpy().tolist()
    assert scores[0] == pytest.approx(expected[0])
    if binary_input:
        assert np.isnan(scores[1])

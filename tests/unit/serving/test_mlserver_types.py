"""MLServer's types parse our answers and write requests that we understand, at the transformer and the predictor."""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.unit.serving.front import open_front, v2


@pytest.fixture(scope="module")
def types() -> Any:
    """MLServer's types without their package, whose import would also import its server."""
    spec = importlib.util.find_spec("mlserver")
    assert spec is not None
    package = ModuleType("mlserver")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["mlserver"] = package
    return importlib.import_module("mlserver.types")


@pytest.fixture(scope="module", params=["predictor", "transformer"])
def served(request: pytest.FixtureRequest, columns: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    if request.param == "predictor":
        yield (
            columns,
            [
                {"name": "distance", "datatype": "FP32", "shape": [1, 1], "data": [1000]},
                {"name": "hour", "datatype": "FP32", "shape": [1, 1], "data": [5]},
                {"name": "carrier", "datatype": "BYTES", "shape": [1, 1], "data": ["AA"]},
            ],
        )
        return
    for front in open_front(columns):
        yield front.url, v2()["inputs"]


@pytest.mark.parametrize("outputs", [None, ["probability"]])
def test_types(types: Any, served: tuple[str, list[dict[str, Any]]], outputs: list[str] | None) -> None:
    url, inputs = served
    request = types.InferenceRequest(
        id="r1",
        parameters=types.Parameters(content_type="np", event_time="2013-04-01T04:00:00Z"),
        inputs=[types.RequestInput(**each, parameters=types.Parameters(content_type="np")) for each in inputs],
        outputs=None if outputs is None else [types.RequestOutput(name=name) for name in outputs],
    )
    answer = httpx.post(f"{url}/v2/models/flights/infer", content=request.model_dump_json())
    response = types.InferenceResponse.model_validate_json(answer.content)
    assert (response.id, response.model_name, response.model_version) == ("r1", "flights", "3")
    (output,) = response.outputs
    assert (output.name, output.datatype, output.shape) == ("probability", "FP32", [1])
    assert output.data.root[0] > 0.5


def test_metadata_and_errors(types: Any, served: tuple[str, list[dict[str, Any]]]) -> None:
    url, inputs = served
    assert types.MetadataServerResponse.model_validate(httpx.get(f"{url}/v2").json()).name == "kubeloop"
    model = types.MetadataModelResponse.model_validate(httpx.get(f"{url}/v2/models/flights").json())
    assert [tensor.name for tensor in model.inputs] == [each["name"] for each in inputs]
    wrong = httpx.post(f"{url}/v2/models/flights/infer", json={"inputs": inputs[:1]})
    assert "missing" in types.InferenceErrorResponse.model_validate(wrong.json()).error

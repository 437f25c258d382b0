"""The protocol's REST API by its OpenAPI description, which allows every answer, whatever schemathesis sends."""

from pathlib import Path

import httpx
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

DESCRIBED = yaml.safe_load((Path(__file__).parent / "open_inference.yaml").read_text())
SCHEMA = schemathesis.openapi.from_dict(DESCRIBED)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@SCHEMA.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_protocol_allows(case: schemathesis.Case, columns: str) -> None:
    case.call_and_validate(base_url=columns, checks=CHECKS)


def test_the_description_is_of_what_we_serve(columns: str) -> None:
    """Otherwise the test above might see only refusals."""
    schemas = DESCRIBED["components"]["schemas"]
    asked = schemas["InferenceRequest"]["example"]
    for path in ("/v2/models/flights/infer", "/v2/models/flights/versions/3/infer"):
        answer = httpx.post(columns + path, json=asked)
        assert answer.status_code == 200
        validator = Draft202012Validator({"$ref": "#/components/schemas/InferenceResponse"} | DESCRIBED)
        assert list(validator.iter_errors(answer.json())) == []
        assert [tensor["name"] for tensor in answer.json()["outputs"]] == ["probability"]
    validator = Draft202012Validator({"$ref": "#/components/schemas/InferenceResponse"} | DESCRIBED)
    with pytest.raises(AssertionError):
        assert list(validator.iter_errors(answer.json() | {"outputs": []})) == []

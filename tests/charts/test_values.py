"""values.yaml and its schema come from the typed model, and the schema knows every setting."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from kubeloop import __version__
from kubeloop.chart import write
from kubeloop.chart.values import Values
from kubeloop.config import ConfigError
from tests.charts.conftest import CHART, LOOP, PROJECT, SECOND, VALUES, merged

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def validate(values: Any) -> Values:
    """Read values under the names that users write in Helm."""
    return Values.model_validate(values, by_alias=True, by_name=False)


def errors(validator: jsonschema.Draft7Validator, values: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(values)]


@pytest.mark.parametrize(("what", "name"), [("schema", "values.schema.json"), ("values", "values.yaml")])
def test_generated_files_are_up_to_date(what, name):
    done = subprocess.run([sys.executable, "-m", "kubeloop.chart", what], capture_output=True, text=True, check=True)
    assert done.stdout == (CHART / name).read_text(), f"python -m kubeloop.chart {what} > charts/kubeloop/{name}"


def test_loops_yaml_is_up_to_date(monkeypatch):
    monkeypatch.chdir(PROJECT)
    written = write.loop_values([Path("loop.yaml")])
    assert written == (PROJECT / "manifests" / "base" / "loops.yaml").read_text(), "python -m kubeloop.chart loop"


def test_loop_values_say_what_loop_yaml_says():
    loops = Values.model_validate(yaml.safe_load(write.loop_values([PROJECT / "loop.yaml"]))).loops
    assert loops == Values.model_validate({"loops": {"flight-delay": {"config": LOOP}}}).loops


def test_a_missing_loop_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="kubeloop init"):
        write.loop_values([tmp_path / "loop.yaml"])


def test_values_yaml_holds_the_defaults():
    assert validate(DEFAULTS) == Values()


def test_versions_agree():
    found = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert found["version"] == found["appVersion"] == __version__


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_model_and_schema_accept(values, validator):
    whole = merged(DEFAULTS, values)
    validate(whole)
    assert errors(validator, whole) == []


WRONG = {
    "unknown section": {"colector": {}},
    "unknown key": {"collector": {"replicas": 2}},
    "unknown nested key": {"mlflow": {"autoscaling": {"max": 3}}},
    "snake case": {"network_policy": {"enabled": True}},
    "image without a version": {"runtimes": {"triton": {"image": "triton server"}}},
    "bucket that is none": {"storage": {"bucket": "kubeloop"}},
    "replicas": {"trigger": {"replicas": 0}},
    "unknown setting of a loop": {"loops": {"fraud": {"config": SECOND | {"trainig": {}}}}},
    "wrong setting of a loop": {"loops": {"fraud": {"config": SECOND | {"drift": {"votes": 0}}}}},
    "loop name": {"loops": {"Fraud": {"config": SECOND}}},
    "port": {"networkPolicy": {"database": {"ports": [70000]}}},
    "duration": {"alerts": {"driftOpenFor": "6 hours"}},
    "extraEnv": {"pods": {"extraEnv": [{"name": "lower", "value": "x"}]}},
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG.keys())
def test_model_and_schema_refuse(values, validator):
    with pytest.raises(ValidationError):
        validate(merged(DEFAULTS, values))
    assert errors(validator, merged(DEFAULTS, values))


def test_every_object_is_closed():
    schema = json.loads((CHART / "values.schema.json").read_text())
    open_ones = [
        name
        for name, part in {"Values": schema, **schema["$defs"]}.items()
        if part.get("properties") and part.get("additionalProperties") is not False
    ]
    assert open_ones == []


def test_a_loop_under_another_name_is_refused():
    with pytest.raises(ValidationError, match=r"call the entry loops\.fraud"):
        Values.model_validate({"loops": {"flights": {"config": SECOND}}})


def test_a_quantity_may_be_a_number(validator):
    values = {"collector": {"resources": {"requests": {"cpu": 1}}}}
    assert errors(validator, values) == []
    assert Values.model_validate(values).collector.resources.requests == {"cpu": "1"}

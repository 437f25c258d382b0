"""How typed parameters become values, how answers are parsed, and how errors are worded."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import kfp_server_api as kfp
import pytest
import yaml

from kubeloop.kubeflow import values
from kubeloop.kubeflow.errors import DeniedError, MissingError, NoAnswerError, RefusedError, meaning
from kubeloop.kubeflow.submission import Package, SubmissionError, arguments

TYPES = {
    "text": "STRING",
    "count": "NUMBER_INTEGER",
    "share": "NUMBER_DOUBLE",
    "flag": "BOOLEAN",
    "items": "LIST",
    "map": "STRUCT",
}


@pytest.fixture
def package(tmp_path: Path) -> Package:
    parameters = {name: {"parameterType": kind} for name, kind in TYPES.items()}
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"root": {"inputDefinitions": {"parameters": parameters}}}))
    return Package("training", path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("text=1", "1"),
        ("text=a=b", "a=b"),
        ("text=", ""),
        ("count=7", 7),
        ("share=0.5", 0.5),
        ("share=1", 1),
        ("flag=true", True),
        ('items=["a", 1]', ["a", 1]),
        ('map={"a": null}', {"a": None}),
    ],
)
def test_a_value_becomes_its_parameters_type(package: Package, text: str, value: Any) -> None:
    [found] = arguments(package, [text], "r").values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["count=1.5", "count=true", "count=many", "flag=1", "flag=yes", "items={}", "map=[]"])
def test_a_value_of_another_type_is_refused(package: Package, text: str) -> None:
    with pytest.raises(SubmissionError, match=text.partition("=")[0]):
        arguments(package, [text], "r")


def test_the_same_bytes_are_the_same_version(package: Package, tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_bytes(package.path.read_bytes())
    assert Package("training", copy).version == package.version
    copy.write_bytes(copy.read_bytes() + b"\n")
    assert Package("training", copy).version != package.version
    assert len(package.version) == 12


def test_a_run_shows_the_steps_that_people_know() -> None:
    def task(name: str, second: int | None) -> Any:
        start = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) if second else datetime(1970, 1, 1, tzinfo=UTC)
        return kfp.V2beta1PipelineTaskDetail(display_name=name, state="RUNNING", start_time=start)

    plumbing = ["root", "root-driver", "executor", "condition-1", "condition-1-driver", "for-loop-2", "iteration-3"]
    tasks = [task(name, 1) for name in (*plumbing, "later-driver", "b-step-driver", "a-step-driver")]
    tasks += [task("later", None), task("b-step", 3), task("a-step", 2)]
    run = values.run(
        kfp.V2beta1Run(
            run_id="1",
            display_name="r",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            finished_at=datetime(1970, 1, 1, tzinfo=UTC),
            run_details=kfp.V2beta1RunDetails(task_details=tasks),
        )
    )
    assert [step.name for step in run.steps] == ["a-step", "b-step", "later"]
    assert run.steps[2].started is None
    assert run.finished is None, "1970 stands for never"
    assert run.state == "RUNTIME_STATE_UNSPECIFIED"
    assert not run.is_over


def test_a_filter_survives_being_decoded_twice() -> None:
    once = unquote_plus(values.where("description", "EQUALS", "100 % + 1 & 2"))
    assert json.loads(once)["predicates"] == [
        {"key": "description", "operation": "EQUALS", "string_value": "100 % + 1 & 2"}
    ]


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (400, b'{"message": "a\\n b"}', RefusedError, "says: a b"),
        (400, b'{"error_message": "no pipeline"}', RefusedError, "no pipeline"),
        (404, b"", MissingError, "no reason given"),
        (502, b"<html>Bad  gateway</html>", NoAnswerError, "Bad gateway"),
        (401, None, DeniedError, "KUBELOOP_KFP_TOKEN_FILE"),
        (0, "certificate verify failed", NoAnswerError, "certificate verify failed"),
    ],
)
def test_every_error_body_becomes_one_sentence(status: int, body: Any, kind: type[Exception], says: str) -> None:
    error = meaning("http://kfp", "list runs", status, body)
    assert isinstance(error, kind)
    assert str(error).startswith("cannot list runs")
    assert says in str(error)
    assert "\n" not in str(error)

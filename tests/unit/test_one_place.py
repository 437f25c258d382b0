"""Each of these has one place in the code: moments as text, CloudEvents, the names of the pipelines."""

import ast
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from kubeloop import moments, names
from kubeloop.config.cluster import Recurring
from kubeloop.payloads import cloudevents
from kubeloop.trigger.event import DriftEvent
from pipelines import catalog

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py"), *(ROOT / "components").rglob("*.py")]


def calls(name: str) -> set[str]:
    """Return the files that call a method by name."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == name:
                found.add(path.relative_to(ROOT).as_posix())
    return found


def texts(wanted: str) -> set[str]:
    """Return the files that spell out a text by hand."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in (wanted, wanted.encode()):
                found.add(path.relative_to(ROOT).as_posix())
    return found


def test_one_module_reads_moments() -> None:
    assert {path for path in calls("fromisoformat") if "/reading/" not in path} == {"src/kubeloop/moments.py"}


def test_one_module_knows_the_structured_mode_and_one_the_names_of_the_pipelines() -> None:
    assert texts("application/cloudevents+json") == {"src/kubeloop/payloads/cloudevents.py"}
    assert texts("batch-scoring") <= {"src/kubeloop/names.py", "pipelines/catalog.py"}
    assert tuple(catalog.PIPELINES) == names.PIPELINES
    assert Recurring.model_fields["pipeline"].annotation == names.Pipeline


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00.000001", 1),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-02", 86_400_000_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456),
        ("1969-12-31T23:59:59Z", None),
        ("9999-12-31T23:59:59-10:00", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("", None),
        ("yesterday", None),
        (5, None),
    ],
)
def test_microseconds_of_a_text(text: str, expected: int | None) -> None:
    if expected is not None:
        assert moments.micros(text) == expected
        return
    with pytest.raises(ValueError, match=r"1970|ISO 8601"):
        moments.micros(text)


def test_the_trigger_reads_the_drift_event_that_others_write() -> None:
    moment = datetime(2013, 7, 1, tzinfo=UTC)
    said: dict[str, Any] = {
        "service": "flights",
        "episode": "flights-1",
        "opened_at": moment,
        "as_of": moment,
        "kind": "drift",
    }
    event = cloudevents.drift_event(source="/kubeloop/monitor", features=["hour"], reason="D", **said)
    read = DriftEvent.parse({"content-type": cloudevents.STRUCTURED}, orjson.dumps(event))
    assert read == DriftEvent(features=("hour",), reason="D", **said)

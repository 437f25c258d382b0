"""Whatever JSON a client sends to the demo's transformer, which uses Feast and a real predictor: never a 5xx."""

import json
import re
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeloop import features
from kubeloop.features.online import Materializer
from tests.unit.serving.conftest import start_server

V2 = "/v2/models/flight-delay/infer"
V1 = "/v1/models/flight-delay:predict"
FLIGHT = {
    "tailnum": "N14228", "carrier": "UA", "dest": "IAH", "origin": "EWR",
    "sched_dep": "2013-05-20T01:15:00Z", "distance": 1400.0, "sched_minutes": 210.0,
}  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
TEXT = st.text(max_size=8) | st.sampled_from(["", "\x00", "N14228", "EWR", "é" * 3000])
TIME = st.datetimes().map(datetime.isoformat) | st.sampled_from(
    ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:00:00-05:00",
     "2013-05-20", "2013-W20-1", "20130520T0115", "2013-05-20T01:15:00.123456+00:00:01", "soon"]
)  # fmt: skip
NUMBER = (
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e308, 5e-324, 3.5e38, -0.0])
)  # fmt: skip
VALUES = {
    name: TIME if name == "sched_dep" else TEXT if isinstance(value, str) else NUMBER for name, value in FLIGHT.items()
}
PARAMETERS = st.fixed_dictionaries({}, optional={"event_time": TIME | JSON, "event_ids": st.just('["a"]') | JSON})


@st.composite
def odd_values(draw: st.DrawFn) -> tuple[str, Any]:
    """Draw a valid request in which one or two columns hold values that no airline would send."""
    rows = draw(st.integers(1, 3))
    columns: dict[str, list[Any]] = {name: [value] * rows for name, value in FLIGHT.items()}
    for name in draw(st.lists(st.sampled_from(list(FLIGHT)), max_size=2)):
        values = draw(st.sampled_from([VALUES[name]] * 4 + [JSON]))
        columns[name] = draw(st.lists(values, min_size=rows, max_size=rows))
    rest = draw(st.fixed_dictionaries({}, optional={"parameters": PARAMETERS | JSON, "id": st.text(max_size=3) | JSON}))
    if draw(st.booleans()):
        return V1, {
            "instances": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        } | rest
    tensors = [
        {"name": name, "datatype": "BYTES" if isinstance(FLIGHT[name], str) else "FP64", "shape": [rows], "data": data}
        for name, data in columns.items()
    ]
    return V2, {"inputs": tensors} | rest


TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(list(FLIGHT)) | JSON,
        "datatype": st.sampled_from(["FP64", "BYTES"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data": st.lists(NUMBER | TEXT | JSON, max_size=3),
    },
)
ROW = st.fixed_dictionaries({}, optional={name: values | JSON for name, values in VALUES.items()})
MALFORMED = st.tuples(
    st.sampled_from([V1, V2]),
    JSON
    | st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=8) | JSON}, optional={"id": JSON, "parameters": JSON})
    | st.fixed_dictionaries({"instances": st.lists(ROW | JSON, max_size=3) | JSON}, optional={"parameters": JSON}),
)


@pytest.fixture(scope="module")
def transformer(
    repo: Path, weeks: Path, as_of: datetime, learned: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of the demo's transformer in front of the demo's model."""
    folder = tmp_path_factory.mktemp("served")
    features.build(repo, weeks, folder)
    Materializer(folder, "flight_delay_v1").advance(as_of)
    with ExitStack() as stack:
        predictor = start_server("--model-dir", learned[1], "--name=flight-delay")
        stack.callback(predictor.stop)
        front = start_server(
            *("--name=flight-delay", "--predictor-url", predictor.url),
            *("--feature-dir", folder, "--feature-service=flight_delay_v1"),
            module="kubeloop.serving.transformer",
        )
        stack.callback(front.stop)
        yield front.url


def test_no_body_makes_it_fail(transformer: str, client: httpx.Client) -> None:
    @settings(max_examples=400, deadline=None)
    @given(asked=odd_values() | MALFORMED)
    def ask(asked: tuple[str, Any]) -> None:
        path, body = asked
        answer = client.post(transformer + path, content=json.dumps(body))
        assert answer.status_code < 500, answer.text
        assert answer.status_code == 200 or answer.json()["error"]

    ask()
    seen = dict.fromkeys(("200", "400"), 0.0)
    metrics = client.get(f"{transformer}/metrics").text
    for code, count in re.findall(r'requests_total{code="(\d+)",path="/v[12]/models.*"} (.*)', metrics):
        seen[code] += float(count)
    # Both accepted and refused requests were among them.
    assert min(seen["200"], seen["400"]) > 50
    assert seen.keys() == {"200", "400"}


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00", "9999-12-31T23:00:00-05:00"])
def test_a_time_beyond_the_calendar_is_refused(transformer: str, client: httpx.Client, moment: str) -> None:
    body = {"instances": [FLIGHT | {"sched_dep": moment}]}
    answer = client.post(transformer + V1, json=body)
    assert answer.status_code == 400
    assert "view flight_facts cannot" in answer.json()["error"] or f"{moment!r} is not" in answer.json()["error"]


def test_the_install_pages_request_is_answered(transformer: str, client: httpx.Client, project: Path) -> None:
    page = (project / "docs" / "install.md").read_text()
    asked = re.search(r"^    departure=.*?\n    END$", page, re.MULTILINE | re.DOTALL)
    told = re.search(r"^    curl [^\n]*:8091/ .*?\}\"$", page, re.MULTILINE | re.DOTALL)
    assert asked
    assert told
    # A reader's shell, in which curl prints what it would send.
    curl = 'kubectl() { :; }; curl() { if [ "${@: -1}" = @- ]; then cat; else echo "${@: -1}"; fi; }'
    script = "\n".join((curl, textwrap.dedent(asked[0]), "echo ---", told[0]))
    said = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True).stdout
    body, label = map(json.loads, said.split("---\n"))
    answer = client.post(transformer + V2, json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["outputs"][0]["data"]) == 1
    assert [item["event_id"] for item in label["labels"]] == json.loads(body["parameters"]["event_ids"])

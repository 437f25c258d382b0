"""The steps of the pipelines other than training."""

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from kfp import dsl

from kubeloop import config
from kubeloop.addresses import ServiceError
from kubeloop.config import Loop
from kubeloop.features import online
from kubeloop.steps import loops, stages
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.tabular import model_folder
from tests.components.conftest import Bench


def test_begin_run_gives_all_steps_one_moment(bench: Any, as_of: datetime) -> None:
    from components.begin_run import begin_run

    begun = bench.call(begin_run, bench.loop, "2013-05-20", "", "job-7")
    assert begun[:3] == (as_of.isoformat(), "job-7", stages.digest(bench.settings.raw))
    assert loops.read(begun.loop, bench.settings) == Loop.parse(bench.loop)
    again = bench.call(begin_run, begun.loop, "2013-05-20", "", "job-8")
    assert again.loop == begun.loop, "a reference is passed on"


def test_extract_data_says_which_data_it_took(bench: Any) -> None:
    from components.extract_data import extract_data

    raw = bench.new(dsl.Dataset, "unnamed")
    assert bench.call(extract_data, bench.loop, bench.as_of, "", raw) == (stages.digest(bench.settings.raw),)
    assert raw.metadata["snapshot"] == stages.digest(bench.settings.raw)


def test_materialize_features_brings_the_online_store_forward(
    validated: Any, loop: Loop, make_home: Any, as_of: datetime, tmp_path: Path
) -> None:
    from components.materialize_features import materialize_features

    settings = make_home(tmp_path)
    place = type(validated)(validated.loop, validated.as_of, settings, tmp_path)
    rows = place.new(dsl.Metrics, "rows")
    place.call(materialize_features, place.loop, place.as_of, validated.made["clean"], rows)
    tables = {path.stem: pq.read_table(path) for path in settings.features.glob("*.parquet")}
    assert {name: rows.metadata[name] for name in tables} == {name: table.num_rows for name, table in tables.items()}
    assert rows.metadata["online"] > 0
    assert json.loads(Path(rows.path).read_text()) == rows.metadata
    weather = tables["weather_hourly"]
    newest = weather.filter(pc.equal(weather["event_timestamp"], pc.max(weather["event_timestamp"]))).to_pylist()[0]
    store = online.OnlineFeatures.open(settings.features, loop.features.service)
    asked = {field.name: [_example(field, newest)] for field in store.fields}
    answer = store.read(asked, as_of)
    known = [name for name in newest if name in answer and newest[name] is not None]
    assert known
    assert all(answer[name][0] == pytest.approx(newest[name]) for name in known)


def _example(field: Any, row: dict[str, Any]) -> Any:
    if field.name in row:
        return row[field.name]
    if field.kind == "UNIX_TIMESTAMP":
        return "2013-05-20T00:00:00+00:00"
    return "?" if field.datatype == "BYTES" else 0


def test_score_batch_scores_as_the_champion(deployed: Any, loop: Loop, as_of: datetime) -> None:
    from components.score_batch import score_batch

    scores = deployed.new(dsl.Dataset, "scores")
    (rows,) = deployed.call(score_batch, deployed.loop, deployed.as_of, "1d", deployed.made["clean"], scores)
    found = pq.read_table(scores.path)
    assert found.column_names == ["event_id", "event_timestamp", "probability", "version"]
    assert rows == found.num_rows == scores.metadata["rows"] > 300
    assert set(found["version"].to_pylist()) == {deployed.returned["version"]} == {scores.metadata["version"]}
    moments = found["event_timestamp"]
    assert as_of - timedelta(days=1) <= pc.min(moments).as_py() <= pc.max(moments).as_py() < as_of

    # The training set holds the same events, as far as their label is known, so the features must be equal.
    learned = pq.read_table(deployed.made["training_set"].path).to_pandas().set_index("event_id", drop=False)
    both = [name for name in found["event_id"].to_pylist() if name in learned.index]
    assert len(both) > 100
    expected = dict(
        zip(both, model_folder.predict(BINARY, Path(deployed.made["model"].path), learned.loc[both]), strict=True)
    )
    scored = dict(zip(found["event_id"].to_pylist(), found["probability"].to_pylist(), strict=True))
    assert {name: scored[name] for name in both} == pytest.approx(expected, abs=1e-6)


def test_score_batch_needs_a_champion(
    validated: Any, loop: Loop, make_home: Any, tmp_path: Path, as_of: datetime
) -> None:
    from kubeloop.steps import batch

    settings = make_home(tmp_path)
    with pytest.raises(stages.StageError, match="flight-delay has no champion "):
        batch.score(loop, settings, Path(validated.made["clean"].path), as_of, "1d", tmp_path / "scores.parquet")


def test_score_batch_names_an_empty_span(deployed: Any, loop: Loop, as_of: datetime, tmp_path: Path) -> None:
    from kubeloop.steps import batch

    clean = Path(deployed.made["clean"].path)
    late = as_of + timedelta(days=400)
    with pytest.raises(stages.StageError, match=r"there is no event between .*; score "):
        batch.score(loop, deployed.settings, clean, late, "1d", tmp_path / "scores.parquet")


def test_judge_windows_has_the_monitor_judge_what_ended(deployed: Any, loop: Loop, as_of: datetime) -> None:
    from components.judge_windows import judge_windows

    node, collector = (deployed.services.url(name) for name in ("node", "collector"))
    watched = ("kubeloop.monitoring.monitor", "--loop", str(deployed.settings.loop_file))
    monitor = deployed.services.start("monitor", [*watched, "--node-url", node, "--collector-url", collector])
    flight = {"tailnum": "N14228", "carrier": "UA", "dest": "IAH", "origin": "EWR", "sched_dep": "2013-05-18T01:15:00Z"}
    asked = {
        "instances": [flight | {"distance": 1400, "sched_minutes": 210}],
        "parameters": {"event_time": (as_of - timedelta(days=2)).isoformat()},
    }
    httpx.post(f"{node}/v1/models/{loop.name}:predict", json=asked, trust_env=False).raise_for_status()

    def judge(until: datetime) -> Any:
        status = deployed.new(dsl.Artifact, "status")
        deployed.call(judge_windows, deployed.loop, until.isoformat(), status)
        return json.loads(Path(status.path).read_text())

    # The week of the request ends at `as_of`.
    before = _logged(lambda: judge(as_of - timedelta(hours=1)))
    assert (before["service"], before["windows"], before["waiting_rows"]) == (loop.name, {"open": 1}, 1)
    after = judge(as_of)
    assert (after["windows"], after["waiting_rows"]) == ({"open": 0, "small": 1}, 0)
    assert after == httpx.get(f"{monitor}/status", trust_env=False).json()


def _logged(look: Callable[[], Any]) -> Any:
    """Wait until the request has travelled from the node to the monitor."""
    deadline = time.monotonic() + 30
    while not (found := look())["waiting_rows"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.mark.parametrize(("status", "error"), [(503, ServiceError), (400, stages.StageError), (None, ServiceError)])
def test_only_what_a_monitor_refuses_is_not_asked_again(
    demo: Loop, as_of: datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, error: Any
) -> None:
    from kubeloop.steps import batch

    class Monitor(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if status:
                self.send_error(status)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Monitor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("KUBELOOP_MONITOR_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(error, match="monitor") as raised:
                batch.judge(demo, config.settings(tmp_path), as_of)
        finally:
            server.shutdown()
    assert raised.value.lasting is (status == 400)


def test_judge_windows_needs_a_monitor(make_home: Any, loop: Loop, as_of: datetime, tmp_path: Path) -> None:
    from components.judge_windows import judge_windows

    place = Bench(loop.dump(), as_of.isoformat(), make_home(tmp_path), tmp_path)
    with pytest.raises(ServiceError, match="the monitor is not running"):
        place.call(judge_windows, place.loop, place.as_of, place.new(dsl.Artifact, "status"))

"""The training pipeline on this machine, from raw data to a served champion."""

import json
import re
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop import errors
from kubeloop.config import Loop
from kubeloop.models import registry

STEPS = {
    "begin-run", "extract-data", "validate-data", "build-features", "validate-features", "train-model",
    "evaluate-model",
    "gate-model", "register-model", "deploy-model",
}  # fmt: skip
_STARTED = re.compile(r"Executing task \S*'([\w-]+)'")


def started(text: str) -> list[str]:
    return _STARTED.findall(text)


def test_a_run_ends_with_a_served_champion(undisturbed: Any, loop: Loop, as_of: datetime) -> None:
    report = undisturbed.report("first")
    assert report["status"] == "succeeded"
    assert report["error"] is None
    assert report["result"]["promote"] is True
    assert report["result"]["version"] == "1"
    assert report["result"]["reason"].startswith("Promoted: first model")
    assert report["arguments"] == {
        "as_of": as_of.isoformat(),
        "run": "first",
        "reason": "a test",
    }
    begin, end = (datetime.fromisoformat(report[name]) for name in ("started_at", "finished_at"))
    assert begin < end <= datetime.now(UTC)
    champion = registry.champion(undisturbed.settings, loop.name)
    assert champion is not None
    assert (champion.version, champion.run) == ("1", "first")
    served = httpx.get(f"{undisturbed.services.url('node')}/v2/models/{loop.name}", trust_env=False).json()
    assert served["versions"] == ["1"]
    assert set(started(undisturbed.log("first").read_text())) == STEPS


def test_the_same_run_again_repeats_nothing(undisturbed: Any, loop: Loop, as_of: datetime) -> None:
    before = registry.versions(undisturbed.settings, loop.name)
    length = len(undisturbed.log("first").read_text())
    assert undisturbed.finish("first", as_of) == 0
    # The gate and the deployment depend on things outside the pipeline, so they run again. A new verdict is a new
    # artifact even with the same content, so the registration runs again, too, and finds the run's version.
    steps = ["begin-run", "gate-model", "register-model", "deploy-model"]
    assert started(undisturbed.log("first").read_text()[length:]) == steps
    assert undisturbed.report("first")["result"]["version"] == "1"
    after = registry.versions(undisturbed.settings, loop.name)
    assert [(item.version, item.aliases, item.sha256) for item in after] == [
        (item.version, item.aliases, item.sha256) for item in before
    ]


def test_a_later_run_meets_the_champion(undisturbed: Any, loop: Loop, as_of: datetime) -> None:
    assert undisturbed.finish("second", as_of + timedelta(days=7), "a week later") == 0
    result = undisturbed.report("second")["result"]
    assert result["version"] == "2"
    version = registry.get(undisturbed.settings, loop.name, "2")
    verdict = json.loads(version.tags["kubeloop.gate"])
    assert verdict["champion"] is not None
    assert result["promote"] is verdict["promote"]
    assert version.tags["kubeloop.promoted"] == json.dumps(verdict["promote"])
    assert version.tags["kubeloop.reason"] == "a week later"
    champion = registry.champion(undisturbed.settings, loop.name)
    assert champion is not None
    assert champion.version == ("2" if verdict["promote"] else "1")
    assert ("deploy-model" in started(undisturbed.log("second").read_text())) is verdict["promote"]


def test_the_other_pipelines_run(undisturbed: Any, loop: Loop, as_of: datetime) -> None:
    for pipeline in ("materialize", "batch-scoring"):
        assert undisturbed.finish(pipeline, as_of, pipeline=pipeline) == 0, undisturbed.log(pipeline).read_text()[
            -3000:
        ]
    assert started(undisturbed.log("materialize").read_text())[-1] == "materialize-features"
    assert undisturbed.report("batch-scoring")["result"]["rows"] > 300
    (scores,) = (undisturbed.settings.state / "pipeline").glob("flight-delay-batch-scoring-*/score-batch/scores")
    assert pq.read_metadata(scores).num_rows == undisturbed.report("batch-scoring")["result"]["rows"]


def test_a_backfill_has_the_monitor_judge(undisturbed: Any, loop: Loop, as_of: datetime) -> None:
    assert undisturbed.finish("early", as_of, pipeline="backfill") != 0
    assert "the monitor is not running" in undisturbed.report("early")["error"]
    node, collector = (undisturbed.services.url(name) for name in ("node", "collector"))
    undisturbed.services.start(
        "monitor",
        [
            *("kubeloop.monitoring.monitor", "--loop", str(undisturbed.settings.loop_file)),
            *("--node-url", node, "--collector-url", collector),
        ],
    )
    assert undisturbed.finish("backfill", as_of, pipeline="backfill") == 0
    (status,) = (undisturbed.settings.state / "pipeline").glob("flight-delay-backfill-*/judge-windows/status")
    assert json.loads(status.read_text())["service"] == loop.name


def test_broken_data_fail_the_run_by_name(undisturbed: Any, loop: Loop, as_of: datetime) -> None:
    """The raw table has lost its delays; nothing is trained, registered or served."""
    settings = undisturbed.settings
    before = [item.version for item in registry.versions(settings, loop.name)]
    path = settings.raw / "departures.parquet"
    good = path.read_bytes()
    table = pq.read_table(path)
    try:
        delays = pa.nulls(table.num_rows, pa.float64())
        pq.write_table(table.set_column(table.column_names.index("dep_delay"), "dep_delay", delays), path)
        assert undisturbed.finish("broken", as_of) == errors.LASTING
    finally:
        path.write_bytes(good)
    report = undisturbed.report("broken")
    assert report["status"] == "failed"
    assert report["result"] is None
    assert report["lasting"], "the same data would fail again"
    assert report["finished_at"]
    assert "expect_column_values_to_not_be_null" in report["error"]
    assert "departures" in report["error"]
    assert "dep_delay" in report["error"]
    assert "Traceback" not in report["error"]
    assert started(undisturbed.log("broken").read_text()) == ["begin-run", "extract-data", "validate-data"]
    assert [item.version for item in registry.versions(settings, loop.name)] == before
    assert (settings.state / "data-docs" / "broken" / "raw" / "index.html").is_file()


def test_a_run_that_is_asked_to_stop_says_so(undisturbed: Any, as_of: datetime) -> None:
    process = undisturbed.start("stopped", as_of + timedelta(days=3))
    _until(lambda: "validate-data" in started(undisturbed.log("stopped").read_text()))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    report = undisturbed.report("stopped")
    assert (report["status"], report["error"], report["lasting"]) == ("failed", "interrupted", False)
    # No step outlives its run to finish its work.
    _until(lambda: not undisturbed.alive(process.pid))
    attempt = max((undisturbed.settings.state / "pipeline").iterdir())
    assert (attempt / "extract-data" / "executor_output.json").is_file()
    assert not (attempt / "validate-data" / "executor_output.json").exists()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

"""A rollout on a real node, into a real payload log, as its judge sees it: a failure is the version's that failed."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from kubeloop import config
from kubeloop.cli.main import app
from kubeloop.config import Loop, Settings
from kubeloop.judge import ExposureError, Exposures
from kubeloop.names import LABEL_EVENT
from kubeloop.payloads import exposed
from tests.unit.node.conftest import Kit, NodeProcess, eventually, request


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return config.settings(tmp_path / "home")


@pytest.fixture
def collector(settings: Settings) -> Iterator[str]:
    settings.payloads.mkdir(parents=True)
    flags = ("--dir", str(settings.payloads), "--port", "0", "--flush-seconds", "0.2")
    process = subprocess.Popen(
        [sys.executable, "-m", "kubeloop.payloads.collector", *flags], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    yield process.stdout.readline().split()[1]
    process.terminate()
    assert process.wait(20) == 0


@pytest.fixture
def loop(demo: Loop) -> Loop:
    return demo.model_copy(update={"name": "flights"})


def ask(node: NodeProcess, count: int) -> Counter[tuple[int, str]]:
    """Ask for predictions one by one; return how often each status came from each version."""
    found: Counter[tuple[int, str]] = Counter()
    for number in range(count):
        moment = f"2013-04-{1 + number * 20 // count:02d}T12:00:00Z"
        parameters = {"event_ids": json.dumps([f"event-{number}"]), "event_time": moment}
        answer = httpx.post(f"{node.url}/v2/models/flights/infer", json=request() | {"parameters": parameters})
        found[answer.status_code, answer.json().get("model_version", "")] += 1
    return found


def seen(loop: Loop, settings: Settings, count: int) -> exposed.Rollout:
    def rollout() -> Any:
        try:
            found = exposed.read(loop, settings)
        except ExposureError:
            return None
        return found if len(found.exposures) == count else None

    found: exposed.Rollout = eventually(rollout)
    return found


def by_arm(rows: Exposures) -> dict[bool, tuple[int, int]]:
    """Return how many requests each arm got, and how many of them failed."""
    return {arm: (int((rows.canary == arm).sum()), int(rows.failed[rows.canary == arm].sum())) for arm in (False, True)}


@pytest.mark.parametrize("behaviour", [{"status": 503}, {"die": True}], ids=["answers 503", "dies"])
def test_a_failure_is_the_canarys_also_if_the_champion_answers(
    kit: Kit, collector: str, loop: Loop, settings: Settings, behaviour: dict[str, Any]
) -> None:
    node = kit.node()
    canary = kit.model("v2", **behaviour)
    node.apply(kit.manifest(kit.model("v1"), canary=canary, canary_percent=50, logger_url=collector))
    answers = ask(node, 60)
    found = eventually(lambda: _read(loop, settings))
    rows = found.exposures
    assert (found.champion, found.canary) == ("v1", "v2")
    arms = by_arm(rows)
    assert arms[False][1] == 0
    assert arms[True] == (arms[True][0], arms[True][0])
    assert arms[True][0] >= 1
    assert set(rows.share) == {0.5}
    assert np.isnan(rows.answers[rows.failed]).all()
    if "die" in behaviour:
        # The champion answered in its place: the client saw no failure, and the judge does.
        assert answers == {(200, "v1"): 60}


def _read(loop: Loop, settings: Settings) -> exposed.Rollout | None:
    try:
        return exposed.read(loop, settings)
    except ExposureError:
        return None


def test_a_healthy_rollout_is_read_with_answers_labels_and_event_times(
    kit: Kit, collector: str, loop: Loop, settings: Settings
) -> None:
    node = kit.node()
    manifest = kit.manifest(kit.model("v1"), canary=kit.model("v2"), canary_percent=25, logger_url=collector)
    node.apply(manifest)
    answers = ask(node, 200)
    labels = [{"event_id": f"event-{n}", "label": n % 2, "observed_at": "2013-05-01T00:00:00Z"} for n in range(150)]
    event = {"ce-specversion": "1.0", "ce-type": LABEL_EVENT, "ce-id": "labels", "ce-source": "test"}
    assert httpx.post(collector, json={"labels": labels}, headers=event).is_success
    rows = seen(loop, settings, 200).exposures
    assert by_arm(rows) == {False: (answers[200, "v1"], 0), True: (answers[200, "v2"], 0)}
    assert set(rows.share) == {0.25}
    assert rows.answered.all()
    assert eventually(lambda: int(np.isfinite(seen(loop, settings, 200).exposures.truths).sum()) == 150)
    assert (str(rows.at[0])[:10], str(rows.at[-1])[:10]) == ("2013-04-01", "2013-04-20")
    assert (rows.seconds > 0).all()


def test_a_failure_before_any_answer_does_not_move_the_rollout_to_another_year(
    kit: Kit, collector: str, loop: Loop, settings: Settings
) -> None:
    """A replay of 2013: what failed has no event time, and gets that of the first answer."""
    node = kit.node()
    canary = kit.model("v2", status=503)
    node.apply(kit.manifest(kit.model("v1"), canary=canary, canary_percent=99, logger_url=collector))
    for _ in range(3):
        ask(node, 4)
    node.apply(kit.manifest(kit.model("v1"), canary=canary, canary_percent=50, logger_url=collector))
    ask(node, 20)
    rows = seen(loop, settings, 32).exposures
    assert bool(rows.failed[0])
    assert {str(moment)[:4] for moment in rows.at} == {"2013"}


def test_without_two_versions_nothing_is_logged_and_the_judge_says_so(
    kit: Kit, collector: str, loop: Loop, settings: Settings
) -> None:
    node = kit.node()
    node.apply(kit.manifest(kit.model("v1"), logger_url=collector))
    ask(node, 20)
    eventually(lambda: node.get()["queued"] == 0)
    assert node.get()["sent"] == 40
    with pytest.raises(ExposureError, match="two versions"):
        exposed.read(loop, settings)


def test_the_judge_reads_the_log_of_a_rollout(
    kit: Kit, collector: str, loop: Loop, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A canary that answers 503 to everything, judged from the log by the command."""
    node = kit.node()
    canary = kit.model("v2", status=503)
    node.apply(kit.manifest(kit.model("v1"), canary=canary, canary_percent=50, logger_url=collector))
    ask(node, 60)
    seen(loop, settings, 60)
    settings.home.mkdir(exist_ok=True)
    (settings.home / "loop.yaml").write_text(loop.dump())
    found = CliRunner().invoke(app, ["judge", "-C", str(settings.home)])
    assert found.exit_code == 4, found.output
    assert "version v2 against version v1" in found.stdout
    assert "rollback: errors" in found.stdout

"""A run says when its loop differs from the installed one."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from kubeloop import config
from kubeloop.config import Loop, Settings
from kubeloop.steps import loops, stages

BASE: dict[str, Any] = {
    "name": "fraud",
    "source": {"tables": {"events": {"available_at": "at"}}},
    "features": {"service": "fraud_v1"},
    "delivery": {"applier": "cluster"},
}
COMMAND = "`kubeloop schedule --release blue --namespace ml`"


def made(**sections: Any) -> Loop:
    return Loop.model_validate(BASE | sections)


@pytest.fixture
def place(tmp_path: Path) -> Settings:
    return config.settings(tmp_path, tmp_path / "state").model_copy(update={"release": "ml/blue"})


@pytest.mark.parametrize(
    ("installed", "says"),
    [
        (made(), ""),
        (made(training={"window": "365d"}), "another `training.window` than the installed loop"),
        (made(assumptions=["labels are known at once"]), ""),
        (made(pipelines={"images": {"core": "kubeloop-core:9"}}), "another `pipelines.images.core` than"),
        (made(description="Fraud."), "another `description` than"),
    ],
)
def test_a_setting_that_was_changed_since_is_named(place: Settings, installed: Loop, says: str) -> None:
    found = loops.stale(made(), place.model_copy(update={"installed_loop": installed.dump()}))
    assert says in found
    assert (COMMAND in found) == bool(says)


def test_what_a_step_reads_by_reference_is_the_same_loop(place: Settings) -> None:
    """The stored loop has all defaults written out; the installed one has only what was set."""
    kept = loops.read(loops.keep(made(), place), place)
    assert loops.stale(kept, place.model_copy(update={"installed_loop": made().dump()})) == ""
    assert loops.compiled(kept) == loops.compiled(made())


def test_many_changes_are_counted(place: Settings) -> None:
    training = {"window": "9d", "holdout": "2d", "seed": 1, "parameters": {"a": 1}, "trials": 3, "threads": 2}
    fields = {name: value for name, value in training.items() if name in config.Training.model_fields}
    found = loops.stale(made(), place.model_copy(update={"installed_loop": made(training=fields, name="x").dump()}))
    assert "more than the installed loop" in found
    assert found.count("`") == 2 * (loops._NAMED + 1)


def test_an_installed_loop_of_a_newer_kubeloop_is_said_and_ends_nothing(place: Settings) -> None:
    text = json.dumps(json.loads(made().dump()) | {"telepathy": True})
    assert "another version of kubeloop (" in loops.stale(made(), place.model_copy(update={"installed_loop": text}))


def test_pods_that_were_compiled_from_other_settings_say_so(place: Settings) -> None:
    """The trigger gives a run its own loop; the pods remain those of the latest uploaded version."""
    old = made(pipelines={"images": {"core": "kubeloop-core:0.0.1"}})
    now = place.model_copy(update={"installed_loop": made().dump(), "compiled": loops.compiled(old)})
    assert loops.stale(made(), now).startswith("The pods of this run were compiled from another `pipelines`")
    assert loops.stale(made(), now.model_copy(update={"compiled": loops.compiled(made())})) == ""


def test_outside_a_release_nothing_is_said(tmp_path: Path) -> None:
    """`kubeloop run` compiles a pipeline with other pod settings, which do not apply on one machine."""
    here = config.settings(tmp_path, tmp_path / "state").model_copy(update={"compiled": "0123456789abcdef"})
    assert loops.stale(made(), here) == ""


def test_the_first_step_logs_it(place: Settings, caplog: pytest.LogCaptureFixture) -> None:
    newer = place.model_copy(update={"installed_loop": made(training={"window": "365d"}).dump()})
    with caplog.at_level(logging.WARNING):
        stages.begin(newer, made().dump(), "2026-01-01", "r1", "")
    assert "`training.window`" in caplog.text
    assert COMMAND in caplog.text

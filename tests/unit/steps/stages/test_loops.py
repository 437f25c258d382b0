"""The use case of a run, stored once and read by reference: in the state folder, and in a real S3 store."""

import json
from pathlib import Path
from typing import Any

import pytest

from kubeloop import config, names
from kubeloop.config import ConfigError, Loop, Settings
from kubeloop.steps import loops


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    if request.param == "bucket":
        monkeypatch.setenv("KUBELOOP_BUCKET", request.getfixturevalue("s3").bucket)
    return config.settings(tmp_path, tmp_path / "state")


def test_what_is_kept_is_read_as_it_was(place: Settings, demo: Loop) -> None:
    reference = loops.keep(demo, place)
    assert loops.keep(demo, place) == reference
    assert loops.read(reference, place) == demo
    assert loops.read(demo.dump(), place) == demo, "a text is read unchanged, too"


def test_texts_that_mean_the_same_have_one_reference(place: Settings, demo: Loop) -> None:
    said = json.loads(demo.dump())
    assert "serving" not in said, "a default that is left out"
    assert said["drift"]["votes"] == 2, "a default that is written out stays in the text"
    turned = dict(reversed(said.items())) | {"serving": {"timeout_s": 10.0}}
    assert loops.keep(Loop.parse(json.dumps(turned)), place) == loops.keep(demo, place)
    other = Loop.parse(demo.dump(), {"training": {"seed": 8}})
    assert loops.keep(other, place) != loops.keep(demo, place)


def test_a_reference_to_nothing_says_where_nothing_is(place: Settings) -> None:
    with pytest.raises(loops.LoopError, match=rf"no longer at .*{names.loop('0' * 64)}; start a new run"):
        loops.read("sha256:" + "0" * 64, place)


def test_what_was_changed_is_not_taken(tmp_path: Path, demo: Loop) -> None:
    place = config.settings(tmp_path, tmp_path / "state")
    reference = loops.keep(demo, place)
    path: Any = place.state / names.loop(reference.removeprefix("sha256:"))
    path.write_text(path.read_text().replace("flight-delay", "flight-later"))
    with pytest.raises(loops.LoopError, match="changed after the run began"):
        loops.read(reference, place)


@pytest.mark.parametrize("text", ["sha256:abc", "", "no use case"])
def test_a_text_that_is_neither_a_loop_nor_a_reference_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"loop\.yaml"):
        loops.read(text, config.settings(tmp_path, tmp_path / "state"))

"""Names from outside that become paths: whatever they contain, nothing outside the folder is read or written."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeloop import config, paths
from kubeloop.config import ConfigError, Loop, Settings
from kubeloop.models import registry
from kubeloop.monitoring.store import Store
from kubeloop.monitoring.versions import VersionError, Versions
from kubeloop.session import requests
from kubeloop.steps import stages
from kubeloop.stores.bucket import Bucket
from kubeloop.trigger.event import DriftEvent
from kubeloop.trigger.runners import LocalRunner

NOW = datetime(2024, 3, 1, tzinfo=UTC)
WRONG = (
    *(
        "",
        ".",
        "..",
        "../x",
        "a/../../x",
        "/etc/x",
        "a/b",
        "a\\b",
        ".hidden",
        "-flag",
        "a\0b",
        "a\nb",
        "a b",
        "ä",
        "~root",
    ),
    "x" * 300,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = config.settings(tmp_path / "home", tmp_path / "home" / "state")
    found.runs.mkdir(parents=True)
    return found


@pytest.mark.parametrize("text", WRONG)
def test_an_invalid_name_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(paths.PathError, match=r"the run .* is not a name"):
        paths.inside(tmp_path, text, what="the run")


@given(st.text())
def test_a_path_never_leaves_its_folder(text: str) -> None:
    folder = Path("/folder")
    try:
        found = paths.inside(folder, text)
    except paths.PathError:
        return
    assert found.parent == folder
    assert found.name == text
    assert re.fullmatch(r"[\w.+=@-]+", text, re.ASCII)


@given(st.text(min_size=1, max_size=200))
def test_a_runs_name_is_never_a_path_whatever_its_episode_is(episode: str) -> None:
    event = DriftEvent("flights", episode, NOW, NOW, "drift", (), "")
    assert paths.part(event.run_name, "the run") == event.run_name


ENTRIES: dict[str, Callable[[Settings, Loop, str], Any]] = {
    "a run of the trigger": lambda settings, _, name: LocalRunner(settings, settings.loop_file, {}).find(name),
    "a run that starts": lambda settings, _, name: LocalRunner(settings, settings.loop_file, {}).start(
        name, {"attempt": 1, "as_of": NOW.isoformat(), "reason": ""}
    ),
    "a run's log": lambda settings, _, name: requests.log(settings, name),
    "findings of raw data": lambda settings, loop, name: stages.validate_raw(
        loop, settings, settings.state / "raw", NOW, name, settings.state / "clean", settings.state / "page"
    ),
    "a model of the registry": lambda settings, _, name: registry.folder(
        settings,
        registry.Version(name="flights", version=name, uri="s3://models/1", sha256="", run="", run_id="", created_at=0),
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_refuses_them(settings: Settings, demo: Loop, entry: str, name: str) -> None:
    before = sorted(settings.home.parent.rglob("*"))
    with pytest.raises(paths.PathError):
        ENTRIES[entry](settings, demo, name)
    after = sorted(path for path in settings.home.parent.rglob("*") if path != settings.runs / "lock")
    assert after == before


@pytest.mark.parametrize("name", WRONG)
def test_a_local_run_refuses_them(settings: Settings, name: str) -> None:
    from pipelines import local

    with pytest.raises(paths.PathError):
        local.run(None, {}, name=name, settings=settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", WRONG)
def test_the_monitor_looks_for_a_reference_nowhere_else(tmp_path: Path, version: str) -> None:
    """The version comes from a model server's answer."""
    references = tmp_path / "references"
    references.mkdir()
    (tmp_path / "x" / "reference").mkdir(parents=True)
    store = Store(f"sqlite:///{tmp_path}/monitor.db")
    with pytest.raises(VersionError, match="the folder of version"):
        Versions(store, "flights", "kubeloop", references=references).reference(version)
    store.close()


@dataclass(frozen=True)
class Theirs(Bucket):
    """A bucket that someone else can write to: a real store would make some of these names harmless."""

    objects: tuple[str, ...] = ()

    def names(self, prefix: str, before: datetime | None = None) -> list[str]:  # noqa: ARG002
        return list(self.objects)

    def get(self, name: str) -> bytes | None:  # noqa: ARG002
        return b"theirs"


def test_objects_that_lead_elsewhere_stay_where_they_are(tmp_path: Path) -> None:
    wrong = (f"{tmp_path}/outside", "../outside", "1/../../outside", "1//reference", ".ssh/x", "1/.part", "")
    bucket = Theirs(lambda: None, "b", objects=("1/reference/numeric.npy", *wrong))  # type: ignore[arg-type,return-value]
    assert bucket.pull("references", tmp_path / "references") == ["1/reference/numeric.npy"]
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert written == [Path("references/1/reference/numeric.npy")]


@pytest.mark.parametrize("name", ["../raw", "a/b", "/etc/x", "", ".x"])
def test_a_tables_name_is_never_a_path(demo: Loop, name: str) -> None:
    table = {"available_at": "at", "path": "x.csv"}
    with pytest.raises(ConfigError, match=r"source\.tables"):
        Loop.parse(demo.dump(), {"source": {"tables": {name: table}}})

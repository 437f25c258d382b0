"""Every file of a state folder is cut, emptied, flipped, locked and removed in turn.

A message names it in one sentence, or the file is made again, and no content changes silently.

The default is a sample; `make hostile` takes every file.
"""

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from kubeloop import access, config, report, state
from kubeloop.cli import doctor, main
from kubeloop.config import Loop, Settings
from kubeloop.features import online
from kubeloop.models import registry
from kubeloop.monitoring.store import Store
from kubeloop.payloads import segments, wal
from kubeloop.payloads.segments import MIRRORED, Row
from kubeloop.session import run as session
from kubeloop.session import summary
from kubeloop.session.counts import Counts
from kubeloop.steps import loops
from kubeloop.stores import kept, whole
from kubeloop.trigger.runners import LocalRunner
from tests.hostile.conftest import WHOLE
from tests.unit.features.conftest import QUERIES, STORE, VIEWS
from tests.unit.report.conftest import World
from tests.unit.report.conftest import world as world

SAMPLE = 16
SEED = 11
MOMENT = datetime(2024, 1, 2, tzinfo=UTC)

_LOOP = """
name: shop
source:
  tables:
    prices: {available_at: seen, path: prices.parquet}
    stock: {available_at: seen, path: stock.parquet}
    orders: {available_at: known, path: orders.parquet}
features: {repo: repo, service: shop_v1}
training: {algorithm: logistic_regression, window: 60d, holdout: 14d}
"""

UNREAD = (
    *("report.html", "logs/", "quarantine/", "data-docs/", "pipeline", "made/", "runs/lock", "services.lock"),
    *("payloads/collector.lock", "/alive", "/log.txt", "/artifacts/evaluation/", "/MLmodel", ".txt", "conda.yaml"),
    *("python_env.yaml", "input_example.json", "features/built-from", "answers-", "made.json"),
)
"""Files that no command reads again, or reads only to see whether it must make them again."""
OPTIONAL = (
    "services.json",
    "token",
    "summary.json",
    "loops/",
    "manifests/",
    ".seq",
    "materialized-to",
    "wal-",
    "runs/",
)
"""Files that may be absent: without them, the state folder is one in which something has not happened yet."""


@dataclass(frozen=True)
class Place:
    """A state folder in which everything has happened, with its loop and a second loop that makes features."""

    loop: Loop
    settings: Settings
    shop: Loop
    shop_settings: Settings

    def at(self, folder: Path) -> "Place":
        """Return the same with a copy of the state folder."""
        shutil.copytree(self.settings.state, folder, symlinks=True)
        move = {"state": folder}
        return Place(
            self.loop,
            config.settings(self.settings.home, **move),
            self.shop,
            config.settings(self.shop_settings.home, **move),
        )

    def run(self, *command: str) -> tuple[int, str]:
        """Run a kubeloop command on it; return its exit code and its output."""
        found = CliRunner(env={"KUBELOOP_STATE": str(self.settings.state)}).invoke(
            main.app, [*command, "-C", str(self.settings.home)], catch_exceptions=True
        )
        assert found.exception is None or isinstance(found.exception, SystemExit), repr(found.exception)
        return found.exit_code, found.output


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def template(world: World, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(world.loop, world.settings, Loop.parse(_LOOP), world.settings)
    home = tmp_path_factory.mktemp("shop")
    _shop(home)
    folder = tmp_path_factory.mktemp("kept") / "state"
    made = place.at(folder)
    made = Place(made.loop, made.settings, made.shop, config.settings(home, folder))
    _fill(made, world.summary)
    return made


def _shop(home: Path) -> None:
    repo = home / "repo"
    (repo / "sql").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text("\n".join(line[4:] for line in STORE.splitlines()))
    (repo / "views.py").write_text("\n".join(line[4:] for line in VIEWS.splitlines()))
    for name, query in QUERIES.items():
        (repo / "sql" / f"{name}.sql").write_text(query)
    seen = [MOMENT] * 3
    tables: dict[str, dict[str, Any]] = {
        "prices": {"shop": ["a", "b", "c"], "sku": ["x", "y", "z"], "price": [1.0, 2.0, 3.0], "kind": ["k"] * 3},
        "stock": {"sku": ["x", "y", "z"], "units": [1, 2, 3]},
        "orders": {"id": ["1", "2", "3"], "label": [0, 1, 0], "known": seen, "shop": ["a"] * 3, "sku": ["x"] * 3},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table({"seen": seen, **columns}), home / f"{name}.parquet")


def _fill(place: Place, told: dict[str, Any]) -> None:
    """Write what only a whole run writes, using the same code as the run."""
    settings, folder = place.settings, place.settings.payloads
    session.prepare(place.shop, place.shop_settings, lambda _: None)
    online.Materializer(settings.features, "shop_v1").advance(MOMENT)
    table, last = segments.read(folder)
    (folder / f"events-{1:016d}-{last:016d}.parquet").unlink()
    for first in range(0, last, 40):
        segments.write(folder, table.slice(first, 40))
    row: Row = (last + 1, 1, 1, "id", "type", "s", "parcels", "", "", "", b"{}" * 99)
    file = wal.Wal(folder, last + 1)
    file.append(wal.encode([(last + 1 + more, *row[1:]) for more in range(5)], file.salt))
    file.close()
    segments.mark(folder, MIRRORED, 0)
    store = Store(settings.monitor_db)
    store.ingest(replace(store.progress(place.loop.name), cursor=last), [], {})
    store.close()
    counts = Counts.open(settings, fast=True)
    counts.begin([])
    counts.note(["1", "2"], answered=True)
    counts.end(1.0, 0, None)
    summary.write(settings, told)
    report.write(place.loop, settings, told)
    loops.keep(place.loop, settings)
    access.make(settings.token_file)
    services = {"node": {"url": "http://127.0.0.1:9", "pid": os.getpid(), "state": str(settings.state)}}
    whole.write(settings.services_file, kept.dumps(services))
    manifest = kept.seal(yaml.safe_dump({"kind": "InferenceService", "metadata": {"name": "parcels", "labels": {}}}))
    (settings.state / "manifests" / "ready").mkdir(parents=True)
    whole.write(settings.state / "manifests" / "parcels.yaml", manifest)
    whole.write(settings.state / "manifests" / "ready" / "parcels.yaml", manifest)
    runner = LocalRunner(settings.model_copy(update={"core_python": Path("/bin/false")}), Path("loop.yaml"), {})
    runner.start("parcels-first", {"attempt": 1, "as_of": MOMENT.isoformat(), "reason": "first"})
    runner.stop()


def cut(path: Path) -> None:
    """Cut off the second half, as on a full disk."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Empty the file."""
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lock(path: Path) -> None:
    """Make it read-only. An administrator can still write to what only lacks the permission."""
    path.chmod(0o400)
    if os.geteuid() == 0:
        subprocess.run(["chattr", "+i", str(path)], check=False, capture_output=True)


def remove(path: Path) -> None:
    """Delete the file."""
    path.unlink()


DAMAGES: tuple[Callable[[Path], None], ...] = (cut, empty, flip, lock, remove)


def cases(place: Place) -> list[tuple[Path, Callable[[Path], None]]]:
    """Return which damage to do to which file; the sample takes one of several similar files."""
    files = [path for path in sorted(place.settings.state.rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path for path in files if "/made/" not in str(path)]
    every = [(path, damage) for path in files for damage in DAMAGES]
    if WHOLE:
        return every
    taken = random.Random(SEED).sample(every, len(every))
    seen = set()
    found = []
    for path, damage in taken:
        known = kept.kind(path, place.settings.state)
        if (known, damage) not in seen and not str(path).endswith(UNREAD):
            seen.add((known, damage))
            found.append((path, damage))
    return found[:SAMPLE]


@pytest.fixture
def copies(template: Place, tmp_path: Path) -> Iterator[Callable[[], Place]]:
    """Make copies of the template; what was locked in them is unlocked at the end."""
    made: list[Path] = []

    def copy() -> Place:
        made.append(tmp_path / str(len(made)))
        return template.at(made[-1])

    yield copy
    for folder in made:
        subprocess.run(["chattr", "-R", "-i", str(folder)], check=False, capture_output=True)


def test_every_file_has_a_kind(template: Place) -> None:
    folder = template.settings.state
    assert [
        path for path in contents(folder) if not path.startswith("made/") and not kept.kind(folder / path, folder)
    ] == []


def test_a_whole_state_has_no_faults_and_looking_changes_nothing(template: Place) -> None:
    before = contents(template.settings.state)
    assert [str(fault) for fault in state.faults(template.settings)] == []
    assert contents(template.settings.state) == before


@pytest.mark.timeout(3600 if WHOLE else 300)
def test_a_broken_file_is_named_or_harmless(template: Place, copies: Callable[[], Place]) -> None:
    sound = json.loads(template.run("status", "--json")[1])
    wrong = []
    for path, damage in cases(template):
        name = str(path.relative_to(template.settings.state))
        place = copies()
        broken = place.settings.state / name
        damage(broken)
        said = [str(fault) for fault in state.faults(place.settings)]
        named = any(str(broken) in sentence and "; " in sentence for sentence in said)
        case = f"{damage.__name__} {name}"
        if not named and not _may_be_unnamed(name, damage):
            wrong.append(f"{case}: doctor does not name it: {said}")
        for command in (("status", "--json"), ("report",)):
            code, output = place.run(*command)
            if code not in (0, 65, 75) or "Traceback" in output:
                wrong.append(f"{case}: {command[0]} ends with {code}: {output[-300:]}")
            elif code and (str(broken) not in output or len(output.splitlines()) > 3):
                wrong.append(f"{case}: {command[0]} says {output[-300:]}")
            elif not code and command[0] == "status" and not named and damage is not flip:
                found = json.loads(output)
                if differs := {key for key in sound if found[key] != sound[key]} - {"services"}:
                    wrong.append(f"{case}: status silently differs in {differs}")
        subprocess.run(["chattr", "-i", str(broken)], check=False, capture_output=True)
        shutil.rmtree(place.settings.state)
    assert not wrong, "\n".join(wrong)


def _may_be_unnamed(name: str, damage: Callable[[Path], None]) -> bool:
    known = kept.kind(Path("/") / name, Path("/"))
    if any(part in name for part in UNREAD):
        return True
    if damage is lock:
        # A file that is replaced as a whole needs only a writable folder.
        return known is None or not known.grows
    if damage is remove:
        return any(part in name for part in OPTIONAL)
    if name == "token":
        # Running services keep their own token, and answer 401 to another.
        return True
    # SQLite has no checksum of rows. The last record of a cut write-ahead file was never acknowledged.
    return (damage is flip and name.endswith(".db")) or (damage in (cut, empty) and "wal-" in name)


@pytest.mark.parametrize("damage", [cut, empty, flip, remove])
@pytest.mark.parametrize(
    "name",
    ["raw/prices.parquet", "raw/taken.json", "features/stock.parquet", "features/registry.db", "features/online.db"],
)
def test_what_can_be_made_again_is_made_again(
    copies: Callable[[], Place], name: str, damage: Callable[[Path], None]
) -> None:
    place = copies()
    broken = place.settings.state / name
    damage(broken)
    said: list[str] = []
    session.prepare(place.shop, place.shop_settings.model_copy(update={"state": place.settings.state}), said.append)
    if not (damage is flip and name.endswith("online.db")):
        assert any(broken.name in sentence and "damaged or missing" in sentence for sentence in said), said
    assert [str(fault) for fault in state.faults(place.settings)] == []


def test_a_copy_leaves_the_original_alone(template: Place, copies: Callable[[], Place]) -> None:
    before = contents(template.settings.state)
    place = copies()
    settings = place.settings
    code, output = place.run("status", "--json")
    assert code == 0, output
    assert json.loads(output)["services"] == {}, "the copy has its own files"
    session.prepare(place.shop, place.shop_settings.model_copy(update={"state": settings.state}), lambda _: None)
    known = registry.versions(settings, place.loop.name)
    assert all(registry.folder(settings, version).is_relative_to(settings.state) for version in known)
    tags = {"kubeloop.gate": "{}", "kubeloop.reason": "again"}
    made = registry.register(settings, place.loop, known[0].folder, run="of-the-copy", tags=tags)
    assert made.folder.is_relative_to(settings.state)
    with contextlib.closing(kept.look_into(settings.state / "mlflow.db")) as connection:
        assert not [line for line in connection.iterdump() if f"file://{template.settings.state}/" in line]
    assert contents(template.settings.state) == before


def test_doctor_names_it_first_and_a_run_does_not_begin(copies: Callable[[], Place]) -> None:
    place = copies()
    broken = place.settings.state / "session.json"
    flip(broken)
    code, output = place.run("doctor")
    assert code == 1, output
    assert output.startswith(f"problem {broken} is damaged: "), output
    for command in ("run", "serve", "retrain"):
        code, output = place.run(command)
        assert (code, str(broken) in output) == (65, True), output
        assert len(output.splitlines()) == 1, output


def test_a_write_under_way_or_cut_off_is_not_damage(tmp_path: Path) -> None:
    """MLflow and Feast keep SQLite's rollback journal: a kill leaves one, and the next writer rolls it back."""
    place = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(place)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY, note TEXT)")
        writer.execute("CREATE INDEX notes ON runs (note)")
        writer.executemany("INSERT INTO runs (note) VALUES (?)", [("a" * 400,)] * 500)
        writer.commit()
        # More than the cache holds, so that pages are written to the file before the commit.
        writer.execute("UPDATE runs SET note = note || 'b'")
        writer.execute("DELETE FROM runs WHERE id > 250")
        assert place.with_name("mlflow.db-journal").exists()
        assert kept.sqlite_fault(place) is None
        killed = tmp_path / "killed" / "mlflow.db"
        killed.parent.mkdir()
        for name in ("mlflow.db", "mlflow.db-journal"):
            shutil.copy(tmp_path / name, killed.parent / name)
        writer.rollback()
    before = killed.read_bytes()
    assert kept.sqlite_fault(killed) is None
    assert killed.read_bytes() == before
    assert sorted(path.name for path in killed.parent.iterdir()) == ["mlflow.db", "mlflow.db-journal"]


def test_our_own_mistakes_are_not_blamed_on_a_broken_state(tmp_path: Path) -> None:
    settings = config.settings(tmp_path, tmp_path / "state")
    settings.state.mkdir(parents=True, exist_ok=True)
    (settings.state / "summary.json").write_text("{")
    assert "summary.json" in str(state.explain(ValueError("of a parser"), settings))
    assert state.explain(TypeError("of ours"), settings) is None
    error = KeyError("while another was handled")
    error.__context__ = kept.DamagedError(settings.state / "summary.json", "it was handled")
    assert state.explain(error, settings) is None


def test_a_file_that_the_next_start_makes_again_does_not_stop_it(copies: Callable[[], Place]) -> None:
    place = copies()
    again = [
        path
        for path in sorted(place.settings.state.rglob("*"))
        if path.is_file() and (found := kept.kind(path, place.settings.state)) and found.advice == kept.AGAIN
    ]
    assert len(again) > 5
    for path in again:
        cut(path)
    assert [
        finding
        for finding in doctor.quick(place.settings)
        if not finding.ok and str(place.settings.state) in str(finding)
    ] == []
    assert any(not finding.ok for finding in doctor.examine(place.settings))

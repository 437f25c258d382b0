"""The files of the state folder; small ones have a checksum that finds a flipped bit.

A file without a checksum was written by hand or by an older kubeloop, and is read without a check.
"""

import contextlib
import functools
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from zlib import crc32

from kubeloop.errors import KubeloopError
from kubeloop.stores import whole

_KEY = "crc32 of the rest"
_STARS = re.compile(r"(\*\*|\*)")
_SEAL = "# crc32 "
_BROKEN = re.compile(r".{0,3}crc32|# .{0,7}[0-9a-f]{8}\n")
"""A first line with a checksum, even if one of its bits flipped."""
_LINE = re.compile(r"# crc32 ([0-9a-f]{8})\n(.*)", re.DOTALL)


class Kind(NamedTuple):
    """One kind of file in the state folder.

    Attributes:
        pattern: which files, under the state folder.
        what: what they are, and which program writes them.
        advice: what to do when one is damaged or missing.
        grows: whether a file is written in place and so must be writable; others are replaced as a whole.
        sibling: if files of this pattern exist, a file of this kind must exist too.
    """

    pattern: str
    what: str
    advice: str
    grows: bool = False
    sibling: str = ""


_RESTORE = "restore it from a backup, or start over with `kubeloop run --fresh`"
AGAIN = "remove it; the next `kubeloop run` or `kubeloop serve` makes it again"
"""Advice for files that the next start makes again if they are broken."""
_MODEL = "restore it from a backup, or train another version with `kubeloop retrain`"
_STEPS = "remove the folders pipeline and pipeline-cache; runs do their steps again"

KINDS = (
    Kind("ledger.db", "drift events and runs, of the trigger", _RESTORE, True, "runs/*/attempt.json"),
    Kind("monitor.db", "windows, verdicts and episodes, of the monitor", _RESTORE, True, "payloads/events-*.parquet"),
    Kind("mlflow.db", "model versions and their runs, of MLflow", _RESTORE, True, "mlartifacts/*"),
    Kind("session.json", "the answers that the replay's clients got", _RESTORE, sibling="summary.json"),
    Kind("answers-*.jsonl", "the same, of the current session", _RESTORE, True),
    Kind("summary.json", "what came of the last run", "remove it; the next `kubeloop run` writes it again"),
    Kind("report.html", "the report", "remove it; `kubeloop report` writes it again"),
    Kind("services.json", "addresses of the running services", "remove it; `kubeloop serve` writes it again"),
    Kind("token", "token of those services", "remove it; `kubeloop serve` writes it again"),
    Kind("loops/*.json", "the use case of a run, under its digest", "remove it; a new run writes it again"),
    Kind("raw/**", "raw tables, and their sources", AGAIN),
    Kind("features/materialized-to", "position of the online store, of the replay", AGAIN),
    Kind("features/*.db", "Feast's registry and online store", AGAIN, True),
    Kind("features/*", "feature tables, and their sources", AGAIN),
    Kind("payloads/events-*.parquet", "the payload log, of the collector", "restore it from a backup, or move it out"),
    Kind(
        "payloads/wal-*.log", "the collector's write-ahead file", "start the collector: it keeps the undamaged events"
    ),
    Kind("payloads/wal-*.damaged", "a write-ahead file that could not be read", "remove it when nobody needs it"),
    Kind("payloads/*.seq", "marks between collector, mirror and monitor", "remove it; it is written again"),
    Kind("payloads/ahead-of-now.jsonl", "events from a clock that is ahead, of the monitor", "remove it", True),
    Kind("manifests/**.yaml", "current and last manifests of the node", AGAIN),
    Kind("mlartifacts/*/artifacts/model/**", "a model version, of MLflow", _MODEL),
    Kind("mlartifacts/**", "figures and reports of a version", _MODEL),
    Kind("models/**", "model versions fetched from another MLflow", "remove its folder; it is fetched again"),
    Kind("backtest/result.json", "what came of the last backtest", "remove it; `kubeloop backtest` writes it again"),
    Kind("backtest/lock", "held while a backtest runs", "remove it while none runs", True),
    Kind("backtest/**", "models and verdicts of backtests", "remove the folder; `kubeloop backtest` makes it again"),
    Kind("runs/*/*.json", "a pipeline run's attempt and report", "remove the run's folder; a new attempt makes it"),
    Kind("runs/*/*", "a pipeline run's log and lock", "remove it", True),
    Kind("services.lock", "held while services are up", "remove it while none is up", True),
    Kind("payloads/collector.lock", "held while the collector is up", "remove it while none is up", True),
    Kind("runs/lock", "held while a run is started or looked up", "remove it while none runs", True),
    Kind("logs/*", "logs of services", "remove it", True),
    Kind("pipeline-cache/**", "which steps of runs are done, of kfp", _STEPS),
    Kind("pipeline/**", "outputs of the steps of runs, of kfp", _STEPS),
    Kind("quarantine/**", "rows that a suite refused", "remove it"),
    Kind("data-docs/**", "pages of Great Expectations", "remove it"),
)
"""Every kind of file in the state folder; a file belongs to the first kind that fits."""


def kind(path: Path, state: Path) -> Kind | None:
    """Return the kind of a file under the state folder; None if it is not ours."""
    place = path.relative_to(state).as_posix()
    return next((kind for kind in KINDS if _shape(kind.pattern).fullmatch(place)), None)


@functools.cache
def _shape(pattern: str) -> re.Pattern[str]:
    parts = (".*" if part == "**" else "[^/]*" if part == "*" else re.escape(part) for part in _STARS.split(pattern))
    return re.compile("".join(parts))


class DamagedError(KubeloopError, ValueError):
    """A file of the state is not what was written; the message names it and says what to do."""

    lasting = True

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}{_advice(path)}")


class MissingError(KubeloopError):
    """A file of the state is gone."""

    lasting = True

    def __init__(self, path: Path) -> None:
        # There is nothing to remove.
        super().__init__(f"{path} is missing{_advice(path).replace('remove it; ', '')}")


def _advice(path: Path) -> str:
    # Search upwards, since only the settings know where the state folder begins.
    found = next((known for above in path.parents if (known := kind(path, above))), None)
    return f"; {found.advice}" if found else ""


def seal(text: str) -> str:
    """Return a text after a line with its checksum, which is a comment in YAML and TOML."""
    return f"{_SEAL}{crc32(text.encode()):08x}\n{text}"


def unseal(path: Path) -> str:
    """Return the text of a file with a checksum.

    Raises:
        DamagedError: the text does not match the checksum.
        OSError: the file cannot be read.
    """
    text = _text(path)
    found = _LINE.fullmatch(text)
    if found is None:
        if not text.strip("\0 \n") or _BROKEN.match(text):
            raise DamagedError(path, "it is empty, or was cut off")
        return text
    if crc32(found[2].encode()) != int(found[1], 16):
        raise DamagedError(path, "its content does not fit its checksum (after an edit by hand, drop its first line)")
    return found[2]


def dumps(content: dict[str, Any]) -> str:
    """Return a JSON object with its checksum as a last key."""
    return json.dumps({**content, _KEY: _checksum(content)}, indent=2, allow_nan=False) + "\n"


def loads(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        DamagedError: it does not hold one, or not the one that was written.
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise DamagedError(path, f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DamagedError(path, "it holds no JSON object")
    told = content.pop(_KEY, None)
    if told is not None and told != _checksum(content):
        raise DamagedError(path, "its content does not fit its checksum")
    return content


_BESIDE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY})
"""SQLite's messages if another program writes, or if a kill left a journal that only the next writer may undo."""


def look_into(path: Path) -> sqlite3.Connection:
    """Open a SQLite file without changing anything; if no other program has it open, not even a lock is left."""
    # Without `immutable`, SQLite would create the other two files of a database in WAL mode. Every other database is
    # read under a lock, because an unfinished write would look like damage. The 19th byte is the version for readers
    # (SQLite's file format, 1.3.3).
    with path.open("rb") as file:
        logged = file.read(20)[19:] == b"\x02"
    still = logged and not path.with_name(f"{path.name}-wal").exists()
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro{'&immutable=1' * still}", uri=True, timeout=2)


MADE = "made.json"
"""Name of the file with the digests of a folder whose files are made together."""


def remember(folder: Path, files: Iterable[Path]) -> None:
    """Record the digests of a folder's files, so that `changed` finds files that another program has changed."""
    whole.write(folder / MADE, dumps({path.name: _content(path) for path in sorted(files)}))


def changed(folder: Path) -> list[str]:
    """Return the names of files that are missing or differ from what `remember` recorded, if it recorded any."""
    if not (folder / MADE).is_file():
        return []
    try:
        told = loads(folder / MADE)
    except DamagedError:
        return [MADE]
    return [name for name, content in told.items() if content != _content(folder / name)]


def _content(path: Path) -> str:
    if not path.is_file():
        return "missing"
    # An online store changes with time, so only its structure can be checked.
    if path.suffix == ".db" and path.name != "registry.db":
        return sqlite_fault(path) or "SQLite"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sqlite_fault(path: Path, *, whole: bool = True) -> str | None:
    """Return what is wrong with a SQLite file, or None; the file is not changed.

    SQLite has no checksums, so this finds a broken structure but not a changed value in a row.

    Args:
        path: the file.
        whole: read all of it, not only its schema.
    """
    # SQLite would read an empty file as a new database.
    if not path.stat().st_size:
        return "it is empty"
    try:
        with contextlib.closing(look_into(path)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not whole:
                return None
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            return None if answer == "ok" else str(answer).splitlines()[0]
    except sqlite3.Error as error:
        return None if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BESIDE else str(error)


def _checksum(content: dict[str, Any]) -> str:
    # Converted through JSON, so that keys are texts when they are sorted.
    plain = json.loads(json.dumps(content))
    return f"{crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DamagedError(path, "it is not text") from error

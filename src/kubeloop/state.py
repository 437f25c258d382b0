"""Find what is wrong with the state folder, for `kubeloop doctor` and for a program that fails because of it."""

import contextlib
import errno
import hashlib
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa

from kubeloop import access, config
from kubeloop.config import Settings
from kubeloop.errors import KubeloopError
from kubeloop.stores import kept
from kubeloop.stores.kept import Kind

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM)
_UNCHECKED = ("pipeline", "pipeline-cache", "data-docs", "logs")
"""Folders that are not read again, or only by a library that can make their content again."""
_MODEL = ("model.onnx", "model.json", "reference/reference.toml", "reference/numeric.npy")


class StateError(KubeloopError):
    """A file of the state is broken, missing or not writable; the message names it and says what to do."""

    lasting = True


class FullError(StateError):
    """The disk is full."""

    lasting = False


def faults(settings: Settings, *, whole: bool = True) -> Iterator[StateError]:
    """Yield what is wrong with the state, one sentence per file; change nothing.

    Args:
        settings: the place.
        whole: read every file to its end; otherwise only the small files, for the start of a program, and not those
            that the program makes again.
    """
    if not settings.state.is_dir():
        return
    databases = _databases(settings)
    for folder, folders, names in os.walk(settings.state):
        here = Path(folder)
        if here == settings.state:
            folders[:] = [name for name in folders if name not in _UNCHECKED]
        if not os.access(here, os.W_OK | os.X_OK):
            yield StateError(f"{here} cannot be written; {_writable(here)}")
        for name in sorted(names):
            path = here / name
            if path not in databases and (found := kept.kind(path, settings.state)):
                yield from _fault(path, found, whole)
    for path in databases:
        if path.is_file():
            yield from _fault(path, _kind(path), whole)
    yield from _missing(settings, databases)
    if whole:
        yield from _together(settings)


def _fault(path: Path, kind: Kind, whole: bool) -> Iterator[StateError]:
    if not os.access(path, os.R_OK):
        yield StateError(f"{path} cannot be read; {_writable(path)}")
        return
    if kind.grows and not os.access(path, os.W_OK):
        yield StateError(f"{path} cannot be written; {_writable(path)}")
    try:
        _check(path, kind, whole)
    except KubeloopError as error:
        yield StateError(str(error))
    except OSError as error:
        yield _os_error(error, path)


def _check(path: Path, kind: Kind, whole: bool) -> None:
    """Raise a KubeloopError that says what is wrong with a file, or an OSError."""
    checks: dict[str, Callable[[Path], object]] = {
        "session.json": kept.loads,
        "summary.json": kept.loads,
        "services.json": access.services,
        "token": access.read,
        "features/materialized-to": kept.unseal,
        "payloads/*.seq": kept.unseal,
        "manifests/**.yaml": kept.unseal,
        "runs/*/*.json": kept.loads,
        "loops/*.json": _use_case,
    }
    if whole:
        checks |= {"payloads/events-*.parquet": _segment, "payloads/wal-*.log": _write_ahead}
        checks |= {"mlartifacts/*/artifacts/model/**": _model, "quarantine/**": _table}
    elif kind.advice == kept.AGAIN:
        return
    if check := checks.get(kind.pattern):
        check(path)
    elif path.suffix == ".db" and path.name != "registry.db":
        # A file that a kill left empty right after it was made counts as new.
        new = not path.stat().st_size and kind.sibling and not any(path.parent.glob(kind.sibling))
        if not new and (reason := kept.sqlite_fault(path, whole=whole)):
            raise kept.DamagedError(path, reason)


def _use_case(path: Path) -> None:
    if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
        raise kept.DamagedError(path, "its content does not match the digest in its name")


def _segment(path: Path) -> None:
    from kubeloop.payloads import segments

    if found := segments.segment(path):
        # The collector may have merged it since.
        with contextlib.suppress(FileNotFoundError):
            segments.load(found)


def _table(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_table(path)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise kept.DamagedError(path, str(error).splitlines()[0]) from error


def _write_ahead(path: Path) -> None:
    from kubeloop.payloads import wal

    with contextlib.suppress(FileNotFoundError):
        if lost := wal.replay(path).lost:
            raise kept.DamagedError(path, f"{lost} acknowledged events in it are lost")


def _model(path: Path) -> None:
    """Check a version once, through its card."""
    from kubeloop.tasks.reference import Reference

    if path.name != "model.json":
        return
    folder = path.parent
    if lost := [name for name in _MODEL if not (folder / name).is_file()]:
        raise kept.MissingError(folder / lost[0])
    graph = folder / "model.onnx"
    if hashlib.sha256(graph.read_bytes()).hexdigest() != kept.loads(path).get("sha256"):
        raise kept.DamagedError(graph, "its SHA-256 differs from the one in model.json")
    Reference.load(folder / "reference")


def _missing(settings: Settings, databases: list[Path]) -> Iterator[StateError]:
    """Yield files that are missing although another file needs them."""
    for kind in kept.KINDS:
        place = settings.state / kind.pattern
        elsewhere = place.suffix == ".db" and place not in databases
        if elsewhere or not kind.sibling or place.is_file():
            continue
        if any(settings.state.glob(kind.sibling)):
            yield StateError(str(kept.MissingError(place)))
    for folder in settings.state.glob("mlartifacts/*/artifacts/model"):
        if not (folder / "model.json").is_file():
            yield StateError(str(kept.MissingError(folder / "model.json")))


def _together(settings: Settings) -> Iterator[StateError]:
    """Yield faults that show only when several files are compared."""
    from kubeloop.payloads import segments

    for folder in (settings.raw, settings.features):
        for name in kept.changed(folder):
            if (folder / name).is_file():
                yield StateError(str(kept.DamagedError(folder / name, "its content was changed after it was written")))
            else:
                yield StateError(str(kept.MissingError(folder / name)))
    # A mark that cannot be read has been reported already.
    with contextlib.suppress(segments.LogError):
        for first, last in segments.gaps(settings.payloads, _cursor(settings), oldest=not settings.bucket):
            yield StateError(
                f"{segments.name(settings.payloads, first, last)} is missing: no segment holds the events {first:,} "
                f"to {last:,}; restore it from a backup, or continue without them"
            )


def _cursor(settings: Settings) -> int:
    """Return the last event that a monitor on SQLite has read."""
    path = settings.state / "monitor.db"
    if path not in _databases(settings) or not path.is_file() or kept.sqlite_fault(path, whole=False):
        return 0
    with contextlib.closing(kept.look_into(path)) as connection:
        try:
            return int(connection.execute("SELECT coalesce(max(cursor), 0) FROM progress").fetchone()[0])
        except (sqlite3.Error, ValueError, TypeError):
            return 0


def _databases(settings: Settings) -> list[Path]:
    urls = (settings.ledger_db, settings.monitor_db, settings.mlflow_uri)
    return [Path(sa.make_url(url).database or "") for url in urls if url.startswith("sqlite:")]


def _kind(path: Path) -> Kind:
    return kept.kind(path, path.parent) or Kind(path.name, "a database", "restore it from a backup", grows=True)


def _writable(path: Path) -> str:
    try:
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        read_only = 0
    if read_only:
        return "its file system is read-only: mount it writable, or set KUBELOOP_STATE to another folder"
    return "run as its owner, or give yourself permission (chmod u+rw, chown, chattr -i)"


# ---- errors


def explain(error: BaseException, settings: Settings) -> KubeloopError | None:
    """Return the sentence about the fault of the state that caused an unexpected error; None if the state is sound.

    A library may lose the name of the file that it failed on. If the error has no name, the state is checked.
    """
    for each in _chain(error):
        if isinstance(each, KubeloopError):
            return each
        if isinstance(each, sqlite3.Error) and "disk is full" in str(each):
            return FullError(f"the disk of {settings.state} is full; free space there")
        if not isinstance(each, OSError):
            continue
        path = Path(os.fsdecode(each.filename)) if isinstance(each.filename, str | bytes) else None
        if path and path.is_absolute() and path.is_relative_to(settings.state):
            return _os_error(each, path)
        if path is None and each.errno in _FULL:
            return _os_error(each, settings.state)
    # A program that has not imported pyarrow has no error from it.
    arrow = (module.ArrowException,) if (module := sys.modules.get("pyarrow")) else ()
    broken = (OSError, sqlite3.Error, sa.exc.DBAPIError, *arrow, ValueError, EOFError)
    # Errors of other types are our own mistakes, which a fault of the state must not hide.
    return next(faults(settings), None) if isinstance(error, broken) else None


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn an unexpected error that the state caused into a sentence; see `explain`."""
    try:
        yield
    except KubeloopError:
        raise
    except Exception as error:
        found = explain(error, config.settings())
        if found is None:
            raise
        raise found from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            yield from _chain(inner)
        before = error.__context__
        # The exception in progress may be unrelated, unless it is about a file.
        error = error.__cause__ or (before if isinstance(before, OSError | sqlite3.Error) else None)


def _os_error(error: OSError, path: Path) -> StateError:
    if error.errno in _FULL:
        return FullError(f"{path} cannot be written, the disk is full; free space there")
    if isinstance(error, FileNotFoundError):
        return StateError(str(kept.MissingError(path)))
    if error.errno in _DENIED or error.errno == errno.EROFS:
        return StateError(f"{path} cannot be opened or written ({error.strerror}); {_writable(path)}")
    return StateError(str(kept.DamagedError(path, error.strerror or str(error))))

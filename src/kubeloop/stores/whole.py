"""Write files completely and then put them in place: a crash or a full disk leaves the old or the new file.

This is the only module that renames files; tests/unit/stores/test_whole.py checks it.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_MODE = 0o644


@contextlib.contextmanager
def file(target: Path, *, part: Path | None = None, sync: bool = False) -> Iterator[Path]:
    """Yield the path to write to; the file there replaces `target` at the end, or is removed after an error.

    Only one process may write to `target` at a time. The next one overwrites what a killed process left.

    Args:
        target: the file; its folder exists.
        part: the path to write to, in the same folder; by default it is named after the target.
        sync: the file survives a power cut once this ends.

    Raises:
        OSError: the file cannot be put in place.
    """
    part = part or target.with_name(f".{target.name}.part")
    try:
        yield part
        move(part, target, sync=sync)
    except BaseException:
        # It is missing if nothing was written, and may be a folder that blocks the path.
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write(target: Path, content: str | bytes, *, mode: int | None = None, sync: bool = False) -> None:
    """Replace a file; several processes may do so at once, and the last one wins.

    Args:
        target: the file; its folder exists.
        content: the new content.
        mode: the permission bits; by default those of the old file, or 0644 for a new one.
        sync: the file survives a power cut once this returns.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if mode is None:
            mode = target.stat().st_mode & 0o777 if target.exists() else _MODE
        with file(target, part=target.with_name(f".{target.name}-{secrets.token_hex(4)}"), sync=sync) as part:
            # At first only the owner may read it, so that others can never open a secret.
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                os.fchmod(descriptor, mode)
                out.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def move(source: Path, target: Path, *, sync: bool = False) -> None:
    """Give a file or a folder another name on the same disk; a file that has the name is replaced.

    Args:
        source: the current name.
        target: its new name.
        sync: the content and the name survive a power cut once this returns.

    Raises:
        OSError: it cannot be moved, for example onto a folder that is not empty.
    """
    if sync:
        _sync(source)
    source.replace(target)
    if sync:
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Write the added and removed names of a folder to disk."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

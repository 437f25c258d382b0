"""Make sure that only one process writes to a folder."""

import fcntl
import os
from pathlib import Path

from kubeloop.errors import KubeloopError


class FolderTakenError(KubeloopError):
    """Another process owns the folder."""

    lasting = False


def take(directory: Path) -> int:
    """Become the owner of a folder until the returned file descriptor is closed or the process ends.

    Raises:
        FolderTakenError: another process is the owner.
    """
    descriptor = os.open(directory / "collector.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 32).decode("ascii", "replace")
        os.close(descriptor)
        raise FolderTakenError(
            f"another collector (process {owner}) owns {directory}; stop it, or give --dir another folder"
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor

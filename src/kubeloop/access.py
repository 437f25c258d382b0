"""The token of the services of one machine. Any user who can read its file can change what the services do.

`services` makes a token at each start and keeps it in the state folder, which only the owner can read. The services
are told where it is, and `serving.guard` asks for it; our own clients read it there and send it.
"""

import secrets
from pathlib import Path
from typing import Any

from kubeloop.errors import KubeloopError
from kubeloop.stores import kept, whole

_BYTES = 32


class AccessError(KubeloopError):
    """The token cannot be read, or its folder is not safe; the message says what to do."""

    lasting = True


def private(folder: Path) -> None:
    """Make a folder that only its owner can enter; if it exists, remove the rights of others.

    Raises:
        AccessError: it belongs to someone else.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        folder.chmod(0o700)
    except PermissionError as error:
        raise AccessError(
            f"{folder} belongs to another user, who could read the token in it; set KUBELOOP_STATE to a folder of your "
            "own"
        ) from error


def make(path: Path) -> str:
    """Replace the token with a new one that only the owner can read, and return it."""
    token = secrets.token_urlsafe(_BYTES)
    whole.write(path, token, mode=0o600, sync=True)
    return token


def read(path: Path) -> str:
    """Return the token in a file.

    Raises:
        AccessError: the file cannot be read or is empty.
    """
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise AccessError(f"{path} cannot be read ({error.strerror}); its owner started the services") from error
    if not token:
        raise AccessError(f"{path} is empty; start the services again")
    return token


def services(path: Path) -> dict[str, dict[str, Any]]:
    """Return `url` and `pid` of each service that a session has recorded; an empty mapping if none has.

    In a copied state folder the file still names the services of the original, which the copy must not call.

    Raises:
        DamagedError: the file is not what was written.
        OSError: it cannot be read.
    """
    here = str(path.parent)
    found = {}
    for name, item in (kept.loads(path) if path.is_file() else {}).items():
        if not isinstance(item, dict) or "url" not in item:
            raise kept.DamagedError(path, "it does not tell of services")
        if item.pop("state", here) == here:
            found[name] = item
    return found


def header(path: Path) -> dict[str, str]:
    """Return the header that our clients send; empty if there is no token, as in a cluster.

    Raises:
        AccessError: there is a token, and this user cannot read it.
    """
    return bearer(read(path)) if path.exists() else {}


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a token (RFC 6750, 2.1); empty for an empty token."""
    return {"authorization": f"Bearer {token}"} if token else {}

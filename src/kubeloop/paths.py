"""Paths and addresses that come from outside: from a request, a manifest, an event or an object."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kubeloop.errors import KubeloopError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,199}")


class PathError(KubeloopError, ValueError):
    """A text is not a name, so it cannot be part of a path."""

    lasting = True


def part(text: object, what: str) -> str:
    """Return a text that can be one part of a path and cannot lead to another folder.

    Args:
        text: the text to check.
        what: what it names; the subject of the error's sentence.

    Raises:
        PathError: it is not a name.
    """
    if not isinstance(text, str) or not _PART.fullmatch(text):
        shown = repr(text)[:80]
        raise PathError(f"{what} {shown} is not a name: use letters, digits, and . _ + = @ - after the first of these")
    return text


def inside(folder: Path, *parts: str, what: str = "the name") -> Path:
    """Return the path under a folder that names lead to.

    Raises:
        PathError: one of them is not a name.
    """
    return folder.joinpath(*(part(each, what) for each in parts))


def local(address: str) -> Path | None:
    """Return the local path of an address, which is a path or a file:// URI; None if it is on another machine."""
    if "://" not in address:
        return Path(address)
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None


def rehome(uri: str, state: Path) -> str:
    """Return where a local model is now; in a state folder that was copied or moved, addresses name the old place."""
    found = re.fullmatch(r"(?:file://)?/(?:.*/)?mlartifacts/(.+)", uri)
    here = state / "mlartifacts" / unquote(found[1]) if found else None
    return here.as_uri() if here is not None and here.exists() else uri

"""Pass the use case of a run by reference: `begin-run` stores it once under its digest, and later steps read it.

As text it would occur several times in every step's status, which Argo stores in one object of one megabyte.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from kubeloop import names
from kubeloop.config import ConfigError, Loop, Settings
from kubeloop.errors import KubeloopError
from kubeloop.stores import whole
from kubeloop.stores.bucket import Bucket

_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")
_NAMED = 5
"""Most settings that a sentence names."""


class LoopError(KubeloopError):
    """The use case of a run is not stored under its reference; a new run stores it again."""

    lasting = True


def keep(loop: Loop, settings: Settings) -> str:
    """Store a use case with all its defaults, and return the reference to it.

    It is stored in the bucket if there is one, and otherwise in the state folder. Texts with the same meaning have the
    same reference, so that they share cached results.

    Raises:
        BucketError: the bucket does not accept it.
    """
    content = json.dumps(loop.model_dump(mode="json"), sort_keys=True, ensure_ascii=False).encode()
    digest = hashlib.sha256(content).hexdigest()
    if settings.bucket:
        Bucket.open(settings).put(names.loop(digest), content)
    else:
        path = settings.state / names.loop(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write(path, content)
    return f"sha256:{digest}"


def read(text: str, settings: Settings) -> Loop:
    """Return the use case of a reference or of a text.

    Args:
        text: a reference as `keep` returns it, or the use case as JSON or YAML.
        settings: where it is stored.

    Raises:
        ConfigError: the text is neither.
        LoopError: the reference names nothing, or something else is stored there.
        BucketError: the bucket does not answer.
    """
    match = _REFERENCE.fullmatch(text.strip())
    if not match:
        return Loop.parse(text)
    name = names.loop(match[1])
    if settings.bucket:
        bucket = Bucket.open(settings)
        content, place = bucket.get(name), bucket.address(name)
    else:
        path = settings.state / name
        content, place = path.read_bytes() if path.is_file() else None, str(path)
    if content is None:
        raise LoopError(f"the use case of this run is no longer at {place}; start a new run, which stores it again")
    if hashlib.sha256(content).hexdigest() != match[1]:
        raise LoopError(f"{place} was changed after the run began; start a new run, which stores it again")
    return Loop.parse(content.decode())


def compiled(loop: Loop) -> str:
    """Return the digest of what a pipeline keeps from the loop at compilation, whatever loop a run gets.

    This is the configuration of its pods: images, resources, Secrets.
    """
    git = loop.delivery.git
    content = [loop.name, loop.pipelines.model_dump(mode="json"), git.model_dump(mode="json") if git else None]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def stale(loop: Loop, settings: Settings) -> str:
    """Return how a run differs from the installed loop, and the command that changes this; empty if it does not.

    A recurring run, and the pods of every run, are made from the loop that `kubeloop schedule` was given. On one
    machine there is no release, and `kubeloop run` compiles what it runs.
    """
    if not settings.release:
        return ""
    lacks = _differs(loop, settings.installed_loop)
    if not lacks and settings.compiled not in ("", compiled(loop)):
        lacks = (
            "The pods of this run were compiled from another `pipelines` or `delivery.git` than the loop has, or by "
            "another version of kubeloop"
        )
    if not lacks:
        return ""
    namespace, _, release = settings.release.partition("/")
    command = f"kubeloop schedule --release {release} --namespace {namespace}"
    return f"{lacks}; `{command}` makes later runs follow what is installed"


def _differs(loop: Loop, installed: str) -> str:
    if not installed:
        return ""
    try:
        now = Loop.parse(installed)
    except ConfigError as error:
        return f"This run cannot read the installed loop, which seems to be of another version of kubeloop ({error})"
    # `assumptions` are text for people.
    ours, theirs = (item.model_dump(mode="json", exclude={"assumptions"}) for item in (loop, now))
    found = list(_paths(ours, theirs))
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"This run has another {', '.join(found[:_NAMED])}{more} than the installed loop" if found else ""


def _paths(ours: Any, theirs: Any, prefix: str = "") -> Iterator[str]:
    """Yield the settings that differ, as `training.window`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from _paths(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif ours != theirs:
        yield f"`{prefix}`"

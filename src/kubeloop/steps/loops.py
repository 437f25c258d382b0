"""The use case of a run, passed by reference: `begin-run` keeps it once under its digest, every later step reads it.

As text it would stand several times in the status of every step that Argo holds in one object of one megabyte.
"""

import hashlib
import json
import re

from kubeloop import names
from kubeloop.config import Loop, Settings
from kubeloop.errors import KubeloopError
from kubeloop.stores import whole
from kubeloop.stores.bucket import Bucket

_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")


class LoopError(KubeloopError):
    """The use case of a run is not where its reference says; a new run keeps it again."""

    lasting = True


def keep(loop: Loop, settings: Settings) -> str:
    """Keep a use case with all its defaults, and return the reference to it.

    It lies in the bucket where there is one, and otherwise in the state folder. Texts that mean the same have one
    reference, so that what was cached for one is found for the other.

    Raises:
        BucketError: the bucket does not take it.
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
    """Return the use case that a reference names, or that a text is.

    Args:
        text: a reference as `keep` returns it, or the use case as JSON or YAML.
        settings: where it is kept.

    Raises:
        ConfigError: the text is neither.
        LoopError: nothing is kept under the reference, or something else than it names.
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
        raise LoopError(f"the use case of this run is no longer at {place}; start a new run, which keeps it again")
    if hashlib.sha256(content).hexdigest() != match[1]:
        raise LoopError(f"{place} was changed after the run began; start a new run, which keeps it again")
    return Loop.parse(content.decode())

"""Read and write an environment's patch, which names the model version that it serves, and copy a version into it.

It needs only PyYAML, since the workflow that promotes between environments installs nothing else.
"""

from collections.abc import Iterable
from typing import Any

import yaml

from kubeloop import names
from kubeloop.delivery import rollout
from kubeloop.errors import KubeloopError

Object = dict[str, Any]

LINEAGE = (names.VERSION, names.DIGEST, names.RUN)
FLAGS = ("--version=", "--sha256=")


class PatchError(KubeloopError, ValueError):
    """The file is not the patch of an InferenceService; the message says what it lacks."""

    lasting = True


def read(text: str | bytes, service: str) -> Object:
    """Return the patch of an inference service.

    Raises:
        PatchError: it is the patch of something else, or incomplete.
    """
    try:
        found = _unshared(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise PatchError(f"is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or found.get("kind") != "InferenceService":
        raise PatchError("is not a patch of an InferenceService")
    name = _at(found, "metadata").get("name")
    if name != service:
        raise PatchError(f"is the patch of {name}, not of {service}")
    model = _at(found, "spec", "predictor", "model")
    for field, kind in (("storageUri", str), ("args", list)):
        if not isinstance(model.get(field, kind()), kind):
            raise PatchError(f"has a spec.predictor.model.{field} of the wrong type")
    version(found)
    return found


def _unshared(content: Any) -> Any:
    """Return content without shared parts, such as YAML aliases make: a change to one would change the other."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    return [_unshared(value) for value in content] if isinstance(content, list) else content


def _at(patch: Object, *path: str) -> Object:
    for number, name in enumerate(path, 1):
        patch = patch.get(name, {})
        if not isinstance(patch, dict) or not patch:
            raise PatchError(f"has no {'.'.join(path[:number])}")
    return patch


def dump(patch: Object) -> str:
    """Write a patch as `read` reads it."""
    return yaml.safe_dump(patch, sort_keys=False, width=120)


def lineage(patch: Object) -> dict[str, str]:
    """Return the lineage of the model in a patch or an InferenceService: version, digest and run.

    It is on the predictor. Older releases also wrote it on the service, so it is read there too.
    """
    predictor = (patch.get("spec") or {}).get("predictor") or {}
    found = (patch["metadata"].get("annotations") or {}) | (predictor.get("annotations") or {})
    return {name: str(found[name]) for name in LINEAGE if name in found}


def version(patch: Object) -> int:
    """Return the number of the model version that a patch names; 0 if it names none.

    Raises:
        PatchError: it is not a number.
    """
    text = lineage(patch).get(names.VERSION, "0")
    if not text.isdecimal():
        raise PatchError(f"has {names.VERSION}: {text!r}, which is not a number")
    return int(text)


def carry(source: Object, target: Object) -> Object:
    """Return `target` with the model of `source`; both are patches of one InferenceService, or complete ones.

    Only the fields that name the version are copied: the lineage, the address, the digest. Scaling, addresses of
    services and everything else of the target are kept. One exception is the lineage that older releases wrote on the
    service itself: it is removed, since a change there also replaces the transformer's pods. A stamped target gets a
    new stamp.

    Raises:
        PatchError: the target does not hold the arguments of its server.
    """
    metadata = dict(target["metadata"])
    annotations = metadata.pop("annotations", None) or {}
    if own := {name: text for name, text in annotations.items() if name not in LINEAGE}:
        metadata["annotations"] = own
    ours, theirs = source["spec"]["predictor"], target["spec"]["predictor"]
    model = theirs["model"] | {"storageUri": ours["model"]["storageUri"]}
    if flags := [flag for flag in ours["model"].get("args", ()) if flag.startswith(FLAGS)]:
        kept = [flag for flag in model.get("args", ()) if not flag.startswith(FLAGS)]
        if not kept:  # a list in a patch replaces the base's, so that the flags alone would be all there is
            raise PatchError("has no spec.predictor.model.args, which name the version")
        model["args"] = [*kept[:1], *flags, *kept[1:]]
    predictor = theirs | {"annotations": (theirs.get("annotations") or {}) | lineage(source), "model": model}
    # A canary of the environment was judged against the version that is replaced.
    spec = {key: value for key, value in target["spec"].items() if key != "canary"}
    carried = target | {"metadata": metadata, "spec": spec | {"predictor": predictor}}
    return rollout.stamped(carried) if rollout.stamp(target) else carried


def stamped(patch: Object, components: Iterable[str]) -> Object:
    """Return a patch with the stamps by which a rollout is recognized, on itself and on each of the components."""
    parts = {name: patch["spec"].get(name) or {} for name in components}
    return rollout.stamped(patch | {"spec": patch["spec"] | parts})

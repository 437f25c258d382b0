"""What KServe's webhooks refuse of a ServingRuntime, in KServe's own words.

Read from kserve/kserve at commit aaac4e29: pkg/webhook/admission/servingruntime/servingruntime_webhook.go. Left out is
what it says about workers on several nodes.
"""

from collections.abc import Sequence

from tests.kserve.rules import Object, RefusedError, blocked


def validate(runtime: Object, others: Sequence[Object] = ()) -> None:
    """Refuse a ServingRuntime, or a ClusterServingRuntime, as KServe does.

    pkg/webhook/admission/servingruntime/servingruntime_webhook.go, Handle of either; priorities are only compared
    where another runtime exists, and only among those of one namespace, or of the cluster.

    Args:
        runtime: the object.
        others: the runtimes of its kind that are there.

    Raises:
        RefusedError: see there.
    """
    spec, kind, name = runtime["spec"], runtime["kind"], runtime["metadata"]["name"]
    if spec.get("disabled"):
        return
    for other in others:
        if twice := _two_priorities(spec):
            raise RefusedError(
                f"different priorities assigned for the model format {twice} under the {kind.lower()} {name}"
            )
        if shared := _same_priority(runtime, other):
            where = f" in namespace {runtime['metadata'].get('namespace', '')}" if kind == "ServingRuntime" else ""
            raise RefusedError(
                f"same priority assigned for the model format {shared} in the {kind.lower()}s "
                f"{other['metadata']['name']} and {name}{where}"
            )
    try:
        blocked(spec.get("containers", ()))
    except RefusedError as error:
        raise RefusedError(f'the {kind} "{name}" is invalid: {error}') from None


def _two_priorities(spec: Object) -> str | None:
    """Return a model format with two priorities (validateModelFormatPrioritySame)."""
    found: dict[str, int | None] = {}
    for item in spec.get("supportedModelFormats", ()):
        if item.get("autoSelect"):
            first = found.setdefault(item["name"], item.get("priority"))
            if None not in (first, item.get("priority")) and first != item["priority"]:
                return str(item["name"])
    return None


def _same_priority(runtime: Object, other: Object) -> str | None:
    """Return a model format that both would take first (validateServingRuntimePriority)."""
    mine, theirs = runtime["spec"], other["spec"]
    same = runtime["metadata"]["name"] == other["metadata"]["name"]
    if same or theirs.get("disabled") or bool(mine.get("multiModel")) != bool(theirs.get("multiModel")):
        return None
    if not {*mine.get("protocolVersions", ())} & {*theirs.get("protocolVersions", ())}:
        return None
    for ours in mine.get("supportedModelFormats", ()):
        for item in theirs.get("supportedModelFormats", ()):
            equal = ours["name"].lower() == item["name"].lower() and ours.get("version") == item.get("version")
            priority = ours.get("priority")
            taken = equal and ours.get("autoSelect") and item.get("autoSelect")
            if taken and priority is not None and priority == item.get("priority"):
                return str(ours["name"])
    return None

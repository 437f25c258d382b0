"""What KServe's webhooks refuse of a ServingRuntime, in KServe's own words.

Source: kserve/kserve at commit aaac4e29, pkg/webhook/admission/servingruntime/servingruntime_webhook.go. The rules
about workers on several nodes are left out.
"""

from collections.abc import Sequence

from tests.kserve.rules import Object, RefusedError, blocked


def validate(runtime: Object, others: Sequence[Object] = ()) -> None:
    """Refuse a ServingRuntime, or a ClusterServingRuntime, as KServe does.

    Source: pkg/webhook/admission/servingruntime/servingruntime_webhook.go, Handle of either. Priorities are compared
    only with other runtimes, and only within one namespace or within the cluster.

    Args:
        runtime: the object.
        others: the existing runtimes of its kind.

    Raises:
        RefusedError: KServe refuses it.
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
    """Return a model format that both runtimes would serve with the same priority (validateServingRuntimePriority)."""
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

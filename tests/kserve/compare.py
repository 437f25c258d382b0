"""Compare what a real KServe made with what the stand-in makes of the same InferenceServices.

    python -m tests.kserve.cases NAMESPACE | kubectl apply --server-side -f -
    kubectl -n NAMESPACE get isvc,deployments,services,servingruntimes -o json | python -m tests.kserve.compare

The namespace needs the chart's ServingRuntimes and service accounts; no pod has to run. It prints each difference and
its count. Fields that only the real Deployments have are defaults of the API server.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.kserve import controller

Object = dict[str, Any]


def differences(played: Any, real: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield where two values differ: the path, and both sides as text; a missing side is empty."""
    if isinstance(played, dict) and isinstance(real, dict):
        for key in sorted({*played, *real}):
            yield from differences(played.get(key), real.get(key), f"{path}.{key}")
    elif isinstance(played, list) and isinstance(real, list) and len(played) == len(real):
        for number, (mine, theirs) in enumerate(zip(played, real, strict=True)):
            yield from differences(mine, theirs, f"{path}[{number}]")
    elif played != real:
        yield path, *("" if value is None else str(value)[:100] for value in (played, real))


def compared(items: list[Object]) -> Counter[tuple[str, str, str]]:
    """Count the differences between the existing Deployments and Services and those of the stand-in."""
    there = {(item["kind"], item["metadata"]["name"]): item for item in items}
    found: Counter[tuple[str, str, str]] = Counter()
    for (kind, _), service in there.items():
        if kind != "InferenceService":
            continue
        runtime = there.get(("ServingRuntime", service["spec"]["predictor"]["model"].get("runtime", "")))
        for made in controller.objects(service, runtime and runtime["spec"]):
            if made["kind"] not in ("Deployment", "Service"):
                continue
            real = there.get((made["kind"], made["metadata"]["name"]))
            if real is None:
                found[f"{made['kind']} {made['metadata']['name']}", "made", "missing"] += 1
            elif made["kind"] == "Deployment":
                found.update(differences(made["spec"], real["spec"]))
    return found


if __name__ == "__main__":
    for (path, played, real), times in compared(json.load(sys.stdin)["items"]).most_common():
        print(f"{times:3} {path}: played {played or 'nothing'}, real {real or 'nothing'}")

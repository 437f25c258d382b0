"""Choose the applier that `delivery.applier` names and hand it the manifest."""

import json
from typing import Any

from kubeloop.config import Loop, Settings
from kubeloop.delivery import Applied, DeliveryError, local

TIMEOUT_S = 180.0


def apply(loop: Loop, manifest: dict[str, Any], settings: Settings) -> Applied:
    """Bring a manifest into service and wait until it is.

    Args:
        loop: names the applier.
        manifest: an InferenceService, as `serving.manifest` builds it.
        settings: where the address of the local node is found.

    Raises:
        DeliveryError: it does not serve; the message says why and what to do.
    """
    match loop.delivery.applier:
        case "local":
            return local.apply(manifest, node_url(settings), TIMEOUT_S)
        case "cluster":
            from kubeloop.delivery import cluster

            return cluster.apply([manifest], loop.delivery.ready_timeout.total_seconds())
        case "gitops":
            raise DeliveryError("delivery.applier 'gitops' is not available yet; write `applier: cluster` in loop.yaml")


def node_url(settings: Settings) -> str:
    """Return the address of the local node.

    Raises:
        DeliveryError: no node is up.
    """
    path = settings.services_file
    try:
        return str(json.loads(path.read_text())["node"]["url"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeliveryError(f"no local node is up ({path} names none); start it with `kubeloop serve`") from error

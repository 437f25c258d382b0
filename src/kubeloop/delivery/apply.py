"""Apply a manifest with the applier that `delivery.applier` names."""

from typing import Any, cast

from kubeloop import access
from kubeloop.config import Loop, Settings
from kubeloop.config.cluster import Git
from kubeloop.delivery import Applied, DeliveryError, local

TIMEOUT_S = 180.0


def apply(loop: Loop, manifest: dict[str, Any], settings: Settings, *, why: str = "") -> Applied:
    """Apply a manifest and wait until it serves; with GitOps this may only open a proposal.

    Args:
        loop: names the applier.
        manifest: an InferenceService, as `serving.manifest` builds it.
        settings: hold the address of the local node and the credentials for Git.
        why: why this version is promoted, for the record that Git keeps.

    Raises:
        DeliveryError: it is not served; the message says why and what to do.
    """
    delivery = loop.delivery
    timeout_s = delivery.ready_timeout.total_seconds()
    match delivery.applier:
        case "local":
            return local.apply(manifest, node_url(settings), TIMEOUT_S, _token(settings))
        case "cluster":
            from kubeloop.delivery import cluster

            return cluster.apply([manifest], timeout_s)
        case "gitops":
            from kubeloop.delivery import gitops

            # With this applier the configuration is not valid without it.
            return gitops.apply(manifest, cast(Git, delivery.git), timeout_s, settings, why=why)


def _token(settings: Settings) -> str:
    try:
        return access.read(settings.token_file)
    except access.AccessError as error:
        raise DeliveryError(f"the local node needs the token of the user who started it: {error}") from error


def node_url(settings: Settings) -> str:
    """Return the address of the local node.

    Raises:
        DeliveryError: the node is not running.
    """
    path = settings.services_file
    try:
        return str(access.services(path)["node"]["url"])
    except (OSError, KeyError) as error:
        raise DeliveryError(
            f"the local node is not running ({path} does not list it); start it with `kubeloop serve`"
        ) from error
